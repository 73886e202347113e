# shellcheck shell=bash
# Sourced with ROOT set. find_or_make_environment EXTRA MODULE... sets PYTHON to an interpreter that
# has the package and the modules: the active one, or that of .venv, which is made where it lacks
# them by installing the package with its EXTRA.

# what the tests need beside the package
# shellcheck disable=SC2034
TEST_MODULES=(hypothesis matplotlib mypy packaging psutil pytest ruff xdist)

has_modules() { # INTERPRETER MODULE...: whether it finds them from any directory
    local python=$1
    shift
    (cd / && "$python" -c '
import sys
from importlib.util import find_spec
sys.exit(not all(find_spec(name) for name in sys.argv[1:]))' "$@") >/dev/null 2>&1
}

make_environment() { # INTERPRETER DIRECTORY EXTRA: a virtual environment with the package in it
    local python=$2/bin/python
    "$1" -m venv "$2" || return
    if "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then
        # fairseq 0.12.2 names its requirements in a way that later ones refuse
        "$python" -m pip install --quiet 'pip<24.1' || return
    fi
    "$python" -m pip install --quiet --no-deps --require-hashes --requirement "$ROOT/fairseq.txt" &&
        "$python" -m pip install --quiet --constraint "$ROOT/constraints.txt" --editable "$ROOT$3"
}

find_or_make_environment() {
    local extra=$1
    shift
    local modules=(fairseq torch fairseq_csp "$@")
    PYTHON=python3
    has_modules "$PYTHON" "${modules[@]}" && return
    PYTHON=$ROOT/.venv/bin/python
    has_modules "$PYTHON" "${modules[@]}" && return

    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "python3 must be Python 3.10 or newer, with its venv module" >&2
        return 1
    fi
    echo "Setting up $ROOT/.venv (once): about a minute, or 5 to 9 where fairseq has to be compiled."
    make_environment python3 "$ROOT/.venv" "$extra"
}
