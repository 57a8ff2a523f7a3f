// What the rest of the library may call on the GPU. No CUDA types, so that every file can include it; streams
// and graphs are the integers that the CUDA runtime's handles are.
//
// Everything but compiled(), toolkit_version() and driver_version() throws CudaError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "csrc/core/frame_layout.h"
#include "csrc/core/pixel_axis.h"
#include "csrc/core/rules.h"
#include "csrc/core/tap.h"
#include "csrc/core/types.h"

namespace fai::cuda {

// True where the .cu files were compiled.
bool compiled() noexcept;

// Versions of the CUDA toolkit compiled with and of what the driver supports, as major * 1000 + minor * 10; 0
// without.
int toolkit_version() noexcept;
int driver_version() noexcept;

struct Device {
    int index;
    std::string name;
    int major, minor;  // compute capability
    int multiprocessors;
    uint64_t memory;  // bytes
    std::string uuid;
};

// At least one.
std::vector<Device> devices();

// What an engine reads and writes, and how its outputs are meant.
struct GraphSpec {
    int device = 0;
    int batch = 1;
    Size input_size;
    DType images = DType::f16;
    int32_t queries = 0, rows = 0, columns = 0;  // of mask_logits
    int32_t class_columns = 0;                   // with softmax one more than there are classes
    DType mask_logits = DType::f16, class_logits = DType::f16;
    bool predict_all_pixels = false, softmax = true;  // panoptic: predict_all_pixels too
    Rules rules;
};

inline int32_t classes_of(const GraphSpec& spec) { return spec.class_columns - spec.softmax; }
// How many a label can tell apart: classes where they are summed, else queries.
inline int32_t labels_of(const GraphSpec& spec) {
    return spec.rules.by_sum ? classes_of(spec) : spec.queries;
}
// Is a label written for each pixel, on the device at least?
inline bool writes_labels(const GraphSpec& spec) { return spec.predict_all_pixels || spec.rules.exclusive; }
// Do labels take two bytes?
inline bool wide_labels(const GraphSpec& spec) { return labels_of(spec) > 255; }

// A frame, and what is asked of it. Tables are borrowed until submit() returns.
struct DeviceFrame {
    FrameLayout layout;
    const uint8_t* plane[3] = {nullptr, nullptr, nullptr};  // in the device's memory
    float yuv[6] = {0, 0, 0, 0, 0, 0};                      // math::YuvCoefficients
    float scale[3] = {1, 1, 1}, bias[3] = {0, 0, 0};        // of R, G, B
    float padding[3] = {0, 0, 0};                           // of the tensor beside the content
    int32_t top = 0, left = 0;                              // where the content lies in the tensor
    Size content;
    const Tap* rows = nullptr;     // (content.height)
    const Tap* columns = nullptr;  // (content.width)
    // Where logits are resized first, the nodes of that grid that the frame takes, else all of the network's.
    Size nodes;
    const Tap* node_rows = nullptr;     // (nodes.height) among the network's; null where they are not resized
    const Tap* node_columns = nullptr;  // (nodes.width)
    Size size;                          // of the returned masks
    PixelAxis x, y;
    bool new_tables = true;  // false where they are those of this image's last frame
    double threshold = 0.5, mask_threshold = 0.5;
    float mask_logit = 0;  // the same as a logit
    bool use_mask_score = false;
};

// A kept query. The score is left to the host: exp(best - largest) / total, in double.
struct Row {
    int32_t query;
    int32_t class_id;
    float best, largest, total;
    int32_t x1, y1, x2, y2;
    int32_t slot;
    int64_t area;
    int64_t sum;     // of mask probabilities over the mask, or over `nodes`, in units of kSumUnit
    int64_t nodes;   // inside; 0 where the sum is over the mask
    int64_t offset;  // first word in the bits
};
inline constexpr double kSumUnit = 1.0 / (1 << 24);

// Pinned memory that holds an image's result until it is destroyed.
class Result {
  public:
    virtual ~Result() = default;
    virtual const Row* rows() const = 0;  // in no order
    virtual int32_t count() const = 0;
    virtual const void* payload() const = 0;  // packed masks, or labels (see csrc/ops/masks.h)
    virtual int64_t payload_bytes() const = 0;
};

// Memory of the device, freed when the last owner lets go.
class DeviceMemory {
  public:
    virtual ~DeviceMemory() = default;
    virtual uintptr_t address() const = 0;
};

// Pinned memory of the host's, zero at first, freed when the last owner lets go.
class PinnedMemory {
  public:
    virtual ~PinnedMemory() = default;
    virtual void* address() const = 0;
};

std::shared_ptr<const PinnedMemory> pinned_memory(int device, size_t bytes);

// Milliseconds of a frame's stages on the device; zero where they were not measured.
struct StageTimes {
    float upload = 0, preprocess = 0, engine = 0, postprocess = 0;
};

// Owns a stream, pinned and device buffers, and a CUDA graph that holds preprocessing, the engine,
// postprocessing and the download. One frame (of `batch` images) is in flight at a time. Calls must not
// overlap, but may come from any thread.
//
// A frame is uploaded (where the host has it), prepared, launched, waited for, and its results are taken.
class DeviceGraph {
  public:
    // Puts one run of the engine on a stream.
    using Enqueue = std::function<void(uintptr_t stream)>;

