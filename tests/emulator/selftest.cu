// What the kernels rely on, checked against plain loops: "selftest NAME" runs one case. Built as C++ for the emulator and by
// nvcc alike; the cases at the end are wrong on purpose and show what the emulator notices.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

#include "cuda/common.cuh"
#include "cuda/mma.cuh"
#include "cuda/workspace.cuh"

using namespace gloss;
using namespace gloss::cuda;

namespace {

void expect(bool good, const char* what, long long at = -1) {
  if (good) return;
  std::printf("wrong: %s (%lld)\n", what, at);
  std::exit(2);
}

// Memory that host and device both see.
template <class T>
struct Array {
  T* data;
  size_t count;
  explicit Array(size_t count) : count(count) {
#if defined(GLOSS_EMULATE)
    data = static_cast<T*>(std::aligned_alloc(256, (count * sizeof(T) + 255) / 256 * 256));
#else
    check(cudaMallocManaged(&data, count * sizeof(T)), "cudaMallocManaged");
#endif
    std::memset(static_cast<void*>(data), 0, count * sizeof(T));
  }
  Array(const Array&) = delete;
  T& operator[](size_t i) { return data[i]; }
};

void finish() { check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize"); }

// ------------------------------------------------------------------------------------- tensor cores
// D += A B for one warp: A [16, 16] by ldmatrix, B [8, 16] by columns, also by ldmatrix.
template <class T>
__global__ void mma_kernel(const T* a, const T* b, float* d, unsigned* fragments) {
  GLOSS_DYNAMIC_SHARED(T, tile);  // A, then B
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) tile[i] = a[i];
  for (int i = lane; i < 128; i += 32) tile[256 + i] = b[i];
  __syncwarp();
  unsigned fa[4], fb[4];
  const int matrix = lane / 8, row = lane % 8;
  ldmatrix_x4(fa, tile + (row + 8 * (matrix % 2)) * 16 + 8 * (matrix / 2));
  ldmatrix_x4(fb, tile + 256 + row * 16 + 8 * (matrix % 2));
  for (int i = 0; i < 4; ++i) fragments[4 * lane + i] = fa[i];
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2];
  mma_16x8x16<T>(sum, fa, fb[0], fb[1]);
  for (int i = 0; i < 4; ++i) d[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = sum[i];
}

template <class T>
void test_mma() {
  Array<T> a(256), b(128);
  Array<float> d(128);
  Array<unsigned> fragments(128);
  std::vector<float> want(128);
  for (int i = 0; i < 256; ++i) a[i] = T(float(i * 7 % 31 - 15));
  for (int i = 0; i < 128; ++i) b[i] = T(float(i * 5 % 23 - 11)), want[i] = d[i] = float(i);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n)
      for (int k = 0; k < 16; ++k) want[m * 8 + n] += float(a[m * 16 + k]) * float(b[n * 16 + k]);
  launch(mma_kernel<T>, 1, 32, 384 * sizeof(T), nullptr, a.data, b.data, d.data, fragments.data);
  finish();
  for (int i = 0; i < 128; ++i) expect(d[i] == want[i], "mma", i);
  for (int l = 0; l < 32; ++l)  // the A fragment as the PTX ISA has it
    for (int r = 0; r < 4; ++r) {
      const int row = l / 4 + 8 * (r % 2), column = 2 * (l % 4) + 8 * (r / 2);
      expect(std::memcmp(&fragments[4 * l + r], &a[row * 16 + column], 4) == 0, "ldmatrix", 4 * l + r);
    }
}

