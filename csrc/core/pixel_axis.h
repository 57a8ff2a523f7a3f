// The tables of one axis of a mask's resampling.
#pragma once

#include <cstdint>

namespace fai {

// The `nodes` mask values span `nodes` cells; cell j lies between nodes j and j + 1 (the last one between the
// last node and itself, by the clamped edge). Every output pixel lies in a cell. Tables are padded, so that
// the CPU may load a vector at their last entry.
struct PixelAxis {
    int32_t nodes;
    int32_t pixels;
    const int32_t* cell;        // (pixels + padding) cell of a pixel
    const float* fraction;      // (pixels + padding) how far the pixel lies from node j to node j + 1
    const int32_t* first;       // (nodes + 1) first pixel of a cell; first[nodes] = pixels
    const double* prefix;       // (pixels + 1) sum of the fractions before a pixel
    const float* left_weight;   // (nodes + padding) sum of (1 - fraction) over a cell's pixels
    const float* right_weight;  // (nodes + padding) sum of fraction over a cell's pixels
};

}  // namespace fai
