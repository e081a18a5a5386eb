// The part of libgomp that the core calls, by std::thread. ThreadSanitizer sees the threads, locks and barriers of this
// file, which it compiles, and not those of libgomp, so that with libgomp every parallel loop would look like a race.
// tests/sanitize/run.py builds it into the module and checks that no call of libgomp is left.
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Loop {  // schedule(dynamic): what is left, shared by the threads of a team
  long next, end, step, chunk;
};

struct Team {
  explicit Team(unsigned count) : size(count) {}
  const unsigned size;
  std::mutex mutex;
  std::condition_variable all_here;
  unsigned waiting = 0;
  unsigned long generation = 0;
  std::map<unsigned, Loop> loops;      // by their number in the region: each thread meets them in the same order
  std::map<unsigned, bool> single;     // whether someone has taken this one

  void barrier() {
    std::unique_lock<std::mutex> lock(mutex);
    const unsigned long mine = generation;
    if (++waiting == size) {
      waiting = 0;
      ++generation;
      all_here.notify_all();
    } else {
      all_here.wait(lock, [&] { return generation != mine; });
    }
  }
};

struct Member {
  Team* team = nullptr;
  unsigned number = 0, loops = 0, singles = 0;
};
thread_local Member me;
std::mutex critical, atomic;

void run(void (*body)(void*), void* data, Team& team, unsigned number) {
  const Member outside = me;
  me = {&team, number, 0, 0};
  body(data);
  me = outside;
}

bool next(long* begin, long* end) {
  const std::lock_guard<std::mutex> lock(me.team->mutex);
  Loop& loop = me.team->loops[me.loops];
  const bool up = loop.step > 0;
  if (up ? loop.next >= loop.end : loop.next <= loop.end) return false;
  *begin = loop.next;
  loop.next += loop.chunk * loop.step;
  if (up ? loop.next > loop.end : loop.next < loop.end) loop.next = loop.end;
  *end = loop.next;
  return true;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  Team team(threads > 0 ? threads : std::thread::hardware_concurrency());
  std::vector<std::thread> others;
  for (unsigned t = 1; t < team.size; ++t) others.emplace_back([&, t] { run(body, data, team, t); });
  run(body, data, team, 0);
  for (std::thread& other : others) other.join();
}

int omp_get_thread_num() { return int(me.number); }
int omp_get_num_threads() { return me.team ? int(me.team->size) : 1; }
int omp_get_max_threads() { return int(std::thread::hardware_concurrency()); }
int omp_in_parallel() { return me.team && me.team->size > 1; }

void GOMP_barrier() {
  if (me.team) me.team->barrier();
}

bool GOMP_loop_nonmonotonic_dynamic_start(long begin, long end, long step, long chunk, long* from, long* to) {
  {
    const std::lock_guard<std::mutex> lock(me.team->mutex);
    me.team->loops.emplace(++me.loops, Loop{begin, end, step, chunk});
  }
  return next(from, to);
}
bool GOMP_loop_nonmonotonic_dynamic_next(long* from, long* to) { return next(from, to); }
void GOMP_loop_end() { GOMP_barrier(); }
void GOMP_loop_end_nowait() {}

bool GOMP_single_start() {
  if (!me.team) return true;
  const std::lock_guard<std::mutex> lock(me.team->mutex);
  return me.team->single.emplace(++me.singles, true).second;
}

void GOMP_critical_start() { critical.lock(); }
void GOMP_critical_end() { critical.unlock(); }
void GOMP_atomic_start() { atomic.lock(); }
void GOMP_atomic_end() { atomic.unlock(); }

}  // extern "C"