// -------------------------------------------------------------------------------------------- warps
__global__ void warp_kernel(int* out) {  // [12, 32]
  const int lane = threadIdx.x, first = lane & ~15;
  const unsigned half = 0xffffu << first;
  out[lane] = __shfl_sync(~0u, lane * 10, (lane + 5) % 32);
  out[32 + lane] = __shfl_up_sync(~0u, lane, 3, 8);
  out[64 + lane] = __shfl_down_sync(~0u, lane, 3, 8);
  out[96 + lane] = int(__shfl_xor_sync(~0u, 1000.0 + lane, 9));
  if (lane < 16) out[128 + lane] = __shfl_xor_sync(half, lane, 1);  // the halves part, each with its own mask
  else out[128 + lane] = __shfl_sync(half, lane, 31);
  out[160 + lane] = int(__ballot_sync(~0u, lane % 3 == 0));
  out[192 + lane] = __any_sync(~0u, lane == 7) * 2 + __all_sync(~0u, lane < 31);
  out[224 + lane] = int(__match_any_sync(~0u, lane % 4));
  out[256 + lane] = int(__ballot_sync(half, lane % 2));
  long long wide = 0x100000000LL * lane;
  out[288 + lane] = int(__shfl_xor_sync(~0u, wide, 31) >> 32);
  if (lane >= 24) return;  // who has returned is not waited for
  out[320 + lane] = int(__ballot_sync(0x00ffffffu, 1));
  if (lane % 2) return;
  out[352 + lane] = __shfl_sync(0x00555555u, lane, 4);
}
void test_warps() {
  Array<int> out(384);
  launch(warp_kernel, 1, 32, 0, nullptr, out.data);
  finish();
  unsigned thirds = 0;
  for (int l = 0; l < 32; l += 3) thirds |= 1u << l;
  for (int l = 0; l < 32; ++l) {
    expect(out[l] == (l + 5) % 32 * 10, "__shfl_sync", l);
    expect(out[32 + l] == (l % 8 < 3 ? l : l - 3), "__shfl_up_sync", l);
    expect(out[64 + l] == (l % 8 + 3 < 8 ? l + 3 : l), "__shfl_down_sync", l);
    expect(out[96 + l] == 1000 + (l ^ 9), "__shfl_xor_sync", l);
    expect(out[128 + l] == (l < 16 ? l ^ 1 : 31), "shuffle with half a warp", l);
    expect(unsigned(out[160 + l]) == thirds, "__ballot_sync", l);
    expect(out[192 + l] == 2, "__any_sync, __all_sync", l);
    expect(unsigned(out[224 + l]) == 0x11111111u << l % 4, "__match_any_sync", l);
    expect(unsigned(out[256 + l]) == (0xaaaaaaaau & 0xffffu << (l & 16)), "ballot with half a warp", l);
    expect(out[288 + l] == (l ^ 31), "shuffle of 8 bytes", l);
    expect(out[320 + l] == (l < 24 ? 0xffffff : 0), "ballot after a return", l);
    expect(out[352 + l] == (l < 24 && l % 2 == 0 ? 4 : 0), "shuffle with a sparse mask", l);
  }
}

__global__ void xor_width_kernel(int* out) { out[threadIdx.x] = __shfl_xor_sync(~0u, int(threadIdx.x), 8, 8); }
void test_xor_width() {
  Array<int> out(32);
  launch(xor_width_kernel, 1, 32, 0, nullptr, out.data);
  finish();
  for (int l = 0; l < 32; ++l)  // a lane of a later group: one's own value
    expect(out[l] == ((l ^ 8) > (l | 7) ? l : (l ^ 8)), "__shfl_xor_sync with a width", l);
}

__global__ void reduce_kernel(int* sums, unsigned* tops) {
  const int lane = threadIdx.x;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  sums[lane] = __reduce_add_sync(~0u, lane - 20);
  sums[32 + lane] = __reduce_min_sync(0xffffu << (lane & 16), lane - 20);
  tops[lane] = __reduce_max_sync(~0u, unsigned(lane) * 0x08000000u);
#endif
}
void test_reduce() {
  Array<int> sums(64);
  Array<unsigned> tops(32);
  launch(reduce_kernel, 1, 32, 0, nullptr, sums.data, tops.data);
  finish();
  for (int l = 0; l < 32; ++l) {
    expect(sums[l] == 496 - 640, "__reduce_add_sync", l);
    expect(sums[32 + l] == (l < 16 ? -20 : -4), "__reduce_min_sync", l);
    expect(tops[l] == 31u * 0x08000000u, "__reduce_max_sync", l);
  }
}

