#include "cpu.hpp"

#include <cpuid.h>

#include <algorithm>
#include <cstdint>
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

// What the processor says of itself: flag, leaf, subleaf, register of cpuid, bit, and the registers
// that the operating system must keep for it (bits of XCR0).
struct Feature {
  const char* flag;
  uint32_t leaf, subleaf;
  enum { kEax, kEbx, kEcx, kEdx } place;
  int bit;
  uint64_t kept;
};
constexpr uint64_t kYmm = 0x6, kZmm = 0xe6;
constexpr Feature kFeatures[] = {
    {"fma", 1, 0, Feature::kEcx, 12, kYmm},
    {"movbe", 1, 0, Feature::kEcx, 22, 0},
    {"avx", 1, 0, Feature::kEcx, 28, kYmm},
    {"f16c", 1, 0, Feature::kEcx, 29, kYmm},
    {"bmi1", 7, 0, Feature::kEbx, 3, 0},
    {"avx2", 7, 0, Feature::kEbx, 5, kYmm},
    {"bmi2", 7, 0, Feature::kEbx, 8, 0},
    {"avx512f", 7, 0, Feature::kEbx, 16, kZmm},
    {"avx512dq", 7, 0, Feature::kEbx, 17, kZmm},
    {"avx512cd", 7, 0, Feature::kEbx, 28, kZmm},
    {"avx512bw", 7, 0, Feature::kEbx, 30, kZmm},
    {"avx512vl", 7, 0, Feature::kEbx, 31, kZmm},
    {"avx512vbmi", 7, 0, Feature::kEcx, 1, kZmm},
    {"avx512_vbmi2", 7, 0, Feature::kEcx, 6, kZmm},
    {"avx512_vnni", 7, 0, Feature::kEcx, 11, kZmm},
    {"avx512_bf16", 7, 1, Feature::kEax, 5, kZmm},
    {"abm", 0x80000001, 0, Feature::kEcx, 5, 0},
};

// A bit of what cpuid reports.
bool reports(uint32_t leaf, uint32_t subleaf, int place, int bit) {
  uint32_t words[4] = {};
  if (static_cast<uint32_t>(__get_cpuid_max(leaf & 0x80000000, nullptr)) < leaf) return false;
  if (subleaf) {
    __cpuid_count(leaf, 0, words[0], words[1], words[2], words[3]);
    if (words[0] < subleaf) return false;
  }
  __cpuid_count(leaf, subleaf, words[0], words[1], words[2], words[3]);
  return words[place] >> bit & 1;
}

// The registers that the operating system keeps for a program.
uint64_t kept_registers() {
  if (!reports(1, 0, Feature::kEcx, 27)) return 0;  // no xgetbv
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Leave out what the processor does not report: /proc/cpuinfo is that of another machine under
// user-mode emulation. Where there is no /proc, the processor is believed.
void ask_processor(Cpu& cpu) {
  const bool listed = !cpu.flags.empty();
  const uint64_t kept = kept_registers();
  for (const Feature& feature : kFeatures) {
    const bool has = (kept & feature.kept) == feature.kept &&
                     reports(feature.leaf, feature.subleaf, feature.place, feature.bit);
    if (!has)
      cpu.flags.erase(feature.flag);
    else if (!listed)
      cpu.flags.insert(feature.flag);
  }
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
    out.push_back({"avx512_vbmi_vnni", joined(out.back().features, {"avx512vbmi", "avx512_vbmi2",
                                                                    "avx512_vnni"})});
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
  ask_processor(cpu);
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
