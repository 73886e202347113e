#!/usr/bin/env bash
# Run the tests on every Python that is supported, each in an environment of its own that is made
# where it is missing (.venv-VERSION): bash tests/matrix.sh [PYTEST ARGUMENTS]
# VERSIONS="3.10 3.12" in the environment runs these alone. The exit status is 1 where the tests of
# one failed or it could not be run.
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

test_on() { # VERSION [PYTEST ARGUMENTS]: print the outcome in one last line
    local version=$1 directory=$ROOT/.venv-$1 python made_with
    shift
    if ! python=$(find_python "$version"); then
        echo "Python $version: NOT RUN: there is no python$version with venv and ensurepip on PATH" \
            "or in ~/.pyenv/versions"
        return 1
    fi
    if ! has_modules "$directory/bin/python" fairseq torch fairseq_csp pytest xdist psutil ruff &&
        ! make_environment "$python" "$directory" "[test]"; then
        echo "Python $version: NOT RUN: $directory could not be set up"
        return 1
    fi
    made_with=$("$directory/bin/python" -c '
import platform
from importlib.metadata import packages_distributions, version
names = [*packages_distributions()["fairseq"], "torch", "numpy"]
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names))')
    if PATH="$directory/bin:$PATH" bash "$ROOT/tests/run.sh" "$@"; then
        echo "$made_with: passed"
    else
        echo "$made_with: FAILED"
        return 1
    fi
}

outcomes=()
status=0
exec 3>&1
for version in ${VERSIONS:-3.10 3.11 3.12}; do
    # the last line is kept for the end
    outcome=$(test_on "$version" "$@" 2>&1 | tee >(cat >&3) | tail -n 1) || status=1
    outcomes+=("$outcome")
done
printf '%s\n' "" "${outcomes[@]}"
exit "$status"
