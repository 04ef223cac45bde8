#include "json.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "failure.hpp"

namespace lutcc {
namespace {

constexpr int kDeepest = 200;

void append_utf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xc0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xe0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (c & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3f));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (c & 0x3f));
  }
}

// The character that starts at `at`, which moves behind it; 0xffffffff when it is no UTF-8.
uint32_t next_utf8(std::string_view text, size_t& at) {
  constexpr uint32_t kBad = 0xffffffff;
  const auto first = static_cast<unsigned char>(text[at++]);
  if (first < 0x80) return first;
  const int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
  if (first < 0xc2 || first > 0xf4) return kBad;
  uint32_t c = first & (0x3fu >> more);
  for (int i = 0; i < more; ++i, ++at) {
    if (at >= text.size() || (static_cast<unsigned char>(text[at]) & 0xc0) != 0x80) return kBad;
    c = c << 6 | (static_cast<unsigned char>(text[at]) & 0x3f);
  }
  const uint32_t least[] = {0x80, 0x800, 0x10000};
  return c < least[more - 1] || c > 0x10ffff ? kBad : c;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json whole() {
    Json value = any(0);
    space();
    if (at_ != text_.size()) bad("there is something behind the value");
    return value;
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    throw what + " at byte " + std::to_string(at_);
  }

  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' ||
                                  text_[at_] == '\t'))
      ++at_;
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void take(char c) {
    if (peek() != c || at_ >= text_.size()) bad(std::string("expected '") + c + "'");
    ++at_;
  }

  bool word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }

  Json any(int depth) {
    if (depth > kDeepest) bad("it is nested too deeply");
    space();
    Json value;
    const char c = peek();
    if (c == '{') {
      object(value, depth);
    } else if (c == '[') {
      list(value, depth);
    } else if (c == '"') {
      value.kind = Json::Kind::kString;
      value.text = string();
    } else if (c == '-' || (c >= '0' && c <= '9')) {
      value.kind = Json::Kind::kNumber;
      value.text = number();
    } else if (word("true")) {
      value.kind = Json::Kind::kBool;
      value.flag = true;
    } else if (word("false")) {
      value.kind = Json::Kind::kBool;
    } else if (!word("null")) {
      bad("expected a value");
    }
    return value;
  }

  void object(Json& value, int depth) {
    value.kind = Json::Kind::kObject;
    take('{');
    space();
    if (peek() == '}') return take('}');
    while (true) {
      space();
      std::string key = string();
      space();
      take(':');
      value.members.push_back({std::move(key), any(depth + 1)});
      space();
      if (peek() == '}') break;
      take(',');
    }
    take('}');
    std::sort(value.members.begin(), value.members.end(),
              [](const Member& a, const Member& b) { return a.key < b.key; });
    for (size_t i = 1; i < value.members.size(); ++i)
      if (value.members[i - 1].key == value.members[i].key)
        throw "the key " + quoted(value.members[i].key) + " occurs twice";
  }

  void list(Json& value, int depth) {
    value.kind = Json::Kind::kList;
    take('[');
    space();
    if (peek() == ']') return take(']');
    while (true) {
      value.items.push_back(any(depth + 1));
      space();
      if (peek() == ']') break;
      take(',');
    }
    take(']');
  }

  bool digits() {
    const size_t first = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > first;
  }

  std::string number() {
    const size_t first = at_;
    if (peek() == '-') ++at_;
    if (peek() == '0')
      ++at_;
    else if (!digits())
      bad("expected a digit");
    if (peek() == '.') {
      ++at_;
      if (!digits()) bad("expected a digit");
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!digits()) bad("expected a digit");
    }
    return std::string(text_.substr(first, at_ - first));
  }

  uint32_t hex4() {
    uint32_t c = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char d = peek();
      if (d >= '0' && d <= '9')
        c = c << 4 | static_cast<uint32_t>(d - '0');
      else if (d >= 'a' && d <= 'f')
        c = c << 4 | static_cast<uint32_t>(d - 'a' + 10);
      else if (d >= 'A' && d <= 'F')
        c = c << 4 | static_cast<uint32_t>(d - 'A' + 10);
      else
        bad("expected four hex digits");
    }
    return c;
  }

  void escape(std::string& out) {
    static constexpr std::string_view kNames = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    const char c = peek();
    ++at_;
    if (const size_t i = kNames.find(c); i != std::string_view::npos) {
      out += kMeant[i];
    } else if (c == 'u') {
      uint32_t high = hex4();
      if (high >= 0xd800 && high < 0xdc00 && text_.substr(at_, 2) == "\\u") {
        const size_t before = at_;
        at_ += 2;
        const uint32_t low = hex4();
        if (low >= 0xdc00 && low < 0xe000)
          high = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
        else
          at_ = before;
      }
      append_utf8(out, high);
    } else {
      bad("unknown escape");
    }
  }

  std::string string() {
    std::string out;
    take('"');
    while (true) {
      if (at_ >= text_.size()) bad("a string does not end");
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') break;
      if (c < 0x20) bad("a control character in a string");
      if (c == '\\') {
        ++at_;
        escape(out);
        continue;
      }
      const size_t first = at_;
      const uint32_t point = next_utf8(text_, at_);
      if (point == 0xffffffff || (point >= 0xd800 && point < 0xe000)) bad("it is no UTF-8");
      out.append(text_.substr(first, at_ - first));
    }
    take('"');
    return out;
  }

  std::string_view text_;
  size_t at_ = 0;
};

