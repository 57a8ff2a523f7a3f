#include "csrc/ops/info.h"

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/cpu/kernels.h"
#include "cuda/api.h"

namespace fai::ops {

BuildInfo build_info() {
    BuildInfo info;
    info.isa = cpu::kernels().isa;
    for (const cpu::IsaInfo& isa : cpu::isas()) {
        info.isas_compiled.push_back(isa.name);
        if (isa.available) info.isas_available.push_back(isa.name);
    }
    info.cuda = cuda::compiled();
    if (const int version = cuda::toolkit_version()) {
        info.cuda_toolkit = message(version / 1000, ".", version % 1000 / 10);
    }
    info.threads = available_threads();
    return info;
}

}  // namespace fai::ops
