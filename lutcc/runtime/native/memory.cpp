#include "memory.hpp"

#include <cstdlib>
#include <string>
#include <utility>

#include "failure.hpp"

namespace lutcc {
namespace {

[[noreturn]] void too_large(const std::string& size) {
  fail(LUTCC_MEMORY, "there is not enough memory for " + size, "",
       "pass fewer rows at once, or free some memory");
}

}  // namespace

void* aligned_block(int64_t size) {
  const int64_t rounded = sum(size < 1 ? 1 : size, kAlignment - 1) / kAlignment * kAlignment;
  void* block = std::aligned_alloc(kAlignment, static_cast<size_t>(rounded));
  if (!block) too_large(std::to_string(rounded) + " bytes");
  return block;
}

Buffer::Buffer(int64_t size)
    : data_(static_cast<unsigned char*>(aligned_block(size))), size_(size) {}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Buffer::~Buffer() { std::free(data_); }

int64_t product(int64_t a, int64_t b) {
  int64_t out;
  if (__builtin_mul_overflow(a, b, &out)) too_large("a tensor of more than 2^63 bytes");
  return out;
}

int64_t sum(int64_t a, int64_t b) {
  int64_t out;
  if (__builtin_add_overflow(a, b, &out)) too_large("more than 2^63 bytes");
  return out;
}

}  // namespace lutcc
