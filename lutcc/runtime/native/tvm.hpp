// TVM's runtime libraries, opened when a model with exact layers is loaded.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "tvm_abi.hpp"

namespace lutcc {

class Tvm;

// A counted object of TVM, or an integer or nothing.
class TvmValue {
 public:
  TvmValue() = default;
  TvmValue(const Tvm* tvm, const TvmAny& any) : tvm_(tvm), any_(any) {}  // takes the count over
  TvmValue(TvmValue&& other) noexcept
      : tvm_(other.tvm_), any_(std::exchange(other.any_, TvmAny{})) {}
  TvmValue& operator=(TvmValue&& other) noexcept {
    std::swap(tvm_, other.tvm_);
    std::swap(any_, other.any_);
    return *this;
  }
  ~TvmValue();

  const TvmAny& any() const { return any_; }
  bool is_object() const { return any_.type_index >= kTvmObjects; }

 private:
  const Tvm* tvm_ = nullptr;
  TvmAny any_{};
};

// An argument.
TvmAny tvm_integer(int64_t value);
TvmAny tvm_boolean(bool value);
TvmAny tvm_text(const char* text);

// What TVM reported.
struct TvmError {
  std::string kind, message;
};

// The functions of libtvm_ffi.so that lutcc uses. Made once in a process.
class Tvm {
 public:
  // Open both libraries at the first call. Throws Failure.
  static const Tvm& open(const lutcc_options& options);

  // A function by name. Throws TvmError.
  TvmValue global(const char* name) const;
  TvmValue function_of(const TvmValue& module, const char* name) const;
  // Call a function. Throws TvmError.
  TvmValue call(const TvmValue& function, std::vector<TvmAny> args) const;
  // A tensor over memory that must outlive it. Throws TvmError.
  TvmValue tensor(void* data, lutcc_dtype dtype, const std::vector<int64_t>& shape) const;
  // Let the calling thread's kernels use so many threads. Throws TvmError.
  void set_threads(int32_t count) const;

  void release(TvmObject* object) const { release_(object); }

 private:
  explicit Tvm(const lutcc_options& options);
  [[noreturn]] void raise() const;

  int (*release_)(TvmObject*);
  int (*global_)(const TvmBytes*, TvmObject**);
  int (*call_)(TvmObject*, TvmAny*, int32_t, TvmAny*);
  void (*take_error_)(TvmObject**);
  int (*from_dlpack_)(ManagedTensor*, int32_t, int32_t, TvmObject**);
  TvmValue get_function_, array_, configure_;
};

}  // namespace lutcc
