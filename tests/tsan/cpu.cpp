// The library's CPU code from many threads at once, for ThreadSanitizer. Every thread must get the bits that
// one thread alone gets. Forks are left to tests/test_runtime.py: the sanitizer knows no threads in a forked
// child.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "csrc/core/parallel.h"
#include "csrc/core/recycler.h"
#include "csrc/ops/masks.h"
#include "csrc/ops/postprocess.h"
#include "csrc/ops/preprocess.h"

extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }

namespace {

using namespace fai;

constexpr int kCallers = 4;
constexpr int kRounds = 12;
constexpr int kThreads = 3;  // of each call
constexpr Size kTensor{64, 96}, kMasks{16, 24};

void expect(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::_Exit(1);
}

View view(const void* data, DType dtype, std::vector<int64_t> shape) {
    View found;
    found.data = data;
    found.dtype = dtype;
    found.ndim = static_cast<int>(shape.size());
    int64_t stride = static_cast<int64_t>(item_size(dtype));
    for (int i = found.ndim - 1; i >= 0; --i) {
        found.shape[i] = shape[i];
        found.strides[i] = stride;
        stride *= shape[i];
    }
    return found;
}

// Of the seed alone.
struct Random {
    uint32_t state;
    uint32_t next() { return (state = state * 1664525u + 1013904223u) >> 8; }
    float unit() { return static_cast<float>(next()) / (1 << 24); }
};

// All that a frame goes through; the bytes of everything that comes out.
std::string frame(uint32_t seed, bool semantic) {
    Random random{seed};
    const Size size{static_cast<int32_t>(20 + random.next() % 200),
                    static_cast<int32_t>(20 + random.next() % 200)};
    std::vector<uint8_t> pixels(size_t{3} * size.height * size.width);
    for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(random.next());
    ops::PreprocessArguments before;
    before.planes[0] = view(pixels.data(), DType::u8, {size.height, size.width, 3});
    before.size = kTensor;
    before.resize = static_cast<ops::Resize>(seed % 3);
    std::vector<float> tensor(size_t{3} * kTensor.height * kTensor.width);
    const ops::Placement placement = ops::preprocess(before, DType::f32, tensor.data());

    constexpr int64_t kQueries = 12, kClasses = 5;
    std::vector<float> masks(kQueries * kMasks.height * kMasks.width), classes(kQueries * (kClasses + 1));
    for (float& value : masks) value = 8 * random.unit() - 4;
    for (float& value : classes) value = 6 * random.unit() - 3;
    ops::PostprocessArguments after;
    after.mask_logits = view(masks.data(), DType::f32, {kQueries, kMasks.height, kMasks.width});
    after.class_logits = view(classes.data(), DType::f32, {kQueries, kClasses + 1});
    after.size = size;
    after.threshold = 0.2;
    after.predict_all_pixels = semantic;
    if (semantic && seed % 2) {
        after.rules.panoptic = true;
        after.rules.overlap_threshold = 0.1;
        after.rules.weighted = false;
        after.rules.stuff.assign(kClasses, 1);
    }
    after.letterboxed = before.resize != ops::Resize::stretch;
    after.tensor = kTensor;
    after.placement = placement;
    after.num_threads = kThreads;
    std::vector<uint8_t> segments(size_t{1} * size.height * size.width);
    ops::Postprocessed result;
    ops::postprocess(after, semantic ? segments.data() : nullptr, result);

    std::string bytes(reinterpret_cast<const char*>(tensor.data()), tensor.size() * sizeof(float));
    const auto add = [&](const void* data, size_t count) {
        bytes.append(static_cast<const char*>(data), count);
    };
    add(result.confidence.data(), result.confidence.size() * sizeof(float));
    add(result.area.data(), result.area.size() * sizeof(int64_t));
    add(result.boxes.data(), result.boxes.size() * sizeof(int32_t));
    ops::PackedMasks packed;
    if (semantic) {
        add(segments.data(), segments.size());
        packed = ops::masks_from_segments<uint8_t>(segments.data(), size, result.query, kThreads);
        std::vector<int16_t> labels(segments.size());
        ops::label_map<uint8_t>(segments.data(), size, result.query, result.class_id, labels.data(),
                                kThreads);
        add(labels.data(), labels.size() * sizeof(int16_t));
    } else {
        packed.bits.assign(result.bits.get(), result.bits.get() + result.words);
        packed.offsets = result.offsets;
        for (size_t i = 0; i + 3 < result.boxes.size(); i += 4) {
            const int32_t* box = &result.boxes[i];
            packed.boxes.push_back({box[0], box[1], box[2], box[3]});
        }
    }
    const ops::MaskView masks_of(packed.bits, packed.offsets, packed.boxes, size);
    std::vector<uint8_t> dense(static_cast<size_t>(masks_of.count()) * size.height * size.width);
    ops::masks_decode(masks_of, dense.data(), false, kThreads);
    add(dense.data(), dense.size());
    for (const std::string& run : ops::masks_rle(masks_of, kThreads)) bytes += run;
    const int64_t strides[3] = {int64_t{1} * size.height * size.width, size.width, 1};
    const ops::PackedMasks again = ops::masks_encode(dense.data(), masks_of.count(), size, strides, kThreads);
    add(again.bits.data(), again.bits.size() * sizeof(uint64_t));
    return bytes;
}

void frames_from_many_threads() {
    std::vector<std::string> expected;
    for (uint32_t seed = 0; seed < 6; ++seed) expected.push_back(frame(seed, seed % 3 == 0));
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) {
        callers.emplace_back([&, caller] {
            for (int round = 0; round < kRounds; ++round) {
                const uint32_t seed = static_cast<uint32_t>((caller + round) % 6);
                expect(frame(seed, seed % 3 == 0) == expected[seed], "the bits of one thread alone");
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
}

// Every task runs once, nested ones too, and an exception reaches its caller and nobody else.
void tasks_from_many_threads() {
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) {
        callers.emplace_back([] {
            for (int round = 0; round < 200; ++round) {
                std::vector<int> plain(64), nested(8 * 8);
                parallel_for(64, kThreads, [&](int64_t task) { plain[task] += 1; });
                parallel_for(8, kThreads, [&](int64_t outer) {
                    parallel_for(8, kThreads, [&](int64_t inner) { nested[outer * 8 + inner] += 1; });
                });
                for (int count : plain) expect(count == 1, "every task once");
                for (int count : nested) expect(count == 1, "every nested task once");
                bool thrown = false;
                try {
                    parallel_for(32, kThreads, [&](int64_t task) {
                        if (task % 7 == 3) throw std::runtime_error("task");
                    });
                } catch (const std::runtime_error& error) {
                    thrown = !std::strcmp(error.what(), "task");
                }
                expect(thrown, "the exception of a task");
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
}

// What one thread wrote into lent memory is done before another writes there.
void memory_from_many_threads() {
    static constinit Recycler recycler;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) {
        callers.emplace_back([caller] {
            for (int round = 0; round < 500; ++round) {
                const size_t bytes = round % 5 ? 4096 : 8192;
                auto* memory = static_cast<char*>(recycler.take(bytes));
                std::memset(memory, caller, bytes);
                expect(memory[bytes - 1] == caller, "memory for one alone");
                Recycler::give_back(memory);
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main() {
    memory_from_many_threads();
    tasks_from_many_threads();
    frames_from_many_threads();
    std::puts("done");
}
