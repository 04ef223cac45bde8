// What the processor can do, by the names of /proc/cpuinfo.
#pragma once

#include <set>
#include <string>
#include <vector>

namespace lutcc {

// Instruction-set levels from worst to best, and the flags that each one needs.
struct Level {
  const char* name;
  std::vector<std::string> features;
};
const std::vector<Level>& levels();

// The level of that name, or nullptr.
const Level* find_level(const std::string& name);

// The processor as this process may use it.
struct Cpu {
  std::set<std::string> flags;
  std::string model, cap;  // cap: the level that it is capped at; empty without

  std::vector<std::string> missing(const std::vector<std::string>& features) const;
  std::string best() const;  // the best level; empty when there is none
};

// Read the flags that /proc/cpuinfo lists and the processor reports, capped at `max_isa` (NULL: at the environment's LUTCC_MAX_ISA).
Cpu this_cpu(const char* max_isa);

}  // namespace lutcc