// --------------------------------------------------------------------------------- blocks and memory
// Every warp reads what another has written.
template <bool kBarrier>
__global__ void neighbours_kernel(int* out) {
  GLOSS_DYNAMIC_SHARED(int, values);
  const int me = threadIdx.x, n = blockDim.x;
  const int before = values[me];  // never written: the poison of this block
  __syncthreads();
  values[me] = me;
  if (kBarrier) __syncthreads();
  const int at = blockIdx.x * n + me;
  out[2 * at] = values[(me + 37) % n] + values[(me + n - 37) % n];
  out[2 * at + 1] = before;
}
template <bool kBarrier>
int neighbours() {  // how many are wrong
  constexpr int n = 128, blocks = 3;
  Array<int> out(2 * n * blocks);
  launch(neighbours_kernel<kBarrier>, blocks, n, n * sizeof(int), nullptr, out.data);
  finish();
  int wrong = 0;
  for (int i = 0; i < n * blocks; ++i) {
    wrong += out[2 * i] != (i % n + 37) % n + (i % n + n - 37) % n;
#if defined(GLOSS_EMULATE)
    expect(out[2 * i + 1] == -1, "poison", i);
#endif
  }
  return wrong;
}

__global__ void barrier_kernel(int* out) {
  const int me = threadIdx.x, x = me % 3 == 0;
  out[3 * me] = __syncthreads_count(x);
  out[3 * me + 1] = __syncthreads_and(x);
  out[3 * me + 2] = __syncthreads_or(x) * 10 + __syncthreads_or(0);
}
void test_barriers() {
  Array<int> out(300);
  launch(barrier_kernel, 1, 100, 0, nullptr, out.data);
  finish();
  for (int t = 0; t < 100; ++t) {
    expect(out[3 * t] == 34, "__syncthreads_count", t);
    expect(out[3 * t + 1] == 0 && out[3 * t + 2] == 10, "__syncthreads_and, __syncthreads_or", t);
  }
}

__global__ void atomics_kernel(int* i, unsigned* u, unsigned long long* l, float* f, double* d) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(i, 1), atomicMax(i + 1, at), atomicMin(i + 2, -at);
  atomicOr(u, 1u << at % 32), atomicAnd(u + 1, ~(1u << at % 8));
  atomicAdd(l, 1ull << 33), atomicMax(l + 1, 1ull << 40 | unsigned(at));
  for (unsigned seen = u[2], old; (old = atomicCAS(u + 2, seen, seen + 2)) != seen;) seen = old;
  atomicAdd(f, 0.5f), atomicAdd(d, 0.25);
  if (at == 3) atomicExch(u + 3, 99u);
}
void test_atomics() {
  Array<int> i(3);
  Array<unsigned> u(4);
  Array<unsigned long long> l(2);
  Array<float> f(1);
  Array<double> d(1);
  u[1] = ~0u;
  launch(atomics_kernel, 5, 64, 0, nullptr, i.data, u.data, l.data, f.data, d.data);
  finish();
  expect(i[0] == 320 && i[1] == 319 && i[2] == -319, "atomics on int");
  expect(u[0] == ~0u && u[1] == 0xffffff00u && u[2] == 640 && u[3] == 99, "atomics on unsigned");
  expect(l[0] == 320ull << 33 && l[1] == (1ull << 40 | 319), "atomics on 64 bits");
  expect(f[0] == 160 && d[0] == 80, "atomics on float and double");
}

