// The GPU: what there is, and frames through it.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/bindings/arrays.h"
#include "csrc/bindings/bindings.h"
#include "csrc/bindings/dlpack.h"
#include "csrc/bindings/frames.h"
#include "csrc/bindings/gil.h"
#include "csrc/bindings/options.h"
#include "csrc/bindings/results.h"
#include "csrc/core/error.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/frame_graph.h"
#include "csrc/ops/staging.h"

namespace py = pybind11;

namespace fai {
namespace {

constexpr const char* kExpectedImage =
    "a uint8 array (H, W, C) in the memory of the CPU or of the model's GPU";

py::object version_text(int version) {
    if (version == 0) return py::none();
    return py::str(message(version / 1000, ".", version % 1000 / 10));
}

py::dict cuda_versions() {
    py::dict versions;
    versions["toolkit"] = version_text(cuda::toolkit_version());
    versions["driver"] = version_text(cuda::driver_version());
    return versions;
}

py::list cuda_devices() {
    std::vector<cuda::Device> devices;
    without_gil([&] { devices = cuda::devices(); });
    py::list list;
    for (const cuda::Device& device : devices) {
        py::dict item;
        item["index"] = device.index;
        item["name"] = device.name;
        item["compute_capability"] = py::make_tuple(device.major, device.minor);
        item["memory"] = device.memory;
        item["multiprocessors"] = device.multiprocessors;
        item["uuid"] = device.uuid;
        list.append(item);
    }
    return list;
}

// Boolean masks (N, H, W) in a GPU's memory, for whoever speaks DLPack or __cuda_array_interface__. Complete:
// no stream need be waited for.
class DeviceMasks {
  public:
    DeviceMasks(std::shared_ptr<const cuda::DeviceMemory> memory, int device, std::array<int64_t, 3> shape)
        : memory_(std::move(memory)), device_(device), shape_(shape) {}
    DeviceMasks(DeviceMasks&&) = default;
    // Freeing waits for all that runs on the device.
    ~DeviceMasks() {
        if (memory_) without_gil([&] { memory_.reset(); });
    }

    py::tuple shape() const { return py::make_tuple(shape_[0], shape_[1], shape_[2]); }
    py::tuple dlpack_device() const { return py::make_tuple(dlpack::kCuda, device_); }

    py::dict cuda_array_interface() const {
        py::dict interface;
        interface["shape"] = shape();
        interface["typestr"] = "|b1";
        interface["data"] = py::make_tuple(memory_->address(), false);
        interface["strides"] = py::none();
        interface["version"] = 3;
        return interface;
    }

    py::capsule to_dlpack(const py::object& stream, const py::object& max_version) const {
        if (!stream.is_none() && !py::isinstance<py::int_>(stream)) {
            throw TypeError(message("stream: got ", type_name(stream), ", expected an int or None"));
        }
        bool versioned = false;
        if (!max_version.is_none()) {
            try {
                versioned = py::cast<std::tuple<int, int>>(max_version) >= std::tuple(1, 0);
            } catch (const py::cast_error&) {
                throw TypeError(message("max_version: got ", type_name(max_version),
                                        ", expected (major, minor) or None"));
            }
        }
        return versioned ? exported<dlpack::ManagedVersioned>("dltensor_versioned")
                         : exported<dlpack::Managed>("dltensor");
    }

  private:
    struct Held {
        std::shared_ptr<const cuda::DeviceMemory> memory;
        std::array<int64_t, 3> shape;
    };

    template <class ManagedTensor>
    py::capsule exported(const char* name) const {
        auto* held = new Held{memory_, shape_};
        auto* managed = new ManagedTensor{};
        if constexpr (std::is_same_v<ManagedTensor, dlpack::ManagedVersioned>) managed->version = {1, 0};
        managed->tensor = {reinterpret_cast<void*>(memory_->address()),
                           {dlpack::kCuda, device_},
                           3,
                           {dlpack::kBool, 8, 1},
                           held->shape.data(),
                           nullptr,
                           0};
        managed->context = held;
        managed->deleter = [](ManagedTensor* self) {
            delete static_cast<Held*>(self->context);
            delete self;
        };
        return py::capsule(managed, name, [](PyObject* capsule) {
            // A consumer that took the tensor has renamed the capsule.
            const char* used = PyCapsule_GetName(capsule);
            if (!used || std::string(used).starts_with("used_")) return;
            auto* unused = static_cast<ManagedTensor*>(PyCapsule_GetPointer(capsule, used));
            if (unused) unused->deleter(unused);
        });
    }

