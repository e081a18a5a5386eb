// Threads, progress and memory for the drivers of the stages.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <utility>

#include "gloss.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gloss::cpu {

// Runs body(thread) on `threads` threads; thread 0 is the caller. An exception must not leave an OpenMP region: the
// first one is kept and thrown again at the end.
template <class Body>
void parallel(int threads, Body body) {
  std::exception_ptr error;
  std::atomic<bool> failed{false};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    try {
      body(thread);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

// Hands out the numbers 0 .. count-1 in chunks: for (Range r; queue.next(r);) ...
struct Range {
  int64_t begin, end;
};
class Queue {
 public:
  Queue(int64_t count, int64_t chunk) : count_(count), chunk_(chunk) {}
  bool next(Range& range) {
    range.begin = next_.fetch_add(chunk_, std::memory_order_relaxed);
    range.end = range.begin + chunk_ < count_ ? range.begin + chunk_ : count_;
    return range.begin < count_;
  }

 private:
  const int64_t count_, chunk_;
  std::atomic<int64_t> next_{0};
};

// Progress of one call. Threads add the work they have done; thread 0 reports it at most every 50 ms.
class Ticker {
 public:
  explicit Ticker(Progress progress) : progress_(progress), last_(Clock::now()) {}

  // The next stage moves the report from where it is to `until`, in `work` units. It never moves back: a stage that is
  // done again stands still.
  void stage(double until, double work) {
    begin_ = end_;
    end_ = until > end_ ? until : end_;
    work_ = work > 0 ? work : 1;
    done_.store(0, std::memory_order_relaxed);
  }
  // False when the operation is to stop.
  bool advance(int thread, int64_t work) {
    if (!progress_.report) return true;
    const int64_t done = done_.fetch_add(work, std::memory_order_relaxed) + work;
    if (thread == 0 && !cancelled()) {
      const auto now = Clock::now();
      if (now - last_ >= std::chrono::milliseconds(50)) {
        last_ = now;
        const double share = double(done) / work_;
        if (!progress_.report(progress_.context, begin_ + (end_ - begin_) * (share < 1 ? share : 1)))
          stop_.store(true, std::memory_order_relaxed);
      }
    }
    return !cancelled();
  }
  bool cancelled() const { return stop_.load(std::memory_order_relaxed); }
  void check() const {
    if (cancelled()) throw Cancelled{};
  }

 private:
  using Clock = std::chrono::steady_clock;
  Progress progress_;
  Clock::time_point last_;
  double begin_ = 0, end_ = 0, work_ = 1;
  std::atomic<int64_t> done_{0};
  std::atomic<bool> stop_{false};
};

// Counts the bytes of the buffers alive, for TopkStats.
struct Meter {
  int64_t now = 0, most = 0;
  void add(int64_t bytes) {
    now += bytes;
    if (now > most) most = now;
  }
};

// Uninitialised memory, aligned to cache lines.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count, Meter* meter = nullptr) : bytes_(count * int64_t(sizeof(T))), meter_(meter) {
    // Large buffers take large pages: the sweep and the scores read them in no order.
    const size_t align = bytes_ >= (int64_t(4) << 20) ? size_t(2) << 20 : 64;
    align_ = std::align_val_t(align);
    data_ = static_cast<T*>(::operator new(size_t(bytes_ > 0 ? bytes_ : 1), align_));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (align > 64) madvise(data_, size_t(bytes_), MADV_HUGEPAGE);
#endif
    if (meter_) meter_->add(bytes_);
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (!data_) return;
    ::operator delete(data_, align_);
    if (meter_) meter_->add(-bytes_);
  }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(meter_, other.meter_);
    std::swap(align_, other.align_);
  }
  T* data_ = nullptr;
  int64_t bytes_ = 0;
  Meter* meter_ = nullptr;
  std::align_val_t align_{64};
};

}  // namespace gloss::cpu
