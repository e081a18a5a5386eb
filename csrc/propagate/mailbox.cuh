// A number that comes from the device while its work goes on. Pinned memory and events are made once and used again.
#pragma once
#include <mutex>
#include <vector>

#include "cuda/common.cuh"

namespace gloss::cuda {

class Mailbox {
 public:
  explicit Mailbox(Queue queue) : queue_(queue) {
    const std::lock_guard<std::mutex> lock(pool().lock);
    for (size_t at = 0; at < pool().free.size(); ++at)
      if (pool().free[at].device == queue.device) {
        box_ = pool().free[at];
        pool().free.erase(pool().free.begin() + ptrdiff_t(at));
        return;
      }
    box_.device = queue.device;
    check(cudaHostAlloc(reinterpret_cast<void**>(&box_.number), sizeof(int64_t), cudaHostAllocDefault),
          "cudaHostAlloc");
    check(cudaEventCreateWithFlags(&box_.event, cudaEventDisableTiming), "cudaEventCreate");
  }

  // Queues a copy of *number.
  void send(const int64_t* number) {
    const auto stream = static_cast<cudaStream_t>(queue_.stream);
    check(cudaMemcpyAsync(box_.number, number, sizeof(int64_t), cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
    check(cudaEventRecord(box_.event, stream), "cudaEventRecord");
    pending_ = true;
  }
  bool pending() const { return pending_; }
  // Waits for the copy, not for what was queued after it.
  int64_t receive() {
    check(cudaEventSynchronize(box_.event), "the solver's kernels");
    pending_ = false;
    return *box_.number;
  }
  // With nothing pending; after an error the box is lost, since a copy may still arrive in it.
  void close() {
    const std::lock_guard<std::mutex> lock(pool().lock);
    pool().free.push_back(box_);
  }

 private:
  struct Box {
    int device;
    int64_t* number;
    cudaEvent_t event;
  };
  struct Pool {
    std::mutex lock;
    std::vector<Box> free;
  };
  static Pool& pool() {
    static Pool* const kept = new Pool;  // never destroyed: at exit the CUDA runtime may be gone before
    return *kept;
  }
  Queue queue_;
  Box box_{};
  bool pending_ = false;
};

}  // namespace gloss::cuda
