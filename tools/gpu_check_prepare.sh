#!/usr/bin/env bash
# Run where there is a network, before tools/gpu_check.sh on a machine without one: puts the wheels that such a machine
# lacks into .whl/ (x86-64 Linux, CPython 3.12 unless PYTHON_VERSION says otherwise).
# Usage: tools/gpu_check_prepare.sh [PACKAGE[==VERSION]...]     default: platformdirs, at the version in constraints.txt
set -euo pipefail
cd "$(dirname "$0")/.."

limit=$((64 << 20))  # bytes that may travel, the working tree included
packages=("$@")
[ ${#packages[@]} -gt 0 ] || packages=("$(grep -E '^platformdirs==' constraints.txt)")

platforms=()
for libc in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${libc}_x86_64"); done
rm -rf .whl
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --dest .whl \
    --python-version "${PYTHON_VERSION:-3.12}" --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 "${packages[@]}"

# What git would carry, and what is carried beside it.
bytes() { { xargs -0 -r stat -c %s -- 2>/dev/null || true; } | awk '{ sum += $1 } END { print sum + 0 }'; }
tree=$(git ls-files -z --cached --others --exclude-standard | bytes)
beside=$(for folder in .whl .gpu; do [ ! -d "$folder" ] || find "$folder" -type f -print0; done | bytes)
ls -l .whl
echo "the tree has $((tree >> 10)) KiB, .whl and .gpu $((beside >> 10)) KiB, of $((limit >> 10)) KiB"
if [ $((tree + beside)) -gt "$limit" ]; then
    echo "too much to carry: name fewer packages, or leave .gpu behind" >&2
    exit 1
fi
git check-ignore -q .whl || echo "git does not ignore .whl/: echo /.whl/ >> .git/info/exclude"
