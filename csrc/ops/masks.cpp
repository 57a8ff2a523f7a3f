#include "csrc/ops/masks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/ops/mask_words.h"

namespace fai::ops {
namespace {

static_assert(std::endian::native == std::endian::little, "pixel k of eight bytes must be byte k of a word");

constexpr uint64_t kAll = ~uint64_t{0};

constexpr auto kByteOfBits = [] {
    std::array<std::array<uint8_t, 8>, 256> table{};
    for (int bits = 0; bits < 256; ++bits) {
        for (int i = 0; i < 8; ++i) table[bits][i] = bits >> i & 1;
    }
    return table;
}();

inline void expand64(uint64_t word, uint8_t* out) {
    // Inside and outside an object, whole words are equal.
    if (word == 0) {
        std::memset(out, 0, 64);
    } else if (word == kAll) {
        std::memset(out, 1, 64);
    } else {
        for (int i = 0; i < 8; ++i) std::memcpy(out + 8 * i, kByteOfBits[word >> 8 * i & 0xff].data(), 8);
    }
}

// Unpacks n pixels, the first of which is bit `first` of *words.
void expand(const uint64_t* words, int first, int64_t n, uint8_t* out) {
    for (; n > 0; n -= 64, out += 64, ++words) {
        uint64_t word = *words >> first;
        if (first != 0 && n > 64 - first) word |= words[1] << (64 - first);
        if (n >= 64) {
            expand64(word, out);
        } else {
            uint8_t tail[64];
            expand64(word, tail);
            std::memcpy(out, tail, static_cast<size_t>(n));
        }
    }
}

// Bit k says whether lane k is not zero; eight lanes of 8 or four of 16 bits. Adding 0x7f to a lane's low
// bits carries into its top bit unless they are zero; the product moves the top bits side by side without
// carries.
template <class T>
inline uint64_t nonzero_lanes(uint64_t lanes) {
    constexpr int width = 8 * sizeof(T);
    constexpr uint64_t low = sizeof(T) == 1 ? 0x7f7f7f7f7f7f7f7f : 0x7fff7fff7fff7fff;
    constexpr uint64_t gather = sizeof(T) == 1 ? 0x0102040810204080 : 0x1000200040008000;
    const uint64_t top = (((lanes & low) + low) | lanes) & ~low;
    return ((top >> (width - 1)) * gather) >> (64 - 64 / width);
}

// Bit k says whether pixels[k] != value.
template <class T>
inline uint64_t unequal64(const T* pixels, T value) {
    constexpr int lanes = 8 / sizeof(T);
    const uint64_t values = (sizeof(T) == 1 ? 0x0101010101010101 : 0x0001000100010001) * uint64_t{value};
    uint64_t bits = 0;
    for (int i = 0; i < 64 / lanes; ++i) {
        uint64_t chunk;
        std::memcpy(&chunk, pixels + i * lanes, 8);
        bits |= nonzero_lanes<T>(chunk ^ values) << (i * lanes);
    }
    return bits;
}

template <class T>
inline bool uniform64(const T* pixels) {
    T difference = 0;
    for (int i = 0; i < 64; ++i) difference |= static_cast<T>(pixels[i] ^ pixels[0]);
    return difference == 0;
}

// The next n <= 64 pixels, repeated to 64. A copy, since the source may change while the GIL is released.
template <class T>
struct Block {
    T pixels[64];
    Block(const T* source, int64_t n) {
        std::memcpy(pixels, source, static_cast<size_t>(n) * sizeof(T));
        std::fill(pixels + n, pixels + 64, pixels[0]);
    }
};

// visit(value, bits) for every value among n <= 64 pixels. Segments are large: a block has one value, or two.
template <class T, class Visit>
void for_values(const T* source, int64_t n, Visit visit) {
    const Block<T> block(source, n);
    uint64_t left = kAll >> (64 - n);
    if (uniform64(block.pixels)) return visit(block.pixels[0], left);
    while (left != 0) {
        const T value = block.pixels[std::countr_zero(left)];
        const uint64_t bits = left & ~unequal64(block.pixels, value);
        visit(value, bits);
        left &= ~bits;
    }
}

// For every value of T the first row that lists it, -1 where none does.
template <class T>
std::vector<int32_t> row_of_value(std::span<const int64_t> queries) {
    if (queries.size() > std::numeric_limits<int32_t>::max()) {
        throw ValueError(message("queries: got ", queries.size(), ", expected fewer than 2**31"));
    }
    std::vector<int32_t> row(size_t{std::numeric_limits<T>::max()} + 1, -1);
    for (size_t i = queries.size(); i-- > 0;) {
        if (queries[i] < 0 || queries[i] > std::numeric_limits<T>::max()) {
            throw ValueError(message("queries: got ", queries[i], " in row ", i,
                                     ", expected values of segments: 0 to ",
                                     int{std::numeric_limits<T>::max()}));
        }
        row[queries[i]] = static_cast<int32_t>(i);
    }
    return row;
}

// Calls body(first row, last row + 1, band) for bands that cover all rows.
struct Bands {
    int64_t height, rows, count;
    Bands(int64_t height, int threads)
        : height(height),
          rows(std::max<int64_t>(1, (height + 4 * threads - 1) / (4 * threads))),
          count((height + rows - 1) / rows) {}
    template <class Body>
    void run(int threads, Body body) const {
        parallel_for(count, threads,
                     [&](int64_t band) { body(band * rows, std::min(height, (band + 1) * rows), band); });
    }
};

// rows[r] bit c becomes rows[c] bit r: halves of the tile swap across the diagonal, then quarters, and so on.
void transpose64(uint64_t* rows) {
    uint64_t keep = kAll >> 32;
    for (int half = 32; half > 0; half /= 2, keep ^= keep << half) {
        for (int base = 0; base < 64; base += 2 * half) {
            for (int i = base; i < base + half; ++i) {
                const uint64_t swap = (rows[i] >> half ^ rows[i + half]) & keep;
                rows[i] ^= swap << half;
                rows[i + half] ^= swap;
            }
        }
    }
}

// Where a mask changes value, read down the columns.
class Runs {
  public:
    void flip(int64_t position) {
        // One column's last pixel and the next one's first are neighbors: a run may pass between them.
        if (!flips_.empty() && flips_.back() == position) {
            flips_.pop_back();
        } else {
            flips_.push_back(position);
        }
    }

