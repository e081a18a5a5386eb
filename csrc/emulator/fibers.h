// Fibers and the scheduler of a block.
#pragma once
#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "types.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)  // it has to be told on which stack a thread goes on
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;      // room between the variables of a frame
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
constexpr size_t kSharedBytes = 227 << 10;     // of a block at most, after an opt-in
constexpr size_t kDefaultShared = 48 << 10;    // without

enum class State : uint8_t { run, warp, block, done };

struct Fiber;
using Collective = void (*)(Fiber* warp, unsigned lanes);  // sets `out` of these lanes from their `value`

struct PendingCopy {
  void* to;
  const void* from;
  unsigned bytes, copied, group;  // bytes past `copied` become zero
};

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer;
#else
  ucontext_t context;
#endif
  std::unique_ptr<char[]> stack;
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;  // of the stack
  size_t bytes;
#endif
  State state;
  dim3 thread;
  // At a collective operation of the warp, or at a barrier of the block.
  Collective collective;
  unsigned mask, argument;
  uint64_t value, out;
  // Asynchronous copies: those of closed groups, then those of the open one.
  std::vector<PendingCopy> copies;
  unsigned group;
};

struct Block {
  std::vector<Fiber> fibers;  // kept between launches: their stacks are
  Fiber scheduler;
  unsigned current = 0, threads = 0;
  dim3 grid, size, index;
  std::function<void()> body;
  std::vector<char> shared_storage = std::vector<char>(kSharedBytes + 2048);
  char* shared = nullptr;
  size_t dynamic_bytes = 0, static_bytes = 0;
  size_t opted_in = 0;                     // dynamic bytes that the kernel asked for, 0: it did not
  std::vector<const void*> static_shared;  // variables that this block has reached
  std::string error;
};

inline Block block;
inline unsigned& seed() {
  static unsigned value = std::getenv("GLOSS_EMULATOR_SEED") ? unsigned(std::atoi(std::getenv("GLOSS_EMULATOR_SEED"))) : 0;
  return value;
}
inline Fiber& self() { return block.fibers[block.current]; }

#if defined(__x86_64__)
// Saves the registers that a call must keep and the stack pointer, and goes on where `to` stopped.
#if defined(__clang__)
__attribute__((naked, noinline)) static
#else  // noipa: or g++ may conclude from the empty-looking body that registers and memory survive a switch
__attribute__((naked, noinline, noipa)) static
#endif
void switch_stack(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
inline void change_stack(Fiber& from, Fiber& to) { switch_stack(&from.stack_pointer, to.stack_pointer); }
#else
inline void change_stack(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#endif

inline void switch_to(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake;
  __sanitizer_start_switch_fiber(&fake, to.bottom, to.bytes);
  change_stack(from, to);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  change_stack(from, to);
#endif
}

inline void wait(State state) {
  Fiber& me = self();
  me.state = state;
  switch_to(me, block.scheduler);
}

// Stops the launch with an exception; called inside a kernel or by the scheduler.
inline void fail(const std::string& what) {
  block.error = what + " (block " + std::to_string(block.index.x) + ", " + std::to_string(block.index.y) + ", " +
                std::to_string(block.index.z) + ")";
}
[[noreturn]] inline void stop(const std::string& what) {
  fail(what + ", thread " + std::to_string(block.current));
  for (;;) wait(State::done);
}

// A kernel reaches the declaration of a variable in static shared memory: counted and filled once a block.
inline void declare_shared(void* at, size_t bytes) {
  for (const void* known : block.static_shared)
    if (known == at) return;
  block.static_shared.push_back(at);
  block.static_bytes += bytes;
  const size_t most = block.opted_in ? kSharedBytes - block.opted_in : kDefaultShared - block.dynamic_bytes;
  if (block.static_bytes > most)
    stop("invalid argument: the kernel declares " + std::to_string(block.static_bytes) +
         " bytes of shared memory, and " +
         (block.opted_in ? "opted in to " + std::to_string(block.opted_in) + " bytes"
                         : "is launched with " + std::to_string(block.dynamic_bytes) + " bytes without an opt-in"));
  std::memset(at, 0xff, bytes);
}

inline void entry() {
#if defined(__SANITIZE_ADDRESS__)  // says where the scheduler's stack lies: that of the thread that launched
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler.bottom, &block.scheduler.bytes);
#endif
  block.body();
  for (;;) wait(State::done);
}

inline void prepare(Fiber& fiber) {
  if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
#if defined(__SANITIZE_ADDRESS__)
  fiber.bottom = fiber.stack.get();
  fiber.bytes = kStackBytes;
  __asan_unpoison_memory_region(fiber.bottom, fiber.bytes);  // frames of the thread that had it were left, not returned
#endif
#if defined(__x86_64__)
  // As if entry() had been called and switched away: six registers, then where to return to.
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStackBytes) & ~uintptr_t(63);
  void** frame = reinterpret_cast<void**>(top) - 8;
  std::fill_n(frame, 8, nullptr);
  frame[6] = reinterpret_cast<void*>(&entry);
  fiber.stack_pointer = frame;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
  fiber.state = State::run;
  fiber.copies.clear();
  fiber.group = 0;
}

