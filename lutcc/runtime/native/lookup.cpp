// Look-up kernels: one entry function, packed tables, and a workspace for each call.
#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "failure.hpp"
#include "kernel.hpp"
#include "library.hpp"
#include "tensors.hpp"
#include "tvm_abi.hpp"
#include "workers.hpp"

namespace lutcc {
namespace {

using Entry = int (*)(void* self, const TvmAny* args, int32_t num_args, TvmAny* result);

// A thread is worth waking for this much work.
constexpr double kSecondsPerThread = 15e-6;

// What a call needs; kept for the next one.
struct Scratch {
  std::deque<Ready> inputs, outputs;
  std::vector<TvmAny> args;
  Buffer workspace;
  std::unique_ptr<Workers> workers;
};

class LookupKernel : public Kernel {
 public:
  explicit LookupKernel(const Opening& opening)
      : variant_(opening.variant),
        inputs_(opening.manifest.inputs),
        outputs_(opening.manifest.outputs),
        where_(opening.container.path() + "/" + opening.variant.file),
        threads_(std::max(opening.options.num_threads, 1)),
        threads_per_row_(opening.manifest.seconds_per_row / kSecondsPerThread),
        blob_(load_blob(opening)),
        library_(open_kernels(opening.library, opening.variant.file,
                              opening.options.temp_folder)) {
    const std::string symbol = "__tvm_ffi_" + variant_.entry;
    entry_ = reinterpret_cast<Entry>(library_.symbol(symbol.c_str()));
    if (!entry_)
      fail(LUTCC_ARTIFACT, "has no function " + quoted(variant_.entry), where_,
           "compile the model again");
    parallel_ = reinterpret_cast<Entry>(library_.symbol((symbol + "_mt").c_str()));
    SharedLoops::connect(library_);
    blob_tensor_.set(blob_.data(), {LUTCC_UINT, 8, 1}, {blob_.size()});
  }

  void run(const lutcc_tensor* inputs, lutcc_tensor* outputs) override {
    std::unique_ptr<Scratch> scratch = borrow();
    // After a failure the scratch is dropped, not given back.
    Sizes sizes;
    for (size_t i = 0; i < inputs_.size(); ++i)
      admit(inputs[i], inputs_[i], {1, true}, sizes, scratch->inputs[i]);
    bool empty = sizes.any_zero();
    for (size_t i = 0; i < outputs_.size(); ++i)
      empty |= prepare(outputs[i], outputs_[i], sizes.resolve(outputs_[i]), scratch->outputs[i]);
    if (!empty) {
      launch(*scratch, rows(sizes));
      for (size_t i = 0; i < outputs_.size(); ++i)
        if (scratch->outputs[i].tensor.data == scratch->outputs[i].copy.data())
          copy_elements(scratch->outputs[i].tensor, outputs[i]);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(scratch));
  }

 private:
  static Buffer load_blob(const Opening& opening) {
    const Variant& variant = opening.variant;
    if (!variant.packed.empty())
      return load_checked(opening.container, opening.manifest, variant.packed);
    if (variant.has_blob)
      fail(LUTCC_ARTIFACT, "its tables are not packed for " + variant.isa,
           opening.container.path(),
           "write it with artifact.save(path, packed=True); one that is there already: "
           "lutcc.runtime.Artifact.read(path).save(other_path, packed=True)");
    Buffer blob(std::max(variant.blob_bytes, static_cast<int64_t>(kAlignment)));
    std::memset(blob.data(), 0, static_cast<size_t>(blob.size()));
    return blob;
  }

