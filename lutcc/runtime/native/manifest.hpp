// manifest.json: what an artifact says of itself.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lutcc.h"

namespace lutcc {

constexpr const char* kManifest = "manifest.json";
constexpr const char* kConstants = "constants.safetensors";
constexpr int64_t kLongestManifest = int64_t{32} << 20;

// A dimension: a size, or (with a symbol) a factor of the symbol.
struct Dim {
  std::string symbol;
  int64_t size = 0;
};

struct Spec {
  std::string name, dtype_name;
  lutcc_dtype dtype{};
  std::vector<Dim> shape;

  int64_t itemsize() const { return dtype.bits / 8; }
  std::string shape_text() const;  // "n, 512"
  std::string text() const;        // "x: float32[n, 512]"
};

struct FileEntry {
  int64_t size = 0;
  std::string sha256;
};

struct Variant {
  std::string isa, file;
  std::vector<std::string> features;
  // Of look-up kernels:
  std::string entry, packed;  // packed: name of the file with the packed tables, or empty
  int64_t blob_bytes = 0;
  bool has_blob = false;
  int64_t fixed = 0, per_row = 0, per_thread = 0;
  // Of models with exact layers: constants that are passed after the inputs.
  std::vector<std::string> params;
};

// Least and largest value of a symbol; most < 0: any.
struct Bounds {
  int64_t least = 1, most = -1;
};

struct Manifest {
  std::string kind, text;
  double seconds_per_row = 0;  // roughly, of one core
  std::map<std::string, Bounds> bounds;  // of symbols; those without one are free
  std::vector<Spec> inputs, outputs;
  std::vector<Variant> variants;  // worst level first
  std::map<std::string, FileEntry> files;
};

// Read and check the text of a manifest. Throws Failure, whose message names the JSON path.
Manifest read_manifest(std::string text, const std::string& where);

// The element type of that name; false when there is none.
bool find_dtype(const std::string& name, lutcc_dtype& dtype);

}  // namespace lutcc
