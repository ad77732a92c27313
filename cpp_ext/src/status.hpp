// One sentence into the caller's buffer, and no exception past the C functions.
#pragma once

#include <new>

#include "edgealign.h"

namespace ea {

// Writes the sentence, if there is a buffer for it, and returns the status.
__attribute__((format(printf, 3, 4))) ea_status fail(char *message, ea_status status, const char *format, ...);

inline ea_status null_pointer(char *message) {
    return fail(message, EA_INVALID_ARGUMENT, "a pointer that must not be NULL is NULL");
}

template <class Body>
ea_status guarded(char *message, Body body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return fail(message, EA_OUT_OF_MEMORY, "out of memory");
    }
}

}  // namespace ea
