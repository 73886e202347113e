#!/usr/bin/env bash
# Train one model on one LRA data set and test it: bash train_lra.sh --help
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

command -v python3 >/dev/null || { echo "python3 (3.10 or newer) is needed" >&2; exit 1; }
python3 "$ROOT/fairseq_csp/recipes.py" --words "$@" || exit
for word in "$@"; do
    case $word in --help | -h) exit ;; esac
done
# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$ROOT/environment.sh"
find_or_make_environment ""
# for torch's CPU tensors: large pages, and freed memory kept: no page faults in a step
export THP_MEM_ALLOC_ENABLE="${THP_MEM_ALLOC_ENABLE:-1}"
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-1000000000000}"
exec "$PYTHON" -m fairseq_csp.train_lra "$@"
