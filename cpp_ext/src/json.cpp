#include "json.hpp"

#include <algorithm>
#include <clocale>
#include <cstdlib>

#include <locale.h>

#include "store.hpp"

#if defined(__APPLE__)
#include <xlocale.h>
#endif

namespace ea {
namespace {

constexpr int MAX_DEPTH = 16;
constexpr size_t MAX_WHOLE_CHARACTERS = 16;

// strtod reads a decimal comma where the host program has set such a locale.
class CLocale {
public:
    CLocale() : locale_(newlocale(LC_ALL_MASK, "C", nullptr)) {
        if (!locale_) throw std::bad_alloc();
    }
    ~CLocale() { freelocale(locale_); }
    CLocale(const CLocale &) = delete;
    double number(const char *text) const { return strtod_l(text, nullptr, locale_); }

private:
    locale_t locale_;
};

class Parser {
public:
    explicit Parser(std::string_view text) : text_(text) {}

    Json document() {
        if (!valid_utf8(text_)) refuse("it is not UTF-8");
        Json value = read(1);
        skip_space();
        if (at_ < text_.size()) refuse("there is more after its end");
        return value;
    }

private:
    std::string_view text_;
    size_t at_ = 0;
    CLocale locale_;

    [[noreturn]] void refuse(const char *what) const {
        throw Json::Unusable{std::string(what) + " (byte " + std::to_string(at_) + ")"};
    }
    int peek() const { return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : -1; }
    void skip_space() {
        while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') at_++;
    }
    bool take(char wanted) {
        skip_space();
        if (peek() != wanted) return false;
        at_++;
        return true;
    }
    void expect(char wanted) {
        if (!take(wanted)) refuse((std::string("expected '") + wanted + "'").c_str());
    }
    bool take_word(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Json read(int depth) {
        if (depth > MAX_DEPTH) refuse("it is nested deeper than 16 levels");
        Json value;
        skip_space();
        if (peek() == '{') {
            read_object(value, depth);
        } else if (peek() == '[') {
            at_++;
            value.kind = Json::LIST;
            if (take(']')) return value;
            do value.items.push_back(read(depth + 1));
            while (take(','));
            expect(']');
        } else if (peek() == '"') {
            value.kind = Json::TEXT;
            value.text = read_text();
        } else if (take_word("true")) {
            value.kind = Json::BOOLEAN, value.boolean = true;
        } else if (take_word("false")) {
            value.kind = Json::BOOLEAN;
        } else if (!take_word("null")) {
            read_number(value);
        }
        return value;
    }

    void read_object(Json &value, int depth) {
        at_++;
        value.kind = Json::OBJECT;
        if (take('}')) return;
        do {
            skip_space();
            if (peek() != '"') refuse("expected a key");
            std::string key = read_text();
            expect(':');
            value.members.emplace_back(std::move(key), read(depth + 1));
        } while (take(','));
        expect('}');
        // Sorted and not searched for each: a manifest of a million bytes may have a hundred thousand keys.
        std::vector<std::string_view> keys;
        for (const auto &member : value.members) keys.push_back(member.first);
        std::sort(keys.begin(), keys.end());
        if (std::adjacent_find(keys.begin(), keys.end()) != keys.end()) refuse("a key appears twice");
    }

    void digits() {
        if (peek() < '0' || peek() > '9') refuse("expected a value");
        while (peek() >= '0' && peek() <= '9') at_++;
    }

    void read_number(Json &value) {
        const size_t start = at_;
        value.kind = Json::WHOLE;
        if (peek() == '-') at_++;
        if (peek() == '0') {
            at_++;
        } else {
            digits();
        }
        if (peek() == '.') at_++, digits(), value.kind = Json::REAL;
        if (peek() == 'e' || peek() == 'E') {
            at_++;
            if (peek() == '+' || peek() == '-') at_++;
            digits();
            value.kind = Json::REAL;
        }
        const std::string written(text_.substr(start, at_ - start));
        if (value.kind == Json::WHOLE && written.size() > MAX_WHOLE_CHARACTERS) refuse("a number has too many digits");
        value.number = locale_.number(written.c_str());
    }

    uint32_t read_hex() {
        uint32_t code = 0;
        for (int i = 0; i < 4; i++, at_++) {
            const int c = peek();
            const int digit = c >= '0' && c <= '9'   ? c - '0'
                              : c >= 'a' && c <= 'f' ? c - 'a' + 10
                              : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                     : -1;
            if (digit < 0) refuse("an escape is damaged");
            code = code << 4 | uint32_t(digit);
        }
        return code;
    }

    void read_escape(std::string &text) {
        static constexpr std::string_view NAMES = "\"\\/bfnrt", MEANT = "\"\\/\b\f\n\r\t";
        const int c = peek();
        at_++;
        if (c != 'u') {
            const size_t which = c < 0 ? NAMES.npos : NAMES.find(char(c));
            if (which == NAMES.npos) refuse("an escape is damaged");
            text.push_back(MEANT[which]);
            return;
        }
        uint32_t code = read_hex();
        if (code >= 0xd800 && code < 0xdc00) {
            if (!take_word("\\u")) refuse("half of a surrogate pair");
            const uint32_t low = read_hex();
            if (low < 0xdc00 || low > 0xdfff) refuse("half of a surrogate pair");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        } else if (code >= 0xdc00 && code <= 0xdfff) {
            refuse("half of a surrogate pair");
        }
        if (code < 0x80) {
            text.push_back(char(code));
            return;
        }
        const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        static constexpr uint8_t LEAD[] = {0, 0xc0, 0xe0, 0xf0};
        text.push_back(char(LEAD[more] | code >> (6 * more)));
        for (int i = more - 1; i >= 0; i--) text.push_back(char(0x80 | (code >> (6 * i) & 0x3f)));
    }

    std::string read_text() {
        std::string text;
        for (at_++; peek() != '"';) {
            if (peek() < 0x20) refuse("a text is cut short or holds a control character");  // or the end, -1
            if (peek() == '\\') {
                at_++;
                read_escape(text);
            } else {
                text.push_back(text_[at_++]);
            }
        }
        at_++;
        return text;
    }
};

}  // namespace

Json Json::parse(std::string_view text) { return Parser(text).document(); }

const Json *Json::find(std::string_view key) const {
    for (const auto &member : members)
        if (member.first == key) return &member.second;
    return nullptr;
}

}  // namespace ea
