#!/usr/bin/env bash
# Run the tests, setting up what they need: bash tests/run.sh [PYTEST ARGUMENTS]
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# shellcheck source-path=SCRIPTDIR source=../environment.sh
. "$ROOT/environment.sh"
find_or_make_environment "[test]" "${TEST_MODULES[@]}"
cd "$ROOT"
# one thread a process: as many test processes run as there are cores
export OMP_NUM_THREADS=1 GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
exec "$PYTHON" -m pytest -n auto --dist worksteal "$@"
