#include "pool.h"

#include <chrono>

namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Waits for `ready`: spins for a few microseconds, then yields repeatedly, because on a busy machine the awaited thread
// may need this core.
template <class Ready>
inline void spin(const Ready &ready) {
  for (int i = 0; !ready(); i++) {
    if (i < 300) relax();
    else std::this_thread::yield();
  }
}

constexpr auto SPIN_TIME = std::chrono::microseconds(200);
// Bits of the state: number of workers in the region, the open flag, and above it the region's number.
constexpr uint64_t OPEN = 1 << 15, REGION = 1 << 16, INSIDE = OPEN - 1;

}  // namespace

Team::Team(int size) : size_(size < 1 ? 1 : size) {
  try {
    for (int thread = 1; thread < size_; thread++) workers_.emplace_back([this, thread] { work(thread); });
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  {
    std::lock_guard<std::mutex> lock(sleep_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto &worker : workers_) worker.join();
}

void Team::run(const Region &region) {
  std::lock_guard<std::mutex> only(one_region_);
  for (Phase &phase : phases_) phase.taken.store(0), phase.done.store(0);
  region_ = &region;
  Member caller(*this, 0);
  if (size_ == 1) return region(caller);
  state_.store((state_.load() / REGION + 1) * REGION + OPEN);
  if (sleepers_.load() > 0) {
    std::lock_guard<std::mutex> lock(sleep_);
    wake_.notify_all();
  }
  region(caller);
  state_.fetch_and(~OPEN);
  spin([this] { return (state_.load(std::memory_order_acquire) & INSIDE) == 0; });
}

void Team::work(int thread) {
  uint64_t seen = 0;
  // Whether there is a region that this thread has not entered.
  const auto is_called = [this, &seen](uint64_t state) { return (state & OPEN) && state / REGION != seen; };
  while (!stop_.load()) {
    uint64_t state = state_.load(std::memory_order_acquire);
    const auto patience = std::chrono::steady_clock::now() + SPIN_TIME;
    for (int i = 0; !is_called(state) && !stop_.load(std::memory_order_relaxed); i++) {
      relax();
      if ((i & 0x3f) == 0x3f && std::chrono::steady_clock::now() > patience) {
        std::unique_lock<std::mutex> lock(sleep_);
        sleepers_++;
        wake_.wait(lock, [this, &is_called] { return stop_.load() || is_called(state_.load()); });
        sleepers_--;
      }
      state = state_.load(std::memory_order_acquire);
    }
    if (stop_ || !state_.compare_exchange_weak(state, state + 1)) continue;
    seen = state / REGION;
    Member member(*this, thread);
    (*region_)(member);
    state_.fetch_sub(1, std::memory_order_release);
  }
}

void Member::wait(const std::atomic<int64_t> &done, int64_t count) {
  constexpr int64_t LINE = 64, LINES = 8;
  spin([&] {
    for (int64_t line = 0; line < LINES && ahead_ < ahead_end_; line++, ahead_ += LINE) __builtin_prefetch(ahead_, 0, 2);
    return done.load(std::memory_order_acquire) >= count;
  });
}
