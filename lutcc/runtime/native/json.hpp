// Strict JSON, and typed reading of it: every complaint names the JSON path.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lutcc {

struct Member;

// A JSON value. Numbers are kept as they were written; members of objects are sorted by key.
struct Json {
  enum class Kind { kNull, kBool, kNumber, kString, kList, kObject };

  Kind kind = Kind::kNull;
  bool flag = false;
  std::string text;  // of a number or string
  std::vector<Json> items;
  std::vector<Member> members;

  const Json* find(std::string_view key) const;
};

struct Member {
  std::string key;
  Json value;
};

// Parse JSON: UTF-8, no duplicate keys, no NaN. Throws std::string, which says what is wrong.
Json parse_json(std::string_view data);

// The text of an object with sorted keys, without spaces, in ASCII, as Python's json.dumps writes
// it with sort_keys=True and separators=(",", ":"); the key `without` of the outermost object is
// left out. Numbers stay as they were written.
std::string canonical_json(const Json& value, std::string_view without);

// A value with its path, file and what to do when it is wrong. Readers throw Failure.
class Node {
 public:
  Node(const Json& value, std::string path, std::shared_ptr<const std::string> where)
      : value_(&value), path_(std::move(path)), where_(std::move(where)) {}

  const Json& value() const { return *value_; }
  [[noreturn]] void fail(const std::string& what) const;

  // Check that this is an object that has all of `required`, and, unless `open`, no keys beside
  // them and `optional`.
  void check_keys(std::initializer_list<const char*> required,
                  std::initializer_list<const char*> optional = {}, bool open = false) const;
  Node operator[](const char* key) const;  // a key that check_keys has found
  bool has(const char* key) const;
  std::vector<std::pair<std::string, Node>> items() const;
  std::vector<Node> list(size_t at_least = 0, size_t at_most = 1000000) const;
  const std::string& string() const;
  const std::string& string(bool (*fits)(const std::string&), const char* kind) const;
  int64_t integer(int64_t low, int64_t high) const;
  const Json& object() const;

 private:
  [[noreturn]] void expect(const std::string& kind) const;

  const Json* value_;
  std::string path_;
  std::shared_ptr<const std::string> where_;
};

}  // namespace lutcc