  std::unique_ptr<Scratch> borrow() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        std::unique_ptr<Scratch> last = std::move(free_.back());
        free_.pop_back();
        return last;
      }
    }
    auto scratch = std::make_unique<Scratch>();
    scratch->inputs.resize(inputs_.size());
    scratch->outputs.resize(outputs_.size());
    return scratch;
  }

  // Make an output ready; tell whether it has no elements.
  static bool prepare(lutcc_tensor& given, const Spec& spec, const std::vector<int64_t>& shape,
                      Ready& ready) {
    if (is_empty(given))
      given = allocate(spec, shape);
    else
      check_output(given, spec, shape);
    auto* data = static_cast<unsigned char*>(given.data);
    const int64_t count = count_elements(shape.data(), static_cast<int32_t>(shape.size()));
    if (!count) {
      ready.set(data, spec.dtype, shape);
      return true;
    }
    data += given.byte_offset;
    if (!writable_in_place(given, spec.itemsize())) {
      const int64_t bytes = count * spec.itemsize();
      if (ready.copy.size() < bytes) ready.copy = Buffer(bytes);
      data = ready.copy.data();
    }
    ready.set(data, spec.dtype, shape);
    return false;
  }

  // The value of the symbol; without one, the batch that the model was compiled for.
  int64_t rows(const Sizes& sizes) const {
    if (!sizes.symbols.empty()) return sizes.symbols.begin()->second.count;
    return inputs_[0].shape.empty() ? 1 : inputs_[0].shape[0].size;
  }

  // How many threads have enough to do.
  int32_t useful_threads(int64_t rows) const {
    if (!parallel_ || threads_ < 2) return 1;
    const double useful = std::min<double>(threads_, static_cast<double>(rows) * threads_per_row_);
    return std::max(1, static_cast<int32_t>(useful));
  }

  void launch(Scratch& scratch, int64_t rows) const {
    int32_t threads = useful_threads(rows);
    if (threads > 1 && (!scratch.workers || scratch.workers->count() < threads))
      scratch.workers = std::make_unique<Workers>(threads);
    if (threads > 1) threads = std::min(threads, scratch.workers->count());
    const int64_t bytes = sum(sum(variant_.fixed, product(variant_.per_row, rows)),
                              sum(product(variant_.per_thread, threads),
                                  static_cast<int64_t>(kAlignment)));
    if (scratch.workspace.size() < bytes) scratch.workspace = Buffer(bytes);
    Ready workspace;
    workspace.set(scratch.workspace.data(), {LUTCC_UINT, 8, 1}, {scratch.workspace.size()});
    std::vector<TvmAny>& args = scratch.args;
    args.clear();
    const auto add = [&args](const Ready& ready) {
      TvmAny any{};
      any.type_index = kTvmDLTensorPtr;
      any.pointer = &ready.tensor;
      args.push_back(any);
    };
    for (const Ready& input : scratch.inputs) add(input);
    add(blob_tensor_);
    add(workspace);
    for (const Ready& output : scratch.outputs) add(output);
    TvmAny count{}, result{};
    count.type_index = kTvmInt;
    count.integer = threads;
    args.push_back(count);
    const KernelErrors errors;
    const SharedLoops shared(threads > 1 ? scratch.workers.get() : nullptr, threads);
    const Entry entry = threads > 1 ? parallel_ : entry_;
    if (!entry(nullptr, args.data(), static_cast<int32_t>(args.size()), &result)) return;
    std::string kind, message;
    errors.take(kind, message);
    if (kind == "IndexError")  // the one thing that kernels check by themselves
      fail(LUTCC_INVALID, message, where_, "correct the numbers passed in");
    fail(LUTCC_KERNEL,
         "the kernel " + variant_.entry + " failed: " + (kind.empty() ? "" : kind + ": ") + message,
         where_,
         "this is a mistake in lutcc or a damaged artifact: compile the model again, and report it "
         "with the output of `lutcc doctor` if it stays");
  }

  const Variant variant_;
  const std::vector<Spec> inputs_, outputs_;
  const std::string where_;
  const int32_t threads_;
  const double threads_per_row_;
  const Buffer blob_;
  Ready blob_tensor_;
  Library library_;
  Entry entry_ = nullptr, parallel_ = nullptr;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

}  // namespace

std::unique_ptr<Kernel> open_lookup(const Opening& opening) {
  return std::make_unique<LookupKernel>(opening);
}

}  // namespace lutcc
