// How a frame in ordinary memory can reach the card, and what each way takes: what a host frame is held
// against. bench/upload.py builds and runs it, with nvcc, or on the CUDA emulator to see that it runs.
//
//     upload DEVICE BYTES FRAMES RUNS MAX_THREADS
//
// Prints JSON: microseconds (medians) of each way, with the same frame each time ("warm": its lines are in
// the CPU's caches as far as they fit) and with FRAMES in turns ("cold"). Every way is checked once by
// reading back what it brought.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
}

// Threads that wait for work without sleeping: waking one up takes as long as copying a piece.
class Crew {
  public:
    explicit Crew(int count) : count_(count) {
        for (int member = 1; member < count; ++member) {
            threads_.emplace_back([this, member] { serve(member); });
        }
    }
    ~Crew() {
        ended_ = true;
        for (std::thread& thread : threads_) thread.join();
    }
    Crew(const Crew&) = delete;
    Crew& operator=(const Crew&) = delete;

    int count() const { return count_; }

    // Runs `work(member)` for members 1 and up while the caller does `own`.
    void run(const std::function<void(int)>& work, const std::function<void()>& own) {
        work_ = &work;
        busy_.store(count_ - 1, std::memory_order_relaxed);
        order_.fetch_add(1, std::memory_order_release);
        own();
        while (busy_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
    }

  private:
    void serve(int member) {
        for (unsigned seen = 0;; ++seen) {
            while (order_.load(std::memory_order_acquire) == seen) {
                if (ended_) return;
                std::this_thread::yield();
            }
            (*work_)(member);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    int count_;
    std::vector<std::thread> threads_;
    const std::function<void(int)>* work_ = nullptr;
    std::atomic<unsigned> order_{0};
    std::atomic<int> busy_{0};
    std::atomic<bool> ended_{false};
};

struct Card {
    size_t bytes;
    unsigned char* pinned = nullptr;
    unsigned char* memory = nullptr;
    cudaStream_t stream = nullptr;

    void send(const void* from, size_t begin, size_t end) const {
        check(cudaMemcpyAsync(memory + begin, from, end - begin, cudaMemcpyHostToDevice, stream), "copying");
    }
    void wait() const { check(cudaStreamSynchronize(stream), "waiting"); }
};

// Piece after piece: all threads copy a part of it, then it is sent.
void in_rounds(const Card& card, Crew& crew, const unsigned char* frame, size_t pieces) {
    for (size_t piece = 0; piece < pieces; ++piece) {
        const size_t begin = card.bytes * piece / pieces, end = card.bytes * (piece + 1) / pieces;
        const std::function<void(int)> copy = [&](int member) {
            const auto part = [&](int n) {
                return begin + (end - begin) * static_cast<size_t>(n) / crew.count();
            };
            std::memcpy(card.pinned + part(member), frame + part(member), part(member + 1) - part(member));
        };
        crew.run(copy, [&] { copy(0); });
        card.send(card.pinned + begin, begin, end);
    }
    card.wait();
}

// Every thread takes the next piece; the caller sends what is finished from the beginning on.
void by_prefix(const Card& card, Crew& crew, const unsigned char* frame, size_t pieces) {
    std::vector<std::atomic<bool>> copied(pieces);
    std::atomic<size_t> next{0};
    const auto edge = [&](size_t piece) { return card.bytes * piece / pieces; };
    const auto copy_one = [&] {
        const size_t piece = next.fetch_add(1, std::memory_order_relaxed);
        if (piece >= pieces) return false;
        std::memcpy(card.pinned + edge(piece), frame + edge(piece), edge(piece + 1) - edge(piece));
        copied[piece].store(true, std::memory_order_release);
        return true;
    };
    const std::function<void(int)> work = [&](int) {
        while (copy_one()) {
        }
    };
    crew.run(work, [&] {
        size_t sent = 0;
        while (sent < pieces) {
            size_t ready = sent;
            while (ready < pieces && copied[ready].load(std::memory_order_acquire)) ++ready;
            if (ready > sent) {
                card.send(card.pinned + edge(sent), edge(sent), edge(ready));
                sent = ready;
            } else if (!copy_one()) {
                std::this_thread::yield();
            }
        }
        card.wait();
    });
}

double median(int runs, const std::function<void(int)>& work) {
    using Clock = std::chrono::steady_clock;
    std::vector<double> took;
    for (int run = -3; run < runs; ++run) {
        const auto begin = Clock::now();
        work(run + 3);
        const std::chrono::duration<double, std::micro> elapsed = Clock::now() - begin;
        if (run >= 0) took.push_back(elapsed.count());
    }
    std::nth_element(took.begin(), took.begin() + took.size() / 2, took.end());
    return took[took.size() / 2];
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 6) {
        std::fprintf(stderr, "usage: %s DEVICE BYTES FRAMES RUNS MAX_THREADS\n", arguments[0]);
        return 2;
    }
    const int device = std::atoi(arguments[1]), runs = std::atoi(arguments[4]);
    const size_t bytes = std::strtoull(arguments[2], nullptr, 10),
                 frames = std::strtoull(arguments[3], nullptr, 10);
    const int most = std::atoi(arguments[5]);
    if (bytes == 0 || frames == 0 || frames > 255 || runs < 1 || most < 1) {
        std::fprintf(stderr, "expected 1 to 255 FRAMES, and at least 1 of everything else\n");
        return 2;
    }
    check(cudaSetDevice(device), "cudaSetDevice");
    Card card{bytes};
    check(cudaStreamCreateWithFlags(&card.stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    check(cudaHostAlloc(reinterpret_cast<void**>(&card.pinned), bytes, cudaHostAllocDefault),
          "cudaHostAlloc");
    check(cudaMalloc(reinterpret_cast<void**>(&card.memory), bytes), "cudaMalloc");
    std::vector<std::vector<unsigned char>> source(frames);
    for (size_t i = 0; i < frames; ++i) {
        source[i].resize(bytes);
        for (size_t k = 0; k < bytes; ++k) source[i][k] = static_cast<unsigned char>(k * 7 + i + k / 251);
    }

    std::vector<unsigned char> back(bytes);
    const auto verify = [&](const std::string& name, const unsigned char* expected) {
        check(cudaMemcpyAsync(back.data(), card.memory, bytes, cudaMemcpyDeviceToHost, card.stream),
              "reading");
        card.wait();
        if (std::memcmp(back.data(), expected, bytes) != 0) {
            std::fprintf(stderr, "%s: the card has something else\n", name.c_str());
            std::exit(1);
        }
    };
    const char* separator = "";
    const auto report = [&](const std::string& name, const std::function<void(const unsigned char*)>& way) {
        check(cudaMemset(card.memory, 0xff, bytes), "cudaMemset");
        way(source[0].data());
        verify(name, source[0].data());
        const double warm = median(runs, [&](int) { way(source[0].data()); });
        const double cold =
            median(runs, [&](int run) { way(source[static_cast<size_t>(run) % frames].data()); });
        std::printf("%s\n  \"%s\": {\"warm\": %.1f, \"cold\": %.1f}", separator, name.c_str(), warm, cold);
        separator = ",";
    };

    std::printf("{");
    report("the driver's pageable copy", [&](const unsigned char* frame) {
        card.send(frame, 0, bytes);
        card.wait();
    });
    for (int threads = 1; threads <= most; threads *= 2) {
        Crew crew(threads);
        for (const size_t pieces : {2, 4, 12, 24}) {
            const std::string suffix =
                std::to_string(threads) + " threads, " + std::to_string(pieces) + " pieces";
            report("rounds of " + suffix,
                   [&](const unsigned char* frame) { in_rounds(card, crew, frame, pieces); });
            report("prefixes of " + suffix,
                   [&](const unsigned char* frame) { by_prefix(card, crew, frame, pieces); });
        }
    }
    std::printf("\n}\n");
    check(cudaFree(card.memory), "cudaFree");
    check(cudaFreeHost(card.pinned), "cudaFreeHost");
    check(cudaStreamDestroy(card.stream), "cudaStreamDestroy");
    return 0;
}
