// The way of kept masks to the host, and into boolean masks on the device.
//
// Bytes. `pack`: a bit for each pixel of a box over the bus, 0.4 MB of 20 masks at 1080p, 8 us of 55 GB/s.
// `expand`: a byte for each pixel and mask is written, 41 MB of 20 masks, 9 us of an H200's memory.
#include <algorithm>
#include <cstdint>

#include "cuda/device.cuh"
#include "cuda/params.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

// Copies the masks' boxes out of their canvases to the host's memory. Blocks are dealt out to the rows, so
// that a block waits for one row's place alone.
__global__ void __launch_bounds__(kThreads) pack(const ImageParams* __restrict__ params) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const Header header = *image.kept_header;
    if (header.words > image.payload_words || header.count == 0) return;
    const int64_t stride = canvas_words(image.size);
    const auto rows = static_cast<uint32_t>(header.count);
    const uint32_t shares = gridDim.x > rows ? gridDim.x / rows : 1;  // blocks of each row
    for (uint32_t item = blockIdx.x; item < rows * shares; item += gridDim.x) {
        const Row& row = image.kept[item / shares];
        const int32_t first = row.x1 / 64;
        const auto across = static_cast<uint32_t>((row.x2 + 63) / 64 - first);
        const uint32_t words = across * static_cast<uint32_t>(row.y2 - row.y1);
        const uint64_t* const from =
            image.canvas + (static_cast<int64_t>(row.slot) * image.size.height + row.y1) * stride + first;
        uint64_t* const to = image.payload + row.offset;
        for (uint32_t i = item % shares * kThreads + threadIdx.x; i < words; i += shares * kThreads) {
            const uint32_t y = i / across;
            to[i] = from[y * stride + (i - y * across)];
        }
    }
}

// The same of labels, a word by a warp.
template <class L>
__global__ void __launch_bounds__(kThreads) pack_labels(const ImageParams* __restrict__ params) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const Header header = *image.kept_header;
    if (header.words > image.payload_words || header.count == 0) return;
    const L* const labels = static_cast<const L*>(image.segments);
    const int lane = threadIdx.x & 31;
    const auto rows = static_cast<uint32_t>(header.count);
    const uint32_t shares = gridDim.x > rows ? gridDim.x / rows : 1;  // blocks of each row
    for (uint32_t item = blockIdx.x; item < rows * shares; item += gridDim.x) {
        const Row& row = image.kept[item / shares];
        const int32_t first = row.x1 / 64;
        const auto across = static_cast<uint32_t>((row.x2 + 63) / 64 - first);
        const uint32_t words = across * static_cast<uint32_t>(row.y2 - row.y1);
        const L wanted = static_cast<L>(row.slot);
        for (uint32_t i = item % shares * kWarps + threadIdx.x / 32; i < words; i += shares * kWarps) {
            const uint32_t y = i / across;
            const int32_t x = (first + static_cast<int32_t>(i - y * across)) * 64 + lane;
            const L* const line = labels + (row.y1 + static_cast<int64_t>(y)) * image.size.width;
            const unsigned low = __ballot_sync(kAllLanes, x < row.x2 && line[x] == wanted);
            const unsigned high = __ballot_sync(kAllLanes, x + 32 < row.x2 && line[x + 32] == wanted);
            if (lane == 0) image.payload[row.offset + i] = static_cast<uint64_t>(high) << 32 | low;
        }
    }
}

// What expand() knows of a row. As a parameter it needs no way to the device of its own.
struct Expanded {
    int32_t label, slot;
    int32_t x1, y1, x2, y2;
};
constexpr int kExpandedAtOnce = 128;  // of the 4 KiB that parameters may take
struct ExpandedRows {
    Expanded rows[kExpandedAtOnce];
};

// Bytes of 0 or 1 for four bits.
__device__ __forceinline__ uint32_t bytes_of(uint32_t bits) {
    return (bits & 15) * 0x00204081u & 0x01010101u;
}

// Bytes of 1 where those of `word` are those of `value`, else of 0.
__device__ __forceinline__ uint32_t equal_bytes(uint32_t word, uint32_t value) {
    const uint32_t differ = word ^ value;
    return ~((differ & 0x7f7f7f7fu) + 0x7f7f7f7fu | differ | 0x7f7f7f7fu) >> 7;
}

// The bits of pixels [x, x + count) of a mask's line, at most 16 and all within the line.
__device__ __forceinline__ uint32_t bits_of(const ImageParams& image, const Expanded& row, int64_t stride,
                                            int32_t y, int32_t x, int32_t count) {
    const int32_t begin = max_i32(x, row.x1), end = min_i32(x + count, row.x2);
    if (y < row.y1 || y >= row.y2 || begin >= end) return 0;
    const uint64_t* const line =
        image.canvas + (static_cast<int64_t>(row.slot) * image.size.height + y) * stride;
    const int32_t shift = begin & 63;
    uint64_t word = line[begin / 64] >> shift;
    if (shift + (end - begin) > 64) word |= line[begin / 64 + 1] << (64 - shift);
    return (static_cast<uint32_t>(word) & ((1u << (end - begin)) - 1u)) << (begin - x);
}