    std::shared_ptr<const cuda::DeviceMemory> memory_;
    int device_;
    std::array<int64_t, 3> shape_;
};

// Destroyed without the GIL: freeing pinned memory waits for the GPU.
class PinnedOwner {
  public:
    explicit PinnedOwner(std::shared_ptr<const cuda::PinnedMemory> memory) : memory_(std::move(memory)) {}
    PinnedOwner(PinnedOwner&&) = default;
    ~PinnedOwner() {
        if (memory_) without_gil([&] { memory_.reset(); });
    }

  private:
    std::shared_ptr<const cuda::PinnedMemory> memory_;
};

// A uint8 array in pinned memory, which lives as long as anybody holds a view of it.
py::array pinned_array(const std::vector<py::ssize_t>& shape, int device) {
    size_t bytes = 1;
    for (const py::ssize_t side : shape) {
        if (side < 1 || side > 2 * kMaxSide) {
            throw ValueError(message("shape: got a side of ", side, ", expected 1 to ", 2 * kMaxSide));
        }
        bytes *= static_cast<size_t>(side);
    }
    std::shared_ptr<const cuda::PinnedMemory> memory;
    without_gil([&] { memory = cuda::pinned_memory(device, bytes); });
    void* const address = memory->address();
    return array_over(py::dtype::of<uint8_t>(), shape, address, PinnedOwner(std::move(memory)));
}

ops::StagingOptions checked_staging(int threads, int64_t piece_bytes, bool past_cache) {
    if (threads < 1) throw ValueError(message("threads: got ", threads, ", expected at least 1"));
    if (piece_bytes < 1) throw ValueError(message("piece_bytes: got ", piece_bytes, ", expected at least 1"));
    return {piece_bytes, threads, past_cache};
}

// For tests and benchmarks: the copying that comes before an upload, into `out` instead of pinned memory. The
// number of pieces, and in how many goes they were passed on.
std::pair<int64_t, int64_t> stage(const py::object& image, const py::object& out, int threads,
                                  int64_t piece_bytes, bool past_cache) {
    ops::PreprocessArguments frame;
    const std::vector<Borrowed> planes =
        set_planes(frame, image, [](py::handle plane) { return borrow(plane, "image", kExpectedImage); });
    for (int i = 0; i < frame.plane_count; ++i) {
        const View& view = frame.planes[i];
        if (view.dtype != DType::u8 || view.ndim < 1 || view.ndim > 3) {
            throw ValueError(message("image: got ", ops::name_of(view.dtype), " of shape ",
                                     ops::shape_of(view), ", expected ", kExpectedImage));
        }
    }
    const ops::Staging staging(frame, checked_staging(threads, piece_bytes, past_cache));
    const Borrowed room = borrow(out, "out", "a writable uint8 array, C-contiguous");
    if (room.view.dtype != DType::u8 || !room.writable || !room.contiguous() ||
        ops::dense_bytes(room.view) != staging.bytes()) {
        throw ValueError(message("out: got ", ops::name_of(room.view.dtype), " of shape ",
                                 ops::shape_of(room.view), ", expected ", staging.bytes(),
                                 " bytes, writable and C-contiguous"));
    }
    int64_t runs = 0, passed = 0;
    without_gil([&] {
        staging.copy(
            static_cast<uint8_t*>(const_cast<void*>(room.view.data)), [] {},
            [&](int64_t begin, int64_t end) {
                ++runs;
                if (begin != passed) throw std::logic_error("stage: passed on out of order");
                passed = end;
            });
    });
    if (passed != staging.bytes()) throw std::logic_error("stage: not all was passed on");
    return {staging.pieces(), runs};
}

// (image, color, resize, yuv_matrix, yuv_range)
using FrameTuple = std::tuple<py::object, std::string, std::string, std::string, std::string>;

// fai_fast._core.FrameGraph. Python's side makes sure that calls do not overlap.
class BoundFrameGraph {
  public:
    BoundFrameGraph(int device, int batch, std::array<int64_t, 2> size, const std::string& dtype,
                    std::array<int64_t, 3> mask_logits, const std::string& mask_dtype,
                    std::array<int64_t, 2> class_logits, const std::string& class_dtype,
                    std::array<float, 3> mean, std::array<float, 3> stddev, bool predict_all_pixels,
                    bool softmax, const py::dict& rules) {
        ops::check_sides("size", size[0], size[1]);
        ops::check_sides("mask_logits", mask_logits[1], mask_logits[2]);
        cuda::GraphSpec spec;
        spec.device = device;
        spec.batch = batch;
        spec.input_size = {static_cast<int32_t>(size[0]), static_cast<int32_t>(size[1])};
        spec.images = choose("dtype", dtype, kDtypes);
        if (mask_logits[0] != class_logits[0] || mask_logits[0] < 1 || mask_logits[0] > (1 << 20) ||
            class_logits[1] < 1 || class_logits[1] > (1 << 24) + 1) {
            throw ValueError(message("class_logits: got shape (", class_logits[0], ", ", class_logits[1],
                                     "), expected as many queries as mask_logits' ", mask_logits[0]));
        }
        spec.queries = static_cast<int32_t>(mask_logits[0]);
        spec.rows = static_cast<int32_t>(mask_logits[1]);
        spec.columns = static_cast<int32_t>(mask_logits[2]);
        spec.class_columns = static_cast<int32_t>(class_logits[1]);
        spec.mask_logits = choose("mask_dtype", mask_dtype, kDtypes);
        spec.class_logits = choose("class_dtype", class_dtype, kDtypes);
        spec.predict_all_pixels = predict_all_pixels;
        spec.softmax = softmax;
        spec.rules = rules_of(rules, class_logits[1] - softmax);
        if ((spec.rules.panoptic || spec.rules.by_sum) && !predict_all_pixels) {
            throw ValueError(
                "predict_all_pixels: got False with panoptic or by_sum, expected True: both give a label "
                "map");
        }
        float means[3], stddevs[3];
        std::copy(mean.begin(), mean.end(), means);
        std::copy(stddev.begin(), stddev.end(), stddevs);
        without_gil([&] { graph_ = std::make_unique<ops::FrameGraph>(spec, means, stddevs); });
    }

