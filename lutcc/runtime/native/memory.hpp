// Memory that starts on a cache line.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lutcc {

constexpr size_t kAlignment = 64;

// Uninitialised bytes that start at a multiple of 64; never empty, so that data() is never NULL
// after a size was given.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size);  // throws Failure when there is not enough memory
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  unsigned char* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  unsigned char* data_ = nullptr;
  int64_t size_ = 0;
};

// A block from aligned_alloc. Throws Failure.
void* aligned_block(int64_t size);

// a * b and a + b; throw Failure when the result is beyond 64 bits.
int64_t product(int64_t a, int64_t b);
int64_t sum(int64_t a, int64_t b);

}  // namespace lutcc