// Three stages of a ring, two copies under way; the last is cut short and filled with zeros.
template <bool kWait>
__global__ void copy_kernel(const int* in, int* out, int count) {
  GLOSS_DYNAMIC_SHARED(int, ring);  // [3, 32 * 4]
  const int me = threadIdx.x;
  const auto fetch = [&](int stage) {
    const int left = count - stage * 128 - me * 4;
    const int* from = in + (left > 0 ? stage * 128 + me * 4 : 0);
    if (stage < 6) cp_async_16(ring + stage % 3 * 128 + me * 4, from, max(0, min(16, left * 4)));
    cp_async_commit();
  };
  fetch(0), fetch(1);
  for (int stage = 0; stage < 6; ++stage) {
    fetch(stage + 2);
    if (kWait) cp_async_wait<2>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) out[stage * 128 + 4 * me + i] = ring[stage % 3 * 128 + (4 * me + i + 8) % 128];
    __syncthreads();
  }
}
template <bool kWait>
int copies() {
  constexpr int n = 6 * 128, cut = n - 50;
  Array<int> in(n), out(n);
  for (int i = 0; i < n; ++i) in[i] = i + 1;
  launch(copy_kernel<kWait>, 1, 32, 3 * 128 * sizeof(int), nullptr, in.data, out.data, cut);
  finish();
  int wrong = 0;
  for (int i = 0; i < n; ++i) {
    const int from = i / 128 * 128 + (i % 128 + 8) % 128;
    wrong += out[i] != (from < cut ? from + 1 : 0);
  }
  return wrong;
}

void test_copies() { expect(copies<true>() == 0, "cp_async"); }
void test_neighbours() { expect(neighbours<true>() == 0, "shared memory between warps"); }

// --------------------------------------------------------------------------------------------- host
// The number with `bits` bits of mantissa and exponents from `lowest` nearest to x, ties to even.
double nearest(double x, int bits, int lowest, double largest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int shift = std::max(std::ilogb(x), lowest) - bits;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(x, -shift)), shift);
  return std::fabs(rounded) > largest ? std::copysign(INFINITY, x) : rounded;
}
template <class T>
void test_rounding(int bits, int lowest, double largest) {
  const auto check_one = [&](float x) {
    const float want = float(nearest(x, bits, lowest, largest)), got = float(T(x));
    unsigned pattern;
    std::memcpy(&pattern, &x, 4);
    expect(std::memcmp(&want, &got, 4) == 0, "rounding of a float", pattern);
  };
  for (unsigned pattern = 0; pattern < 0x10000; ++pattern) {  // every number, and the places where rounding turns
    const unsigned short raw = static_cast<unsigned short>(pattern);
    T exact;
    std::memcpy(static_cast<void*>(&exact), &raw, 2);
    const float x = float(exact);
    if (std::isnan(x)) {
      expect(std::isnan(float(T(x))), "NaN", pattern);
      continue;
    }
    const T back(x);
    expect(std::memcmp(&back, &raw, 2) == 0, "there and back", pattern);
    if (std::isinf(x)) continue;
    const double step = std::ldexp(1.0, std::max(x == 0 ? lowest : std::ilogb(x), lowest) - bits);
    const float middle = float(x + std::copysign(step / 2, x));
    for (float y : {middle, std::nextafter(middle, 0.f), std::nextafter(middle, 1e38f * middle)}) check_one(y);
  }
  unsigned state = 1;
  for (int i = 0; i < 200000; ++i) {
    state = state * 1664525u + 1013904223u;
    float x;
    std::memcpy(&x, &state, 4);
    if (std::isfinite(x)) check_one(x);
  }
}
void test_half() { test_rounding<__half>(10, -14, 65504); }
void test_bfloat16() { test_rounding<__nv_bfloat16>(7, -126, 3.3895313892515355e38); }

