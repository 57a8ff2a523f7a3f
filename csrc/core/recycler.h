// Memory of large results that comes back when their owner lets go of them, and serves the next one.
#pragma once

#include <atomic>
#include <cstddef>

namespace fai {

// Fresh memory of a few megabytes costs a page fault every 4 KiB, which takes longer than filling it. A
// recycler keeps the block that was given back last, and hands it out when the same size is asked for again:
// one block at most, whatever happens, and none beyond `kKeepBytes`. Lives as long as the process. From any
// thread, without a lock, so that a child that is forked at any moment can go on with it.
class Recycler {
  public:
    // Uninitialized memory, aligned to 64 bytes. Throws std::bad_alloc.
    void* take(size_t bytes);

    // Takes memory back to the recycler that it is from.
    static void give_back(void* memory) noexcept;

  private:
    static constexpr size_t kKeepBytes = size_t{64} << 20;
    // Far beyond any tensor; sanitizers end the process where more is asked for.
    static constexpr size_t kMaxBytes = size_t{1} << 39;

    // Precedes the memory.
    struct alignas(64) Block {
        Recycler* home;
        size_t bytes;
    };
    static void free(Block* block) noexcept;

    std::atomic<Block*> kept_{nullptr};
};

}  // namespace fai
