// How a network's outputs become a result, where there is more than one way (docs/postprocess.md).
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/core/types.h"

namespace fai {

struct Rules {
    // Semantic: each pixel goes to the class with the largest sum, over all queries, of class probability
    // times mask probability, instead of to one query. Labels are classes.
    bool by_sum = false;

    // Panoptic: queries compete for pixels as in a semantic contest; those that win too little of what is
    // theirs are no segments, and segments of a class of `stuff` are one.
    bool panoptic = false;
    double overlap_threshold = 0.8;
    // What is a query's own are the pixels whose probability, times its score where `weighted`, is at least
    // mask_threshold. A segment is all pixels that it won where `weighted`, else those of them that are its
    // own, at least one.
    bool weighted = true;
    std::vector<uint8_t> stuff;  // (C) not 0 where segments of the class are fused; empty where none are

    // Instances: a query may be a row for each of several classes.
    bool multi_label = false;

    // Instances: rows compete for pixels with their scores times their mask logits, of which no sigmoid is
    // taken (of_logits). What is a row's own are the pixels where that product is at least mask_threshold; it
    // is kept where it has won more than overlap_threshold of them, with all that it won.
    bool exclusive = false;

    // Mask logits are first resized to this, bilinearly; 0 x 0 where they are not.
    Size logits_size;
    bool resizes_logits() const { return logits_size.height > 0; }
    // Logits are resized to the frame, and the sigmoid is taken of what that gives.
    bool of_logits = false;
    // Instances: a pixel is what the node nearest to it is.
    bool nearest = false;

    // What is added to the count that a mean mask probability is divided by: FocoosAI's, or transformers'.
    double mask_score_epsilon() const { return of_logits || nearest ? 1e-6 : 0.01; }
};

}  // namespace fai
