// Typed reading of JSON.
#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "failure.hpp"
#include "json.hpp"

namespace lutcc {
namespace {

constexpr const char* kFix =
    "the manifest is damaged or was edited; make the artifact again with lutcc.compile and save";

const char* kind_name(const Json& value) {
  switch (value.kind) {
    case Json::Kind::kNull:
      return "null";
    case Json::Kind::kBool:
      return "true or false";
    case Json::Kind::kNumber:
      return "a number";
    case Json::Kind::kString:
      return "a string";
    case Json::Kind::kList:
      return "a list";
    case Json::Kind::kObject:
      return "an object";
  }
  return "something else";
}

bool among(const std::string& key, std::initializer_list<const char*> keys) {
  return std::any_of(keys.begin(), keys.end(), [&](const char* known) { return key == known; });
}

}  // namespace

void Node::fail(const std::string& what) const {
  lutcc::fail(LUTCC_ARTIFACT, path_ + ": " + what, *where_, kFix);
}

void Node::expect(const std::string& kind) const {
  std::string got = kind_name(*value_);
  if (!value_->text.empty()) got += " (" + quoted(value_->text) + ")";
  fail("expected " + kind + ", got " + got);
}

void Node::check_keys(std::initializer_list<const char*> required,
                      std::initializer_list<const char*> optional, bool open) const {
  for (const char* key : required)
    if (!object().find(key)) fail("the key " + quoted(key) + " is missing");
  for (const Member& member : object().members)
    if (!open && !among(member.key, required) && !among(member.key, optional))
      fail("unknown key " + quoted(member.key));
}

Node Node::operator[](const char* key) const {
  const Json* found = object().find(key);
  if (!found) fail("the key " + quoted(key) + " is missing");
  return Node(*found, path_ + "." + key, where_);
}

bool Node::has(const char* key) const { return object().find(key) != nullptr; }

std::vector<std::pair<std::string, Node>> Node::items() const {
  std::vector<std::pair<std::string, Node>> out;
  for (const Member& member : object().members)
    out.emplace_back(member.key, Node(member.value, path_ + "." + member.key, where_));
  return out;
}

std::vector<Node> Node::list(size_t at_least, size_t at_most) const {
  if (value_->kind != Json::Kind::kList) expect("a list");
  const size_t count = value_->items.size();
  if (count < at_least || count > at_most)
    fail("expected " + std::to_string(at_least) + " to " + std::to_string(at_most) +
         " entries, got " + std::to_string(count));
  std::vector<Node> out;
  out.reserve(count);
  for (size_t i = 0; i < count; ++i)
    out.emplace_back(value_->items[i], path_ + "[" + std::to_string(i) + "]", where_);
  return out;
}

const std::string& Node::string() const {
  if (value_->kind != Json::Kind::kString) expect("a string");
  // Names go to C strings, which end at the first zero.
  if (value_->text.find('\0') != std::string::npos) fail("holds a character of code 0");
  return value_->text;
}

const std::string& Node::string(bool (*fits)(const std::string&), const char* kind) const {
  if (!fits(string())) expect(kind);
  return value_->text;
}

int64_t Node::integer(int64_t low, int64_t high) const {
  const bool whole = value_->kind == Json::Kind::kNumber &&
                     value_->text.find_first_of(".eE") == std::string::npos;
  if (!whole) expect("a whole number");
  errno = 0;
  const long long number = std::strtoll(value_->text.c_str(), nullptr, 10);
  if (errno || number < low || number > high)
    fail(value_->text + " is not from " + std::to_string(low) + " to " + std::to_string(high));
  return number;
}

const Json& Node::object() const {
  if (value_->kind != Json::Kind::kObject) expect("an object");
  return *value_;
}

}  // namespace lutcc