void write_string(std::string& out, std::string_view text) {
  char code[16];
  out += '"';
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = next_utf8(text, at);
    static constexpr std::string_view kNames = "\"\\bfnrt", kMeant = "\"\\\b\f\n\r\t";
    if (const size_t i = c < 0x80 ? kMeant.find(static_cast<char>(c)) : std::string_view::npos;
        i != std::string_view::npos) {
      out += '\\';
      out += kNames[i];
    } else if (c >= 0x20 && c < 0x7f) {
      out += static_cast<char>(c);
    } else if (c < 0x10000) {
      std::snprintf(code, sizeof code, "\\u%04x", c);
      out += code;
    } else {
      std::snprintf(code, sizeof code, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10),
                    0xdc00 + ((c - 0x10000) & 0x3ff));
      out += code;
    }
  }
  out += '"';
}

void write(std::string& out, const Json& value, std::string_view without) {
  switch (value.kind) {
    case Json::Kind::kNull:
      out += "null";
      break;
    case Json::Kind::kBool:
      out += value.flag ? "true" : "false";
      break;
    case Json::Kind::kNumber:
      out += value.text;
      break;
    case Json::Kind::kString:
      write_string(out, value.text);
      break;
    case Json::Kind::kList:
      out += '[';
      for (size_t i = 0; i < value.items.size(); ++i) {
        if (i) out += ',';
        write(out, value.items[i], {});
      }
      out += ']';
      break;
    case Json::Kind::kObject: {
      out += '{';
      bool first = true;
      for (const Member& member : value.members) {
        if (!without.empty() && member.key == without) continue;
        if (!first) out += ',';
        first = false;
        write_string(out, member.key);
        out += ':';
        write(out, member.value, {});
      }
      out += '}';
    }
  }
}

}  // namespace

const Json* Json::find(std::string_view key) const {
  const auto found =
      std::lower_bound(members.begin(), members.end(), key,
                       [](const Member& member, std::string_view k) { return member.key < k; });
  return found != members.end() && found->key == key ? &found->value : nullptr;
}

Json parse_json(std::string_view data) { return Parser(data).whole(); }

std::string canonical_json(const Json& value, std::string_view without) {
  std::string out;
  write(out, value, without);
  return out;
}

}  // namespace lutcc
