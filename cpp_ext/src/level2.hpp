// What the parts of level 2 share: failures as exceptions inside, as a status and a sentence at the boundary.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "edgealign_rt.h"
#include "status.hpp"

namespace ea {

struct Failure {
    ea_status status;
    std::string what;
};

[[noreturn]] __attribute__((format(printf, 2, 3))) inline void refuse(ea_status status, const char *format, ...) {
    char text[EA_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    throw Failure{status, text};
}

// Runs a body that may throw a Failure; EA_OK otherwise.
template <class Body>
ea_status at_boundary(char *message, Body body) {
    try {
        body();
        return EA_OK;
    } catch (const Failure &failure) {
        return fail(message, failure.status, "%s", failure.what.c_str());
    } catch (const std::bad_alloc &) {
        return fail(message, EA_OUT_OF_MEMORY, "out of memory");
    } catch (const std::length_error &) {
        return fail(message, EA_OUT_OF_MEMORY, "out of memory");
    }
}

// The core's own functions speak in statuses; their sentence is kept.
inline void require(ea_status status, const char *message) {
    if (status != EA_OK) throw Failure{status, *message ? message : ea_status_text(status)};
}

inline void require_pointers(bool all_there) {
    if (!all_there) refuse(EA_INVALID_ARGUMENT, "a pointer that must not be NULL is NULL");
}

template <class Options>
void require_struct(const Options *options, const char *name) {
    if (!options || options->struct_size < sizeof *options)
        refuse(EA_INVALID_ARGUMENT, "%s is NULL or its struct_size is not set to its sizeof", name);
}

}  // namespace ea
