// Frame graphs on many threads at once, against tests/cuda_emulator, for ThreadSanitizer: each thread has
// graphs of its own, whose engines follow each other, and one graph goes from thread to thread. Every frame
// must get its own result. The kernels and the emulator's fibers are compiled without the sanitizer, which
// knows no fibers.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "csrc/ops/frame_graph.h"
#include "emulator.h"

extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }

namespace {

using namespace fai;

constexpr Size kTensor{32, 32};
constexpr int32_t kQueries = 4, kRows = 8, kColumns = 8, kClasses = 3;
constexpr float kMean[3] = {0, 0, 0}, kStddev[3] = {1, 1, 1};

void expect(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::_Exit(1);
}

// A frame graph whose engine finds one query in every frame: class and mask are those of the first pixel's
// value.
struct Graph {
    ops::FrameGraph graph;

    static cuda::GraphSpec spec() {
        cuda::GraphSpec spec;
        spec.input_size = kTensor;
        spec.images = DType::f32;
        spec.queries = kQueries;
        spec.rows = kRows;
        spec.columns = kColumns;
        spec.class_columns = kClasses + 1;
        spec.mask_logits = DType::f32;
        spec.class_logits = DType::f32;
        return spec;
    }

    Graph() : graph(spec(), kMean, kStddev) {
        const std::string reason = graph.device().capture(
            [this](uintptr_t stream) { cuda::launch_host_function(stream, &Graph::engine, this); });
        expect(reason.empty(), "a captured graph");
        // So small that every frame is copied by several threads.
        graph.set_staging({.piece_bytes = 256, .threads = 3});
    }

    static void engine(void* context) {
        cuda::DeviceGraph& device = static_cast<Graph*>(context)->graph.device();
        const float value = *reinterpret_cast<const float*>(device.images());
        const int number = static_cast<int>(value + 0.5f) % (kQueries * kClasses);
        auto* masks = reinterpret_cast<float*>(device.mask_logits());
        auto* classes = reinterpret_cast<float*>(device.class_logits());
        for (int i = 0; i < kQueries * kRows * kColumns; ++i)
            masks[i] = i % kColumns <= number % kColumns ? 9 : -9;
        for (int i = 0; i < kQueries * (kClasses + 1); ++i)
            classes[i] = i % (kClasses + 1) == kClasses ? 9 : 0;
        float* found = classes + number % kQueries * (kClasses + 1);
        found[number % kClasses] = 9;
        found[kClasses] = 0;
    }

    void submit(const std::vector<uint8_t>& pixels, Size size, const Graph* after) {
        ops::FrameRequest request;
        View& view = request.frame.planes[0];
        view.data = pixels.data();
        view.ndim = 3;
        const int64_t shape[3] = {size.height, size.width, 3}, strides[3] = {int64_t{3} * size.width, 3, 1};
        std::copy_n(shape, 3, view.shape);
        std::copy_n(strides, 3, view.strides);
        request.frame.size = kTensor;
        graph.submit({request}, after ? &after->graph : nullptr);
    }

    // Of a frame whose pixels are all `value`.
    void check(int value, Size size) {
        expect(graph.device().wait(-1), "the end of a frame");
        const std::vector<ops::FrameResult> results = graph.results(kQueries);
        const int number = value % (kQueries * kClasses);
        expect(results.size() == 1 && results[0].size == size, "the frame's own size");
        expect(results[0].query.size() == 1, "one row");
        expect(results[0].query[0] == number % kQueries && results[0].class_id[0] == number % kClasses,
               "the frame's own result");
        expect(results[0].memory->payload_bytes() > 0, "its masks");
    }
};

Size size_of(int number) { return {24 + number * 7 % 40, 24 + number * 11 % 40}; }

std::vector<uint8_t> pixels_of(int value, Size size) {
    return std::vector<uint8_t>(size_t{3} * size.height * size.width, static_cast<uint8_t>(value));
}

// Two graphs a thread, one ahead of the other.
void graphs_of_their_own(int caller, int rounds) {
    Graph graphs[2];
    std::vector<uint8_t> pixels[2];
    for (int round = 0; round <= rounds; ++round) {
        const int value = (caller * 50 + round) % 250;
        if (round < rounds) {
            pixels[round % 2] = pixels_of(value, size_of(round));
            graphs[round % 2].submit(pixels[round % 2], size_of(round),
                                     round ? &graphs[(round + 1) % 2] : nullptr);
        }
        if (round > 0) graphs[(round + 1) % 2].check((caller * 50 + round - 1) % 250, size_of(round - 1));
    }
}

// Calls of one graph must not overlap, but may come from any thread.
void one_graph_for_all(Graph& graph, std::mutex& turn, int caller, int rounds) {
    for (int round = 0; round < rounds; ++round) {
        const std::lock_guard lock(turn);
        const Size size = size_of(caller + round);
        const std::vector<uint8_t> pixels = pixels_of(caller * 40 + round, size);
        graph.submit(pixels, size, nullptr);
        graph.check(caller * 40 + round, size);
    }
}

}  // namespace

int main() {
    for (const auto order :
         {cuda_emulator::Order::lazy, cuda_emulator::Order::eager, cuda_emulator::Order::random}) {
        cuda_emulator::set_order(order);
        Graph shared;
        std::mutex turn;
        std::vector<std::thread> callers;
        for (int caller = 0; caller < 4; ++caller) {
            callers.emplace_back([&, caller] {
                graphs_of_their_own(caller, 8);
                one_graph_for_all(shared, turn, caller, 4);
            });
        }
        for (std::thread& caller : callers) caller.join();
    }
    std::puts("done");
}
