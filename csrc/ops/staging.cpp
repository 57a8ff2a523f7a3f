#include "csrc/ops/staging.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "csrc/core/parallel.h"
#include "csrc/cpu/copy.h"

namespace fai::ops {
namespace {

// Bytes of one row of a view's dense copy.
int64_t row_bytes(const View& view) {
    int64_t bytes = 1;
    for (int i = 1; i < view.ndim; ++i) bytes *= view.shape[i];
    return bytes;
}

bool has_dense_rows(const View& view) {
    int64_t dense = 1;
    for (int i = view.ndim - 1; i >= 1; --i) {
        if (view.shape[i] != 1 && view.strides[i] != dense) return false;
        dense *= view.shape[i];
    }
    return true;
}

using Copy = void (*)(void* to, const void* from, size_t bytes);

void copy_cached(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

// Copies rows [begin, end) of a view of one to three dimensions.
void copy_rows(const View& view, int64_t begin, int64_t end, uint8_t* out, Copy copy) {
    const auto* data = static_cast<const uint8_t*>(view.data);
    const int64_t bytes = row_bytes(view);
    if (is_dense(view)) {
        copy(out, data + begin * bytes, static_cast<size_t>((end - begin) * bytes));
        return;
    }
    const bool dense = has_dense_rows(view);
    const int64_t columns = view.ndim > 1 ? view.shape[1] : 1, channels = view.ndim > 2 ? view.shape[2] : 1;
    for (int64_t y = begin; y < end; ++y, out += bytes) {
        const uint8_t* row = data + y * view.strides[0];
        if (dense) {
            copy(out, row, static_cast<size_t>(bytes));
            continue;
        }
        for (int64_t x = 0; x < columns; ++x) {
            for (int64_t c = 0; c < channels; ++c) {
                out[x * channels + c] = row[x * view.strides[1] + (view.ndim > 2 ? c * view.strides[2] : 0)];
            }
        }
    }
}

}  // namespace

int64_t dense_bytes(const View& view) { return view.shape[0] * row_bytes(view); }

bool is_dense(const View& view) {
    return has_dense_rows(view) && (view.shape[0] == 1 || view.strides[0] == row_bytes(view));
}

void make_dense(View& view, const void* data) {
    view.data = data;
    int64_t dense = 1;
    for (int i = view.ndim - 1; i >= 0; --i) {
        view.strides[i] = dense;
        dense *= view.shape[i];
    }
}

Staging::Staging(const PreprocessArguments& frame, const StagingOptions& options)
    : options_(options), plane_count_(frame.plane_count) {
    for (int i = 0; i < plane_count_; ++i) bytes_ += dense_bytes(frame.planes[i]);
    // Rows are rounded down, which makes at most twice as many pieces, and every plane begins one.
    const int64_t least = 2 * bytes_ / (kMaxRelayTasks - 8);
    int64_t at = 0;
    for (int i = 0; i < plane_count_; ++i) {
        Plane& plane = planes_[i];
        plane.view = frame.planes[i];
        plane.at = at;
        plane.row_bytes = std::max<int64_t>(row_bytes(plane.view), 1);
        plane.rows_of_piece = std::max<int64_t>(std::max(options.piece_bytes, least) / plane.row_bytes, 1);
        plane.first_piece = pieces_;
        pieces_ += (plane.view.shape[0] + plane.rows_of_piece - 1) / plane.rows_of_piece;
        at += dense_bytes(plane.view);
    }
}

const Staging::Plane& Staging::plane_of(int64_t piece) const {
    int i = plane_count_ - 1;
    while (i > 0 && planes_[i].first_piece > piece) --i;
    return planes_[i];
}

int64_t Staging::begin(int64_t piece) const {
    if (piece == pieces_) return bytes_;
    const Plane& plane = plane_of(piece);
    return plane.at + (piece - plane.first_piece) * plane.rows_of_piece * plane.row_bytes;
}

void Staging::copy_piece(int64_t piece, uint8_t* out) const {
    const Plane& plane = plane_of(piece);
    const int64_t row = (piece - plane.first_piece) * plane.rows_of_piece;
    copy_rows(plane.view, row, std::min(row + plane.rows_of_piece, plane.view.shape[0]), out + begin(piece),
              options_.past_cache ? cpu::copy_past_cache : copy_cached);
}

void Staging::copy(uint8_t* out, const std::function<void()>& meanwhile,
                   const std::function<void(int64_t, int64_t)>& pass_on) const {
    const auto work = [this, out](int64_t piece) { copy_piece(piece, out); };
    const auto pass = [&](int64_t first, int64_t last) { pass_on(begin(first), begin(last)); };
    // References, since a std::function would allocate for what they capture.
    relay(pieces_, resolve_threads(options_.threads), std::ref(work), meanwhile, std::ref(pass));
}

}  // namespace fai::ops
