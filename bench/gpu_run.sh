#!/usr/bin/env bash
# Builds the package for the GPU at hand, installs it beside the checkout, and runs bench/gpu.py on it. No network.
#
#   bench/gpu_run.sh DIR [MINUTES [OPTIONS OF gpu.py]]
#
# MINUTES (default 9.5) are for all of it, the build too. Everything comes back in DIR: build.txt, report.json, report.md,
# logs.txt, profile.txt, memcheck.txt, racecheck.txt. PYTHON names the interpreter (default python3); it needs torch,
# setuptools, scikit-build-core, pybind11 and ninja; nvcc on PATH for the CUDA core, triton for Triton's.
set -uo pipefail

out=${1:?usage: bench/gpu_run.sh DIR [MINUTES [OPTIONS OF gpu.py]]}
minutes=${2:-9.5}
shift $(($# < 2 ? $# : 2))
mkdir -p "$out"
out=$(cd "$out" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
site=$root/build/gpu/site  # ignored by git; what CMake built beside it is used again by the next run

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -dc 0-9)
export CUDAARCHS=${CUDAARCHS:-${capability:-90}}

install() {
    rm -rf "$site"
    timeout 300 "$python" -m pip install --no-build-isolation --no-deps --no-index --target "$site" "$root"
}
echo "building for compute capability $CUDAARCHS"
if ! install >"$out/build.txt" 2>&1; then
    tail -n 30 "$out/build.txt"
    echo "the build failed: without the CUDA core, so that Triton's results come back"
    GLOSS_KERNELS_CUDA=0 install >>"$out/build.txt" 2>&1 || { tail -n 30 "$out/build.txt"; exit 2; }
fi
echo "built in $SECONDS s"

left=$("$python" -c "print(max(0.5, $minutes - $SECONDS / 60))")
cd "$out" || exit 2
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
exec "$python" "$root/bench/gpu.py" --out "$out" --minutes "$left" "$@"
