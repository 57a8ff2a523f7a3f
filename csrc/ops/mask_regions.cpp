#include "csrc/ops/mask_regions.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/ops/mask_words.h"

namespace fai::ops {
namespace {

// Pixels that both masks have.
int64_t intersection(const MaskView& masks, int64_t a, int64_t b) {
    const Box &one = masks.box(a), &other = masks.box(b);
    const int64_t top = std::max(one.y1, other.y1), bottom = std::min(one.y2, other.y2);
    const int64_t first = std::max(one.first_word(), other.first_word());
    const int64_t end = std::min(one.first_word() + one.row_words(), other.first_word() + other.row_words());
    int64_t pixels = 0;
    for (int64_t y = top; y < bottom; ++y) {
        const uint64_t* p = masks.words(a) + (y - one.y1) * one.row_words() - one.first_word();
        const uint64_t* q = masks.words(b) + (y - other.y1) * other.row_words() - other.first_word();
        for (int64_t k = first; k < end;) {
            std::array<uint64_t, 31> common;
            const int64_t n = std::min<int64_t>(end - k, common.size());
            for (int64_t i = 0; i < n; ++i) common[i] = p[k + i] & q[k + i];
            pixels += popcount(common.data(), n);
            k += n;
        }
    }
    return pixels;
}

int64_t box_intersection(const Box& a, const Box& b) {
    const int64_t width = std::min(a.x2, b.x2) - std::max(a.x1, b.x1);
    const int64_t height = std::min(a.y2, b.y2) - std::max(a.y1, b.y1);
    return width > 0 && height > 0 ? width * height : 0;
}

void check_permutation(std::span<const int64_t> order, int64_t count) {
    std::vector<bool> seen(static_cast<size_t>(count));
    for (const int64_t i : order) {
        if (i < 0 || i >= count || seen[i]) {
            throw ValueError(message("order: got ", i, ", expected each of the ", count, " masks once"));
        }
        seen[i] = true;
    }
    if (static_cast<int64_t>(order.size()) != count) {
        throw ValueError(
            message("order: got ", order.size(), ", expected each of the ", count, " masks once"));
    }
}

// Neighboring pixels of a row, [begin, end) in columns of the frame.
struct Run {
    int64_t row, begin, end;
    int64_t parent;
};

// The runs of a mask, in rows, each of which points to a run of the part it belongs to.
class Parts {
  public:
    Parts(const MaskView& masks, int64_t i) {
        const Box& box = masks.box(i);
        size_t above = 0, above_end = 0;  // the runs of the row above
        for (int64_t row = 0; row < box.rows(); ++row) {
            const size_t begin = runs_.size();
            append(masks.words(i) + row * box.row_words(), box, row);
            size_t other = above;
            for (size_t run = begin; run < runs_.size(); ++run) {
                // Corners touch: a run may begin where one above ends.
                while (other < above_end && runs_[other].end < runs_[run].begin) ++other;
                for (size_t next = other; next < above_end && runs_[next].begin <= runs_[run].end; ++next) {
                    join(static_cast<int64_t>(run), static_cast<int64_t>(next));
                }
            }
            above = begin;
            above_end = runs_.size();
        }
        area_.assign(runs_.size(), 0);
        for (size_t run = 0; run < runs_.size(); ++run) {
            area_[root(static_cast<int64_t>(run))] += runs_[run].end - runs_[run].begin;
        }
    }

    // Calls visit(run) for each run that does not stay.
    template <class Visit>
    void rejected(int64_t min_area, bool largest, Visit visit) {
        int64_t best = -1;
        if (largest && !area_.empty()) {
            best = std::max_element(area_.begin(), area_.end()) - area_.begin();
        }
        for (size_t run = 0; run < runs_.size(); ++run) {
            const int64_t part = root(static_cast<int64_t>(run));
            if (area_[part] < min_area || (largest && part != best)) visit(runs_[run]);
        }
    }

  private:
    void append(const uint64_t* words, const Box& box, int64_t row) {
        bool open = false;
        for (int64_t k = 0; k < box.row_words(); ++k) {
            const uint64_t word = words[k];
            const int64_t left = 64 * (box.first_word() + k);
            // Where pixels differ from the one before.
            for (uint64_t flips = word ^ (word << 1 | (open ? 1 : 0)); flips != 0; flips &= flips - 1) {
                const int64_t x = left + std::countr_zero(flips);
                if (open) {
                    runs_.back().end = x;
                } else {
                    const auto self = static_cast<int64_t>(runs_.size());
                    runs_.push_back({.row = row, .begin = x, .end = x, .parent = self});
                }
                open = !open;
            }
        }
        if (open) runs_.back().end = 64 * (box.first_word() + box.row_words());
    }

    int64_t root(int64_t run) {
        while (runs_[run].parent != run) {
            runs_[run].parent = runs_[runs_[run].parent].parent;
            run = runs_[run].parent;
        }
        return run;
    }

    // The first run of a part is its root, so that the first part wins ties.
    void join(int64_t a, int64_t b) {
        a = root(a);
        b = root(b);
        runs_[std::max(a, b)].parent = std::min(a, b);
    }

