#include "csrc/ops/drawing.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/cpu/kernels.h"

namespace fai::ops {
namespace {

constexpr uint64_t kAll = ~uint64_t{0};
// Below this many pixels of masks, waking a thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 16;
// Rows per task: few enough to share the work out, enough that starting one is nothing beside it.
constexpr int64_t kBandRows = 32;

// One step of erosion: the pixels whose four neighbors in the frame are all in the mask.
void erode(const uint64_t* from, const Box& box, Size frame, uint64_t* to) {
    const int64_t rows = box.rows(), words = box.row_words();
    const bool left_edge = box.first_word() == 0;
    // The bit of the frame's last column, where it is among the box's words: its neighbor lies beyond.
    const int64_t last = (frame.width - 1) / 64 - box.first_word();
    const uint64_t right_edge = uint64_t{1} << ((frame.width - 1) % 64);
    for (int64_t y = 0; y < rows; ++y) {
        const uint64_t* const row = from + y * words;
        const bool top = y == 0, bottom = y == rows - 1;
        for (int64_t k = 0; k < words; ++k) {
            const uint64_t left = row[k] << 1 | (k > 0 ? row[k - 1] >> 63 : uint64_t{left_edge});
            uint64_t right = row[k] >> 1 | (k + 1 < words ? row[k + 1] << 63 : 0);
            if (k == last) right |= right_edge;
            const uint64_t above = !top ? row[k - words] : box.y1 == 0 ? kAll : 0;
            const uint64_t below = !bottom ? row[k + words] : box.y2 == frame.height ? kAll : 0;
            to[y * words + k] = row[k] & left & right & above & below;
        }
    }
}

// The pixels of a mask that are not its contour.
std::vector<uint64_t> inner_words(const MaskView& masks, int64_t i, int line) {
    const Box& box = masks.box(i);
    std::vector<uint64_t> inner(masks.words(i), masks.words(i) + box.words()), next(inner.size());
    for (int step = 0; step < line; ++step) {
        erode(inner.data(), box, masks.size(), next.data());
        if (next == inner) break;
        std::swap(inner, next);
    }
    return inner;
}

void check(const MaskView& masks, std::span<const int64_t> rows, std::span<const uint8_t> colors,
           Brush brush) {
    if (std::ssize(colors) != 3 * masks.count()) {
        throw ValueError(message("colors: got ", colors.size() / 3, ", expected ", masks.count(),
                                 ", as many as there are masks"));
    }
    for (size_t i = 0; i < rows.size(); ++i) {
        if (rows[i] < 0 || rows[i] >= masks.count()) {
            throw ValueError(
                message("rows: got ", rows[i], " at ", i, ", expected 0 to ", masks.count() - 1));
        }
    }
    if (brush.alpha < 0 || brush.alpha > 255)
        throw ValueError(message("alpha: got ", brush.alpha, ", expected 0 to 255"));
    if (brush.line < 0) throw ValueError(message("line: got ", brush.line, ", expected 0 or more"));
}

}  // namespace

void paint_masks(const MaskView& masks, std::span<const int64_t> rows, std::span<const uint8_t> colors,
                 Brush brush, uint8_t* image, int num_threads) {
    check(masks, rows, colors, brush);
    const cpu::Kernels& kernels = cpu::kernels();
    const Size size = masks.size();
    int64_t pixels = 0;
    for (const int64_t row : rows) pixels += 64 * masks.box(row).words();
    const int threads = pixels < kWorthAThread ? 1 : resolve_threads(num_threads);
    std::vector<std::vector<uint64_t>> inner(rows.size());
    parallel_for(std::ssize(rows), threads,
                 [&](int64_t i) { inner[i] = inner_words(masks, rows[i], brush.line); });
    const auto paint = [&](int64_t i, int64_t top, int64_t bottom) {
        const Box& box = masks.box(rows[i]);
        const int64_t words = box.row_words();
        uint8_t color[cpu::kWordBytes];
        for (int k = 0; k < cpu::kWordBytes; k += 3) std::memcpy(color + k, colors.data() + 3 * rows[i], 3);
        for (int64_t y = std::max<int64_t>(top, box.y1); y < std::min<int64_t>(bottom, box.y2); ++y) {
            const int64_t start = (y - box.y1) * words;
            kernels.paint_row({.pixels = image + 3 * y * size.width,
                               .width = size.width,
                               .mask = masks.words(rows[i]) + start,
                               .inner = inner[i].data() + start,
                               .words = words,
                               .first_word = box.first_word(),
                               .color = color,
                               .alpha = static_cast<uint8_t>(brush.alpha)});
        }
    };
    parallel_for((size.height + kBandRows - 1) / kBandRows, threads, [&](int64_t band) {
        const int64_t top = band * kBandRows;
        for (int64_t i = 0; i < std::ssize(rows); ++i) paint(i, top, top + kBandRows);
    });
}

}  // namespace fai::ops
