#!/usr/bin/env bash
# Set everything up and run the checks and the tests. Arguments are passed on to pytest:
#   bash scripts/test.sh tests/config -k typo
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env dev

cd "$ROOT"
python=$PYTHON_IN_VENV
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy inference
exec "$python" -m pytest "$@"
