// The structs of DLPack's C interface, declared from its specification (versions 0 and 1).
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace fai::dlpack {

inline constexpr int32_t kCpu = 1;
inline constexpr int32_t kCuda = 2;
inline constexpr int32_t kCudaHost = 3;  // pinned memory: the CPU reads it like any other
inline constexpr uint8_t kUnsigned = 1;
inline constexpr uint8_t kFloat = 2;
inline constexpr uint8_t kBool = 6;
inline constexpr uint64_t kReadOnly = 1;

struct Device {
    int32_t type;
    int32_t id;
};

struct DataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;  // in items; null where C-contiguous
    uint64_t byte_offset;
};

struct Managed {
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);
};

struct Version {
    uint32_t major;
    uint32_t minor;
};

struct ManagedVersioned {
    Version version;
    void* context;
    void (*deleter)(ManagedVersioned*);
    uint64_t flags;
    Tensor tensor;
};

}  // namespace fai::dlpack
