#include "tvm.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "failure.hpp"

namespace lutcc {
namespace {

constexpr const char* kFix =
    "take libtvm_ffi.so and libtvm_runtime.so from the packages apache-tvm-ffi and apache-tvm of "
    "the versions that compiled the model, and name them in the options tvm_ffi and tvm_runtime or "
    "in LUTCC_TVM_FFI and LUTCC_TVM_RUNTIME";

// Open one of the libraries, for good.
void* open_library(const char* option, const char* variable, const char* name) {
  const char* named = option ? option : std::getenv(variable);
  if (!named || !*named) named = name;
  if (void* handle = dlopen(named, RTLD_LAZY | RTLD_GLOBAL)) return handle;
  const char* problem = dlerror();
  fail(LUTCC_DEPENDENCY,
       std::string(name) + " does not load (" + (problem ? problem : "unknown reason") +
           "); a model with exact layers needs it",
       "", kFix);
}

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function)
    fail(LUTCC_DEPENDENCY, std::string("libtvm_ffi.so has no function ") + name, "", kFix);
}

// Shape and strides of a tensor that TVM holds.
struct Held {
  ManagedTensor managed{};
  int64_t shape[LUTCC_MAX_NDIM] = {}, strides[LUTCC_MAX_NDIM] = {};
};

void release_held(ManagedTensor* managed) { delete static_cast<Held*>(managed->context); }

}  // namespace

void tvm_error_text(const TvmObject* error, std::string& kind, std::string& message) {
  const auto* cell = reinterpret_cast<const TvmErrorCell*>(error + 1);
  kind.assign(cell->kind.data, cell->kind.size);
  message.assign(cell->message.data, cell->message.size);
}

TvmValue::~TvmValue() {
  if (is_object()) tvm_->release(any_.object);
}

TvmAny tvm_integer(int64_t value) {
  TvmAny any{};
  any.type_index = kTvmInt;
  any.integer = value;
  return any;
}

TvmAny tvm_boolean(bool value) {
  TvmAny any = tvm_integer(value);
  any.type_index = kTvmBool;
  return any;
}

TvmAny tvm_text(const char* text) {
  TvmAny any{};
  any.type_index = kTvmRawStr;
  any.text = text;
  return any;
}

const Tvm& Tvm::open(const lutcc_options& options) {
  static std::mutex mutex;
  static const Tvm* opened = nullptr;  // never released: TVM does not survive being unloaded
  const std::lock_guard<std::mutex> lock(mutex);
  if (!opened) opened = new Tvm(options);
  return *opened;
}

Tvm::Tvm(const lutcc_options& options) {
  // TVM's pool reads these when it starts: leave the program's CPU affinity alone, and let idle
  // workers fall asleep soon.
  setenv("TVM_BIND_THREADS", "0", 0);
  setenv("TVM_THREAD_POOL_SPIN_COUNT", "20000", 0);
  void* ffi = open_library(options.tvm_ffi, "LUTCC_TVM_FFI", "libtvm_ffi.so");
  find(ffi, "TVMFFIObjectDecRef", release_);
  find(ffi, "TVMFFIFunctionGetGlobal", global_);
  find(ffi, "TVMFFIFunctionCall", call_);
  find(ffi, "TVMFFIErrorMoveFromRaised", take_error_);
  find(ffi, "TVMFFITensorFromDLPack", from_dlpack_);
  open_library(options.tvm_runtime, "LUTCC_TVM_RUNTIME", "libtvm_runtime.so");
  try {
    get_function_ = global("ffi.ModuleGetFunction");
    array_ = global("ffi.Array");
    configure_ = global("runtime.config_threadpool");
  } catch (const TvmError& error) {
    fail(LUTCC_DEPENDENCY, "TVM's runtime cannot be used: " + error.message, "", kFix);
  }
}

void Tvm::raise() const {
  TvmObject* object = nullptr;
  TvmError error;
  take_error_(&object);
  if (object) {
    tvm_error_text(object, error.kind, error.message);
    release_(object);
  }
  throw error;
}

TvmValue Tvm::global(const char* name) const {
  const TvmBytes bytes{name, std::char_traits<char>::length(name)};
  TvmAny any{};
  if (global_(&bytes, &any.object)) raise();
  if (!any.object) throw TvmError{"", std::string("there is no function ") + name};
  any.type_index = any.object->type_index;
  return TvmValue(this, any);
}

TvmValue Tvm::function_of(const TvmValue& module, const char* name) const {
  TvmValue found = call(get_function_, {module.any(), tvm_text(name), tvm_boolean(false)});
  if (!found.is_object()) throw TvmError{"", std::string("there is no function ") + name};
  return found;
}

TvmValue Tvm::call(const TvmValue& function, std::vector<TvmAny> args) const {
  TvmAny result{};
  if (call_(function.any().object, args.data(), static_cast<int32_t>(args.size()), &result))
    raise();
  return TvmValue(this, result);
}

TvmValue Tvm::tensor(void* data, lutcc_dtype dtype, const std::vector<int64_t>& shape) const {
  auto held = std::make_unique<Held>();
  std::copy(shape.begin(), shape.end(), held->shape);
  int64_t step = 1;
  for (size_t axis = shape.size(); axis-- > 0; step *= shape[axis]) held->strides[axis] = step;
  held->managed.tensor = {
      data, 1, 0, static_cast<int32_t>(shape.size()), dtype, held->shape, held->strides, 0};
  held->managed.context = held.get();
  held->managed.deleter = release_held;
  TvmAny any{};
  if (from_dlpack_(&held->managed, 0, 0, &any.object)) raise();
  held.release();
  any.type_index = kTvmTensor;
  return TvmValue(this, any);
}

void Tvm::set_threads(int32_t count) const {
  // A thread's pool keeps the size that it is made with.
  thread_local int32_t current = 0, size = 0;
  if (current == count) return;
  if (!size) size = count;
  std::vector<std::string> names;
  std::vector<TvmAny> cpus;
  for (int32_t i = 0; i < size; ++i) names.push_back(std::to_string(i));
  for (const std::string& name : names) cpus.push_back(tvm_text(name.c_str()));
  const TvmValue list = call(array_, cpus);
  // Mode 1 with a list of CPUs sets the size of a pool that is not made yet; threads are not bound
  // to them, because TVM_BIND_THREADS is 0.
  call(configure_, {tvm_integer(1), tvm_integer(std::min(count, size)), list.any()});
  current = count;
}

}  // namespace lutcc
