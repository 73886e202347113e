# shellcheck shell=bash
# Sourced with ROOT set. find_or_make_environment EXTRA MODULE... sets PYTHON to an interpreter that
# has the package and the modules: the active one, or that of .venv, which is made where it lacks
# them by installing the package with its EXTRA.

# what the package needs (pyproject.toml), and what the tests need beside it
# shellcheck disable=SC2034
MODULES=(fairseq fairseq_csp ninja numpy PIL pooch requests sentencepiece submitit tensorboard
    tensorboardX torch tqdm)
# shellcheck disable=SC2034
TEST_MODULES=(hypothesis matplotlib mypy packaging psutil pytest ruff xdist)

check_python() { # whether python3 is one that is supported; if not, say so
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && return
    echo "python3 must be Python 3.10 or newer, with its venv module" >&2
    return 1
}

has_modules() { # INTERPRETER MODULE...: whether it finds them from any directory
    local python=$1
    shift
    (cd / && "$python" -c '
import sys
from importlib.util import find_spec
sys.exit(not all(find_spec(name) for name in sys.argv[1:]))' "$@") >/dev/null 2>&1
}

# as `python -m MODULE` by `python -c "$LAUNCH" "$ROOT" MODULE`, but blind to the modules that lie
# where it is called
# shellcheck disable=SC2034
LAUNCH='import sys
sys.path[0] = sys.argv[1]
import runpy
sys.argv[:3] = sys.argv[2:3]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)'

supervised() { # COMMAND...: run it; when this shell ends, so does all that it started
    local shell=$BASHPID watcher status=0
    python3 -c "$LAUNCH" "$ROOT" fairseq_csp.supervise "$shell" INT "$@" &
    watcher=$!
    trap 'kill "$watcher"; wait "$watcher"; exit 130' INT TERM HUP
    wait "$watcher" || status=$?
    trap - INT TERM HUP
    return "$status"
}

make_environment() { # INTERPRETER DIRECTORY EXTRA: a virtual environment with the package in it
    local python=$2/bin/python
    supervised "$1" -m venv "$2" || return
    if "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then
        # fairseq 0.12.2 names its requirements in a way that later ones refuse
        supervised "$python" -m pip install --quiet 'pip<24.1' || return
    fi
    supervised "$python" -m pip install --quiet --no-deps --require-hashes \
        --requirement "$ROOT/fairseq.txt" &&
        supervised "$python" -m pip install --quiet --constraint "$ROOT/constraints.txt" \
            --editable "$ROOT$3"
}

find_or_make_environment() {
    local here=$PWD status=0
    # modules that lie where this is called are not looked at
    cd "$ROOT" && in_root_find_or_make_environment "$@" || status=$?
    cd "$here" && return "$status"
}

in_root_find_or_make_environment() {
    local extra=$1
    shift
    local modules=("${MODULES[@]}" "$@")
    PYTHON=python3
    has_modules "$PYTHON" "${modules[@]}" && return
    PYTHON=$ROOT/.venv/bin/python
    has_modules "$PYTHON" "${modules[@]}" && return

    check_python || return
    echo "Setting up $ROOT/.venv (once): about a minute, or 5 to 9 where fairseq has to be compiled."
    make_environment python3 "$ROOT/.venv" "$extra"
}
