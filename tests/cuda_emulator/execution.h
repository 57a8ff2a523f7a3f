// How a kernel runs: internal to the emulator.
#pragma once

#include <cstdint>
#include <functional>

#include "vector_types.h"

namespace cuda_emulator {

// splitmix64
class Random {
    std::uint64_t state_ = 1;

  public:
    void seed(std::uint64_t seed) { state_ = seed; }
    std::uint64_t next() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    unsigned below(std::size_t n) { return static_cast<unsigned>((next() >> 32) * n >> 32); }
};

// One for everything left to chance. The caller holds the runtime's lock.
Random& chance();

struct Kernel {
    std::function<void()> body;
    const void* function;
    dim3 grid, block;
};

// Runs every thread of every block, one block after the other. The caller holds the runtime's lock.
void run(const Kernel& kernel);

}  // namespace cuda_emulator