// Sixteen pixels per thread, which are one aligned store; blockIdx.z is the row.
template <class L, bool semantic>
__global__ void __launch_bounds__(kThreads)
    expand(const ImageParams* __restrict__ params, int32_t index, const __grid_constant__ ExpandedRows rows,
           uint8_t* __restrict__ out) {
    const ImageParams& image = params[index];
    const Expanded& row = rows.rows[blockIdx.z];
    const auto width = static_cast<uint32_t>(image.size.width);
    const auto pixels = static_cast<int64_t>(image.size.height) * image.size.width;
    const int64_t stride = canvas_words(image.size);
    uint8_t* const mask = out + blockIdx.z * pixels;
    // Pixels before the mask's first whole store.
    const auto head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(mask) & 15);
    const int64_t vectors = (head > 0) + (pixels - head + 15) / 16;
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t v = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; v < vectors; v += step) {
        int64_t p = head > 0 ? head - 16 + 16 * v : 16 * v;
        const int64_t begin = p < 0 ? 0 : p, end = p + 16 < pixels ? p + 16 : pixels;
        const int32_t before = static_cast<int32_t>(begin - p);
        uint32_t bits = 0;
        if (semantic) {
            const L* const labels = static_cast<const L*>(image.segments);
            if (sizeof(L) == 1 && end - begin == 16 && p % 16 == 0) {
                const uint4 found = *reinterpret_cast<const uint4*>(labels + p);
                const uint32_t query = static_cast<uint32_t>(row.label) * 0x01010101u;
                *reinterpret_cast<uint4*>(mask + p) = {
                    equal_bytes(found.x, query), equal_bytes(found.y, query), equal_bytes(found.z, query),
                    equal_bytes(found.w, query)};
                continue;
            }
            for (int32_t k = before; k < static_cast<int32_t>(end - p); ++k) {
                bits |= static_cast<uint32_t>(labels[p + k] == static_cast<L>(row.label)) << k;
            }
        } else {
            auto y = static_cast<int32_t>(static_cast<uint32_t>(begin) / width);
            auto x = static_cast<int32_t>(static_cast<uint32_t>(begin) - y * width);
            for (int32_t k = before; k < static_cast<int32_t>(end - p);) {
                const int32_t count = min_i32(static_cast<int32_t>(end - p) - k, image.size.width - x);
                bits |= bits_of(image, row, stride, y, x, count) << k;
                k += count;
                x = 0;
                ++y;
            }
        }
        const uint4 bytes = {bytes_of(bits), bytes_of(bits >> 4), bytes_of(bits >> 8), bytes_of(bits >> 12)};
        if (end - begin == 16) {
            *reinterpret_cast<uint4*>(mask + p) = bytes;
        } else {
            for (int64_t q = begin; q < end; ++q) mask[q] = bits >> (q - p) & 1;
        }
    }
}

}  // namespace

void launch_pack(cudaStream_t stream, const PostprocessLaunch& l) {
    auto* kernel = pack;
    if (l.spec->rules.exclusive) kernel = narrow(*l.spec) ? pack_labels<uint8_t> : pack_labels<uint16_t>;
    launch(stream, dim3(2 * l.multiprocessors, l.spec->batch), dim3(kThreads), kernel, l.params);
}

void launch_expand(cudaStream_t stream, const PostprocessLaunch& l, int image, Size size, const Row* rows,
                   int count, uint8_t* out) {
    auto* kernel = expand<uint8_t, false>;
    if (writes_labels(*l.spec)) kernel = narrow(*l.spec) ? expand<uint8_t, true> : expand<uint16_t, true>;
    const int64_t pixels = static_cast<int64_t>(size.height) * size.width;
    const int64_t blocks = pixels / 16 / kThreads + 1;
    for (int begin = 0; begin < count; begin += kExpandedAtOnce) {
        const int here = std::min(count - begin, kExpandedAtOnce);
        ExpandedRows some = {};
        for (int k = 0; k < here; ++k) {
            const Row& row = rows[begin + k];
            const int32_t label = l.spec->rules.exclusive ? row.slot : row.query;
            some.rows[k] = {label, row.slot, row.x1, row.y1, row.x2, row.y2};
        }
        const dim3 grid(static_cast<unsigned>(std::min<int64_t>(blocks, 4 * l.multiprocessors)), 1, here);
        launch(stream, grid, dim3(kThreads), kernel, l.params, image, some, out + begin * pixels);
    }
}

}  // namespace fai::cuda
