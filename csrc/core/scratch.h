// Memory that a thread keeps between calls, so that the steady state allocates nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

namespace fai {

// Uninitialized room for values of T that only grows; what a call leaves in it is lost at the next get().
// One that grew past `kKeepBytes` for an unusually large call is given back at the next smaller one.
template <class T>
class Scratch {
    static_assert(std::is_trivially_destructible_v<T>);

  public:
    T* get(size_t count) {
        if (count > capacity_ || (capacity_ * sizeof(T) > kKeepBytes && count < capacity_ / 2)) {
            data_.reset();
            capacity_ = 0;
            if (count > kMaxBytes / sizeof(T)) throw std::bad_alloc();
            data_.reset(static_cast<T*>(::operator new(count * sizeof(T) + 64, std::align_val_t(64))));
            capacity_ = count;
        }
        return data_.get();
    }

  private:
    static constexpr size_t kKeepBytes = size_t{64} << 20;
    static constexpr size_t kMaxBytes = size_t{1} << 46;
    struct Free {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    std::unique_ptr<T, Free> data_;
    size_t capacity_ = 0;
};

}  // namespace fai
