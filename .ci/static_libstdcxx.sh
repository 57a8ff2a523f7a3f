#!/usr/bin/env bash
# Usage: static_libstdcxx.sh BUILD_DIR
# Links the compiled module of a CMake build once more, with libstdc++ inside, as some toolchains do by themselves, and
# loads it beside another library that streams numbers, which has libstdc++ inside too, or not: in every order both must
# write what they should. BUILD_DIR is changed.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
static="-static-libstdc++ -static-libgcc"

cmake -S . -B "$build" -DCMAKE_MODULE_LINKER_FLAGS="$static" >"$build/static.log" || { cat "$build/static.log"; exit 1; }
cmake --build "$build" --target _core >>"$build/static.log" || { cat "$build/static.log"; exit 1; }
module=$(echo "$build"/_core*.so)
needed=$(readelf -d "$module")
if [[ $needed == *"[libstdc++"* ]]; then
    echo "$module still needs libstdc++: the flags had no effect"
    exit 1
fi
exported=$(nm -D --defined-only "$module" | sed 's/.* //')
[ "$exported" = PyInit__core ] || { echo "$module exports more than PyInit__core: ${exported:0:500}"; exit 1; }

failed=0
for kind in static shared; do
    library=$build/streams_$kind.so
    flags=
    [ "$kind" = shared ] || flags=$static
    g++ -std=c++20 -O1 -shared -fPIC $flags tests/static_libstdcxx/streams.cpp -o "$library"
    for order in "ours first" "ours first, theirs for all" "ours first, for all" \
        "theirs first" "theirs first, for all" "theirs first, both for all"; do
        if ! python tests/static_libstdcxx/load.py "$module" "$library" "$order"; then
            echo "failed: $order, the other library's libstdc++ $kind"
            failed=1
        fi
    done
done
[ "$failed" = 0 ] && echo "right texts in 6 orders of loading, with 2 kinds of other library"
exit "$failed"
