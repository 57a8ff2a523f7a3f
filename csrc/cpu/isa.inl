// One instruction set's table of kernels.
#include "csrc/cpu/drawing.inl"
#include "csrc/cpu/instances.inl"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/panoptic.inl"
#include "csrc/cpu/postprocess.inl"
#include "csrc/cpu/preprocess.inl"
#include "csrc/cpu/resample.inl"
#include "csrc/cpu/semantic.inl"
#include "csrc/cpu/semantic_sum.inl"

namespace fai::cpu::FAI_ISA {

const Kernels& table() {
    static constexpr Kernels kTable{
        FAI_ISA_NAME,
        {class_score<float>, class_score<uint16_t>},
        {class_scores<float>, class_scores<uint16_t>},
        {find_extent<float>, find_extent<uint16_t>},
        {sum_nodes<float>, sum_nodes<uint16_t>},
        {mean_can_reach<float>, mean_can_reach<uint16_t>},
        {weigh<float>, weigh<uint16_t>},
        {draw_instance<float>, draw_instance<uint16_t>},
        {draw_segments<float>, draw_segments<uint16_t>},
        relabel,
        {class_probabilities<float>, class_probabilities<uint16_t>},
        {draw_sums<float>, draw_sums<uint16_t>},
        load_row,
        blend_rows,
        paint_row,
    };
    return kTable;
}

}  // namespace fai::cpu::FAI_ISA
