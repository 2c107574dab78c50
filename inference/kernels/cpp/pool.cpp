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

// Waits for `ready`, spinning for a few microseconds; then gives the core away again and again: on a busy machine the
// thread that is waited for may be the one that needs it.
template <class Ready>
inline void spin(const Ready &ready) {
  for (int i = 0; !ready(); i++) {
    if (i < 300) relax();
    else std::this_thread::yield();
  }
}

constexpr auto SPIN_TIME = std::chrono::microseconds(200);

}  // namespace

Team::Team(int size) : size_(size < 1 ? 1 : size) {
  for (int thread = 1; thread < size_; thread++) workers_.emplace_back([this, thread] { work(thread); });
}

Team::~Team() {
  {
    std::lock_guard<std::mutex> lock(sleep_);
    stop_ = true;
    generation_++;
  }
  wake_.notify_all();
  for (auto &worker : workers_) worker.join();
}

void Team::run(const Region &region) {
  std::lock_guard<std::mutex> only(one_region_);
  counter_.store(0);
  if (size_ == 1) return region(*this, 0);
  region_ = &region;
  running_.store(size_ - 1);
  generation_.fetch_add(1);
  if (sleepers_.load() > 0) {
    std::lock_guard<std::mutex> lock(sleep_);
    wake_.notify_all();
  }
  region(*this, 0);
  spin([this] { return running_.load(std::memory_order_acquire) == 0; });
}

void Team::barrier() {
  if (size_ == 1) {
    counter_.store(0);
    return;
  }
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    counter_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    spin([this, phase] { return phase_.load(std::memory_order_acquire) != phase; });
  }
}

void Team::work(int thread) {
  uint64_t seen = 0;
  while (true) {
    const auto patience = std::chrono::steady_clock::now() + SPIN_TIME;
    for (int i = 0; generation_.load(std::memory_order_acquire) == seen; i++) {
      relax();
      if ((i & 0x3f) == 0x3f && std::chrono::steady_clock::now() > patience) {
        std::unique_lock<std::mutex> lock(sleep_);
        sleepers_++;
        wake_.wait(lock, [this, seen] { return generation_.load() != seen; });
        sleepers_--;
        break;
      }
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_) return;
    (*region_)(*this, thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}
