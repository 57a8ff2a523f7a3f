#include "csrc/core/recycler.h"

#include <cstdint>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fai {
namespace {

// Asks for pages of 2 MiB where the system gives them only to those who ask, as NumPy does for its own
// arrays.
void ask_for_large_pages(void* memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t kPage = 4096;
    constexpr size_t kWorthIt = size_t{4} << 20;
    if (bytes < kWorthIt) return;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
    // Where it is refused, the pages are small.
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

}  // namespace

void* Recycler::take(size_t bytes) {
    Block* block = kept_.exchange(nullptr, std::memory_order_acquire);
    if (block && block->bytes != bytes) {
        free(block);
        block = nullptr;
    }
    if (!block) {
        if (bytes > kMaxBytes) throw std::bad_alloc();
        void* memory = ::operator new(sizeof(Block) + bytes, std::align_val_t(alignof(Block)));
        ask_for_large_pages(memory, sizeof(Block) + bytes);
        block = new (memory) Block{this, bytes};
    }
    return block + 1;
}

void Recycler::give_back(void* memory) noexcept {
    Block* block = static_cast<Block*>(memory) - 1;
    if (block->bytes > kKeepBytes) return free(block);
    if (Block* other = block->home->kept_.exchange(block, std::memory_order_acq_rel)) free(other);
}

void Recycler::free(Block* block) noexcept { ::operator delete(block, std::align_val_t(alignof(Block))); }

}  // namespace fai
