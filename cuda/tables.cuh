// The tables of a frame's geometry on their way to the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cuda/api.h"
#include "cuda/device.cuh"
#include "cuda/params.cuh"

namespace fai::cuda {

// Copies tables one after the other into a buffer; their addresses in the device's copy of it.
class Tables {
  public:
    explicit Tables(const DeviceFrame& frame) : frame_(frame) {}

    size_t bytes() {
        measure_ = true;
        at_ = 0;
        write(nullptr, nullptr, nullptr);
        return at_;
    }

    void write(uint8_t* host, uint8_t* device, ImageParams* params) {
        measure_ = params == nullptr;
        at_ = 0;
        host_ = host;
        device_ = device;
        const auto rows = put(frame_.rows, frame_.content.height);
        const auto columns = put(frame_.columns, frame_.content.width);
        const auto node_rows = frame_.node_rows ? put(frame_.node_rows, frame_.nodes.height) : nullptr;
        const auto node_columns = frame_.node_rows ? put(frame_.node_columns, frame_.nodes.width) : nullptr;
        const PixelAxis x = axis(frame_.x), y = axis(frame_.y);
        if (!params) return;
        params->rows = rows;
        params->columns = columns;
        params->node_rows = node_rows;
        params->node_columns = node_columns;
        params->x = x;
        params->y = y;
    }

  private:
    template <class T>
    const T* put(const T* values, int64_t count) {
        const size_t bytes = sizeof(T) * static_cast<size_t>(count), at = at_;
        at_ += aligned(bytes);
        if (measure_) return nullptr;
        std::memcpy(host_ + at, values, bytes);
        return reinterpret_cast<const T*>(device_ + at);
    }

    PixelAxis axis(const PixelAxis& axis) {
        PixelAxis there = axis;
        there.cell = put(axis.cell, axis.pixels);
        there.fraction = put(axis.fraction, axis.pixels);
        there.first = put(axis.first, axis.nodes + 1);
        there.prefix = put(axis.prefix, axis.pixels + 1);
        there.left_weight = there.right_weight = nullptr;  // which the GPU has no use for
        return there;
    }

    const DeviceFrame& frame_;
    bool measure_ = true;
    size_t at_ = 0;
    uint8_t* host_ = nullptr;
    uint8_t* device_ = nullptr;
};

}  // namespace fai::cuda
