// Artifacts on disk: a folder, or a zip file whose entries are stored without compression.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "memory.hpp"

namespace lutcc {

// A file descriptor that closes itself.
class File {
 public:
  explicit File(int descriptor = -1) : descriptor_(descriptor) {}
  File(File&& other) noexcept : descriptor_(other.descriptor_) { other.descriptor_ = -1; }
  File& operator=(File&&) = delete;
  ~File();
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

// The files of an artifact. Names and sizes are checked; contents are not.
class Container {
 public:
  explicit Container(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, int64_t>& sizes() const { return sizes_; }

  // The contents of a file, on a cache line.
  Buffer load(const std::string& name) const;
  // The sha256 of a file, which is read in pieces.
  std::string hash(const std::string& name) const;

 private:
  struct Place {
    File own;  // of a folder's file
    int descriptor;
    int64_t offset;
  };
  void list_folder();
  void list_zip();
  void add_entry(const unsigned char* head, int64_t total);
  Place place(const std::string& name) const;
  void read(int descriptor, void* into, int64_t size, int64_t offset,
            const std::string& what) const;
  [[noreturn]] void damaged(const std::string& what) const;

  std::string path_;
  File file_;  // the zip, or the folder
  bool zip_ = false;
  std::map<std::string, int64_t> sizes_;
  std::map<std::string, int64_t> offsets_;  // of local headers in a zip
};

constexpr const char* kAgain = "copy it again, or make it again with lutcc.compile and save";

}  // namespace lutcc
