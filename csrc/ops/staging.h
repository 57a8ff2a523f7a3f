// A frame in ordinary memory on its way into memory that a device can read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "csrc/core/types.h"
#include "csrc/ops/preprocess.h"

namespace fai::ops {

// Bytes of a view's dense copy.
int64_t dense_bytes(const View& view);
bool is_dense(const View& view);
// Makes a view one of a dense copy at `data`.
void make_dense(View& view, const void* data);

struct StagingOptions {
    // Few enough that copying and sending overlap, enough that neither is dominated by its start.
    int64_t piece_bytes = int64_t{1} << 17;
    // Of those that the process may use; more copy no faster.
    int threads = 8;
    // With cpu::copy_past_cache(). What lies modified in the caches of several cores reaches the device at
    // half the speed (bench/staging.py on an H100: 449 us in place of 232 for a frame of 1080 x 1920).
    bool past_cache = true;
};

// A frame's planes, each copied densely one after the other, cut into pieces of whole rows.
class Staging {
  public:
    Staging() = default;
    Staging(const PreprocessArguments& frame, const StagingOptions& options);

    int64_t bytes() const { return bytes_; }
    int64_t pieces() const { return pieces_; }
    int64_t plane_begin(int plane) const { return planes_[plane].at; }

    // Copies everything to `out` on several threads. The caller's alone calls meanwhile() first, and
    // pass_on(begin, end) as soon as the bytes before `end` are all there. Allocates nothing after the first
    // call; throws what those two throw.
    void copy(uint8_t* out, const std::function<void()>& meanwhile,
              const std::function<void(int64_t, int64_t)>& pass_on) const;

  private:
    struct Plane {
        View view;
        int64_t at = 0;  // bytes of the planes before
        int64_t row_bytes = 0, rows_of_piece = 0;
        int64_t first_piece = 0;
    };

    const Plane& plane_of(int64_t piece) const;
    // Bytes of everything before a piece.
    int64_t begin(int64_t piece) const;
    void copy_piece(int64_t piece, uint8_t* out) const;

    StagingOptions options_;
    Plane planes_[3];
    int plane_count_ = 0;
    int64_t bytes_ = 0, pieces_ = 0;
};

}  // namespace fai::ops
