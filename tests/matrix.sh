#!/usr/bin/env bash
# Run the tests on every Python that is supported, each in an environment of its own that is made
# where it is missing (.venv-VERSION), and each twice: as the processor is, and as on one with AVX2
# alone, without instructions for bfloat16: bash tests/matrix.sh [PYTEST ARGUMENTS]
# VERSIONS="3.10 3.12" PROCESSORS="native avx2" in the environment chooses among them. The exit
# status is 1 where the tests of one failed or it could not be run.
set -uo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# shellcheck source-path=SCRIPTDIR source=../environment.sh
. "$ROOT/environment.sh"

find_python() { # VERSION: print an interpreter of it
    local candidate
    for candidate in "python$1" "$HOME/.pyenv/versions/$1".*/bin/python; do
        if "$candidate" -c '
import ensurepip, sys, venv
sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$1" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

set_up() { # VERSION: make its environment where it is missing, or say in one line why not
    local directory=$ROOT/.venv-$1 python
    if ! python=$(find_python "$1"); then
        echo "Python $1: NOT RUN: there is no python$1 with venv and ensurepip on PATH" \
            "or in ~/.pyenv/versions"
        return 1
    fi
    if ! has_modules "$directory/bin/python" "${MODULES[@]}" "${TEST_MODULES[@]}" &&
        ! make_environment "$python" "$directory" "[test]"; then
        echo "Python $1: NOT RUN: $directory could not be set up"
        return 1
    fi
}

test_on() { # VERSION PROCESSOR [PYTEST ARGUMENTS]: print the outcome in one last line
    local directory=$ROOT/.venv-$1 processor=$2 made_with limits=()
    shift 2
    [[ $processor == avx2 ]] && limits=(ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2)
    made_with=$("$directory/bin/python" -c '
import platform
from importlib.metadata import packages_distributions, version
names = [*packages_distributions()["fairseq"], "torch", "numpy"]
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names))')
    if env PATH="$directory/bin:$PATH" "${limits[@]}" bash "$ROOT/tests/run.sh" "$@"; then
        echo "$made_with, processor $processor: passed"
    else
        echo "$made_with, processor $processor: FAILED"
        return 1
    fi
}

outcomes=()
status=0
exec 3>&1
for processor in ${PROCESSORS:=native avx2}; do
    case $processor in
    native | avx2) ;;
    *)
        echo "PROCESSORS is $PROCESSORS: write native, avx2, or both" >&2
        exit 2
        ;;
    esac
done
for version in ${VERSIONS:-3.10 3.11 3.12 3.13}; do
    # the last line of what is printed is kept for the end
    if ! outcome=$(set_up "$version" 2>&1 | tee >(cat >&3) | tail -n 1); then
        outcomes+=("$outcome")
        status=1
        continue
    fi
    for processor in $PROCESSORS; do
        outcome=$(test_on "$version" "$processor" "$@" 2>&1 | tee >(cat >&3) | tail -n 1) || status=1
        outcomes+=("$outcome")
    done
done
printf '%s\n' "" "${outcomes[@]}"
exit "$status"
