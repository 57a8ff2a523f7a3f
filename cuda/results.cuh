// Where a frame's results lie: blocks of pinned memory, lent to results and given back by them.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/api.h"
#include "cuda/device.cuh"
#include "cuda/params.cuh"

namespace fai::cuda {

// Results that are kept longer than this many frames are copied out of pinned memory, which is scarce.
inline constexpr size_t kPinnedResults = 8;

// Pinned memory of one result: header, rows, payload.
struct Block {
    PinnedBuffer memory;
    int64_t payload_bytes = 0;
    int32_t queries = 0;

    Header* header() const { return memory.get<Header>(); }
    Row* rows() const { return reinterpret_cast<Row*>(memory.get() + kAlignment); }
    uint64_t* payload() const {
        return reinterpret_cast<uint64_t*>(memory.get() + kAlignment + aligned(sizeof(Row) * queries));
    }
};

// Blocks that no result holds. Outlives the graph while results of it do.
class BlockPool {
  public:
    std::unique_ptr<Block> take(int32_t queries, int64_t payload_bytes) {
        std::unique_ptr<Block> block;
        {
            const std::lock_guard lock(mutex_);
            const auto fits = [&](const auto& free) { return free->payload_bytes >= payload_bytes; };
            auto found = std::find_if(free_.begin(), free_.end(), fits);
            if (found == free_.end() && !free_.empty()) found = free_.begin();
            if (found != free_.end()) {
                block = std::move(*found);
                free_.erase(found);
            }
        }
        if (!block) block = std::make_unique<Block>();
        if (block->payload_bytes < payload_bytes || block->queries < queries) {
            {
                const std::lock_guard lock(mutex_);
                bytes_ -= block->memory.bytes();
            }
            block->memory.reserve(kAlignment + aligned(sizeof(Row) * queries) +
                                  aligned(static_cast<size_t>(payload_bytes)));
            block->payload_bytes = payload_bytes;
            block->queries = queries;
            const std::lock_guard lock(mutex_);
            bytes_ += block->memory.bytes();
        }
        const std::lock_guard lock(mutex_);
        ++lent_;
        return block;
    }

    void give_back(std::unique_ptr<Block> block) {
        const std::lock_guard lock(mutex_);
        --lent_;
        if (free_.size() < kPinnedResults) {
            free_.push_back(std::move(block));
        } else {
            bytes_ -= block->memory.bytes();
        }
    }

    size_t lent() const {
        const std::lock_guard lock(mutex_);
        return lent_;
    }
    size_t bytes() const {
        const std::lock_guard lock(mutex_);
        return bytes_;
    }

  private:
    mutable std::mutex mutex_;
    std::vector<std::unique_ptr<Block>> free_;
    size_t lent_ = 0;
    size_t bytes_ = 0;
};

class PinnedResult final : public Result {
  public:
    PinnedResult(std::shared_ptr<BlockPool> pool, std::unique_ptr<Block> block, int64_t bytes)
        : pool_(std::move(pool)), block_(std::move(block)), bytes_(bytes) {}
    ~PinnedResult() override {
        if (process_.forked()) {
            block_.release();
        } else {
            pool_->give_back(std::move(block_));
        }
    }
    const Row* rows() const override { return block_->rows(); }
    int32_t count() const override { return block_->header()->count; }
    const void* payload() const override { return block_->payload(); }
    int64_t payload_bytes() const override { return bytes_; }

  private:
    std::shared_ptr<BlockPool> pool_;
    std::unique_ptr<Block> block_;
    int64_t bytes_;
    Process process_;
};

class CopiedResult final : public Result {
  public:
    CopiedResult(const Block& block, int64_t bytes)
        : rows_(block.rows(), block.rows() + block.header()->count),
          payload_(new uint64_t[static_cast<size_t>((bytes + 7) / 8)]),
          bytes_(bytes) {
        std::memcpy(payload_.get(), block.payload(), static_cast<size_t>(bytes));
    }
    const Row* rows() const override { return rows_.data(); }
    int32_t count() const override { return static_cast<int32_t>(rows_.size()); }
    const void* payload() const override { return payload_.get(); }
    int64_t payload_bytes() const override { return bytes_; }

  private:
    std::vector<Row> rows_;
    std::unique_ptr<uint64_t[]> payload_;
    int64_t bytes_;
};

}  // namespace fai::cuda
