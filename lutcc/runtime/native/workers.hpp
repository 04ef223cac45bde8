// Threads that share the parallel loops of look-up kernels, for one call at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "library.hpp"

namespace lutcc {

// TVMParallelGroupEnv.
struct ParallelEnv {
  void* sync_handle;
  int32_t num_task;
};
using ParallelTask = int (*)(int task, const ParallelEnv* env, void* data);

// The calling thread and some that wait for work beside it.
class Workers {
 public:
  explicit Workers(int32_t count);  // count: with the calling thread
  ~Workers();
  Workers(const Workers&) = delete;

  int32_t count() const { return static_cast<int32_t>(threads_.size()) + 1; }
  // Run tasks 0..tasks-1, at most count(). A failure of any is reported as the calling thread's.
  int run(ParallelTask task, void* data, int32_t tasks);

 private:
  void serve(int32_t number);
  void wait_for_work(uint64_t seen);
  void wait_for_others();

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::atomic<uint64_t> round_{0};  // counts the calls of run, and the end
  std::atomic<int32_t> busy_{0};
  bool stop_ = false;
  ParallelTask task_ = nullptr;
  void* data_ = nullptr;
  int32_t tasks_ = 0;
  bool failed_ = false;
  std::string kind_, message_;
};

// While one lives, the calling thread's kernels share their loops among so many threads of
// `workers` (nullptr: with nobody).
class SharedLoops {
 public:
  SharedLoops(Workers* workers, int32_t threads);
  ~SharedLoops();

  // Let the kernels of a library start their loops here rather than in TVM's runtime.
  static void connect(const Library& kernels);
};

}  // namespace lutcc
