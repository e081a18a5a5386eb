// Sub-buffers of the caller's workspace. One carving function serves twice: with a null base it measures, with the
// workspace it hands out, so that the size and the use of a workspace cannot disagree.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gloss::cuda {

class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  // `count` elements, aligned to 256 bytes; null while measuring.
  template <class T>
  T* take(int64_t count) {
    const int64_t at = used_;
    used_ = (used_ + count * int64_t(sizeof(T)) + 255) / 256 * 256;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t size() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace gloss::cuda
