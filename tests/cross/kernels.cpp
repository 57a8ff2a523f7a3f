// The library's CPU code without Python, for a processor that only qemu-user runs: reads the cases that
// tests/test_aarch64.py writes, and writes what comes out, byte by byte.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <vector>

#include "csrc/ops/postprocess.h"
#include "csrc/ops/preprocess.h"

#define FAI_ISA conversions
#include "csrc/cpu/simd.h"

namespace {

using namespace fai;

struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

void fail(const char* what) {
    std::fprintf(stderr, "kernels: %s\n", what);
    std::exit(1);
}

class Input {
  public:
    explicit Input(const char* path) : file_(std::fopen(path, "rb")) {
        if (!file_) fail("cannot read the cases");
    }
    template <class T>
    std::vector<T> values(size_t count) {
        std::vector<T> found(count);
        if (std::fread(found.data(), sizeof(T), count, file_.get()) != count) fail("the cases end too early");
        return found;
    }
    template <class T>
    T value() {
        return values<T>(1)[0];
    }
    int64_t integer() { return value<int64_t>(); }

  private:
    File file_;
};

class Output {
  public:
    explicit Output(const char* path) : file_(std::fopen(path, "wb")) {
        if (!file_) fail("cannot write the results");
    }
    void bytes(const void* data, size_t count) {
        const int64_t length = static_cast<int64_t>(count);
        if (std::fwrite(&length, sizeof length, 1, file_.get()) != 1 ||
            std::fwrite(data, 1, count, file_.get()) != count) {
            fail("cannot write a result");
        }
    }
    template <class T>
    void values(const std::vector<T>& all) {
        bytes(all.data(), all.size() * sizeof(T));
    }

  private:
    File file_;
};

View contiguous(const void* data, DType dtype, const std::vector<int64_t>& shape) {
    View view;
    view.data = data;
    view.dtype = dtype;
    view.ndim = static_cast<int>(shape.size());
    int64_t stride = static_cast<int64_t>(item_size(dtype));
    for (int i = view.ndim - 1; i >= 0; --i) {
        view.shape[i] = shape[i];
        view.strides[i] = stride;
        stride *= shape[i];
    }
    return view;
}

Size size_of(Input& input) {
    const auto sides = input.values<int64_t>(2);
    return {static_cast<int32_t>(sides[0]), static_cast<int32_t>(sides[1])};
}

void preprocess(Input& input, Output& output) {
    ops::PreprocessArguments arguments;
    arguments.color = static_cast<ops::Color>(input.integer());
    arguments.resize = input.integer() ? ops::Resize::letterbox : ops::Resize::stretch;
    const DType dtype = input.integer() ? DType::f16 : DType::f32;
    arguments.size = size_of(input);
    const auto mean = input.values<float>(3), stddev = input.values<float>(3);
    std::copy(mean.begin(), mean.end(), arguments.mean);
    std::copy(stddev.begin(), stddev.end(), arguments.stddev);
    const auto shape = input.values<int64_t>(static_cast<size_t>(input.integer()));
    size_t count = 1;
    for (const int64_t side : shape) count *= static_cast<size_t>(side);
    const auto frame = input.values<uint8_t>(count);
    arguments.planes[0] = contiguous(frame.data(), DType::u8, shape);
    std::vector<uint8_t> tensor(size_t{3} * arguments.size.height * arguments.size.width * item_size(dtype));
    const ops::Placement at = ops::preprocess(arguments, dtype, tensor.data());
    output.values(tensor);
    output.values(std::vector<int64_t>{at.content.height, at.content.width, at.top, at.left});
}

void postprocess(Input& input, Output& output) {
    ops::PostprocessArguments arguments;
    const DType dtype = input.integer() ? DType::f16 : DType::f32;
    arguments.size = size_of(input);
    arguments.use_mask_score = input.integer();
    arguments.predict_all_pixels = input.integer();
    arguments.softmax = input.integer();
    arguments.threshold = input.value<double>();
    arguments.mask_threshold = input.value<double>();
    arguments.num_threads = 2;
    const auto masks = input.values<int64_t>(3), classes = input.values<int64_t>(2);
    const auto count = [&](const std::vector<int64_t>& shape) {
        size_t bytes = item_size(dtype);
        for (const int64_t side : shape) bytes *= static_cast<size_t>(side);
        return bytes;
    };
    const auto mask_logits = input.values<uint8_t>(count(masks)),
               class_logits = input.values<uint8_t>(count(classes));
    arguments.mask_logits = contiguous(mask_logits.data(), dtype, masks);
    arguments.class_logits = contiguous(class_logits.data(), dtype, classes);
    std::vector<uint8_t> segments;
    if (arguments.predict_all_pixels) {
        segments.resize(size_t{1} * arguments.size.height * arguments.size.width *
                        static_cast<size_t>(ops::segment_item_size(arguments)));
    }
    ops::Postprocessed result;
    ops::postprocess(arguments, segments.data(), result);
    output.values(result.confidence);
    output.values(result.class_id);
    output.values(result.query);
    output.values(result.area);
    output.values(result.boxes);
    if (arguments.predict_all_pixels) {
        output.values(segments);
    } else {
        output.bytes(result.bits.get(), static_cast<size_t>(result.words) * sizeof(uint64_t));
        output.values(result.offsets);
    }
}

// Every half as a float, and floats as halves, as the kernels convert them.
void halves(Input& input, Output& output) {
    namespace simd = cpu::conversions;
    std::vector<uint16_t> half(1 << 16);
    std::vector<float> wide(half.size());
    for (size_t i = 0; i < half.size(); ++i) half[i] = static_cast<uint16_t>(i);
    for (size_t i = 0; i < half.size(); i += simd::kLanes) simd::store(&wide[i], simd::load(&half[i]));
    output.values(wide);
    const auto floats = input.values<float>(static_cast<size_t>(input.integer()));
    std::vector<uint16_t> narrow(floats.size());
    for (size_t i = 0; i < floats.size(); i += simd::kLanes) {
        simd::store_first(&narrow[i], simd::load_first(&floats[i], static_cast<int>(floats.size() - i)),
                          static_cast<int>(floats.size() - i));
    }
    output.values(narrow);
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) fail("expected the file of cases and that of results");
    Input input(arguments[1]);
    Output output(arguments[2]);
    try {
        for (int64_t left = input.integer(); left > 0; --left) {
            switch (input.integer()) {
                case 0:
                    preprocess(input, output);
                    break;
                case 1:
                    postprocess(input, output);
                    break;
                case 2:
                    halves(input, output);
                    break;
                default:
                    fail("a case of no known kind");
            }
        }
    } catch (const std::exception& error) {
        fail(error.what());
    }
}