    ~BoundFrameGraph() { close(); }

    // Frees everything, after the frame in flight has ended.
    void close() noexcept {
        if (!graph_) return;
        std::unique_ptr<ops::FrameGraph> graph = std::move(graph_);
        try {
            without_gil([&] {
                try {
                    graph->device().wait(-1);
                } catch (const CudaError&) {
                    // Whatever ended the frame, nothing of it is left to wait for.
                }
                graph->device().forget_engine();
            });
            // Between the executable graph, which uses its owner's memory, and the stream, of which the owner
            // knows.
            if (graph->device().forked()) owner_.release();
            owner_ = py::object();
            without_gil([&] { graph.reset(); });
        } catch (...) {
            // Python's own, from the engine's last reference: there is nobody to tell.
        }
        frames_.clear();
    }

    uintptr_t stream() { return device().stream(); }
    uintptr_t images() { return device().images(); }
    uintptr_t mask_logits() { return device().mask_logits(); }
    uintptr_t class_logits() { return device().class_logits(); }

    std::optional<std::string> capture(const py::object& enqueue) {
        std::string reason;
        cuda::DeviceGraph& graph = device();
        cuda::DeviceGraph::Enqueue call = callable(enqueue);
        without_gil([&] { reason = graph.capture(call); });
        owner_ = enqueue;
        if (reason.empty()) return std::nullopt;
        return reason;
    }

    std::string run_uncaptured(const py::object& enqueue, const std::string& reason) {
        device().run_uncaptured(callable(enqueue));
        return reason;
    }

    void enqueue_preprocess() { device().enqueue_preprocess(); }
    void enqueue_postprocess() { device().enqueue_postprocess(); }
    void adopt(uintptr_t graph, py::object owner) {
        device().adopt(graph);
        owner_ = std::move(owner);
    }

