// Models with exact layers: an executable of TVM's Relax virtual machine.
#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "failure.hpp"
#include "kernel.hpp"
#include "library.hpp"
#include "safetensors.hpp"
#include "tensors.hpp"
#include "tvm.hpp"

namespace lutcc {
namespace {

// The parameter in whose place the number of threads is passed; what is stored is 1.
constexpr const char* kThreads = "@threads";
constexpr int64_t kCpu = 1, kDevice = 0, kPooled = 2;

// A virtual machine, which one thread at a time uses, and copies of inputs.
struct Machine {
  TvmValue module, main;
  std::deque<Ready> inputs;
};

class RelaxKernel : public Kernel {
 public:
  explicit RelaxKernel(const Opening& opening)
      : inputs_(opening.manifest.inputs),
        outputs_(opening.manifest.outputs),
        bounds_(opening.manifest.bounds),
        where_(opening.container.path() + "/" + opening.variant.file),
        threads_(std::max(opening.options.num_threads, 1)),
        tvm_(Tvm::open(opening.options)) {
    load_params(opening);
    try {
      const PrivateFile file(opening.library, opening.variant.file, opening.options.temp_folder);
      module_ = tvm_.call(tvm_.global("ffi.ModuleLoadFromFile"), {tvm_text(file.path().c_str())});
      new_machine_ = tvm_.function_of(module_, "vm_load_executable");
      free_.push_back(machine());
    } catch (const TvmError& error) {
      fail(LUTCC_ARTIFACT, "the virtual machine does not start: " + error.message, where_,
           "compile the model again with this version of lutcc");
    }
  }

  void run(const lutcc_tensor* inputs, lutcc_tensor* outputs) override {
    try {
      std::unique_ptr<Machine> used = borrow();
      // After a failure the machine is dropped, not given back.
      run_on(*used, inputs, outputs);
      const std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back(std::move(used));
    } catch (const TvmError& error) {
      fail(LUTCC_KERNEL, "the virtual machine failed: " + error.message, where_,
           "compile the model again, and report it with the output of `lutcc doctor` if it stays");
    }
  }

 private:
  void load_params(const Opening& opening) {
    const std::string where = opening.container.path() + "/" + kConstants;
    const Buffer file = load_checked(opening.container, opening.manifest, kConstants);
    const std::map<std::string, Constant> constants = read_safetensors(file, where);
    for (const std::string& name : opening.variant.params) {
      const auto found = constants.find(name);
      if (found == constants.end())
        fail(LUTCC_ARTIFACT, "the parameter " + quoted(name) + " is missing", where,
             "compile the model again");
      const Constant& constant = found->second;
      memory_.emplace_back(constant.bytes);
      std::copy(constant.data, constant.data + constant.bytes, memory_.back().data());
      const int64_t threads = threads_;
      if (name == kThreads && constant.bytes == sizeof threads)
        std::memcpy(memory_.back().data(), &threads, sizeof threads);
      try {
        params_.push_back(tvm_.tensor(memory_.back().data(), constant.dtype, constant.shape));
      } catch (const TvmError& error) {
        fail(LUTCC_ARTIFACT, "the parameter " + quoted(name) + " is refused: " + error.message,
             where, "compile the model again");
      }
    }
  }

  std::unique_ptr<Machine> machine() const {
    auto made = std::make_unique<Machine>();
    made->module = tvm_.call(new_machine_, {});
    tvm_.call(tvm_.function_of(made->module, "vm_initialization"),
              {tvm_integer(kCpu), tvm_integer(kDevice), tvm_integer(kPooled)});
    made->main = tvm_.function_of(made->module, "main");
    made->inputs.resize(inputs_.size());
    return made;
  }

