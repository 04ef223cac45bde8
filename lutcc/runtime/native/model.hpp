// A loaded artifact.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "container.hpp"
#include "kernel.hpp"
#include "manifest.hpp"

namespace lutcc {

// lutcc_spec of some tensors, with what they point to.
struct Described {
  std::vector<lutcc_spec> specs;
  std::deque<std::vector<const char*>> symbols;
  std::deque<std::vector<int64_t>> sizes;

  explicit Described(const std::vector<Spec>& tensors) {
    for (const Spec& spec : tensors) {
      symbols.emplace_back();
      sizes.emplace_back();
      for (const Dim& dim : spec.shape) {
        symbols.back().push_back(dim.symbol.empty() ? nullptr : dim.symbol.c_str());
        sizes.back().push_back(dim.size);
      }
      specs.push_back({spec.name.c_str(), spec.dtype_name.c_str(), spec.dtype,
                       static_cast<int32_t>(spec.shape.size()), symbols.back().data(),
                       sizes.back().data()});
    }
  }
};

}  // namespace lutcc

struct lutcc_model {
  // Check the artifact, choose a variant, and open its kernels. Throws lutcc::Failure.
  lutcc_model(const lutcc::Container& container, const lutcc_options& options);

  lutcc::Manifest manifest;
  lutcc::Described inputs, outputs;
  std::string isa;
  std::unique_ptr<lutcc::Kernel> kernel;
};
