// A model that is ready to run.
#pragma once

#include <memory>

#include "container.hpp"
#include "cpu.hpp"
#include "manifest.hpp"

namespace lutcc {

// Runs checked-in tensors; any number of threads may call one kernel at once.
class Kernel {
 public:
  virtual ~Kernel() = default;
  // Outputs that are all zero are allocated; the caller releases them, also after a Failure.
  virtual void run(const lutcc_tensor* inputs, lutcc_tensor* outputs) = 0;
};

// What opening a variant needs.
struct Opening {
  const Container& container;
  const Manifest& manifest;
  const Variant& variant;
  const Buffer& library;  // its checked bytes
  const lutcc_options& options;
};

// Check that a file has the size and hash that the manifest says, and return its contents.
Buffer load_checked(const Container& container, const Manifest& manifest, const std::string& name);

// Open the look-up kernels of a variant (kind "ir").
std::unique_ptr<Kernel> open_lookup(const Opening& opening);

// Open a model with exact layers (kind "relax").
std::unique_ptr<Kernel> open_relax(const Opening& opening);

}  // namespace lutcc