    explicit DeviceGraph(const GraphSpec& spec);
    ~DeviceGraph();
    DeviceGraph(const DeviceGraph&) = delete;
    DeviceGraph& operator=(const DeviceGraph&) = delete;

    const GraphSpec& spec() const;
    uintptr_t stream() const;
    // (B, 3, h, w), (B, Q, h', w'), (B, Q, K), contiguous.
    uintptr_t images() const;
    uintptr_t mask_logits() const;
    uintptr_t class_logits() const;

    // Captures a frame's work with the engine's in its middle; "", or why it could not be captured, in which
    // case `enqueue` is kept and called for every frame. Runs the engine once before.
    std::string capture(Enqueue enqueue);
    // Calls `enqueue` for every frame.
    void run_uncaptured(Enqueue enqueue);
    // What comes before and after the engine, for a capture that somebody else has begun on stream(); adopt()
    // then takes the graph (a cudaGraph_t), which must exist as long as this one.
    void enqueue_preprocess();
    void enqueue_postprocess();
    void adopt(uintptr_t graph);
    // In a child of the process that made the graph, where nothing of it can be used nor destroyed.
    bool forked() const noexcept;
    // Lets go of the executable graph, or of the function that runs the engine, before what they use goes.
    void forget_engine() noexcept;

    // Throws CudaError while a frame is in flight, and in a forked child.
    void check_idle() const;
    // What the device reads where it is, without a copy: pinned memory where it has no memory of its own
    // (integrated GPUs), and all of the host's where it follows the host's page tables.
    bool reads_pinned() const;
    bool reads_pageable() const;

    // Pinned room for `bytes` of an image's frame, and the address under which the device finds what upload()
    // has sent from it. Valid until the next staging() or upload_pinned() for the image.
    uint8_t* staging(int image, size_t bytes);
    const uint8_t* frame_memory(int image) const;
    // Begins to copy [begin, end) of the staging room to the device; chunks may follow each other.
    void upload(int image, size_t begin, size_t end);
    // Begins to copy a frame that lies in pinned memory; the address under which the device will find it.
    const uint8_t* upload_pinned(int image, const void* data, size_t bytes);
    // Is this address in memory that the device can copy from directly?
    bool is_pinned(const void* data) const;
    // The device in whose memory this address is; -1 where it is in none's.
    int device_of(const void* data) const;

    // The frame's work, and everything submitted to this graph later, waits for what is on `stream` now; or
    // `stream` waits for the frame that is in flight.
    void wait_for_stream(uintptr_t stream);
    void make_stream_wait(uintptr_t stream);

    // What is new about a frame; images from `frames.size()` to the batch run on what was there. The frame's
    // uploads may come before and after.
    void prepare(const std::vector<DeviceFrame>& frames);
    // Starts the frame that was prepared. It begins after the engine of `after`'s frame has ended, where
    // given.
    void launch(const DeviceGraph* after);
    // After an error between the first upload and launch(): waits until nothing of the frame is left.
    void abandon() noexcept;
    // Waits at most `seconds` (forever where negative) for the frame in flight; false where that was too
    // short.
    bool wait(double seconds);
    // The results of the frame that was waited for, to be taken once. Packs the masks again where they were
    // more than there was room for.
    std::vector<std::shared_ptr<const Result>> results();
    StageTimes times() const;

    // (B, Q, K) of the frame that was waited for, in the host's memory, where the rules need them there.
    const void* host_class_logits() const;

    // Boolean masks (rows, height, width), one byte per pixel, of rows of the last frame's image, on the
    // device; complete when this returns.
    std::shared_ptr<const DeviceMemory> expand(int image, const std::vector<Row>& rows);

    // Puts images in (host memory, as the engine reads them), runs the engine, and copies its outputs out.
    void run_engine(const Enqueue& enqueue, const void* images, void* mask_logits, void* class_logits);

    // Bytes held now.
    size_t device_bytes() const;
    size_t pinned_bytes() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

// Calls `function` from a stream, in its order (cudaLaunchHostFunc): for tests, as an engine without a GPU.
void launch_host_function(uintptr_t stream, void (*function)(void*), void* context);

// Makes a device the calling thread's own, for packages that use whichever that is, until leave_device() in
// the same thread. True where it was not before: what to tell leave_device().
bool enter_device(int device);
void leave_device(bool entered) noexcept;

// For tests and benchmarks: the device in whose memory an address is; -1 where it is in none's.
int device_of(const void* data);

// For tests and benchmarks: blocking copies between the host and a device address, in either direction.
void copy(void* to, const void* from, size_t bytes);

}  // namespace fai::cuda
