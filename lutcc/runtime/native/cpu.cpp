#include "cpu.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "failure.hpp"

namespace lutcc {
namespace {

constexpr const char* kVariable = "LUTCC_MAX_ISA";

std::vector<std::string> joined(std::vector<std::string> all,
                                std::initializer_list<const char*> more) {
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

// The flags that every processor has (those of hybrid machines differ).
Cpu from_proc() {
  Cpu cpu;
  std::ifstream file("/proc/cpuinfo");
  bool first = true;
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = trimmed(line.substr(0, colon)), value = trimmed(line.substr(colon + 1));
    if (key == "model name" && cpu.model.empty()) cpu.model = value;
    if (key != "flags") continue;
    std::istringstream words(value);
    const std::set<std::string> flags{std::istream_iterator<std::string>(words), {}};
    if (first) {
      cpu.flags = flags;
    } else {
      std::set<std::string> common;
      std::set_intersection(cpu.flags.begin(), cpu.flags.end(), flags.begin(), flags.end(),
                            std::inserter(common, common.end()));
      cpu.flags = std::move(common);
    }
    first = false;
  }
  return cpu;
}

// Where there is no /proc: what the compiler's own detection says.
void from_compiler(Cpu& cpu) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    cpu.flags.insert(levels()[0].features.begin(), levels()[0].features.end());
#define LUTCC_FLAG(compiler, linux_name) \
  if (__builtin_cpu_supports(compiler)) cpu.flags.insert(linux_name)
  LUTCC_FLAG("avx512f", "avx512f");
  LUTCC_FLAG("avx512bw", "avx512bw");
  LUTCC_FLAG("avx512cd", "avx512cd");
  LUTCC_FLAG("avx512dq", "avx512dq");
  LUTCC_FLAG("avx512vl", "avx512vl");
  LUTCC_FLAG("avx512vbmi", "avx512vbmi");
  LUTCC_FLAG("avx512vnni", "avx512_vnni");
  LUTCC_FLAG("avx512bf16", "avx512_bf16");
#undef LUTCC_FLAG
#endif
}

std::string names_of_levels() {
  std::string out = "none";
  for (const Level& level : levels()) out += std::string(", ") + level.name;
  return out;
}

}  // namespace

const std::vector<Level>& levels() {
  static const std::vector<Level> all = [] {
    std::vector<Level> out;
    out.push_back({"avx2", {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}});
    out.push_back({"avx512", joined(out.back().features, {"avx512f", "avx512bw", "avx512cd",
                                                          "avx512dq", "avx512vl"})});
    out.push_back(
        {"avx512_vbmi_vnni", joined(out.back().features, {"avx512vbmi", "avx512_vnni"})});
    out.push_back({"avx512_bf16", joined(out.back().features, {"avx512_bf16"})});
    return out;
  }();
  return all;
}

const Level* find_level(const std::string& name) {
  for (const Level& level : levels())
    if (name == level.name) return &level;
  return nullptr;
}

std::vector<std::string> Cpu::missing(const std::vector<std::string>& features) const {
  std::vector<std::string> out;
  for (const std::string& feature : features)
    if (!flags.count(feature)) out.push_back(feature);
  return out;
}

std::string Cpu::best() const {
  std::string out;
  for (const Level& level : levels())
    if (missing(level.features).empty()) out = level.name;
  return out;
}

Cpu this_cpu(const char* max_isa) {
  Cpu cpu = from_proc();
  if (cpu.flags.empty()) from_compiler(cpu);
  if (cpu.model.empty()) cpu.model = "unknown processor";
  const char* variable = std::getenv(kVariable);
  const std::string cap = trimmed(max_isa ? max_isa : variable ? variable : "");
  if (cap.empty()) return cpu;
  const Level* level = find_level(cap);
  if (!level && cap != "none")
    fail(LUTCC_INVALID, quoted(cap) + " is no instruction-set level",
         max_isa ? "option max_isa" : std::string("environment variable ") + kVariable,
         "use " + names_of_levels() + ", or leave it out");
  cpu.cap = cap;
  if (level == &levels().back()) return cpu;
  std::set<std::string> allowed, kept;
  if (level) allowed.insert(level->features.begin(), level->features.end());
  const std::vector<std::string>& known = levels().back().features;
  for (const std::string& flag : cpu.flags) {
    const bool beyond = std::find(known.begin(), known.end(), flag) != known.end() ||
                        flag.rfind("avx512", 0) == 0 || flag.rfind("avx10", 0) == 0 ||
                        flag.rfind("amx", 0) == 0;
    if (allowed.count(flag) || !beyond) kept.insert(flag);
  }
  cpu.flags = std::move(kept);
  return cpu;
}

}  // namespace lutcc
