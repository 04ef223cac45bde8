#include "workers.hpp"

#include <system_error>

#include "failure.hpp"

namespace lutcc {
namespace {

// Loops of a kernel follow each other within microseconds, in which sleeping is too slow.
constexpr int kSpins = 4000;

thread_local Workers* current = nullptr;
thread_local int32_t current_threads = 1;

void pause() { __builtin_ia32_pause(); }

// What kernels call for a parallel loop; tasks: 0, as many as there are threads.
int launch(ParallelTask task, void* data, int) {
  if (current) return current->run(task, data, current_threads);
  const ParallelEnv alone{nullptr, 1};
  return task(0, &alone, data);
}

}  // namespace

Workers::Workers(int32_t count) {
  try {
    for (int32_t number = 1; number < count; ++number)
      threads_.emplace_back([this, number] { serve(number); });
  } catch (const std::system_error&) {
    // As many as the system allows: threads that are there already share the work.
  }
}

Workers::~Workers() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    ++round_;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

int Workers::run(ParallelTask task, void* data, int32_t tasks) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    task_ = task;
    data_ = data;
    tasks_ = tasks;
    failed_ = false;
    busy_ = tasks - 1;
    ++round_;
  }
  work_.notify_all();
  const ParallelEnv env{nullptr, tasks};
  const int own = task(0, &env, data);
  wait_for_others();
  if (own || !failed_) return own;
  const char* parts[] = {message_.c_str()};
  TVMFFIErrorSetRaisedFromCStrParts(kind_.c_str(), parts, 1);
  return -1;
}

void Workers::serve(int32_t number) {
  for (uint64_t seen = 0;;) {
    wait_for_work(seen);
    std::unique_lock<std::mutex> lock(mutex_);
    seen = round_;
    if (stop_) return;
    if (number >= tasks_) continue;
    const ParallelTask task = task_;
    void* const data = data_;
    const ParallelEnv env{nullptr, tasks_};
    lock.unlock();
    const KernelErrors errors;
    const int status = task(number, &env, data);
    lock.lock();
    if (status && !failed_) {
      failed_ = true;
      errors.take(kind_, message_);
    }
    if (!--busy_) done_.notify_one();
  }
}

void Workers::wait_for_work(uint64_t seen) {
  for (int spin = 0; spin < kSpins && round_ == seen; ++spin) pause();
  std::unique_lock<std::mutex> lock(mutex_);
  work_.wait(lock, [&] { return round_ != seen; });
}

void Workers::wait_for_others() {
  for (int spin = 0; spin < kSpins && busy_; ++spin) pause();
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [&] { return !busy_; });
}

SharedLoops::SharedLoops(Workers* workers, int32_t threads) {
  current = workers;
  current_threads = threads;
}

SharedLoops::~SharedLoops() { current = nullptr; }

void SharedLoops::connect(const Library& kernels) {
  using Launch = int (*)(ParallelTask, void*, int);
  if (auto* place = static_cast<Launch*>(kernels.symbol("__TVMBackendParallelLaunch")))
    *place = launch;
}

}  // namespace lutcc
