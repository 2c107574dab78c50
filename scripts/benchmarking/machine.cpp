// Measures the machine's peak rates: memory reads, and float32 multiply-adds in registers.
//
//   machine THREADS BYTES PASSES
//
// Prints per pass: "read <bytes per second>" and "multiply <floating-point operations per second>".
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <sys/mman.h>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));

static double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Time from the start of the first thread to the end of the last one.
static double timed(int threads, const std::function<void(int)> &work) {
  std::atomic<int> ready{0};
  std::vector<double> begin(threads), end(threads);
  std::vector<std::thread> team;
  for (int t = 0; t < threads; t++)
    team.emplace_back([&, t] {
      ready++;
      while (ready < threads) {
      }
      begin[t] = seconds();
      work(t);
      end[t] = seconds();
    });
  for (auto &thread : team) thread.join();
  double first = begin[0], last = end[0];
  for (int t = 1; t < threads; t++) {
    if (begin[t] < first) first = begin[t];
    if (end[t] > last) last = end[t];
  }
  return last - first;
}

static std::atomic<uint64_t> sink;

static void read_part(const uint64_t *data, size_t count) {
  uint64_t sums[32] = {};
  for (size_t i = 0; i + 32 <= count; i += 32)
    for (int k = 0; k < 32; k++) sums[k] += data[i + k];
  uint64_t sum = 0;
  for (uint64_t value : sums) sum += value;
  sink += sum;
}

constexpr long kSteps = 4000000;
constexpr int kChains = 12;

static void multiply_add() {
  Floats sums[kChains], factor, addend;
  for (int lane = 0; lane < kLanes; lane++) factor[lane] = 0.999f, addend[lane] = 0.001f;
  for (int c = 0; c < kChains; c++)
    for (int lane = 0; lane < kLanes; lane++) sums[c][lane] = 0.1f * c;
  for (long i = 0; i < kSteps; i++)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; c++) sums[c] = sums[c] * factor + addend;
  float sum = 0;
  for (auto &chain : sums) sum += chain[0];
  sink += uint64_t(sum);
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  const int threads = std::atoi(argv[1]), passes = std::atoi(argv[3]);
  // Use huge pages, so that memory is measured and not address translation.
  constexpr size_t kPage = size_t{2} << 20;
  const size_t bytes = std::strtoull(argv[2], nullptr, 10) / threads / kPage * kPage, part = bytes / 8;
  std::vector<std::unique_ptr<uint64_t, decltype(&std::free)>> data;
  for (int t = 0; t < threads; t++) {
    data.emplace_back(static_cast<uint64_t *>(std::aligned_alloc(kPage, bytes)), &std::free);
    if (!data[t]) return 1;
    madvise(data[t].get(), bytes, MADV_HUGEPAGE);
  }
  timed(threads, [&](int t) { std::fill_n(data[t].get(), part, 1); });
  for (int pass = 0; pass < passes; pass++) {
    const double time = timed(threads, [&](int t) { read_part(data[t].get(), part); });
    std::printf("read %.0f\n", 8.0 * part * threads / time);
  }
  for (int pass = 0; pass < passes; pass++) {
    const double time = timed(threads, [&](int) { multiply_add(); });
    std::printf("multiply %.0f\n", 2.0 * kLanes * kChains * kSteps * threads / time);
  }
}
