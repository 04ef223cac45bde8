// Shared libraries: kernels from checked bytes, and what they call.
#pragma once

#include <memory>
#include <string>

#include "lutcc.h"
#include "memory.hpp"

// What kernels report errors through; part of TVM's ABI.
extern "C" LUTCC_API void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts,
                                                            int32_t num_parts);

namespace lutcc {

// A shared library under a path of its own that nobody else can write to. The file goes when the
// object does, or as soon as it is mapped.
class PrivateFile {
 public:
  // Throws Failure when it cannot be written. `temp_folder` may be NULL.
  PrivateFile(const Buffer& bytes, const std::string& name, const char* temp_folder);
  ~PrivateFile();
  PrivateFile(const PrivateFile&) = delete;
  PrivateFile& operator=(const PrivateFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string folder_, path_;
};

// An open shared library.
class Library {
 public:
  Library() = default;
  explicit Library(void* handle) : handle_(handle) {}
  Library(Library&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
  Library& operator=(Library&& other) noexcept;
  ~Library();
  void* symbol(const char* name) const;

 private:
  void* handle_ = nullptr;
};

// Open look-up kernels. Throws Failure when the dynamic linker refuses them.
Library open_kernels(const Buffer& bytes, const std::string& name, const char* temp_folder);

// While one lives, errors that kernels report in this thread are kept for `take`.
class KernelErrors {
 public:
  KernelErrors();
  ~KernelErrors();
  // Kind ("IndexError") and message of the last one; both empty when there was none.
  void take(std::string& kind, std::string& message) const;
};

}  // namespace lutcc