    void submit(const std::vector<FrameTuple>& frames, double threshold, double mask_threshold,
                bool use_mask_score, BoundFrameGraph* after) {
        cuda::DeviceGraph& graph = device();
        std::vector<Borrowed> borrowed;
        std::vector<ops::FrameRequest> requests;
        for (const auto& [image, color, resize, yuv_matrix, yuv_range] : frames) {
            ops::FrameRequest request;
            request.threshold = threshold;
            request.mask_threshold = mask_threshold;
            request.use_mask_score = use_mask_score;
            ops::PreprocessArguments& frame = request.frame;
            set_options(frame, color, resize, yuv_matrix, yuv_range);
            std::vector<Borrowed> planes = set_planes(frame, image, [&](py::handle plane) {
                return borrow_anywhere(plane, "image", kExpectedImage, graph.spec().device, graph.stream());
            });
            request.on_device = planes[0].on_device;
            for (Borrowed& plane : planes) {
                if (plane.on_device != request.on_device) {
                    throw ValueError(
                        "image: got planes in the memory of the CPU and of a GPU, expected one of them");
                }
                borrowed.push_back(std::move(plane));
            }
            requests.push_back(request);
        }
        const ops::FrameGraph* before = after && after != this ? after->graph_.get() : nullptr;
        without_gil([&] {
            for (const Borrowed& plane : borrowed) {
                if (plane.stream) graph.wait_for_stream(plane.stream);
            }
            graph_->submit(requests, before);
            // Whoever writes the frame's memory next on its own stream must not overtake us.
            for (const Borrowed& plane : borrowed) {
                if (plane.stream) graph.make_stream_wait(plane.stream);
            }
        });
        frames_ = std::move(borrowed);
    }

    void set_staging(int threads, int64_t piece_bytes, bool past_cache) {
        device();
        graph_->set_staging(checked_staging(threads, piece_bytes, past_cache));
    }

    bool wait(double seconds) {
        bool ended = false;
        cuda::DeviceGraph& graph = device();
        without_gil([&] { ended = graph.wait(seconds); });
        if (ended) frames_.clear();
        return ended;
    }

    py::list results(int64_t top_k, bool masks_device) {
        cuda::DeviceGraph& graph = device();
        std::vector<ops::FrameResult> results;
        without_gil([&] { results = graph_->results(top_k); });
        const bool semantic = graph.spec().predict_all_pixels;
        py::list list;
        for (size_t i = 0; i < results.size(); ++i) {
            ops::FrameResult& result = results[i];
            const auto rows = static_cast<py::ssize_t>(result.query.size());
            const bool wide = cuda::wide_labels(graph.spec());
            const py::array masks =
                semantic ? array_over(wide ? py::dtype::of<uint16_t>() : py::dtype::of<uint8_t>(),
                                      {result.size.height, result.size.width}, result.memory->payload(),
                                      result.memory)
                         : array_over(py::dtype::of<uint64_t>(), {result.memory->payload_bytes() / 8},
                                      result.memory->payload(), result.memory);
            py::dict dict = result_dict(std::move(result), semantic, masks);
            dict["size"] = py::make_tuple(result.size.height, result.size.width);
            dict["content"] = py::make_tuple(result.placement.content.height, result.placement.content.width);
            dict["offset"] = py::make_tuple(result.placement.top, result.placement.left);
            if (masks_device) {
                std::shared_ptr<const cuda::DeviceMemory> memory;
                without_gil([&] { memory = graph.expand(static_cast<int>(i), result.rows); });
                dict["masks_device"] =
                    DeviceMasks(std::move(memory), graph.spec().device,
                                {rows, int64_t{result.size.height}, int64_t{result.size.width}});
            }
            list.append(std::move(dict));
        }
        return list;
    }

    py::dict times() {
        const cuda::DeviceGraph& graph = device();
        cuda::StageTimes times;
        without_gil([&] { times = graph.times(); });
        py::dict dict;
        dict["upload"] = times.upload;
        dict["preprocess"] = times.preprocess;
        dict["engine"] = times.engine;
        dict["postprocess"] = times.postprocess;
        return dict;
    }

