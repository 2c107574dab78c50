// The ranks that share a model: adds up what they have of the residual stream.
//
// On one host through shared memory: a rank puts its numbers into a slot, says so, waits for the others and adds all slots
// itself, always in the order of the ranks, so that all have the same sums. There are two slots a rank, taken in turn: who
// has seen that all ranks have come to a sum knows that none still reads the slot of the sum before. Between hosts
// through the connections between a leader and its followers: the leader adds and sends the sums back.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

class Group {
 public:
  static constexpr int64_t CHUNK = 1 << 16;  // floats of a slot

  // `memory` is shared and was zero before the first rank came: `bytes_of(size)` of it, or null. `connections` are then a
  // leader's to its followers in their order, or a follower's one to its leader.
  Group(int rank, int size, void *memory, std::vector<int> connections);

  static int64_t bytes_of(int size) { return size * (int64_t(sizeof(Seat)) + 2 * CHUNK * 4); }

  // x [count] becomes the sum over all ranks, each of which has come here with as many. False where one is gone.
  bool sum(float *x, int64_t count);

  int64_t sums() const { return sums_; }
  int64_t nanoseconds() const { return nanoseconds_; }

 private:
  // Where a rank says how many chunks it has put down. Others sleep on it.
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
