#include "failure.hpp"

#include <system_error>
#include <utility>

namespace lutcc {

std::string Failure::text() const {
  std::string out = where.empty() ? what : where + ": " + what;
  if (!fix.empty()) out += "\nTo mend it: " + fix;
  return out;
}

void fail(int status, std::string what, std::string where, std::string fix) {
  throw Failure{status, std::move(what), std::move(where), std::move(fix)};
}

std::string quoted(const std::string& text) {
  constexpr size_t kLongest = 120;
  std::string out = "'";
  for (size_t i = 0; i < text.size() && i < kLongest; ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    out += c < 0x20 || c == 0x7f ? '?' : text[i];
  }
  return out + (text.size() > kLongest ? "...'" : "'");
}

std::string system_error(int number) { return std::generic_category().message(number); }

}  // namespace lutcc