  std::unique_ptr<Machine> borrow() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        std::unique_ptr<Machine> last = std::move(free_.back());
        free_.pop_back();
        return last;
      }
    }
    return machine();
  }

  void run_on(Machine& machine, const lutcc_tensor* inputs, lutcc_tensor* outputs) const {
    Sizes sizes;
    // Relax kernels move 64 bytes at a time and trust the address.
    for (size_t i = 0; i < inputs_.size(); ++i)
      admit(inputs[i], inputs_[i], {static_cast<int64_t>(kAlignment), false}, sizes,
            machine.inputs[i]);
    const bool empty = sizes.any_zero();
    for (size_t i = 0; i < outputs_.size(); ++i) {
      const bool known = std::all_of(
          outputs_[i].shape.begin(), outputs_[i].shape.end(), [&sizes](const Dim& dim) {
            return dim.symbol.empty() || sizes.symbols.count(dim.symbol);
          });
      if (known && !is_empty(outputs[i]))
        check_output(outputs[i], outputs_[i], sizes.resolve(outputs_[i]));
      if (empty) give_nothing(outputs[i], outputs_[i], known, sizes);
    }
    if (empty) return;
    check_bounds(sizes, bounds_);
    tvm_.set_threads(threads_);
    std::vector<TvmValue> tensors;
    std::vector<TvmAny> args;
    for (const Ready& input : machine.inputs) {
      const lutcc_tensor& t = input.tensor;
      tensors.push_back(tvm_.tensor(t.data, t.dtype, {t.shape, t.shape + t.ndim}));
    }
    for (const TvmValue& tensor : tensors) args.push_back(tensor.any());
    for (const TvmValue& param : params_) args.push_back(param.any());
    const TvmValue answer = tvm_.call(machine.main, std::move(args));
    const std::vector<const lutcc_tensor*> results = tensors_of(answer);
    if (results.size() != outputs_.size())
      fail(LUTCC_KERNEL, "the model gave " + std::to_string(results.size()) + " tensors, not " +
                             std::to_string(outputs_.size()),
           where_, "compile the model again with this version of lutcc");
    for (size_t i = 0; i < results.size(); ++i) give(*results[i], outputs_[i], outputs[i]);
  }

  // The output of a call with a size of 0, which must have no elements either.
  static void give_nothing(lutcc_tensor& output, const Spec& spec, bool known,
                           const Sizes& sizes) {
    std::vector<int64_t> shape;
    if (known) shape = sizes.resolve(spec);
    if (std::find(shape.begin(), shape.end(), 0) == shape.end())
      fail(LUTCC_INVALID,
           "a size is 0, and output " + quoted(spec.name) + " (" + spec.text() +
               ") is made of those elements",
           "lutcc_run", "pass at least one");
    if (is_empty(output)) output = allocate(spec, shape);
  }

  // The tensors of an answer: one, or an array of them.
  std::vector<const lutcc_tensor*> tensors_of(const TvmValue& answer) const {
    std::vector<TvmAny> items{answer.any()};
    if (answer.any().type_index == kTvmArray) {
      const auto* cell = reinterpret_cast<const TvmSeqCell*>(answer.any().object + 1);
      items.assign(cell->data, cell->data + cell->size);
    }
    std::vector<const lutcc_tensor*> out;
    for (const TvmAny& item : items) {
      if (item.type_index != kTvmTensor)
        fail(LUTCC_KERNEL, "the model gave something else than tensors", where_,
             "compile the model again with this version of lutcc");
      out.push_back(reinterpret_cast<const lutcc_tensor*>(item.object + 1));
    }
    return out;
  }

  void give(const lutcc_tensor& result, const Spec& spec, lutcc_tensor& output) const {
    if (result.ndim != static_cast<int32_t>(spec.shape.size()) ||
        result.dtype.code != spec.dtype.code || result.dtype.bits != spec.dtype.bits)
      fail(LUTCC_KERNEL, "the output " + quoted(spec.name) + " is not " + spec.text(), where_,
           "compile the model again with this version of lutcc");
    const std::vector<int64_t> shape(result.shape, result.shape + result.ndim);
    if (is_empty(output))
      output = allocate(spec, shape);
    else
      check_output(output, spec, shape);
    copy_elements(result, output);
  }

  const std::vector<Spec> inputs_, outputs_;
  const std::map<std::string, Bounds> bounds_;
  const std::string where_;
  const int32_t threads_;
  const Tvm& tvm_;
  std::deque<Buffer> memory_;  // of params_
  std::vector<TvmValue> params_;
  TvmValue module_, new_machine_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Machine>> free_;
};

}  // namespace

std::unique_ptr<Kernel> open_relax(const Opening& opening) {
  return std::make_unique<RelaxKernel>(opening);
}

}  // namespace lutcc
