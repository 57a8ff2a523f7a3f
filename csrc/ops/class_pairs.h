// Queries that are a row for each of several classes.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/core/types.h"

namespace fai::ops {

struct ClassPair {
    int32_t query;
    int64_t class_id;
    double score;
};

// Of all pairs of a query and a class, as many as there are queries are considered: those of the largest
// scores in float32, ties by query, then by class. Of these the ones above `threshold`, in order of query and
// class. `class_logits`: (Q, C + 1) for softmax, (Q, C) for sigmoid; f32 or f16, rows contiguous. Queries
// with NaN have no pairs.
std::vector<ClassPair> best_class_pairs(const View& class_logits, bool softmax, double threshold);

}  // namespace fai::ops
