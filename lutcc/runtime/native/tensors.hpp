// What callers pass, turned into tensors that kernels take, or an error that says what is wrong.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "manifest.hpp"
#include "memory.hpp"

namespace lutcc {

// A tensor that kernels can take, with its own shape and strides, and memory for a copy.
struct Ready {
  lutcc_tensor tensor{};
  int64_t shape[LUTCC_MAX_NDIM] = {}, strides[LUTCC_MAX_NDIM] = {};
  Buffer copy;

  Ready() = default;
  Ready(Ready&&) = delete;  // tensor points into this object
  // Describe row-major memory.
  void set(void* data, lutcc_dtype dtype, const std::vector<int64_t>& sizes);
};

// What the symbols of a call stand for.
struct Sizes {
  struct Known {
    int64_t count;
    std::string owner;  // the argument that said so
  };
  std::map<std::string, Known> symbols;

  std::vector<int64_t> resolve(const Spec& spec) const;
  bool any_zero() const;
};

// What kernels ask of inputs: data at multiples of `alignment` bytes (at least of the element's),
// and whether matrices may have any positive strides.
struct Demands {
  int64_t alignment;
  bool strided;
};

// Check one input, and make it `ready`, with a copy where kernels cannot read it in place.
void admit(const lutcc_tensor& given, const Spec& spec, const Demands& demands, Sizes& sizes,
           Ready& ready);

// Check what the symbols stand for.
void check_bounds(const Sizes& sizes, const std::map<std::string, Bounds>& bounds);

// Check an output that the caller allocated.
void check_output(const lutcc_tensor& given, const Spec& spec, const std::vector<int64_t>& shape);

// Whether kernels can write to a checked output in place.
bool writable_in_place(const lutcc_tensor& given, int64_t itemsize);

// Copy elements between tensors of one shape and type, whatever their strides.
void copy_elements(const lutcc_tensor& from, const lutcc_tensor& to);

// Whether an output is to be allocated by the library.
bool is_empty(const lutcc_tensor& tensor);

// Allocate an output.
lutcc_tensor allocate(const Spec& spec, const std::vector<int64_t>& shape);

// Number of elements.
int64_t count_elements(const int64_t* shape, int32_t ndim);

// "(3, 512)"
std::string shape_text(const int64_t* shape, int32_t ndim);

}  // namespace lutcc
