// The ranks that share a model: sums their parts of the residual stream.
//
// On one host it uses shared memory: a rank writes its numbers to a slot, signals it, waits for the others and adds all
// slots itself, always in rank order, so that all ranks get identical sums. Each rank alternates between two slots:
// once all ranks have reached a sum, no rank still reads the slot of the previous one. Between hosts it uses the
// connections between a leader and its followers: the leader adds and sends the sums back.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

class Group {
 public:
  static constexpr int64_t CHUNK = 1 << 16;  // floats per slot

  // `memory` is `bytes_of(size)` bytes of shared memory, initially zero, or null. If it is null, `connections` are a
  // leader's to its followers in rank order, or a follower's one to its leader.
  Group(int rank, int size, void *memory, std::vector<int> connections);

  static int64_t bytes_of(int size) { return size * (int64_t(sizeof(Seat)) + 2 * CHUNK * 4); }

  // Sums x [count] over all ranks, in place; every rank must call it with the same count. False if a rank was lost.
  bool sum(float *x, int64_t count);

  int64_t sums() const { return sums_; }
  int64_t nanoseconds() const { return nanoseconds_; }

 private:
  // The number of chunks that a rank has written. Other ranks sleep on it.
  struct alignas(64) Seat {
    std::atomic<uint32_t> arrived, sleepers;
  };

  void sum_in_memory(float *x, int64_t count);
  bool sum_over_connections(float *x, int64_t count);
  void wait_for(Seat &seat);
  float *slot(int rank) const { return slots_ + (2 * rank + (round_ & 1)) * CHUNK; }

  int rank_, size_;
  Seat *seats_;
  float *slots_;
  std::vector<int> connections_;
  std::vector<float> received_;
  uint32_t round_ = 0;
  int64_t sums_ = 0, nanoseconds_ = 0;
};
