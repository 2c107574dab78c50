// The threads that all kernels share: the caller works too, and phases of a kernel are separated by barriers.
//
// A worker that has nothing to do spins for some tens of microseconds, because the next kernel of a step usually
// follows at once, and then sleeps, so that an idle process costs nothing.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Team;
using Region = std::function<void(Team &, int)>;

class Team {
 public:
  explicit Team(int size);
  ~Team();
  int size() const { return size_; }
  // Runs region(team, thread) on every thread; returns when all have ended. One region at a time.
  void run(const Region &region);
  // Waits until every thread has come here. The last one sets the shared counter back to 0.
  void barrier();
  // The next piece of work of this phase: 0, 1, 2, ...
  int next() { return counter_.fetch_add(1, std::memory_order_relaxed); }

 private:
  void work(int thread);
  int size_;
  std::vector<std::thread> workers_;
  std::mutex one_region_, sleep_;
  std::condition_variable wake_;
  const Region *region_ = nullptr;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0}, arrived_{0}, counter_{0}, sleepers_{0};
  std::atomic<uint32_t> phase_{0};
  std::atomic<bool> stop_{false};
};
