# Sourced by demo.sh and test.sh: makes .venv and installs the project into it, once.
#
#   setup_env [EXTRA]     sets ROOT and PYTHON_IN_VENV, and puts .venv/bin first on PATH
#
# The stamp .venv/.ready is written last. It names what was installed: a hash of what decides it, and the extras. A
# mark .venv/.installing that is still there says that an earlier run was cut off, and .venv is made anew.

readonly MINIMUM_FREE_KIB=$((4 * 1024 * 1024))
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
PYTHON_IN_VENV=$VENV/bin/python
INSTALL_LOG=$ROOT/.venv-install.log

fail() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

setup_env() {
    local extra=${1:-}
    if ! is_ready "$extra"; then
        take_lock
        is_ready "$extra" || build_env "$extra"
        release_lock
    fi
    PATH=$VENV/bin:$PATH
    export PATH
}

wanted_hash() {
    (cd "$ROOT" && { pwd; cat setup.cfg setup.py pyproject.toml; } | sha256sum | cut -d' ' -f1)
}

is_ready() {
    local stamped_hash stamped_extras
    [[ -x $PYTHON_IN_VENV && -r $VENV/.ready ]] || return 1
    { read -r stamped_hash && read -r stamped_extras; } <"$VENV/.ready" || return 1
    [[ $stamped_hash == "$(wanted_hash)" && " $stamped_extras " == *" base $1"* ]]
}

# One set-up at a time; the others wait for it and then find it done.
take_lock() {
    [[ -w $ROOT ]] || fail "cannot write to $ROOT; give yourself the right to, or copy the project elsewhere"
    exec 9>"$ROOT/.venv.lock"
    command -v flock >/dev/null || return 0
    flock --nonblock 9 || { echo "waiting for another set-up to end" >&2 && flock 9; }
}

release_lock() {
    exec 9>&-
}

build_env() {
    local extra=$1
    check_space
    [[ ! -e $VENV/.installing ]] || rm -rf "$VENV"
    "$PYTHON_IN_VENV" -m pip --version >/dev/null 2>&1 || make_venv
    rm -f "$VENV/.ready"
    : >"$VENV/.installing"
    install_project "$extra"
    build_kernels
    printf '%s\nbase %s\n' "$(wanted_hash)" "$extra" >"$VENV/.ready.new"
    rm "$VENV/.installing"
    mv "$VENV/.ready.new" "$VENV/.ready"
}

check_space() {
    local free_kib
    free_kib=$(df -Pk "$ROOT" | awk 'NR == 2 { print $4 }')
    ((free_kib >= MINIMUM_FREE_KIB)) ||
        fail "$ROOT has $((free_kib / 1024)) MiB of free disk space; the set-up needs $((MINIMUM_FREE_KIB / 1024)) MiB"
}

make_venv() {
    local python
    python=$(find_python) || exit 1
    rm -rf "$VENV"
    mkdir "$VENV"
    : >"$VENV/.installing"
    "$python" -m venv "$VENV" >"$INSTALL_LOG" 2>&1 ||
        fail "$python cannot make a virtual environment; see $INSTALL_LOG"
}

# The first Python on PATH that will do, or $PYTHON.
find_python() {
    local candidate version seen="" candidates=(python3.11 python3.10 python3.12 python3 python)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        case $version in
            3.10 | 3.11 | 3.12) ;;
            *) seen+=" $candidate is $version," && continue ;;
        esac
        "$candidate" -c 'import ensurepip, venv' 2>/dev/null ||
            { seen+=" $candidate has no venv module (Debian: install python$version-venv)," && continue; }
        echo "$candidate"
        return
    done
    seen=${seen:- ${PYTHON:-python} was not found,}
    fail "Python 3.10, 3.11 or 3.12 is needed, but${seen%,}; install one, or set PYTHON to its path"
}

install_project() {
    local extra=$1
    echo "installing into $VENV; takes a few minutes" >&2
    (cd "$ROOT" && "$PYTHON_IN_VENV" -m pip install --quiet --disable-pip-version-check \
        --editable ".${extra:+[$extra]}") >"$INSTALL_LOG" 2>&1 || report_pip
    rm -f "$INSTALL_LOG"
}

# Without a compiler the project runs on stock operators, and says so at each run.
build_kernels() {
    "$PYTHON_IN_VENV" -c "from inference.kernels.build import main; main()" >/dev/null || true
}

# pip ended by itself, so what it left is whole: the next run may go on with it.
report_pip() {
    rm -f "$VENV/.installing"
    local unreachable='NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|connection broken'
    # An index always has setuptools; one that has not is out of reach.
    unreachable+='|No matching distribution found for setuptools'
    if grep -qE "$unreachable" "$INSTALL_LOG"; then
        fail "no network: pip cannot reach the package index; connect, or set PIP_INDEX_URL to one within reach"
    fi
    if grep -q 'No space left on device' "$INSTALL_LOG"; then
        fail "the disk is full: pip had no space left in $VENV or in ${TMPDIR:-/tmp}"
    fi
    tail -n 5 "$INSTALL_LOG" >&2
    fail "pip could not install the project; its whole output is in $INSTALL_LOG"
}
