// What the two ways to a semantic result by sum share: of one image, and of crops of one.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/core/scratch.h"
#include "csrc/ops/queries.h"

namespace fai::ops {

// Throws ValueError where a label of two bytes could not say all classes.
void check_sum_classes(const PostprocessArguments& arguments);

// Classes, rounded up to whole vectors.
inline int64_t class_stride_of(int32_t classes) {
    return (classes + cpu::kPadding - 1) / cpu::kPadding * cpu::kPadding;
}

// Class probabilities of an image's queries that take part, one after the other into `by_query`, which has
// room for all; `index` gets their numbers. How many.
int32_t class_probabilities_of(const PostprocessArguments& arguments, const cpu::Kernels& kernels,
                               int32_t queries, int64_t stride, float* by_query, int32_t* index);

// The same (queries, stride) probabilities as (classes, queries).
void transpose_classes(const float* by_query, int32_t queries, int64_t stride, int32_t classes,
                       float* by_class);

// Cell rows of a task, for so many rows of cells.
int32_t sum_rows_per_task(int32_t rows, int64_t regions_per_row);

// Rows of the classes that have pixels, in order of falling score; `regions` (tasks, classes).
void rows_of_sums(const PostprocessArguments& arguments, const Region* regions, int64_t tasks,
                  int32_t classes, std::vector<ScoredQuery>& rows);

struct SumScratch {
    Scratch<float> by_query, by_class;
    Scratch<int32_t> index;
};
inline thread_local SumScratch t_sums;

}  // namespace fai::ops
