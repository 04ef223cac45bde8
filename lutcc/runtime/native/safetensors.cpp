#include "safetensors.hpp"

#include <memory>
#include <string_view>

#include "failure.hpp"
#include "json.hpp"
#include "tensors.hpp"

namespace lutcc {
namespace {

[[noreturn]] void broken(const std::string& what, const std::string& where) {
  fail(LUTCC_ARTIFACT, "is no safetensors file: " + what, where, "compile the model again");
}

lutcc_dtype dtype_of(const Node& node) {
  static const std::map<std::string, lutcc_dtype> known = {
      {"BOOL", {LUTCC_BOOL, 8, 1}},  {"I8", {LUTCC_INT, 8, 1}},   {"U8", {LUTCC_UINT, 8, 1}},
      {"I16", {LUTCC_INT, 16, 1}},   {"U16", {LUTCC_UINT, 16, 1}}, {"F16", {LUTCC_FLOAT, 16, 1}},
      {"BF16", {LUTCC_BFLOAT, 16, 1}}, {"I32", {LUTCC_INT, 32, 1}}, {"U32", {LUTCC_UINT, 32, 1}},
      {"F32", {LUTCC_FLOAT, 32, 1}}, {"I64", {LUTCC_INT, 64, 1}}, {"U64", {LUTCC_UINT, 64, 1}},
      {"F64", {LUTCC_FLOAT, 64, 1}}};
  const auto found = known.find(node.string());
  if (found == known.end()) node.fail("is no element type that lutcc reads");
  return found->second;
}

}  // namespace

std::map<std::string, Constant> read_safetensors(const Buffer& file, const std::string& where) {
  constexpr int64_t kLargest = int64_t{1} << 40;
  uint64_t length = 0;
  if (file.size() < 8) broken("it is too short", where);
  for (int i = 7; i >= 0; --i) length = length << 8 | file.data()[i];
  if (length > static_cast<uint64_t>(file.size() - 8)) broken("its header does not end", where);
  const auto head = static_cast<int64_t>(length), data_bytes = file.size() - 8 - head;
  Json value;
  try {
    value = parse_json({reinterpret_cast<const char*>(file.data()) + 8, length});
  } catch (const std::string& problem) {
    broken(problem, where);
  }
  std::map<std::string, Constant> out;
  for (const auto& [name, node] :
       Node(value, "$", std::make_shared<const std::string>(where)).items()) {
    if (name == "__metadata__") continue;
    node.check_keys({"dtype", "shape", "data_offsets"});
    Constant constant;
    constant.dtype = dtype_of(node["dtype"]);
    for (const Node& dim : node["shape"].list(0, LUTCC_MAX_NDIM))
      constant.shape.push_back(dim.integer(0, kLargest));
    const std::vector<Node> range = node["data_offsets"].list(2, 2);
    const int64_t first = range[0].integer(0, data_bytes), last = range[1].integer(0, data_bytes);
    const auto rank = static_cast<int32_t>(constant.shape.size());
    constant.bytes =
        product(count_elements(constant.shape.data(), rank), constant.dtype.bits / 8);
    if (last - first != constant.bytes) node.fail("its size is not that of its data");
    constant.data = file.data() + 8 + head + first;
    out.emplace(name, std::move(constant));
  }
  return out;
}

}  // namespace lutcc
