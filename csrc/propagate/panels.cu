// How right-hand sides are cut into panels, rows into blocks, and the workspace into buffers (solver.cuh).
#include <algorithm>

#include "propagate/solver.cuh"

namespace gloss::cuda {

template <class T>
int64_t num_panels(int64_t n, int64_t num_classes) {
  const int64_t cached = (int64_t(32) << 20) / (std::max<int64_t>(n, 1) * int64_t(sizeof(T)));
  const int64_t widest = std::min<int64_t>(std::max<int64_t>(cached, 32), kMostColumns);
  return (num_classes + widest - 1) / widest;
}

template <class T>
Panel panel_of(int64_t n, int64_t num_classes, int64_t number) {
  constexpr int64_t kSize = Pack<T>::kSize;
  const int64_t panels = num_panels<T>(n, num_classes), packs = (num_classes + kSize - 1) / kSize;
  const int64_t first = packs * number / panels * kSize, end = packs * (number + 1) / panels * kSize;
  return {first, int(std::min(end, num_classes) - first), int((end - first) / kSize)};
}

template <class T>
Solver<T> carve_solver(Workspace& memory, int64_t n, int64_t capacity, int64_t num_classes) {
  Solver<T> out{};
  out.hidden = carve_hidden<T>(memory, n, capacity);
  const int64_t panels = std::max<int64_t>(num_panels<T>(n, num_classes), 1);
  const int64_t packs = (num_classes + Pack<T>::kSize - 1) / Pack<T>::kSize, lanes = (packs + panels - 1) / panels;
  for (Pack<T>** panel : {&out.b, &out.x, &out.r, &out.p, &out.q, &out.e}) *panel = memory.take<Pack<T>>(n * lanes);
  for (T** numbers : {&out.step, &out.beta}) *numbers = memory.take<T>(kMostColumns);
  for (double** numbers : {&out.norm, &out.rr}) *numbers = memory.take<double>(kMostColumns);
  out.active = memory.take<int>(kMostColumns);
  out.partials = memory.take<double>(int64_t(kMostBlocks) * kMostColumns);
  out.control = memory.take<Control>(1);
  return out;
}

unsigned panel_blocks(int64_t rows, int lanes, int at_once) {
  int device = 0, multiprocessors = 1;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  const int64_t groups = kPanelThreads / lanes, wanted = (rows + groups - 1) / groups;
  return unsigned(std::max<int64_t>(1, std::min<int64_t>({wanted, at_once * multiprocessors, kMostBlocks})));
}

#define GLOSS_INSTANTIATE(T)                             \
  template int64_t num_panels<T>(int64_t, int64_t);      \
  template Panel panel_of<T>(int64_t, int64_t, int64_t); \
  template Solver<T> carve_solver<T>(Workspace&, int64_t, int64_t, int64_t);
GLOSS_INSTANTIATE(float)
GLOSS_INSTANTIATE(double)

}  // namespace gloss::cuda
