// A strict reader of JSON (RFC 8259) for manifests: no key twice, no NaN, whole numbers of at most 16 digits, at most 16
// levels, valid UTF-8, nothing after the end. What breaks a rule throws Unusable.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ea {

struct Json {
    enum Kind { NOTHING, BOOLEAN, WHOLE, REAL, TEXT, LIST, OBJECT };
    struct Unusable {
        std::string what;
    };

    Kind kind = NOTHING;
    bool boolean = false;
    double number = 0;
    std::string text;
    std::vector<Json> items;
    std::vector<std::pair<std::string, Json>> members;

    static Json parse(std::string_view text);
    const Json *find(std::string_view key) const;  // nullptr: not there, or not an object
    bool is_number() const { return kind == WHOLE || kind == REAL; }
};

}  // namespace ea
