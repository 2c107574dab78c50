// The threads that all kernels share. A kernel is a region that every thread runs: a sequence of phases, whose work the
// threads take piece by piece.
//
// A phase ends when its pieces are done, no matter which threads did them: it does not wait for a thread that is late
// because the machine is busy. An idle worker spins for some tens of microseconds, because the next kernel of a step
// usually follows at once, and then sleeps, so that an idle process costs nothing.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Member;
using Region = std::function<void(Member &)>;

class Team {
 public:
  // Throws std::system_error if the machine cannot start that many threads.
  explicit Team(int size);
  ~Team();
  int size() const { return size_; }
  // Runs region(member) on this thread and on every worker that arrives in time; returns when all have left. Only one
  // region runs at a time.
  void run(const Region &region);

 private:
  friend class Member;
  static constexpr int PHASES = 16;
  struct alignas(64) Phase {
    std::atomic<int64_t> taken{0}, done{0};
  };

  void work(int thread);
  void stop();

  int size_;
  std::vector<std::thread> workers_;
  std::mutex one_region_, sleep_;
  std::condition_variable wake_;
  const Region *region_ = nullptr;
  Phase phases_[PHASES];
  // The region's number, whether it may be entered, and the number of workers in it.
  alignas(64) std::atomic<uint64_t> state_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
};

// A thread in a region.
class Member {
 public:
  Member(Team &team, int thread) : team_(team), thread_(thread) {}
  int thread() const { return thread_; }
  int team_size() const { return team_.size_; }

  // Runs the next phase: calls work(i) once for every i in [0, count), `grain` at a time; returns when all are done.
  // Every thread must run the same phases, at most 16 per region.
  template <class Work>
  void share(int64_t count, int64_t grain, const Work &work) {
    Team::Phase &phase = team_.phases_[phase_++];
    for (int64_t begin; (begin = phase.taken.fetch_add(grain, std::memory_order_relaxed)) < count;) {
      const int64_t end = std::min(count, begin + grain);
      for (int64_t i = begin; i < end; i++) work(i);
      phase.done.fetch_add(end - begin, std::memory_order_acq_rel);
    }
    wait(phase.done, count);
  }

  // The same for work(first, some) on runs of at most `most`, which become shorter towards the end, so that all threads
  // finish together (guided self-scheduling: Polychronopoulos & Kuck 1987). All but the last are multiples of `unit`,
  // as is `most`.
  template <class Work>
  void share_runs(int64_t count, int64_t most, int64_t unit, const Work &work) {
    Team::Phase &phase = team_.phases_[phase_++];
    for (int64_t begin = phase.taken.load(std::memory_order_relaxed); begin < count;) {
      const int64_t even = (count - begin) / (2 * team_.size_) / unit * unit;
      const int64_t some = std::min({most, std::max(unit, even), count - begin});
      if (!phase.taken.compare_exchange_weak(begin, begin + some, std::memory_order_relaxed)) continue;
      work(begin, some);
      phase.done.fetch_add(some, std::memory_order_acq_rel);
      begin = phase.taken.load(std::memory_order_relaxed);
    }
    wait(phase.done, count);
  }

  // Memory that will be read soon, `bytes` per thread: prefetched while this thread waits for others.
  void prefetch(const uint8_t *data, int64_t bytes) {
    ahead_ = data + thread_ * bytes;
    ahead_end_ = ahead_ + bytes;
  }

 private:
  void wait(const std::atomic<int64_t> &done, int64_t count);

  Team &team_;
  int thread_, phase_ = 0;
  const uint8_t *ahead_ = nullptr, *ahead_end_ = nullptr;
};
