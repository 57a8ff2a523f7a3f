#include "csrc/ops/class_pairs.h"

#include <algorithm>

#include "csrc/core/scratch.h"
#include "csrc/cpu/kernels.h"

namespace fai::ops {

std::vector<ClassPair> best_class_pairs(const View& class_logits, bool softmax, double threshold) {
    const cpu::Kernels& kernels = cpu::kernels();
    const auto queries = static_cast<int32_t>(class_logits.shape[0]);
    const auto columns = static_cast<int32_t>(class_logits.shape[1]);
    thread_local Scratch<cpu::ClassScore> room;
    cpu::ClassScore* const scores = room.get(static_cast<size_t>(columns));
    std::vector<ClassPair> pairs;
    for (int32_t q = 0; q < queries; ++q) {
        const int32_t found = kernels.class_scores[class_logits.dtype == DType::f16](
            static_cast<const char*>(class_logits.data) + q * class_logits.strides[0], columns, softmax,
            threshold, scores);
        for (int32_t i = 0; i < found; ++i) pairs.push_back({q, scores[i].class_id, scores[i].score});
    }
    if (pairs.size() <= static_cast<size_t>(queries)) return pairs;
    const auto in_order = [](const ClassPair& a, const ClassPair& b) {
        return a.query != b.query ? a.query < b.query : a.class_id < b.class_id;
    };
    std::nth_element(pairs.begin(), pairs.begin() + queries, pairs.end(),
                     [&](const ClassPair& a, const ClassPair& b) {
                         const float x = static_cast<float>(a.score), y = static_cast<float>(b.score);
                         return x != y ? x > y : in_order(a, b);
                     });
    pairs.resize(static_cast<size_t>(queries));
    std::sort(pairs.begin(), pairs.end(), in_order);
    return pairs;
}

}  // namespace fai::ops