    std::string coco(int64_t pixels) {
        if (flips_.empty() || flips_.back() != pixels) flips_.push_back(pixels);
        std::string text;
        text.reserve(flips_.size() * 2 + 8);
        int64_t previous = 0;
        int64_t counts[2] = {0, 0};  // the run before last, the last run
        for (size_t i = 0; i < flips_.size(); ++i) {
            const int64_t count = flips_[i] - previous;
            previous = flips_[i];
            write(i > 2 ? count - counts[0] : count, text);
            counts[0] = counts[1];
            counts[1] = count;
        }
        return text;
    }

  private:
    static void write(int64_t value, std::string& text) {
        for (bool more = true; more;) {
            int64_t digit = value & 0x1f;
            value >>= 5;
            more = (digit & 0x10) != 0 ? value != -1 : value != 0;
            if (more) digit |= 0x20;
            text.push_back(static_cast<char>('0' + digit));
        }
    }

    std::vector<int64_t> flips_;
};

std::string rle(const uint64_t* words, const Box& box, Size size) {
    Runs runs;
    const int64_t rows = box.rows();
    const int64_t stride = box.row_words();
    const int64_t tiles = (rows + 63) / 64;
    std::vector<uint64_t> columns(static_cast<size_t>(64 * tiles));
    for (int64_t k = 0; k < stride; ++k) {
        for (int64_t t = 0; t < tiles; ++t) {
            uint64_t tile[64];
            uint64_t any = 0;
            for (int64_t r = 0; r < 64; ++r) {
                const int64_t row = 64 * t + r;
                tile[r] = row < rows ? words[row * stride + k] : 0;
                any |= tile[r];
            }
            if (any != 0) transpose64(tile);
            for (int64_t c = 0; c < 64; ++c) columns[c * tiles + t] = tile[c];
        }
        const int64_t left = 64 * (box.first_word() + k);
        const int64_t end = std::min<int64_t>(64, box.x2 - left);
        for (int64_t c = std::max<int64_t>(0, box.x1 - left); c < end; ++c) {
            const int64_t top = (left + c) * size.height + box.y1;
            uint64_t above = 0;
            for (int64_t t = 0; t < tiles; ++t) {
                const uint64_t word = columns[c * tiles + t];
                for (uint64_t flips = word ^ (word << 1 | above); flips != 0; flips &= flips - 1) {
                    runs.flip(top + 64 * t + std::countr_zero(flips));
                }
                above = word >> 63;
            }
            if (above != 0) runs.flip(top + 64 * tiles);
        }
    }
    return runs.coco(int64_t{size.height} * size.width);
}

}  // namespace

MaskView::MaskView(std::span<const uint64_t> bits, std::vector<int64_t> offsets, std::vector<Box> boxes,
                   Size size)
    : bits_(bits), offsets_(std::move(offsets)), boxes_(std::move(boxes)), size_(size) {
    if (offsets_.size() != boxes_.size()) {
        throw ValueError(
            message("offsets: got ", offsets_.size(), ", expected ", boxes_.size(), ", as many as boxes"));
    }
    for (size_t i = 0; i < boxes_.size(); ++i) {
        const Box& b = boxes_[i];
        if (b.x1 < 0 || b.x1 > b.x2 || b.x2 > size_.width || b.y1 < 0 || b.y1 > b.y2 || b.y2 > size_.height) {
            throw ValueError(message("boxes: got (", b.x1, ", ", b.y1, ", ", b.x2, ", ", b.y2, ") in row ", i,
                                     ", expected x1 <= x2 and y1 <= y2 inside a frame of ", size_.height,
                                     " x ", size_.width));
        }
        const auto available = static_cast<int64_t>(bits_.size());
        if (offsets_[i] < 0 || offsets_[i] > available || b.words() > available - offsets_[i]) {
            throw ValueError(message("offsets: got ", offsets_[i], " in row ", i, ", expected ", b.words(),
                                     " words from there within the ", available, " of bits"));
        }
    }
}

void MaskView::check_form() const {
    for (int64_t i = 0; i < count(); ++i) {
        const Box& b = boxes_[i];
        if (b.empty()) {
            if (b == Box{}) continue;
            throw ValueError(
                message("boxes: got an empty one in row ", i, ", expected it to be (0, 0, 0, 0)"));
        }
        const int64_t stride = b.row_words();
        uint64_t first = 0, last = 0, top = 0, bottom = 0;
        for (int64_t row = 0; row < b.rows(); ++row) {
            first |= words(i)[row * stride];
            last |= words(i)[row * stride + stride - 1];
        }
        for (int64_t k = 0; k < stride; ++k) {
            top |= words(i)[k];
            bottom |= words(i)[(b.rows() - 1) * stride + k];
        }
        const int64_t left = std::countr_zero(first), right = 64 - std::countl_zero(last);
        if (left < b.x1 % 64 || right > (b.x2 - 1) % 64 + 1) {
            throw ValueError(
                message("bits: got pixels of mask ", i, " outside its box, expected zeros there"));
        }
        if (left != b.x1 % 64 || right != (b.x2 - 1) % 64 + 1 || top == 0 || bottom == 0) {
            throw ValueError(
                message("boxes: got one larger than its mask in row ", i, ", expected the tight box"));
        }
    }
}

void masks_decode(const MaskView& masks, uint8_t* out, bool zeroed, int num_threads) {
    const int64_t height = masks.size().height, width = masks.size().width;
    constexpr int64_t band = 64;
    const int64_t bands = (height + band - 1) / band;
    parallel_for(
        masks.count() * bands, threads_for(masks.count() * height * width, num_threads), [&](int64_t task) {
            const int64_t i = task / bands, top = task % bands * band, bottom = std::min(height, top + band);
            const Box& box = masks.box(i);
            uint8_t* mask = out + i * height * width;
            const int64_t from = std::clamp<int64_t>(box.y1, top, bottom);
            const int64_t to = box.empty() ? from : std::clamp<int64_t>(box.y2, from, bottom);
            const int64_t left = 64 * box.first_word();
            const int64_t right = std::min(width, left + 64 * box.row_words());
            if (!zeroed) std::memset(mask + top * width, 0, static_cast<size_t>((from - top) * width));
            for (int64_t y = from; y < to; ++y) {
                uint8_t* row = mask + y * width;
                if (!zeroed) {
                    std::memset(row, 0, static_cast<size_t>(left));
                    std::memset(row + right, 0, static_cast<size_t>(width - right));
                }
                expand(masks.words(i) + (y - box.y1) * box.row_words(), 0, right - left, row + left);
            }
            if (!zeroed) std::memset(mask + to * width, 0, static_cast<size_t>((bottom - to) * width));
        });
}

void mask_crop(const MaskView& masks, int64_t i, uint8_t* out) {
    const Box& box = masks.box(i);
    const int64_t width = box.x2 - box.x1;
    for (int64_t row = 0; row < box.rows(); ++row) {
        expand(masks.words(i) + row * box.row_words(), box.x1 % 64, width, out + row * width);
    }
}

std::vector<int64_t> masks_area(const MaskView& masks) {
    std::vector<int64_t> area;
    area.reserve(static_cast<size_t>(masks.count()));
    for (int64_t i = 0; i < masks.count(); ++i)
        area.push_back(popcount(masks.words(i), masks.box(i).words()));
    return area;
}

PackedMasks masks_compact(const MaskView& masks) {
    PackedMasks dense;
    for (int64_t i = 0; i < masks.count(); ++i) dense.boxes.push_back(masks.box(i));
    lay_out(dense);
    for (int64_t i = 0; i < masks.count(); ++i) {
        std::copy_n(masks.words(i), masks.box(i).words(), dense.bits.data() + dense.offsets[i]);
    }
    return dense;
}

std::vector<std::string> masks_rle(const MaskView& masks, int num_threads) {
    std::vector<std::string> texts(static_cast<size_t>(masks.count()));
    int64_t words = 0;
    for (int64_t i = 0; i < masks.count(); ++i) words += masks.box(i).words();
    // Run lengths cost a few times what their words weigh.
    parallel_for(masks.count(), threads_for(32 * words, num_threads),
                 [&](int64_t i) { texts[i] = rle(masks.words(i), masks.box(i), masks.size()); });
    return texts;
}

PackedMasks masks_encode(const uint8_t* data, int64_t count, Size size, const int64_t strides[3],
                         int num_threads) {
    const int64_t height = size.height, width = size.width, words = (width + 63) / 64;
    std::vector<std::vector<uint64_t>> parts(static_cast<size_t>(count));
    PackedMasks masks;
    masks.boxes.resize(static_cast<size_t>(count));
    parallel_for(count, threads_for(count * height * width, num_threads), [&](int64_t i) {
        std::vector<uint64_t> frame(static_cast<size_t>(height * words));
        std::vector<uint64_t> columns(static_cast<size_t>(words));
        int64_t top = height, bottom = 0;
        for (int64_t y = 0; y < height; ++y) {
            const uint8_t* row = data + i * strides[0] + y * strides[1];
            uint64_t any = 0;
            for (int64_t k = 0; k < words; ++k) {
                const int64_t n = std::min<int64_t>(64, width - 64 * k);
                const uint8_t* pixels = row + 64 * k * strides[2];
                uint8_t gathered[64];
                if (strides[2] != 1 || n < 64) {
                    std::memset(gathered, 0, sizeof gathered);
                    for (int64_t x = 0; x < n; ++x) gathered[x] = pixels[x * strides[2]];
                    pixels = gathered;
                }
                const uint64_t word = unequal64<uint8_t>(pixels, 0);
                frame[y * words + k] = word;
                columns[k] |= word;
                any |= word;
            }
            if (any != 0) {
                top = std::min(top, y);
                bottom = y + 1;
            }
        }
        if (bottom == 0) return;
        int64_t first = 0, last = words - 1;
        while (columns[first] == 0) ++first;
        while (columns[last] == 0) --last;
        masks.boxes[i] = {.x1 = static_cast<int32_t>(64 * first + std::countr_zero(columns[first])),
                          .y1 = static_cast<int32_t>(top),
                          .x2 = static_cast<int32_t>(64 * last + 64 - std::countl_zero(columns[last])),
                          .y2 = static_cast<int32_t>(bottom)};
        parts[i].reserve(static_cast<size_t>(masks.boxes[i].words()));
        for (int64_t y = top; y < bottom; ++y) {
            const auto row = frame.begin() + y * words;
            parts[i].insert(parts[i].end(), row + first, row + last + 1);
        }
    });
    lay_out(masks);
    for (int64_t i = 0; i < count; ++i) std::ranges::copy(parts[i], masks.bits.begin() + masks.offsets[i]);
    return masks;
}

template <class T>
PackedMasks masks_from_segments(const T* segments, Size size, std::span<const int64_t> queries,
                                int num_threads) {
    const int64_t height = size.height, width = size.width;
    const std::vector<int32_t> row_of = row_of_value<T>(queries);
    const int threads = threads_for(height * width, num_threads);
    const Bands bands(height, threads);
    const Box nothing{.x1 = size.width, .y1 = size.height, .x2 = 0, .y2 = 0};
    std::vector<std::vector<Box>> parts(static_cast<size_t>(bands.count));
    bands.run(threads, [&](int64_t top, int64_t bottom, int64_t band) {
        std::vector<Box> boxes(queries.size(), nothing);
        for (int64_t y = top; y < bottom; ++y) {
            for (int64_t x = 0; x < width; x += 64) {
                for_values(
                    segments + y * width + x, std::min<int64_t>(64, width - x), [&](T value, uint64_t bits) {
                        if (row_of[value] < 0) return;
                        Box& box = boxes[row_of[value]];
                        box.x1 = std::min(box.x1, static_cast<int32_t>(x + std::countr_zero(bits)));
                        box.x2 = std::max(box.x2, static_cast<int32_t>(x + 64 - std::countl_zero(bits)));
                        box.y1 = std::min(box.y1, static_cast<int32_t>(y));
                        box.y2 = static_cast<int32_t>(y + 1);
                    });
            }
        }
        parts[band] = std::move(boxes);
    });

    PackedMasks masks;
    masks.boxes.assign(queries.size(), nothing);
    for (const std::vector<Box>& part : parts) {
        for (size_t i = 0; i < queries.size(); ++i) {
            Box& box = masks.boxes[i];
            box = {.x1 = std::min(box.x1, part[i].x1),
                   .y1 = std::min(box.y1, part[i].y1),
                   .x2 = std::max(box.x2, part[i].x2),
                   .y2 = std::max(box.y2, part[i].y2)};
        }
    }
    for (Box& box : masks.boxes) {
        if (box.empty()) box = Box{};
    }
    lay_out(masks);

    bands.run(threads, [&](int64_t top, int64_t bottom, int64_t) {
        for (int64_t y = top; y < bottom; ++y) {
            for (int64_t x = 0; x < width; x += 64) {
                for_values(segments + y * width + x, std::min<int64_t>(64, width - x),
                           [&](T value, uint64_t bits) {
                               const int32_t i = row_of[value];
                               if (i < 0) return;
                               const Box& box = masks.boxes[i];
                               const int64_t k = x / 64 - box.first_word();
                               // Always true, unless another thread wrote to segments since the boxes were
                               // found.
                               if (y >= box.y1 && y < box.y2 && k >= 0 && k < box.row_words()) {
                                   masks.bits[masks.offsets[i] + (y - box.y1) * box.row_words() + k] = bits;
                               }
                           });
            }
        }
    });
    // A query listed again shares the words of its first row.
    for (size_t i = 0; i < queries.size(); ++i) {
        const int32_t first = row_of[queries[i]];
        masks.boxes[i] = masks.boxes[first];
        masks.offsets[i] = masks.offsets[first];
    }
    return masks;
}

template <class T>
void label_map(const T* segments, Size size, std::span<const int64_t> queries,
               std::span<const int64_t> class_ids, int16_t* out, int num_threads) {
    constexpr int64_t kMaxClass = std::numeric_limits<int16_t>::max();
    const int64_t height = size.height, width = size.width;
    if (class_ids.size() != queries.size()) {
        throw ValueError(message("class_ids: got ", class_ids.size(), ", expected ", queries.size(),
                                 ", as many as queries"));
    }
    const std::vector<int32_t> row_of = row_of_value<T>(queries);
    std::vector<int16_t> label_of(row_of.size(), -1);
    for (size_t value = 0; value < row_of.size(); ++value) {
        if (row_of[value] < 0) continue;
        const int64_t id = class_ids[row_of[value]];
        if (id < -1 || id > kMaxClass) {
            throw ValueError(message("class_ids: got ", id, " in row ", row_of[value], ", expected -1 to ",
                                     kMaxClass, " for a label map"));
        }
        label_of[value] = static_cast<int16_t>(id);
    }
    const int threads = threads_for(height * width * 3, num_threads);
    Bands(height, threads).run(threads, [&](int64_t top, int64_t bottom, int64_t) {
        for (int64_t p = top * width; p < bottom * width; p += 64) {
            const int64_t n = std::min<int64_t>(64, bottom * width - p);
            const Block<T> block(segments + p, n);
            if (uniform64(block.pixels)) {
                std::fill_n(out + p, n, label_of[block.pixels[0]]);
            } else {
                for (int64_t i = 0; i < n; ++i) out[p + i] = label_of[block.pixels[i]];
            }
        }
    });
}

template PackedMasks masks_from_segments(const uint8_t*, Size, std::span<const int64_t>, int);
template PackedMasks masks_from_segments(const uint16_t*, Size, std::span<const int64_t>, int);
template void label_map(const uint8_t*, Size, std::span<const int64_t>, std::span<const int64_t>, int16_t*,
                        int);
template void label_map(const uint16_t*, Size, std::span<const int64_t>, std::span<const int64_t>, int16_t*,
                        int);

}  // namespace fai::ops
