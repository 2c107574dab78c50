#include "group.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <ctime>
#include <thread>

#include <sys/socket.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

#if defined(__linux__)
// Sleeps while `word` equals `seen`, with a short timeout in case a wake-up is missed.
void sleep_on(std::atomic<uint32_t> &word, uint32_t seen) {
  const timespec moment{0, 20'000'000};
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, &moment, nullptr, 0);
}

void wake_all(std::atomic<uint32_t> &word) { syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }
#else
void sleep_on(std::atomic<uint32_t> &, uint32_t) { std::this_thread::sleep_for(std::chrono::microseconds(50)); }
void wake_all(std::atomic<uint32_t> &) {}
#endif

bool send_all(int connection, const void *data, int64_t bytes) {
  const char *at = static_cast<const char *>(data);
  while (bytes > 0) {
    const ssize_t sent = send(connection, at, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent, bytes -= sent;
  }
  return true;
}

bool receive_all(int connection, void *data, int64_t bytes) {
  char *at = static_cast<char *>(data);
  while (bytes > 0) {
    const ssize_t received = recv(connection, at, bytes, 0);
    if (received < 0 && errno == EINTR) continue;
    if (received <= 0) return false;
    at += received, bytes -= received;
  }
  return true;
}

}  // namespace

Group::Group(int rank, int size, void *memory, std::vector<int> connections)
    : rank_(rank), size_(size), seats_(static_cast<Seat *>(memory)),
      slots_(memory ? reinterpret_cast<float *>(seats_ + size) : nullptr), connections_(std::move(connections)) {}

bool Group::sum(float *x, int64_t count) {
  const auto started = Clock::now();
  bool is_whole = true;
  for (int64_t begin = 0; begin < count && is_whole; begin += CHUNK) {
    const int64_t some = std::min(CHUNK, count - begin);
    if (seats_) sum_in_memory(x + begin, some);
    else is_whole = sum_over_connections(x + begin, some);
  }
  sums_++;
  nanoseconds_ += std::chrono::nanoseconds(Clock::now() - started).count();
  return is_whole;
}

void Group::sum_in_memory(float *x, int64_t count) {
  round_++;
  std::memcpy(slot(rank_), x, count * 4);
  Seat &own = seats_[rank_];
  own.arrived.store(round_);
  if (own.sleepers.load() > 0) wake_all(own.arrived);
  for (int rank = 0; rank < size_; rank++)
    if (rank != rank_) wait_for(seats_[rank]);
  const float *first = slot(0);
  std::memcpy(x, first, count * 4);
  for (int rank = 1; rank < size_; rank++) {
    const float *other = slot(rank);
    for (int64_t i = 0; i < count; i++) x[i] += other[i];
  }
}

// Ranks meet within microseconds if each has its own core. Otherwise the awaited rank may need this core, so this rank
// yields and then sleeps. A dead rank is not detected here: its connections are monitored elsewhere, which ends this
// process.
void Group::wait_for(Seat &seat) {
  constexpr int SPINS = 2000, YIELDS = 20;
  const auto has_come = [&](uint32_t arrived) { return int32_t(arrived - round_) >= 0; };
  uint32_t arrived;
  for (int i = 0; !has_come(arrived = seat.arrived.load(std::memory_order_acquire)); i++) {
    if (i < SPINS) relax();
    else if (i < SPINS + YIELDS) std::this_thread::yield();
    else {
      seat.sleepers.fetch_add(1);
      arrived = seat.arrived.load();
      if (!has_come(arrived)) sleep_on(seat.arrived, arrived);
      seat.sleepers.fetch_sub(1);
    }
  }
}

bool Group::sum_over_connections(float *x, int64_t count) {
  if (rank_ > 0) return send_all(connections_[0], x, count * 4) && receive_all(connections_[0], x, count * 4);
  received_.resize(CHUNK);
  for (int connection : connections_) {
    if (!receive_all(connection, received_.data(), count * 4)) return false;
    for (int64_t i = 0; i < count; i++) x[i] += received_[i];
  }
  return std::all_of(connections_.begin(), connections_.end(),
                     [&](int connection) { return send_all(connection, x, count * 4); });
}
