#include "manifest.hpp"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "container.hpp"
#include "cpu.hpp"
#include "failure.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace lutcc {
namespace {

constexpr const char* kFormat = "lutcc-artifact";
constexpr int64_t kFormatVersion = 1;
constexpr const char* kModule = "module.ir";
constexpr int64_t kLargestFile = int64_t{1} << 40, kLargestDim = int64_t{1} << 40;

bool word_character(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

bool is_file_name(const std::string& text) {
  return !text.empty() && text.size() <= 128 && word_character(text[0]) &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return word_character(c) || c == '.' || c == '-'; });
}

bool is_symbol(const std::string& text) {
  return !text.empty() && text.size() <= 64 && !(text[0] >= '0' && text[0] <= '9') &&
         std::all_of(text.begin(), text.end(), word_character);
}

bool is_flag(const std::string& text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
  });
}

bool is_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// 1 to 256 characters (not bytes) without control characters.
bool is_name(const std::string& text) {
  size_t characters = 0;
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) return false;
    characters += (byte & 0xc0) != 0x80;
  }
  return characters >= 1 && characters <= 256;
}

Spec read_spec(const Node& node) {
  node.check_keys({"name", "shape", "dtype"}, {}, true);
  Spec spec;
  spec.name = node["name"].string(is_name, "a name");
  for (const Node& dim : node["shape"].list(0, LUTCC_MAX_NDIM)) {
    if (dim.value().kind == Json::Kind::kList) {
      const std::vector<Node> pair = dim.list(2, 2);
      spec.shape.push_back(
          {pair[0].string(is_symbol, "a symbol"), pair[1].integer(1, kLargestDim)});
    } else {
      spec.shape.push_back({"", dim.integer(0, kLargestDim)});
    }
  }
  spec.dtype_name = node["dtype"].string();
  if (!find_dtype(spec.dtype_name, spec.dtype))
    node["dtype"].fail(quoted(spec.dtype_name) + " is no element type that lutcc knows");
  return spec;
}

std::vector<Spec> read_specs(const Node& node) {
  std::vector<Spec> out;
  for (const Node& each : node.list(1, 256)) out.push_back(read_spec(each));
  return out;
}

std::vector<std::string> read_flags(const Node& node) {
  std::vector<std::string> out;
  for (const Node& flag : node.list()) out.push_back(flag.string(is_flag, "a CPU flag"));
  return out;
}

// Which lutcc wrote a manifest of any version, as far as it says so.
std::string writer(const Node& root) {
  const Json* named = root.value().find("lutcc_version");
  const bool told = named && named->kind == Json::Kind::kString && !named->text.empty() &&
                    named->text.size() <= 64 &&
                    std::all_of(named->text.begin(), named->text.end(), [](char c) {
                      return word_character(c) || c == '.' || c == '+' || c == '!' || c == '-';
                    });
  return told ? "lutcc " + named->text : "an unknown version of lutcc";
}

void check_version(const Node& root, const std::string& where) {
  root.check_keys({"format", "format_version"}, {}, true);
  if (root["format"].string() != kFormat)
    root["format"].fail("expected " + quoted(kFormat) + ", got " +
                        quoted(root["format"].string()));
  const int64_t version = root["format_version"].integer(0, int64_t{1} << 31);
  if (version != kFormatVersion)
    fail(LUTCC_ARTIFACT,
         "$.format_version: this artifact has format " + std::to_string(version) +
             ", written by " + writer(root) + "; this library reads " +
             std::to_string(kFormatVersion),
         where,
         version > kFormatVersion
             ? "build the library of that lutcc or a newer one, or compile the model again with "
               "the lutcc of this library"
             : "compile the model again with the lutcc of this library");
}

std::map<std::string, FileEntry> read_files(const Node& node) {
  std::map<std::string, FileEntry> out;
  for (const auto& [name, each] : node.items()) {
    if (!is_file_name(name) || name == kManifest)
      node.fail(quoted(name) +
                " is no file name an artifact may hold (letters, digits, '_', '.', '-')");
    each.check_keys({"size", "sha256"});
    out[name] = {each["size"].integer(0, kLargestFile),
                 each["sha256"].string(is_sha256, "a sha256 in lower-case hex")};
  }
  return out;
}

