// The directory of a zip file (APPNOTE 6.3.10, with Zip64), read strictly.
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "container.hpp"
#include "failure.hpp"

namespace lutcc {
namespace {

constexpr int64_t kEnd = 22, kLocator = 20, kEnd64 = 56, kHead = 46, kLocal = 30;
constexpr int64_t kLongestComment = 65535;
constexpr int64_t kMostEntries = 65536, kLongestDirectory = 64 << 20;

// Little-endian numbers; those of 64 bits that are negative as int64_t fit no file.
int64_t number(const unsigned char* at, int bytes) {
  uint64_t out = 0;
  for (int i = bytes - 1; i >= 0; --i) out = out << 8 | at[i];
  return static_cast<int64_t>(out);
}

bool starts(const unsigned char* at, const char* signature) {
  return std::memcmp(at, signature, 4) == 0;
}

}  // namespace

void Container::list_zip() {
  const std::string broken = "is no readable zip file: truncated, damaged, or no artifact";
  struct stat status;
  if (::fstat(file_.get(), &status) != 0) damaged(broken);
  const int64_t total = status.st_size, tail_size = std::min(total, kEnd + kLongestComment);
  if (total < kEnd) damaged(broken);
  Buffer tail(tail_size);
  read(file_.get(), tail.data(), tail_size, total - tail_size, "the zip directory");
  int64_t at = tail_size - kEnd;
  while (at >= 0 && !(starts(tail.data() + at, "PK\5\6") &&
                      number(tail.data() + at + 20, 2) == tail_size - at - kEnd))
    --at;
  if (at < 0) damaged(broken);
  const unsigned char* end = tail.data() + at;
  int64_t count = number(end + 10, 2), size = number(end + 12, 4), first = number(end + 16, 4);
  int64_t behind = total - tail_size + at;  // where the directory must end
  if (at >= kLocator && starts(end - kLocator, "PK\6\7")) {
    unsigned char end64[kEnd64];
    behind = number(end - kLocator + 8, 8);
    if (behind < 0 || behind > total - kEnd64) damaged(broken);
    read(file_.get(), end64, kEnd64, behind, "the zip directory");
    if (!starts(end64, "PK\6\6")) damaged(broken);
    count = number(end64 + 32, 8);
    size = number(end64 + 40, 8);
    first = number(end64 + 48, 8);
  }
  if (count < 0 || count > kMostEntries || size < 0 || size > kLongestDirectory || first < 0 ||
      first != behind - size)
    damaged(broken);
  Buffer directory(size);
  read(file_.get(), directory.data(), size, first, "the zip directory");
  int64_t used = 0, together = 0;
  for (int64_t i = 0; i < count; ++i) {
    const unsigned char* head = directory.data() + used;
    if (size - used < kHead || !starts(head, "PK\1\2")) damaged(broken);
    const int64_t length = kHead + number(head + 28, 2) + number(head + 30, 2) +
                           number(head + 32, 2);
    if (length > size - used) damaged(broken);
    add_entry(head, total);
    used += length;
  }
  if (used != size) damaged(broken);
  for (const auto& [name, bytes] : sizes_) together += bytes;
  if (together > total)
    damaged("its entries overlap: together they are larger than the file");
}

void Container::add_entry(const unsigned char* head, int64_t total) {
  const int64_t flags = number(head + 8, 2), method = number(head + 10, 2);
  int64_t packed = number(head + 20, 4), size = number(head + 24, 4), at = number(head + 42, 4);
  const int64_t name_size = number(head + 28, 2), extra_size = number(head + 30, 2);
  const unsigned char* extra = head + kHead + name_size;
  const std::string name(head + kHead, extra);
  const auto bad = [&](const std::string& what) {
    damaged("the entry " + quoted(name) + " " + what);
  };
  // Numbers that do not fit 32 bits stand in the Zip64 field, in this order.
  for (int64_t k = 0; k + 4 <= extra_size;) {
    const int64_t id = number(extra + k, 2), length = number(extra + k + 2, 2);
    int64_t next = k + 4;
    const int64_t end = next + length;
    if (end > extra_size) bad("is damaged");
    if (id == 1)
      for (int64_t* value : {&size, &packed, &at})
        if (*value == 0xffffffff) {
          if (next + 8 > end) bad("is damaged");
          *value = number(extra + next, 8);
          next += 8;
        }
    k = end;
  }
  const int64_t kind = number(head + 38, 4) >> 16 & S_IFMT;
  if ((!name.empty() && name.back() == '/') || (kind != 0 && kind != S_IFREG))
    bad("is no regular file");
  if (flags & 1) bad("is encrypted");
  if (method != 0 || packed != size)
    bad("is compressed; artifacts store their files as they are (zip -0)");
  if (size < 0 || at < 0 || size > total || at > total - kLocal - size)
    bad("claims " + std::to_string(size) + " bytes in a file of " + std::to_string(total));
  if (!sizes_.emplace(name, size).second) bad("occurs twice");
  offsets_[name] = at;
}

}  // namespace lutcc
