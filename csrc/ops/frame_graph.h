// Frames through a GPU: preprocessing, an engine, and postprocessing in one go.
#pragma once

#include <memory>
#include <vector>

#include "csrc/core/types.h"
#include "csrc/ops/pixel_axis.h"
#include "csrc/ops/postprocess.h"
#include "csrc/ops/preprocess.h"
#include "csrc/ops/resample.h"
#include "csrc/ops/staging.h"
#include "cuda/api.h"

namespace fai::ops {

// A frame, and what is asked of it. `frame`'s size, mean and stddev are the graph's.
struct FrameRequest {
    PreprocessArguments frame;
    bool on_device = false;  // all planes in the memory of the graph's device, else all in the host's
    double threshold = 0.5;
    double mask_threshold = 0.5;
    bool use_mask_score = false;
};

// Masks or labels lie in pinned memory.
struct FrameResult : ResultRows {
    Size size;
    Placement placement;
    std::vector<cuda::Row> rows;  // as the device knows them
    std::shared_ptr<const cuda::Result> memory;
};

class FrameGraph {
  public:
    // Throws ValueError, CudaError.
    FrameGraph(const cuda::GraphSpec& spec, const float (&mean)[3], const float (&stddev)[3]);

    cuda::DeviceGraph& device() { return graph_; }
    const cuda::DeviceGraph& device() const { return graph_; }

    // How ordinary memory is copied; for benchmarks.
    void set_staging(const StagingOptions& options) { staging_ = options; }

    // Starts frames, at most the batch's number. Host frames are copied into pinned memory, unless they lie
    // in such memory densely; they and device frames are read until the frame has ended. Throws TypeError,
    // ValueError naming the argument, CudaError.
    void submit(const std::vector<FrameRequest>& requests, const FrameGraph* after);

    // Of the frames that device().wait() has seen the end of; at most `top_k` rows each. Throws CudaError.
    std::vector<FrameResult> results(int64_t top_k);

  private:
    // Tables of one image of the batch, kept while frames have the same size.
    struct Geometry {
        Size frame;
        Placement placement;
        Resize resize = Resize::stretch;
        bool known = false;
        std::vector<Tap> rows, columns;
        Nodes nodes;
        std::vector<Tap> node_rows, node_columns;
        PixelAxisTable x_table, y_table;
        PixelAxis x, y;
        double threshold = 0;
        bool use_mask_score = false;
    };

    void check(FrameRequest& request) const;
    // Makes a frame's planes those that the device will read. Sends what lies in pinned memory; what must be
    // staged is left in host_[image].
    void place_planes(int image, FrameRequest& request);
    cuda::DeviceFrame describe(int image, const FrameRequest& request);
    void start(const FrameGraph* after);
    // Of an image of the frame that was waited for, with multi_label.
    View class_logits(size_t image) const;

    cuda::DeviceGraph graph_;
    float mean_[3], stddev_[3];
    std::vector<Geometry> geometry_;
    StagingOptions staging_;
    // Of the frame that is being submitted, kept so that nothing is allocated for the next.
    std::vector<FrameRequest> requests_;
    std::vector<cuda::DeviceFrame> frames_;
    struct HostFrame {
        Staging staging;
        uint8_t* room = nullptr;  // null where there is nothing to stage
    };
    std::vector<HostFrame> host_;
    std::vector<const cuda::Row*> row_of_query_;
    size_t in_flight_ = 0;
};

}  // namespace fai::ops
