// Stream capture: what is queued on the captured stream is kept, not run; replay() runs it, as often as it is called.
#pragma once
#include <functional>
#include <vector>

struct CUstream_st;

namespace emulator {

struct Capture {
  bool on = false;
  CUstream_st* stream = nullptr;
  std::vector<std::function<void()>> work;  // in the order of the stream
};
inline Capture capture;

inline bool is_captured(CUstream_st* stream) { return capture.on && capture.stream == stream; }

// Starts with nothing kept; what an earlier capture kept is dropped.
inline void begin_capture(CUstream_st* stream) { capture = {true, stream, {}}; }
inline void end_capture() { capture.on = false; }

// Runs the kept work [first, last).
inline void replay(size_t first, size_t last) {
  for (size_t at = first; at < last && at < capture.work.size(); ++at) capture.work[at]();
}

// Work of a stream: now, or at every replay.
template <class Work>
void submit(CUstream_st* stream, Work work) {
  if (is_captured(stream)) capture.work.emplace_back(std::move(work));
  else work();
}

}  // namespace emulator