    void run_engine(const py::object& enqueue, py::object images, py::object mask_logits,
                    py::object class_logits) {
        constexpr const char* kExpected = "a C-contiguous float32 or float16 array in the CPU's memory";
        cuda::DeviceGraph& graph = device();
        const cuda::GraphSpec& spec = graph.spec();
        const auto batch = static_cast<int64_t>(spec.batch);
        const auto take = [&](const py::object& array, const char* name, DType dtype, int64_t values,
                              bool writable) {
            Borrowed borrowed = borrow(array, name, kExpected);
            int64_t count = 1;
            for (int i = 0; i < borrowed.view.ndim; ++i) count *= borrowed.view.shape[i];
            if (borrowed.view.dtype != dtype || count != values || !borrowed.contiguous() ||
                (writable && !borrowed.writable)) {
                throw ValueError(message(name, ": got ", ops::name_of(borrowed.view.dtype), " of shape ",
                                         ops::shape_of(borrowed.view), ", expected ", values, " values of ",
                                         ops::name_of(dtype), ", C-contiguous",
                                         writable ? " and writable" : ""));
            }
            return borrowed;
        };
        const Borrowed in = take(images, "images", spec.images,
                                 batch * 3 * spec.input_size.height * spec.input_size.width, false);
        const Borrowed masks = take(mask_logits, "mask_logits", spec.mask_logits,
                                    batch * spec.queries * spec.rows * spec.columns, true);
        const Borrowed classes = take(class_logits, "class_logits", spec.class_logits,
                                      batch * spec.queries * spec.class_columns, true);
        cuda::DeviceGraph::Enqueue call = callable(enqueue);
        without_gil([&] {
            graph.run_engine(call, in.view.data, const_cast<void*>(masks.view.data),
                             const_cast<void*>(classes.view.data));
        });
    }

    py::dict memory() {
        py::dict dict;
        dict["device"] = device().device_bytes();
        dict["pinned"] = device().pinned_bytes();
        return dict;
    }

  private:
    cuda::DeviceGraph& device() {
        if (!graph_) throw CudaError("the frame graph is closed");
        return graph_->device();
    }

    // A Python function as the engine. Copies of it are made and destroyed without the GIL, so it is held by
    // a pointer whose last owner takes the GIL.
    static cuda::DeviceGraph::Enqueue callable(const py::object& function) {
        if (!PyCallable_Check(function.ptr())) {
            throw TypeError(
                message("enqueue: got ", type_name(function), ", expected a function of a stream"));
        }
        std::shared_ptr<py::object> held(new py::object(function), [](py::object* object) {
            const py::gil_scoped_acquire gil;
            delete object;
        });
        return [held](uintptr_t stream) {
            const py::gil_scoped_acquire gil;
            (*held)(stream);
        };
    }

