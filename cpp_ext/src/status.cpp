#include "status.hpp"

#include <cstdarg>
#include <cstdio>

ea_status ea::fail(char *message, ea_status status, const char *format, ...) {
    if (message) {
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(message, EA_MESSAGE_BYTES, format, arguments);
        va_end(arguments);
    }
    return status;
}

const char *ea_status_text(ea_status status) {
    switch (status) {
        case EA_OK: return "ok";
        case EA_INVALID_ARGUMENT: return "a size, an index or an option that makes no sense";
        case EA_NOT_FINITE: return "NaN or infinity in an input";
        case EA_OUT_OF_MEMORY: return "out of memory";
        case EA_IO: return "the operating system refused to read or write";
        case EA_NOT_FOUND: return "no such file or label";
        case EA_STORE_UNREADABLE: return "not a readable store";
        case EA_STORE_MISMATCH: return "a store of another modality, encoder or dim";
        case EA_LIMIT: return "beyond a limit of the format";
        case EA_BUSY: return "somebody else is writing the store";
        case EA_NOTHING_TO_UNDO: return "nothing to undo";
        case EA_BUNDLE_UNREADABLE: return "not a readable bundle";
        case EA_RUNTIME_MISSING: return "no usable ONNX Runtime";
        case EA_RUNTIME_FAILED: return "ONNX Runtime refused";
        case EA_NO_SOUND: return "no sound stands out";
        case EA_WRONG_STATE: return "not in this state";
    }
    return "unknown status";
}

const char *ea_version(void) { return EA_VERSION; }