bool same_tensors(const std::vector<Spec>& a, const std::vector<Spec>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Spec& x, const Spec& y) {
    return x.dtype_name == y.dtype_name &&
           std::equal(x.shape.begin(), x.shape.end(), y.shape.begin(), y.shape.end(),
                      [](const Dim& d, const Dim& e) {
                        return d.symbol == e.symbol && d.size == e.size;
                      });
  });
}

// What the runtime reads of a program; its other keys belong to the code generator.
void read_program(const Node& node, Variant& variant, const Manifest& manifest) {
  node.check_keys({"isa", "features", "entry", "inputs", "outputs", "blob", "blob_nbytes",
                   "workspace", "kernels"},
                  {}, true);
  if (node["isa"].string() != variant.isa)
    node["isa"].fail("expected " + quoted(variant.isa) + " as in the variant");
  for (const std::string& flag : read_flags(node["features"]))
    if (std::find(variant.features.begin(), variant.features.end(), flag) ==
        variant.features.end())
      node["features"].fail("the variant leaves out the CPU flag " + quoted(flag));
  if (!same_tensors(read_specs(node["inputs"]), manifest.inputs))
    node["inputs"].fail("differs from $.inputs");
  if (!same_tensors(read_specs(node["outputs"]), manifest.outputs))
    node["outputs"].fail("differs from $.outputs");
  variant.entry = node["entry"].string(is_symbol, "an identifier");
  variant.blob_bytes = node["blob_nbytes"].integer(0, kLargestFile);
  variant.has_blob = !node["blob"].list().empty();
  const Node sizes = node["workspace"];
  sizes.check_keys({"per_thread", "per_row", "fixed"}, {}, true);
  variant.fixed = sizes["fixed"].integer(0, kLargestFile);
  variant.per_row = sizes["per_row"].integer(0, kLargestFile);
  variant.per_thread = sizes["per_thread"].integer(0, kLargestFile);
}

Variant read_variant(const Node& node, const Manifest& manifest) {
  const bool ir = manifest.kind == "ir";
  if (ir)
    node.check_keys({"isa", "file", "features", "program"}, {"packed"});
  else
    node.check_keys({"isa", "file", "features", "params"});
  Variant variant;
  variant.isa = node["isa"].string();
  if (!find_level(variant.isa))
    node["isa"].fail(quoted(variant.isa) + " is no instruction-set level");
  variant.file = node["file"].string(is_file_name, "a file name");
  if (!manifest.files.count(variant.file)) node["file"].fail("is not in $.files");
  variant.features = read_flags(node["features"]);
  if (!ir) {
    for (const Node& name : node["params"].list()) variant.params.push_back(name.string());
    return variant;
  }
  read_program(node["program"], variant, manifest);
  if (node.has("packed")) {
    variant.packed = node["packed"].string(is_file_name, "a file name");
    const auto file = manifest.files.find(variant.packed);
    if (file == manifest.files.end()) node["packed"].fail("is not in $.files");
    if (file->second.size != std::max<int64_t>(variant.blob_bytes, 64))
      node["packed"].fail("has " + std::to_string(file->second.size) +
                          " bytes, the program says " + std::to_string(variant.blob_bytes));
  }
  return variant;
}

// The bounds of symbols in `extra`, which may hold anything.
std::map<std::string, Bounds> read_bounds(const Json& extra) {
  std::map<std::string, Bounds> out;
  const auto whole = [](const Json& value) {
    return value.kind == Json::Kind::kNumber && !value.text.empty() && value.text.size() < 18 &&
           value.text.find_first_of(".eE") == std::string::npos;
  };
  const Json* listed = extra.find("bounds");
  if (!listed) return out;
  for (const Member& member : listed->members) {
    const std::vector<Json>& pair = member.value.items;
    if (pair.size() != 2 || !whole(pair[0])) continue;
    Bounds bounds{std::stoll(pair[0].text), -1};
    if (whole(pair[1]))
      bounds.most = std::stoll(pair[1].text);
    else if (pair[1].kind != Json::Kind::kNull)
      continue;
    out[member.key] = bounds;
  }
  return out;
}

// Roughly how long one core needs for a row, by coarse speeds; an unknown amount of work counts as
// a quarter of a microsecond. As lutcc.runtime.kernel has it.
double read_seconds_per_row(const Node& work) {
  const auto amount = [&work](const char* key) {
    return work.has(key) ? static_cast<double>(work[key].integer(0, int64_t{1} << 62)) : 0.0;
  };
  const double seconds = amount("lookups") / 150e9 + amount("flops") / 40e9 + amount("bytes") / 20e9;
  return seconds > 0 ? seconds : 0.25e-6;
}

