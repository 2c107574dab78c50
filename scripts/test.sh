#!/usr/bin/env bash
# Set everything up and run the checks and the tests. Arguments are passed on to pytest:
#   bash scripts/test.sh tests/config -k typo
# With --real before them, the larger of the two real models is fetched and tested, too (491 MB).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env dev

# The wheels of MindFormers' releases, for the YAML files in them: 15 MB, fetched once. Without an index in reach the
# tests that read them are skipped, and say so.
fetch_mindformers() {
    local wheels=$VENV/mindformers-wheels release
    mkdir -p "$wheels"
    for release in 1.0.2 1.1.0 1.2.0 1.3.2 1.6.0 1.7.0 1.8.0 1.9.0 2.0.0 2.1.0; do
        compgen -G "$wheels/mindformers-$release-*.whl" >/dev/null && continue
        "$PYTHON_IN_VENV" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
            --retries 1 --timeout 15 --dest "$wheels" "mindformers==$release" >/dev/null 2>&1 ||
            { echo "mindformers $release cannot be fetched: tests of its YAML files are skipped" >&2 && return; }
    done
    export MINDFORMERS_WHEELS=$wheels
}

# torch, for the test of a pipeline with a model of torch's, in a folder of its own: MindSpore and MindFormers must not
# find it. Only a CPU build will do, which is what +cpu asks for and only some indexes have (880 MB on the disk, about a
# minute): the one without brings several gigabytes of CUDA. Without it that test is skipped.
fetch_torch() {
    local folder=$VENV/torch
    if [[ ! -e $folder/.ready ]]; then
        rm -rf "$folder"
        "$PYTHON_IN_VENV" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
            --retries 1 --timeout 15 --target "$folder" torch==2.13.0+cpu >/dev/null 2>&1 ||
            { rm -rf "$folder" && echo "no CPU build of torch can be fetched: its test is skipped" >&2 && return; }
        : >"$folder/.ready"
    fi
    export TORCH_FOLDER=$folder
}

# SmolLM2 as a GGUF file (98 MB), into the user's cache: its answers are held to llama.cpp's. Without it that test is
# skipped, and real_models.sh says so.
fetch_real_models() {
    REAL_MODELS=$(PYTHON=$PYTHON_IN_VENV bash "$ROOT/scripts/real_models.sh" "$@") && export REAL_MODELS || true
}

real=()
if [[ ${1:-} == --real ]]; then
    real=(--real)
    export REAL_MODELS_ALL=yes
    shift
fi
cd "$ROOT"
python=$PYTHON_IN_VENV
[[ -n ${MINDFORMERS_WHEELS:-} ]] || fetch_mindformers
[[ -n ${TORCH_FOLDER:-} ]] || fetch_torch
[[ -n ${REAL_MODELS:-} ]] || fetch_real_models "${real[@]}"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy inference
# Bytecode saves a second for every process that a test starts.
unset PYTHONDONTWRITEBYTECODE
# Two files at a time: much of a test's time is the start of a process.
exec "$python" -m pytest -n 2 --dist loadfile --durations 15 "$@"
