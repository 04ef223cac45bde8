// Errors inside the library: what went wrong, where, and how to mend it.
#pragma once

#include <string>

#include "lutcc.h"

namespace lutcc {

// Thrown inside, caught at the C functions.
struct Failure {
  int status;
  std::string what, where, fix;

  // The text that people read, of the same form as in Python.
  std::string text() const;
};

[[noreturn]] void fail(int status, std::string what, std::string where, std::string fix);

// 'text', as it stands in messages; long ones are cut.
std::string quoted(const std::string& text);

// The message of errno.
std::string system_error(int number);

}  // namespace lutcc