void check_whole(const Manifest& manifest, const Node& root) {
  std::set<std::string> used{kConstants}, isas, names, symbols;
  for (const Node& name : root["modules"].list())
    used.insert(name.string(is_file_name, "a file name"));
  if (manifest.kind == "ir" && (used.size() != 2 || !used.count(kModule)))
    root["modules"].fail("expected [" + quoted(kModule) + "]");
  for (const Variant& variant : manifest.variants) {
    if (!isas.insert(variant.isa).second)
      root["variants"].fail("the level " + variant.isa + " occurs twice");
    used.insert(variant.file);
    if (!variant.packed.empty()) used.insert(variant.packed);
  }
  for (const std::string& name : used)
    if (!manifest.files.count(name)) root["files"].fail(quoted(name) + " is missing");
  for (const auto& file : manifest.files)
    if (!used.count(file.first))
      root["files"].fail(quoted(file.first) + " is of no variant, no module and no constants");
  for (const Spec& spec : manifest.inputs) {
    if (!names.insert(spec.name).second)
      root["inputs"].fail("two inputs have the name " + quoted(spec.name));
    for (const Dim& dim : spec.shape)
      if (!dim.symbol.empty()) symbols.insert(dim.symbol);
  }
  if (manifest.kind != "ir") return;
  if (symbols.size() > 1) root["inputs"].fail("there is more than one symbol");
  for (const Spec& spec : manifest.outputs)
    for (const Dim& dim : spec.shape)
      if (!dim.symbol.empty() && !symbols.count(dim.symbol))
        root["outputs"].fail(quoted(spec.name) + " uses a symbol of no input: " + dim.symbol);
}

}  // namespace

bool find_dtype(const std::string& name, lutcc_dtype& dtype) {
  static const std::map<std::string, lutcc_dtype> known = {
      {"float32", {LUTCC_FLOAT, 32, 1}}, {"bfloat16", {LUTCC_BFLOAT, 16, 1}},
      {"uint8", {LUTCC_UINT, 8, 1}},     {"int8", {LUTCC_INT, 8, 1}},
      {"int32", {LUTCC_INT, 32, 1}},     {"int64", {LUTCC_INT, 64, 1}},
      {"bool", {LUTCC_BOOL, 8, 1}}};
  const auto found = known.find(name);
  if (found == known.end()) return false;
  dtype = found->second;
  return true;
}

std::string Spec::shape_text() const {
  std::string out;
  for (const Dim& dim : shape) {
    if (!out.empty()) out += ", ";
    const std::string size = std::to_string(dim.size);
    out += dim.symbol.empty() ? size : dim.size == 1 ? dim.symbol : size + "*" + dim.symbol;
  }
  return out;
}

std::string Spec::text() const { return name + ": " + dtype_name + "[" + shape_text() + "]"; }

Manifest read_manifest(std::string text, const std::string& where) {
  const auto place = std::make_shared<const std::string>(where);
  Json value;
  try {
    value = parse_json(text);
  } catch (const std::string& problem) {
    fail(LUTCC_ARTIFACT, "is no valid JSON: " + problem, where, kAgain);
  }
  const Node root(value, "$", place);
  check_version(root, where);
  root.check_keys({"format", "format_version", "lutcc_version", "kind", "inputs", "outputs",
                   "variants", "files", "modules", "work_per_row", "versions", "extra", "digest"});
  if (root["digest"].string(is_sha256, "a sha256 in lower-case hex") !=
      sha256(canonical_json(value, "digest")))
    root["digest"].fail("does not fit the rest of the manifest: it was changed after writing");
  Manifest manifest;
  manifest.kind = root["kind"].string();
  if (manifest.kind != "ir" && manifest.kind != "relax")
    root["kind"].fail("expected 'ir' or 'relax', got " + quoted(manifest.kind));
  manifest.bounds = read_bounds(root["extra"].object());
  manifest.seconds_per_row = read_seconds_per_row(root["work_per_row"]);
  manifest.files = read_files(root["files"]);
  manifest.inputs = read_specs(root["inputs"]);
  manifest.outputs = read_specs(root["outputs"]);
  for (const Node& node : root["variants"].list(1, 64))
    manifest.variants.push_back(read_variant(node, manifest));
  check_whole(manifest, root);
  manifest.text = std::move(text);
  return manifest;
}

}  // namespace lutcc
