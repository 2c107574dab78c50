#!/usr/bin/env bash
# Set everything up and let the demo model answer. Arguments are passed on:
#   bash scripts/demo.sh --predict_data '2 + 3 ='
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env

prompt=(--predict_data 'Once upon a time')
for argument in "$@"; do
    [[ $argument == --predict_data* ]] && prompt=()
done
# Not exec: the start-up figures count from the start of the process, which is to be Python's.
"$PYTHON_IN_VENV" "$ROOT/run_inference.py" --config "$ROOT/configs/demo/predict_demo.yaml" \
    --run_mode predict --echo True --stream True "${prompt[@]}" "$@"
