#!/usr/bin/env bash
# Run by cibuildwheel in its manylinux_2_28 container, before the first wheel: nvcc 12.9 with the static CUDA runtime from
# NVIDIA's own packages (PyPI's of CUDA 12 have no nvcc), and the newest GCC that this nvcc takes, whatever the container's
# own is by now. pyproject.toml names where they are.
set -euo pipefail

case $(uname -m) in
    x86_64) folder=x86_64 ;;
    aarch64) folder=sbsa ;;
    *)
        echo "manylinux_cuda.sh: there is no CUDA for $(uname -m), only for x86_64 and aarch64" >&2
        exit 2
        ;;
esac
dnf -y install dnf-plugins-core gcc-toolset-14-gcc-c++
dnf config-manager --add-repo "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$folder/cuda-rhel8.repo"
dnf -y install cuda-minimal-build-12-9
"$CUDACXX" --version
"$CXX" --version