__global__ void fill_kernel(int* out, int64_t value) {
  out[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = int(value + threadIdx.z * 100 + threadIdx.y * 10);
}
__global__ void static_kernel(int* out, int value) {  // 40,004 bytes of its own
  GLOSS_DYNAMIC_SHARED(int, values);
  GLOSS_SHARED(int, table, [10000]);
  GLOSS_SHARED(int, total);
  if (threadIdx.x == 0) out[1] = table[9999], out[2] = total, values[0] = table[0] = value;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = values[0] + table[0];
}
__global__ void large_kernel(int* out, int last) {
  GLOSS_DYNAMIC_SHARED(int, values);
  values[last] = 5;
  out[0] = values[last];
}
void test_launches() {
  Array<int> out(24);
  launch(fill_kernel, dim3(2, 3, 4), dim3(1, 1, 1), 0, nullptr, out.data, 7);  // 7 becomes int64_t
  finish();
  for (int i = 0; i < 24; ++i) expect(out[i] == 7, "a grid of three dimensions", i);
  launch(large_kernel, 1, 1, 100 << 10, nullptr, out.data, (100 << 8) - 1);
  finish();
  expect(out[0] == 5, "100 KB of shared memory");
  launch(static_kernel, 2, 32, 20 << 10, nullptr, out.data, 4);  // more than 48 KB together
  launch(static_kernel, 2, 32, 100, nullptr, out.data, 4);       // and less again: the opt-in stays
  finish();
  expect(out[0] == 8, "static and dynamic shared memory");
#if defined(GLOSS_EMULATE)
  expect(out[1] == -1 && out[2] == -1, "poison of static shared memory");
  expect(emulator::opted_in(reinterpret_cast<const void*>(static_kernel)) == 20 << 10, "an opt-in is not lowered");
#endif
  const auto refused = [&](auto kernel, dim3 grid, dim3 block, size_t shared) {
    try {
      launch(kernel, grid, block, shared, nullptr, out.data, 0);
    } catch (const std::runtime_error&) {
      return true;
    }
    return false;
  };
  expect(refused(fill_kernel, 0, 1, 0) && refused(fill_kernel, 1, 0, 0), "nothing to launch");
  expect(refused(fill_kernel, 1, 1025, 0) && refused(fill_kernel, 1, dim3(1, 1, 65), 0), "threads of a block");
  expect(refused(fill_kernel, dim3(1, 65536), 1, 0), "blocks along y");
  expect(refused(large_kernel, 1, 1, 228 << 10), "shared memory");
  expect(refused(static_kernel, 1, 1, 200 << 10), "static and dynamic shared memory past what a block has");
  launch(fill_kernel, 1, 1, 0, nullptr, out.data, 9);  // an error does not stay
  finish();
  expect(out[0] == 9, "a launch after an error");

  Workspace measure(nullptr), memory(reinterpret_cast<void*>(4096));
  expect(measure.take<double>(5) == nullptr && measure.take<char>(0) == nullptr, "measuring");
  expect(memory.take<double>(33) == reinterpret_cast<double*>(4096), "the first buffer");
  expect(memory.take<char>(1) == reinterpret_cast<char*>(4096 + 512) && memory.size() == 768, "the second buffer");
}

#if defined(GLOSS_EMULATE)
// Work of a captured stream runs at each replay, on what memory then holds, and nothing that waits for it is allowed.
void test_capture() {
  Array<int> out(24);
  int copy = 0;
  int64_t value = 7;
  emulator::begin_capture(nullptr);
  check(cudaMemsetAsync(out.data, 0xff, 4, nullptr), "cudaMemsetAsync");
  check(cudaMemcpyAsync(&copy, out.data + 1, 4, cudaMemcpyDeviceToDevice, nullptr), "cudaMemcpyAsync");
  launch(fill_kernel, dim3(2, 3, 4), 1, 0, nullptr, out.data, value);
  cudaStreamCaptureStatus status;
  expect(cudaStreamIsCapturing(nullptr, &status) == cudaSuccess && status == cudaStreamCaptureStatusActive, "status");
  for (const auto& wait : {cudaStreamSynchronize(nullptr), cudaEventSynchronize(1)})
    expect(wait == cudaErrorStreamCaptureUnsupported, "waiting for a captured stream");
  (void)cudaGetLastError();
  value = 8;
  emulator::end_capture();
  expect(out[0] == 0 && out[23] == 0, "captured work has not run");
  for (int pass = 0; pass < 2; ++pass) {
    out[1] = 20 + pass, out[23] = 0;
    emulator::replay(0, 2);
    expect(out[0] == -1 && copy == 20 + pass && out[23] == 0, "a part of a replay");
    emulator::replay(2, 3);
    expect(out[0] == 7 && out[23] == 7, "arguments are those of the capture");
  }
  launch(fill_kernel, 1, 1, 0, nullptr, out.data, 9);
  expect(out[0] == 9, "a launch after a capture");
}

void test_devices() {
  const auto now = [] {
    int device = -1;
    check(cudaGetDevice(&device), "cudaGetDevice");
    return device;
  };
  const int before = emulator::device_switches;
  { const DeviceGuard guard(0); }
  expect(emulator::device_switches == before, "cudaSetDevice where nothing changes");
  {
    const DeviceGuard guard(1);
    expect(now() == 1, "the guard's device");
    { const DeviceGuard inner(1); }
    expect(now() == 1, "the inner guard's device");
  }
  expect(now() == 0 && emulator::device_switches == before + 2, "the device before");
}
#endif

// ---------------------------------------------------------------------------------- wrong on purpose
__global__ void returned_kernel() {
  if (threadIdx.x == 0) return;
  __syncthreads();
}
__global__ void kinds_kernel() {
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads_or(1);
}
__global__ void lanes_kernel(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(~0u, 1, 0);
  else __syncthreads();
}
void run_returned() { launch(returned_kernel, 2, 64, 0, nullptr); }
void run_kinds() { launch(kinds_kernel, 1, 64, 0, nullptr); }
void run_lanes() { Array<int> out(32); launch(lanes_kernel, 1, 32, 0, nullptr, out.data); }
void run_no_opt_in() {
  Array<int> out(3);
#if defined(GLOSS_EMULATE)
  emulator::launch(nullptr, 1, 1, 20 << 10, nullptr, [&] { static_kernel(out.data, 1); });
#endif
}
void run_past_end() { Array<int> out(1); launch(large_kernel, 1, 1, 64, nullptr, out.data, 16); }
void run_no_barrier() { expect(neighbours<false>() == 0, "shared memory between warps"); }
void run_no_wait() { expect(copies<false>() == 0, "cp_async"); }

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, std::function<void()>> cases = {
      {"mma_half", test_mma<__half>}, {"mma_bfloat16", test_mma<__nv_bfloat16>}, {"warps", test_warps},
      {"xor_width", test_xor_width}, {"reduce", test_reduce}, {"neighbours", test_neighbours},
      {"barriers", test_barriers}, {"atomics", test_atomics}, {"copies", test_copies}, {"half", test_half},
      {"bfloat16", test_bfloat16}, {"launches", test_launches},
#if defined(GLOSS_EMULATE)
      {"capture", test_capture}, {"devices", test_devices},
#endif
      {"returned", run_returned}, {"kinds", run_kinds}, {"lanes", run_lanes}, {"no_opt_in", run_no_opt_in}, {"past_end", run_past_end},
      {"no_barrier", run_no_barrier}, {"no_wait", run_no_wait}};
  const auto found = cases.find(argc > 1 ? argv[1] : "");
  if (found == cases.end()) return std::printf("no such case\n"), 1;
  try {
    found->second();
  } catch (const std::exception& error) {
    return std::printf("stopped: %s\n", error.what()), 3;
  }
  std::printf("good\n");
}
