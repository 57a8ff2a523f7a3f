// What was found in a frame, for the host and for the device.
#include <algorithm>

#include "cuda/device_graph.cuh"

namespace fai::cuda {

std::vector<std::shared_ptr<const Result>> DeviceGraph::results() {
    Impl& m = *impl_;
    m.check_process();
    m.check_idle();
    if (m.state != Impl::State::ended) return {};
    m.state = Impl::State::taken;
    const DeviceScope scope(m.spec.device);
    const Range range("fai_fast results");
    bool again = false;
    for (int index = 0; index < m.spec.batch; ++index) {
        if (!m.host_params()[index].active || m.spec.predict_all_pixels) continue;
        Impl::Image& own = m.image[index];
        own.payload_bytes = own.block->header()->words * 8;
        if (own.payload_bytes <= own.block->payload_bytes) continue;
        const int64_t wanted = own.payload_bytes + own.payload_bytes / 4;
        std::unique_ptr<Block> larger = m.pool->take(m.spec.queries, wanted);
        // Not before: what there is no memory for, no later frame should ask for.
        m.payload = std::max(m.payload, wanted);
        *larger->header() = *own.block->header();
        std::copy_n(own.block->rows(), own.block->header()->count, larger->rows());
        std::swap(own.block, larger);
        m.pool->give_back(std::move(larger));
        m.lend(index);
        again = true;
    }
    if (again) {
        check(cudaMemcpyAsync(m.device_params.get(), m.params.get(), sizeof(ImageParams) * m.spec.batch,
                              cudaMemcpyHostToDevice, m.stream.get()),
              "uploading parameters");
        launch_pack(m.stream.get(), m.postprocess());
        check(cudaStreamSynchronize(m.stream.get()), "packing masks");
    }
    std::vector<std::shared_ptr<const Result>> results;
    for (int index = 0; index < m.spec.batch; ++index) {
        if (!m.host_params()[index].active) continue;
        Impl::Image& own = m.image[index];
        if (m.pool->lent() > kPinnedResults) {
            results.push_back(std::make_shared<CopiedResult>(*own.block, own.payload_bytes));
        } else {
            results.push_back(
                std::make_shared<PinnedResult>(m.pool, std::move(own.block), own.payload_bytes));
        }
    }
    return results;
}

const void* DeviceGraph::host_class_logits() const { return impl_->host_class_logits.get(); }

std::shared_ptr<const DeviceMemory> DeviceGraph::expand(int index, const std::vector<Row>& rows) {
    Impl& m = *impl_;
    m.check_process();
    m.check_idle();
    m.check_image(index);
    const DeviceScope scope(m.spec.device);
    const Size size = m.host_params()[index].size;
    const size_t pixels = static_cast<size_t>(size.height) * size.width;
    auto memory =
        std::make_shared<PooledMemory>(m.masks, m.spec.device, std::max<size_t>(rows.size() * pixels, 1));
    if (!rows.empty()) {
        launch_expand(m.stream.get(), m.postprocess(), index, size, rows.data(),
                      static_cast<int>(rows.size()), reinterpret_cast<uint8_t*>(memory->address()));
    }
    check(cudaStreamSynchronize(m.stream.get()), "expanding masks");
    return memory;
}

}  // namespace fai::cuda
