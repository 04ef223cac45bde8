// The C functions of lutcc.h: nothing is thrown through them.
#include "lutcc.h"

#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "failure.hpp"
#include "model.hpp"
#include "tensors.hpp"

namespace {

using lutcc::Described;
using lutcc::Spec;

thread_local std::string error_text;

// Run `body`; turn what it throws into a status and the text of lutcc_error().
template <typename Body>
int guarded(Body body) {
  try {
    body();
    return LUTCC_OK;
  } catch (const lutcc::Failure& failure) {
    error_text = failure.text();
    return failure.status;
  } catch (const std::bad_alloc&) {
    error_text = "there is not enough memory";
    return LUTCC_MEMORY;
  } catch (const std::exception& problem) {
    error_text = std::string("this is a mistake in lutcc, please report it: ") + problem.what();
    return LUTCC_KERNEL;
  } catch (...) {
    error_text = "this is a mistake in lutcc, please report it: an unknown exception";
    return LUTCC_KERNEL;
  }
}

lutcc_options checked_options(const lutcc_options* options) {
  const lutcc_options defaults = LUTCC_OPTIONS;
  if (!options) return defaults;
  if (options->struct_size != sizeof defaults)
    lutcc::fail(LUTCC_INVALID,
                "struct_size is " + std::to_string(options->struct_size) + ", not " +
                    std::to_string(sizeof defaults),
                "lutcc_options", "start from LUTCC_OPTIONS, and use the lutcc.h of this library");
  if (options->num_threads < 0 || options->num_threads > 1024)
    lutcc::fail(LUTCC_INVALID, std::to_string(options->num_threads) + " is no thread count",
                "option num_threads", "use a whole number from 1 to 1024, or 0 for one thread");
  return *options;
}

int32_t described(const Described& tensors, const lutcc_spec** specs) {
  if (specs) *specs = tensors.specs.data();
  return static_cast<int32_t>(tensors.specs.size());
}

void check_count(int32_t given, const std::vector<Spec>& specs, const char* kind) {
  if (given == static_cast<int32_t>(specs.size())) return;
  std::string listed;
  for (const Spec& spec : specs) listed += (listed.empty() ? "" : ", ") + spec.text();
  lutcc::fail(LUTCC_INVALID,
              "expected " + std::to_string(specs.size()) + " " + kind + " (" + listed + "), got " +
                  std::to_string(given),
              "lutcc_run", std::string("pass one tensor for each, in this order"));
}

}  // namespace

int32_t lutcc_abi_version(void) { return LUTCC_ABI_VERSION; }

const char* lutcc_error(void) { return error_text.c_str(); }

int lutcc_load(const char* path, const lutcc_options* options, lutcc_model** model) {
  if (model) *model = nullptr;
  return guarded([&] {
    if (!path || !model)
      lutcc::fail(LUTCC_INVALID, std::string(path ? "model" : "path") + " is NULL", "lutcc_load",
                  "pass the path of an artifact and the address of a lutcc_model*");
    *model = new lutcc_model(lutcc::Container(path), checked_options(options));
  });
}

void lutcc_free(lutcc_model* model) { delete model; }

int lutcc_run(const lutcc_model* model, const lutcc_tensor* inputs, int32_t num_inputs,
              lutcc_tensor* outputs, int32_t num_outputs) {
  std::vector<bool> own;
  const int status = guarded([&] {
    const char* missing = !model ? "model" : !inputs ? "inputs" : !outputs ? "outputs" : nullptr;
    if (missing)
      lutcc::fail(LUTCC_INVALID, std::string(missing) + " is NULL", "lutcc_run",
                  "pass a model that lutcc_load gave, and arrays of tensors");
    check_count(num_inputs, model->manifest.inputs, "inputs");
    check_count(num_outputs, model->manifest.outputs, "outputs");
    for (int32_t i = 0; i < num_outputs; ++i) own.push_back(lutcc::is_empty(outputs[i]));
    model->kernel->run(inputs, outputs);
  });
  if (status != LUTCC_OK)
    for (size_t i = 0; i < own.size(); ++i)
      if (own[i]) lutcc_tensor_free(outputs + i);
  return status;
}

void lutcc_tensor_free(lutcc_tensor* tensor) {
  if (!tensor) return;
  std::free(tensor->shape);
  *tensor = lutcc_tensor{};
}

int32_t lutcc_inputs(const lutcc_model* model, const lutcc_spec** specs) {
  if (specs) *specs = nullptr;
  return model ? described(model->inputs, specs) : 0;
}

int32_t lutcc_outputs(const lutcc_model* model, const lutcc_spec** specs) {
  if (specs) *specs = nullptr;
  return model ? described(model->outputs, specs) : 0;
}

const char* lutcc_isa(const lutcc_model* model) { return model ? model->isa.c_str() : ""; }

const char* lutcc_kind(const lutcc_model* model) {
  return model ? model->manifest.kind.c_str() : "";
}

const char* lutcc_manifest(const lutcc_model* model) {
  return model ? model->manifest.text.c_str() : "";
}
