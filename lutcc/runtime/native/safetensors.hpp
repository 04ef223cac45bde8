// Constants of an artifact: a safetensors file.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lutcc.h"
#include "memory.hpp"

namespace lutcc {

struct Constant {
  lutcc_dtype dtype{};
  std::vector<int64_t> shape;
  const unsigned char* data = nullptr;  // inside the file's bytes
  int64_t bytes = 0;
};

// Read the header of a file that was checked. Throws Failure.
std::map<std::string, Constant> read_safetensors(const Buffer& file, const std::string& where);

}  // namespace lutcc