    std::unique_ptr<ops::FrameGraph> graph_;
    std::vector<Borrowed> frames_;  // of the frame in flight
    py::object owner_;              // of what the graph uses
};

// For tests: puts a call of a Python function on a stream, in its order.
void launch_host_function(uintptr_t stream, py::object function) {
    if (!PyCallable_Check(function.ptr())) {
        throw TypeError(message("function: got ", type_name(function), ", expected a function"));
    }
    // Captured, it is called for every replay: never freed.
    auto* held = new py::object(std::move(function));
    without_gil([&] {
        cuda::launch_host_function(
            stream,
            [](void* context) {
                const py::gil_scoped_acquire gil;
                try {
                    (*static_cast<py::object*>(context))();
                } catch (py::error_already_set& error) {
                    error.discard_as_unraisable("launch_host_function");
                }
            },
            held);
    });
}

// The bytes of an array that is to be copied from or to a device address.
std::pair<void*, size_t> copied(const py::buffer& array, uintptr_t address, bool writable) {
    const py::buffer_info info = array.request(writable);
    py::ssize_t dense = info.itemsize;
    for (auto i = static_cast<size_t>(info.ndim); i-- > 0; dense *= info.shape[i]) {
        if (info.size > 0 && info.shape[i] != 1 && info.strides[i] != dense) {
            throw ValueError("array: got one that is not C-contiguous");
        }
    }
    if (cuda::device_of(reinterpret_cast<const void*>(address)) < 0) {
        throw ValueError(message("address: got ", address, ", which is outside any GPU's memory"));
    }
    return {info.ptr, static_cast<size_t>(info.size * info.itemsize)};
}

// For tests and benchmarks: blocking copies between an array and a device address.
void copy_to_device(uintptr_t address, const py::buffer& array) {
    const auto [data, bytes] = copied(array, address, false);
    without_gil(
        [&, data = data, bytes = bytes] { cuda::copy(reinterpret_cast<void*>(address), data, bytes); });
}

void copy_from_device(const py::buffer& array, uintptr_t address) {
    const auto [data, bytes] = copied(array, address, true);
    without_gil(
        [&, data = data, bytes = bytes] { cuda::copy(data, reinterpret_cast<const void*>(address), bytes); });
}

}  // namespace

void register_cuda(py::module_& m) {
    m.def("cuda_versions", cuda_versions);
    m.def("cuda_devices", cuda_devices);
    m.def("enter_cuda_device", cuda::enter_device, py::arg("device"),
          py::call_guard<py::gil_scoped_release>());
    m.def("leave_cuda_device", cuda::leave_device, py::arg("entered"));
    m.def("launch_host_function", launch_host_function, py::arg("stream"), py::arg("function"));
    m.def("pinned_array", pinned_array, py::arg("shape"), py::arg("device"));
    m.def("stage", stage, py::arg("image"), py::arg("out"), py::kw_only(), py::arg("threads"),
          py::arg("piece_bytes"), py::arg("past_cache") = false);
    m.def("copy_to_device", copy_to_device, py::arg("address"), py::arg("array"));
    m.def("copy_from_device", copy_from_device, py::arg("array"), py::arg("address"));
    py::class_<DeviceMasks>(m, "DeviceMasks")
        .def_property_readonly("shape", &DeviceMasks::shape)
        .def_property_readonly("__cuda_array_interface__", &DeviceMasks::cuda_array_interface)
        .def("__dlpack_device__", &DeviceMasks::dlpack_device)
        .def(
            "__dlpack__",
            [](const DeviceMasks& self, const py::object& stream, const py::object& max_version,
               const py::object&, const py::object&) { return self.to_dlpack(stream, max_version); },
            py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
            py::arg("dl_device") = py::none(), py::arg("copy") = py::none());
    py::class_<BoundFrameGraph>(m, "FrameGraph")
        .def(py::init<int, int, std::array<int64_t, 2>, const std::string&, std::array<int64_t, 3>,
                      const std::string&, std::array<int64_t, 2>, const std::string&, std::array<float, 3>,
                      std::array<float, 3>, bool, bool, const py::dict&>(),
             py::kw_only(), py::arg("device"), py::arg("batch"), py::arg("size"), py::arg("dtype"),
             py::arg("mask_logits"), py::arg("mask_dtype"), py::arg("class_logits"), py::arg("class_dtype"),
             py::arg("mean"), py::arg("std"), py::arg("predict_all_pixels"), py::arg("softmax"),
             py::arg("rules") = py::dict())
        .def_property_readonly("stream", &BoundFrameGraph::stream)
        .def_property_readonly("images", &BoundFrameGraph::images)
        .def_property_readonly("mask_logits", &BoundFrameGraph::mask_logits)
        .def_property_readonly("class_logits", &BoundFrameGraph::class_logits)
        .def("capture", &BoundFrameGraph::capture, py::arg("enqueue"))
        .def("run_uncaptured", &BoundFrameGraph::run_uncaptured, py::arg("enqueue"), py::arg("reason"))
        .def("enqueue_preprocess", &BoundFrameGraph::enqueue_preprocess)
        .def("enqueue_postprocess", &BoundFrameGraph::enqueue_postprocess)
        .def("adopt", &BoundFrameGraph::adopt, py::arg("graph"), py::arg("owner"))
        .def("submit", &BoundFrameGraph::submit, py::arg("frames"), py::arg("threshold"),
             py::arg("mask_threshold"), py::arg("use_mask_score"), py::arg("after") = nullptr)
        .def("set_staging", &BoundFrameGraph::set_staging, py::kw_only(), py::arg("threads"),
             py::arg("piece_bytes"), py::arg("past_cache"))
        .def("wait", &BoundFrameGraph::wait, py::arg("seconds"))
        .def("results", &BoundFrameGraph::results, py::arg("top_k"), py::arg("masks_device") = false)
        .def("times", &BoundFrameGraph::times)
        .def("run_engine", &BoundFrameGraph::run_engine, py::arg("enqueue"), py::arg("images"),
             py::arg("mask_logits"), py::arg("class_logits"))
        .def("memory", &BoundFrameGraph::memory)
        .def("close", &BoundFrameGraph::close);
}

}  // namespace fai
