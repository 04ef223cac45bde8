#include "tensors.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "failure.hpp"

namespace lutcc {
namespace {

// Results of at least this many bytes start on a cache line: kernels store them past the caches.
constexpr int64_t kLarge = 1 << 20;

std::string kind_text(lutcc_dtype dtype) {
  const char* kind = dtype.code == LUTCC_INT      ? "int"
                     : dtype.code == LUTCC_UINT   ? "uint"
                     : dtype.code == LUTCC_FLOAT  ? "float"
                     : dtype.code == LUTCC_BFLOAT ? "bfloat"
                     : dtype.code == LUTCC_BOOL   ? "bool"
                                                  : "code ";
  std::string out = kind;
  if (out == "code ") out += std::to_string(dtype.code) + " of bits ";
  if (dtype.code != LUTCC_BOOL || dtype.bits != 8) out += std::to_string(dtype.bits);
  return dtype.lanes == 1 ? out : out + "x" + std::to_string(dtype.lanes);
}

unsigned char* start(const lutcc_tensor& tensor) {
  return static_cast<unsigned char*>(tensor.data) + tensor.byte_offset;
}

bool row_major(const lutcc_tensor& tensor) {
  if (!tensor.strides) return true;
  int64_t step = 1;
  for (int32_t axis = tensor.ndim - 1; axis >= 0; --axis) {
    if (tensor.shape[axis] != 1 && tensor.strides[axis] != step) return false;
    step *= tensor.shape[axis];
  }
  return true;
}

void row_major_strides(const int64_t* shape, int32_t ndim, int64_t* strides) {
  int64_t step = 1;
  for (int32_t axis = ndim - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= std::max<int64_t>(shape[axis], 1);
  }
}

// What holds for inputs and outputs: type, rank, device, pointers.
void check_form(const lutcc_tensor& given, const Spec& spec, const std::string& where) {
  if (given.device_type != 1)
    fail(LUTCC_INVALID,
         "expected a CPU tensor (device_type 1), got device_type " +
             std::to_string(given.device_type),
         where, "copy it to the CPU's memory; lutcc_dense() fills a tensor in");
  const lutcc_dtype want = spec.dtype, got = given.dtype;
  if (got.code != want.code || got.bits != want.bits || got.lanes != want.lanes)
    fail(LUTCC_INVALID,
         "expected dtype " + spec.dtype_name + " (shape (" + spec.shape_text() + ")), got " +
             kind_text(got),
         where, "convert the numbers to " + spec.dtype_name);
  const auto rank = static_cast<int32_t>(spec.shape.size());
  if (given.ndim != rank)
    fail(LUTCC_INVALID,
         "expected " + std::to_string(rank) + " dimensions (" + spec.shape_text() + "), got " +
             std::to_string(given.ndim),
         where,
         given.ndim == rank - 1 ? "a single row needs a leading dimension of 1"
                                : "give it the shape (" + spec.shape_text() + ")");
  if (rank && !given.shape)
    fail(LUTCC_INVALID, "shape is NULL", where,
         "let it point to " + std::to_string(rank) + " numbers");
  for (int32_t axis = 0; axis < rank; ++axis)
    if (given.shape[axis] < 0)
      fail(LUTCC_INVALID, "has the shape " + shape_text(given.shape, rank), where,
           "sizes are at least 0");
  product(count_elements(given.shape, rank), spec.itemsize());
}

void check_data(const lutcc_tensor& given, const std::string& where) {
  if (!given.data && count_elements(given.shape, given.ndim))
    fail(LUTCC_INVALID, "data is NULL", where, "let it point to the elements");
}

[[noreturn]] void wrong_shape(const lutcc_tensor& given, const Spec& spec, int32_t axis,
                              const std::string& must, const std::string& where,
                              const std::string& fix) {
  fail(LUTCC_INVALID,
       "expected shape (" + spec.shape_text() + "), got " + shape_text(given.shape, given.ndim) +
           ": dimension " + std::to_string(axis) + " must be " + must,
       where, fix);
}

void bind(const lutcc_tensor& given, const Spec& spec, Sizes& sizes, const std::string& where) {
  for (int32_t axis = 0; axis < given.ndim; ++axis) {
    const Dim& dim = spec.shape[static_cast<size_t>(axis)];
    const int64_t size = given.shape[axis];
    const std::string wanted = std::to_string(dim.size);
    if (dim.symbol.empty()) {
      if (size != dim.size)
        wrong_shape(given, spec, axis, wanted + ", not " + std::to_string(size), where,
                    "pass a tensor whose dimension " + std::to_string(axis) + " has " + wanted +
                        " elements");
      continue;
    }
    if (size % dim.size)
      wrong_shape(given, spec, axis, "a multiple of " + wanted, where,
                  "pad or cut dimension " + std::to_string(axis) + " to a multiple of " + wanted);
    const int64_t count = size / dim.size;
    const auto [known, fresh] = sizes.symbols.try_emplace(dim.symbol, Sizes::Known{count, where});
    if (!fresh && known->second.count != count)
      fail(LUTCC_INVALID,
           "its " + dim.symbol + " is " + std::to_string(count) + " (shape " +
               shape_text(given.shape, given.ndim) + "), but " + known->second.owner + " has " +
               dim.symbol + " = " + std::to_string(known->second.count),
           where, "pass tensors that agree on " + dim.symbol);
  }
}

// Whether kernels read a matrix through these strides.
bool readable_strides(const lutcc_tensor& given, const Spec& spec) {
  const bool strided_type = spec.dtype_name == "float32" || spec.dtype_name == "bfloat16" ||
                            spec.dtype_name == "uint8";
  if (given.ndim != 2 || !strided_type) return false;
  return (given.shape[0] == 1 || given.strides[0] > 0) &&
         (given.shape[1] == 1 || given.strides[1] > 0);
}

bool aligned(const lutcc_tensor& given, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(start(given)) % static_cast<uintptr_t>(bytes) == 0;
}

}  // namespace

void Ready::set(void* data, lutcc_dtype dtype, const std::vector<int64_t>& sizes) {
  std::copy(sizes.begin(), sizes.end(), shape);
  row_major_strides(shape, static_cast<int32_t>(sizes.size()), strides);
  tensor = {data, 1, 0, static_cast<int32_t>(sizes.size()), dtype, shape, strides, 0};
}

std::vector<int64_t> Sizes::resolve(const Spec& spec) const {
  std::vector<int64_t> out;
  for (const Dim& dim : spec.shape)
    out.push_back(dim.symbol.empty() ? dim.size
                                     : product(dim.size, symbols.at(dim.symbol).count));
  return out;
}

bool Sizes::any_zero() const {
  return std::any_of(symbols.begin(), symbols.end(),
                     [](const auto& symbol) { return symbol.second.count == 0; });
}

void admit(const lutcc_tensor& given, const Spec& spec, const Demands& demands, Sizes& sizes,
           Ready& ready) {
  const std::string where = "input " + quoted(spec.name);
  check_form(given, spec, where);
  bind(given, spec, sizes, where);
  check_data(given, where);
  ready.set(given.data, spec.dtype, {given.shape, given.shape + given.ndim});
  const int64_t count = count_elements(given.shape, given.ndim);
  if (!count) return;
  ready.tensor.data = start(given);
  const bool dense = row_major(given);
  const bool in_place = dense || (demands.strided && readable_strides(given, spec));
  if (in_place && aligned(given, std::max(demands.alignment, spec.itemsize()))) {
    if (!dense) std::copy(given.strides, given.strides + given.ndim, ready.strides);
    return;
  }
  const int64_t bytes = count * spec.itemsize();
  if (ready.copy.size() < bytes) ready.copy = Buffer(bytes);
  ready.tensor.data = ready.copy.data();
  copy_elements(given, ready.tensor);
}

void check_bounds(const Sizes& sizes, const std::map<std::string, Bounds>& bounds) {
  for (const auto& [symbol, range] : bounds) {
    const auto found = sizes.symbols.find(symbol);
    if (found == sizes.symbols.end()) continue;
    const int64_t count = found->second.count;
    const bool many = range.most >= 0 && count > range.most;
    if (count >= range.least && !many) continue;
    const std::string least = std::to_string(range.least);
    fail(LUTCC_INVALID,
         symbol + " is " + std::to_string(count) + ", and the model takes " +
             (range.most < 0 ? "at least " + least : least + " to " + std::to_string(range.most)),
         found->second.owner,
         many ? "pass fewer, or cut them into several calls" : "pad to " + least);
  }
}

void check_output(const lutcc_tensor& given, const Spec& spec, const std::vector<int64_t>& shape) {
  const std::string where = "output " + quoted(spec.name);
  check_form(given, spec, where);
  const auto rank = static_cast<int32_t>(shape.size());
  if (!std::equal(shape.begin(), shape.end(), given.shape))
    fail(LUTCC_INVALID,
         "expected shape " + shape_text(shape.data(), rank) + ", got " +
             shape_text(given.shape, given.ndim),
         where,
         "give it that shape, or let the library allocate it: pass a tensor that is all zero");
  check_data(given, where);
}

bool writable_in_place(const lutcc_tensor& given, int64_t itemsize) {
  const int64_t bytes = count_elements(given.shape, given.ndim) * itemsize;
  return row_major(given) &&
         aligned(given, bytes < kLarge ? itemsize : static_cast<int64_t>(kAlignment));
}

void copy_elements(const lutcc_tensor& from, const lutcc_tensor& to) {
  if (!count_elements(from.shape, from.ndim)) return;
  const size_t itemsize = from.dtype.bits / 8u;
  int64_t plain_from[LUTCC_MAX_NDIM], plain_to[LUTCC_MAX_NDIM], at[LUTCC_MAX_NDIM] = {};
  row_major_strides(from.shape, from.ndim, plain_from);
  row_major_strides(to.shape, to.ndim, plain_to);
  const int64_t* read = from.strides ? from.strides : plain_from;
  const int64_t* write = to.strides ? to.strides : plain_to;
  const int32_t last = from.ndim - 1;
  const int64_t inner = last >= 0 ? from.shape[last] : 1;
  const int64_t step_read = last >= 0 ? read[last] : 1, step_write = last >= 0 ? write[last] : 1;
  const auto size = static_cast<int64_t>(itemsize);
  while (true) {
    const unsigned char* source = start(from);
    unsigned char* target = start(to);
    for (int32_t axis = 0; axis < last; ++axis) {
      source += at[axis] * read[axis] * size;
      target += at[axis] * write[axis] * size;
    }
    if (step_read == 1 && step_write == 1)
      std::memcpy(target, source, static_cast<size_t>(inner * size));
    else
      for (int64_t i = 0; i < inner; ++i)
        std::memcpy(target + i * step_write * size, source + i * step_read * size, itemsize);
    int32_t axis = last - 1;
    while (axis >= 0 && ++at[axis] == from.shape[axis]) at[axis--] = 0;
    if (axis < 0) return;
  }
}

bool is_empty(const lutcc_tensor& tensor) { return !tensor.data && !tensor.shape && !tensor.ndim; }

// One block: shape, strides, and on the next cache line the elements. shape is where it starts.
lutcc_tensor allocate(const Spec& spec, const std::vector<int64_t>& shape) {
  const auto rank = static_cast<int32_t>(shape.size());
  const int64_t head = static_cast<int64_t>(2 * LUTCC_MAX_NDIM * sizeof(int64_t));
  const int64_t bytes = product(count_elements(shape.data(), rank), spec.itemsize());
  auto* block = static_cast<int64_t*>(aligned_block(sum(head, bytes)));
  std::copy(shape.begin(), shape.end(), block);
  row_major_strides(block, rank, block + LUTCC_MAX_NDIM);
  unsigned char* data = reinterpret_cast<unsigned char*>(block) + head;
  return {data, 1, 0, rank, spec.dtype, block, block + LUTCC_MAX_NDIM, 0};
}

int64_t count_elements(const int64_t* shape, int32_t ndim) {
  int64_t count = 1;
  if (std::find(shape, shape + ndim, 0) != shape + ndim) return 0;
  for (int32_t axis = 0; axis < ndim; ++axis) count = product(count, shape[axis]);
  return count;
}

std::string shape_text(const int64_t* shape, int32_t ndim) {
  std::string out = "(";
  for (int32_t axis = 0; axis < ndim; ++axis) {
    if (axis) out += ", ";
    out += std::to_string(shape[axis]);
  }
  return out + (ndim == 1 ? ",)" : ")");
}

}  // namespace lutcc