    std::vector<Run> runs_;
    std::vector<int64_t> area_;  // of a root, the pixels of its part; 0 elsewhere
};

// Zeros bits [begin, end) of a row whose first word is `first` of the frame's.
void clear(uint64_t* words, int64_t first, int64_t begin, int64_t end) {
    for (int64_t k = begin / 64; 64 * k < end; ++k) {
        const int64_t from = std::max<int64_t>(begin - 64 * k, 0), to = std::min<int64_t>(end - 64 * k, 64);
        words[k - first] &= ~(~uint64_t{0} >> (64 - (to - from)) << from);
    }
}

// The box of the pixels that are set in the words of `box`.
Box tight(const uint64_t* words, const Box& box) {
    const int64_t stride = box.row_words();
    std::vector<uint64_t> columns(static_cast<size_t>(stride));
    int64_t top = box.y2, bottom = box.y1;
    for (int64_t row = 0; row < box.rows(); ++row) {
        uint64_t any = 0;
        for (int64_t k = 0; k < stride; ++k) {
            columns[k] |= words[row * stride + k];
            any |= words[row * stride + k];
        }
        if (any != 0) {
            top = std::min(top, box.y1 + row);
            bottom = box.y1 + row + 1;
        }
    }
    if (bottom <= top) return {};
    int64_t first = 0, last = stride - 1;
    while (columns[first] == 0) ++first;
    while (columns[last] == 0) --last;
    const int64_t left = 64 * box.first_word();
    return {.x1 = static_cast<int32_t>(left + 64 * first + std::countr_zero(columns[first])),
            .y1 = static_cast<int32_t>(top),
            .x2 = static_cast<int32_t>(left + 64 * last + 64 - std::countl_zero(columns[last])),
            .y2 = static_cast<int32_t>(bottom)};
}

}  // namespace

std::vector<uint8_t> masks_nms(const MaskView& masks, std::span<const int64_t> order,
                               std::span<const int64_t> groups, double iou) {
    check_permutation(order, masks.count());
    if (static_cast<int64_t>(groups.size()) != masks.count()) {
        throw ValueError(
            message("groups: got ", groups.size(), ", expected ", masks.count(), ", one a mask"));
    }
    const std::vector<int64_t> area = masks_area(masks);
    const auto above = [&](int64_t a, int64_t b, int64_t common) {
        return static_cast<double>(common) > iou * static_cast<double>(area[a] + area[b] - common);
    };
    std::vector<uint8_t> keep(static_cast<size_t>(masks.count()));
    std::vector<int64_t> kept;
    for (const int64_t i : order) {
        const bool suppressed = std::ranges::any_of(kept, [&](int64_t other) {
            if (groups[other] != groups[i]) return false;
            // The most that they can have in common; most pairs end here.
            const int64_t most =
                std::min({area[i], area[other], box_intersection(masks.box(i), masks.box(other))});
            return most > 0 && above(i, other, most) && above(i, other, intersection(masks, i, other));
        });
        if (suppressed) continue;
        keep[i] = 1;
        kept.push_back(i);
    }
    return keep;
}

PackedMasks masks_clean(const MaskView& masks, int64_t min_area, bool largest, int num_threads) {
    PackedMasks all = masks_compact(masks);
    std::vector<Box> boxes(all.boxes.size());
    const int64_t bytes = static_cast<int64_t>(all.bits.size()) * 32;
    parallel_for(masks.count(), threads_for(bytes, num_threads), [&](int64_t i) {
        const Box& box = masks.box(i);
        uint64_t* words = all.bits.data() + all.offsets[i];
        bool changed = false;
        Parts(masks, i).rejected(min_area, largest, [&](const Run& run) {
            clear(words + run.row * box.row_words(), box.first_word(), run.begin, run.end);
            changed = true;
        });
        boxes[i] = changed ? tight(words, box) : box;
    });
    PackedMasks cleaned;
    cleaned.boxes = std::move(boxes);
    lay_out(cleaned);
    for (int64_t i = 0; i < masks.count(); ++i) {
        const Box &from = all.boxes[i], &to = cleaned.boxes[i];
        for (int64_t y = to.y1; y < to.y2; ++y) {
            const uint64_t* row = all.bits.data() + all.offsets[i] + (y - from.y1) * from.row_words();
            std::copy_n(row + (to.first_word() - from.first_word()), to.row_words(),
                        cleaned.bits.data() + cleaned.offsets[i] + (y - to.y1) * to.row_words());
        }
    }
    return cleaned;
}

std::vector<uint8_t> mask_scanlines(const MaskView& masks, int64_t i) {
    constexpr uint8_t kUp = 2;
    const Box& box = masks.box(i);
    const int64_t width = box.empty() ? 0 : box.x2 - box.x1, bytes = (width + 7) / 8,
                  stride = box.row_words();
    const int shift = box.x1 % 64;
    std::vector<uint8_t> lines(static_cast<size_t>(box.rows() * (bytes + 1)));
    std::vector<uint8_t> above(static_cast<size_t>(bytes) + 8), line(static_cast<size_t>(bytes) + 8);
    uint8_t* out = lines.data();
    for (int64_t row = 0; row < box.rows(); ++row) {
        const uint64_t* words = masks.words(i) + row * stride;
        for (int64_t k = 0; 8 * k < bytes; ++k) {
            uint64_t word = words[k] >> shift;
            if (shift != 0 && k + 1 < stride) word |= words[k + 1] << (64 - shift);
            // Packed masks have the first pixel of a byte lowest.
            word = (word >> 1 & 0x5555555555555555) | (word & 0x5555555555555555) << 1;
            word = (word >> 2 & 0x3333333333333333) | (word & 0x3333333333333333) << 2;
            word = (word >> 4 & 0x0f0f0f0f0f0f0f0f) | (word & 0x0f0f0f0f0f0f0f0f) << 4;
            std::memcpy(line.data() + 8 * k, &word, 8);
        }
        *out++ = kUp;
        for (int64_t k = 0; k < bytes; ++k) *out++ = static_cast<uint8_t>(line[k] - above[k]);
        std::swap(line, above);
    }
    return lines;
}

}  // namespace fai::ops
