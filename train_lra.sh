#!/usr/bin/env bash
# Train one model on one LRA data set and test it: bash train_lra.sh --help
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$ROOT/environment.sh"
check_python
python3 -c "$LAUNCH" "$ROOT" fairseq_csp.recipes --check "$@" || exit
for argument in "$@"; do
    case $argument in
    --help | -h) exit ;;
    --) break ;;
    esac
done
find_or_make_environment ""
# for torch's CPU tensors: large pages, and freed memory kept: no page faults in a step
export THP_MEM_ALLOC_ENABLE="${THP_MEM_ALLOC_ENABLE:-1}"
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-1000000000000}"
# OpenMP's threads wait at each barrier; spinning, they take the cores from other programs and wait
# the longer for them: python -m benchmarks.busy
[[ -n ${OMP_WAIT_POLICY:-} ]] || export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"
exec "$PYTHON" -c "$LAUNCH" "$ROOT" fairseq_csp.train_lra "$@"