// Completes the collective operations whose lanes are all there; lanes that have returned are not waited for.
// Returns whether a lane can go on.
inline bool resolve(Fiber* warp, unsigned lanes) {
  unsigned waiting = 0, gone = 0;
  for (unsigned l = 0; l < 32; ++l) {
    if (l >= lanes || warp[l].state == State::done) gone |= 1u << l;
    else if (warp[l].state == State::warp) waiting |= 1u << l;
  }
  bool any = false;
  for (unsigned left = waiting; left;) {
    const Fiber& first = warp[__builtin_ctz(left)];
    const unsigned group = first.mask & ~gone;
    unsigned there = 0;
    for (unsigned l = 0; l < lanes; ++l)
      if ((waiting >> l & 1) && warp[l].mask == first.mask && warp[l].collective == first.collective) there |= 1u << l;
    left &= ~there;
    if (there != group) continue;
    if (first.collective) first.collective(warp, group);
    for (unsigned l = 0; l < lanes; ++l)
      if (group >> l & 1) warp[l].state = State::run;
    any = true;
  }
  return any;
}

inline void run_block(std::mt19937& random) {
  std::vector<Fiber>& fibers = block.fibers;
  const unsigned count = block.threads, warps = (count + 31) / 32;
  for (unsigned t = 0; t < count; ++t) {
    prepare(fibers[t]);
    fibers[t].thread = dim3(t % block.size.x, t / block.size.x % block.size.y, t / (block.size.x * block.size.y));
  }
  std::vector<unsigned> order(warps), lane_order(32);
  std::iota(order.begin(), order.end(), 0u);
  std::iota(lane_order.begin(), lane_order.end(), 0u);
  for (;;) {
    if (seed()) std::shuffle(order.begin(), order.end(), random), std::shuffle(lane_order.begin(), lane_order.end(), random);
    for (unsigned w : order) {
      Fiber* warp = fibers.data() + 32 * w;
      const unsigned lanes = std::min(32u, count - 32 * w);
      do {
        for (unsigned l : lane_order) {
          if (l >= lanes || warp[l].state != State::run) continue;
          block.current = 32 * w + l;
          switch_to(block.scheduler, warp[l]);
          if (!block.error.empty()) return;
        }
      } while (resolve(warp, lanes));
      for (unsigned l = 0; l < lanes; ++l)
        if (warp[l].state == State::warp) return fail("a warp operation waits for lanes that do not come");
    }
    unsigned done = 0;
    for (unsigned t = 0; t < count; ++t) done += fibers[t].state == State::done;
    if (done == count) return;
    if (done) return fail("__syncthreads is not reached by all threads of the block");
    uint64_t any = 0, all = 1, number = 0;
    for (unsigned t = 0; t < count; ++t) {
      if (fibers[t].argument != fibers[0].argument) return fail("threads meet at different kinds of __syncthreads");
      any |= fibers[t].value, all &= fibers[t].value, number += fibers[t].value;
    }
    for (unsigned t = 0; t < count; ++t) {
      fibers[t].out = fibers[t].argument == 1 ? any : fibers[t].argument == 2 ? all : number;
      fibers[t].state = State::run;
    }
  }
}

// Runs `body` once for every thread of the grid. An error inside throws.
inline void run_grid(dim3 grid, dim3 size, size_t shared, size_t opted_in, std::function<void()> body) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  block.grid = grid;
  block.size = size;
  block.threads = size.x * size.y * size.z;
  block.body = std::move(body);
  block.dynamic_bytes = shared;
  block.opted_in = opted_in;
  block.error.clear();
  if (block.fibers.size() < block.threads) block.fibers.resize(block.threads);
  block.shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block.shared_storage.data()) + 1023) & ~uintptr_t(1023));
  std::mt19937 random(seed());
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (seed()) std::shuffle(order.begin(), order.end(), random);
  for (uint32_t at : order) {
    block.index = dim3(at % grid.x, at / grid.x % grid.y, at / (grid.x * grid.y));
    block.static_shared.clear();
    block.static_bytes = 0;
    std::memset(block.shared, 0xff, shared + 64);  // NaN, -1; and 64 bytes that nobody may write
    run_block(random);
    for (int i = 0; i < 64 && block.error.empty(); ++i)
      if (static_cast<unsigned char>(block.shared[shared + size_t(i)]) != 0xff)
        fail("a write past the end of the dynamic shared memory");
    if (!block.error.empty()) throw std::runtime_error("emulated kernel: " + block.error);
  }
}

}  // namespace emulator

#define threadIdx (emulator::self().thread)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.size)
#define gridDim (emulator::block.grid)
#define warpSize 32
