#!/usr/bin/env bash
# Runs a command in N processes, as MindFormers' msrun_launcher.sh does; --help tells all:
#   bash scripts/launcher.sh "python run_inference.py --config CONFIG --use_parallel True ..." 2
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The Python that the command's own `python` is, if it has MindSpore; otherwise the one that demo.sh set up.
find_python() {
    local candidate
    for candidate in "${PYTHON:-python}" python3 "$root/.venv/bin/python"; do
        "$candidate" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("mindspore") and u.find_spec("click")))' \
            2>/dev/null && echo "$candidate" && return
    done
    echo "launcher.sh: no Python with MindSpore was found; run bash scripts/demo.sh, or set PYTHON to its path" >&2
    return 1
}

python=$(find_python)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export INFERENCE_LAUNCHER_PROGRAM="bash $(printf %q "$0")"
exec "$python" -m inference.launcher "$@"
