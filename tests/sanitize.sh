#!/bin/sh
# The kernel tests on a GPU under NVIDIA's compute-sanitizer, one tool after the other.
#
#   tests/sanitize.sh [pytest arguments]        default: the neuron, batch norm and long windows
#
# Exit codes: 0 nothing found, 1 a tool found something or a test failed, 2 cannot run here: no
# compute-sanitizer, no Python with torch, or no GPU; the line on stderr says which.
# memcheck finds accesses out of bounds, racecheck races in shared memory, initcheck reads of
# memory that nobody wrote.
set -u
cd "$(dirname "$0")/.." || exit 2

cannot() {
    echo "sanitize: $1" >&2
    exit 2
}

command -v compute-sanitizer >/dev/null ||
    cannot "compute-sanitizer is not on the PATH; it comes with the CUDA toolkit"
python -c "import torch" 2>/dev/null || cannot "python has no torch; activate the environment"
python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" ||
    cannot "torch sees no CUDA device; the kernels are checked on a GPU only"

if [ $# -eq 0 ]; then
    set -- tests/kernels/definition/test_definition.py -k "triton and pair"
fi

# torch's caching allocator would hand out parts of large blocks, in which nothing is out of bounds
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
found=0
for tool in memcheck racecheck initcheck; do
    echo "sanitize: $tool"
    compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 1 \
        python -m pytest -q -x "$@" || found=1
done
exit "$found"
