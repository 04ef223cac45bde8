// Runs a model on raw little-endian inputs from stdin, one after the other, and writes the raw
// outputs to stdout.
//
//   example model.lutcc 4 < inputs.raw > outputs.raw      (the symbol, mostly the batch, is 4)
//   example model.lutcc 4 2 < inputs.raw > outputs.raw    (on two threads)
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "lutcc.h"

namespace {

struct FreeModel {
  void operator()(lutcc_model* model) const { lutcc_free(model); }
};

// A dense tensor that owns its shape and elements.
struct Tensor {
  std::vector<int64_t> shape;
  std::vector<unsigned char> bytes;
  lutcc_tensor view{};

  Tensor(const lutcc_spec& spec, int64_t n) : shape(static_cast<size_t>(spec.ndim)) {
    const int64_t count = lutcc_shape(&spec, n, shape.data());
    bytes.resize(static_cast<size_t>(count) * spec.dtype.bits / 8);
    view = lutcc_dense(bytes.data(), spec.dtype.code, spec.dtype.bits, spec.ndim, shape.data());
  }
};

int fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  return 1;
}

void print(const char* kind, const lutcc_spec& spec) {
  std::fprintf(stderr, "%s %s: %s[", kind, spec.name, spec.dtype_name);
  for (int32_t axis = 0; axis < spec.ndim; ++axis) {
    const char* symbol = spec.symbols[axis] ? spec.symbols[axis] : "";
    std::fprintf(stderr, "%s%lld%s%s", axis ? ", " : "", static_cast<long long>(spec.sizes[axis]),
                 *symbol ? "*" : "", symbol);
  }
  std::fprintf(stderr, "]\n");
}

}  // namespace

int main(int argc, char** argv) {
  const long long n = argc > 2 ? std::atoll(argv[2]) : 1;
  if (argc < 2 || n < 0) return fail("usage: example MODEL [N [THREADS]] < inputs.raw > outputs.raw");
  if (lutcc_abi_version() != LUTCC_ABI_VERSION) return fail("liblutcc and lutcc.h do not fit");
  lutcc_model* loaded = nullptr;
  lutcc_options options = LUTCC_OPTIONS;
  if (argc > 3) options.num_threads = std::atoi(argv[3]);
  if (lutcc_load(argv[1], &options, &loaded) != LUTCC_OK) return fail(lutcc_error());
  const std::unique_ptr<lutcc_model, FreeModel> model(loaded);
  std::fprintf(stderr, "kind %s, kernels for %s\n", lutcc_kind(loaded), lutcc_isa(loaded));

  const lutcc_spec *inputs, *outputs;
  const int32_t num_inputs = lutcc_inputs(loaded, &inputs);
  const int32_t num_outputs = lutcc_outputs(loaded, &outputs);
  std::vector<Tensor> tensors;
  std::vector<lutcc_tensor> given, results(static_cast<size_t>(num_outputs));
  for (int32_t i = 0; i < num_inputs; ++i) {
    print("input", inputs[i]);
    Tensor tensor(inputs[i], n);
    const size_t size = tensor.bytes.size();
    if (std::fread(tensor.bytes.data(), 1, size, stdin) != size)
      return fail("there are too few bytes on stdin");
    tensors.push_back(std::move(tensor));  // its view keeps pointing to the same memory
    given.push_back(tensors.back().view);
  }
  for (int32_t i = 0; i < num_outputs; ++i) print("output", outputs[i]);

  // The outputs are all zero, so the library allocates them.
  if (lutcc_run(loaded, given.data(), num_inputs, results.data(), num_outputs) != LUTCC_OK)
    return fail(lutcc_error());
  for (lutcc_tensor& result : results) {
    size_t size = result.dtype.bits / 8;
    for (int32_t axis = 0; axis < result.ndim; ++axis)
      size *= static_cast<size_t>(result.shape[axis]);
    std::fwrite(result.data, 1, size, stdout);
    lutcc_tensor_free(&result);
  }
  return 0;
}
