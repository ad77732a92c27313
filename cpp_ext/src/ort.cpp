#include "ort.hpp"

#include <cstdlib>

#include <dlfcn.h>

#include "level2.hpp"

namespace ea {
namespace {

// OrtApi is a table that only ever grows at its end, so positions never change (onnxruntime_c_api.h, MIT license).
enum OrtFunction {
    GET_ERROR_MESSAGE = 2,
    CREATE_ENV = 3,
    CREATE_SESSION_FROM_ARRAY = 8,
    RUN = 9,
    CREATE_SESSION_OPTIONS = 10,
    SET_SESSION_LOG_SEVERITY_LEVEL = 22,
    SET_INTRA_OP_NUM_THREADS = 24,
    SET_INTER_OP_NUM_THREADS = 25,
    CREATE_TENSOR_WITH_DATA = 49,
    CREATE_CPU_MEMORY_INFO = 69,
    RELEASE_ENV = 92,
    RELEASE_STATUS = 93,
    RELEASE_MEMORY_INFO = 94,
    RELEASE_SESSION = 95,
    RELEASE_VALUE = 96,
    RELEASE_SESSION_OPTIONS = 100
};
constexpr uint32_t API_VERSION = 17;  // the first whose table is asked for; every newer ONNX Runtime has it
constexpr int LOG_ERRORS = 3, DEVICE_ALLOCATOR = 0, MEMORY_DEFAULT = 0, ELEMENT_FLOAT = 1;
constexpr const char *DEFAULT_LIBRARY = "libonnxruntime.so.1";

struct ApiBase {
    const void *(*get_api)(uint32_t version);
    const char *(*get_version_string)();
};

}  // namespace

std::shared_ptr<const Ort> Ort::open(const char *path) {
    if (!path || !*path) path = std::getenv("EDGEALIGN_ONNXRUNTIME");
    if (!path || !*path) path = DEFAULT_LIBRARY;
    // Never closed again: ONNX Runtime keeps threads' storage and static objects that do not survive it.
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *reason = dlerror();
        refuse(EA_RUNTIME_MISSING,
               "ONNX Runtime cannot be loaded: %s; name its shared library, such as onnxruntime/capi/"
               "libonnxruntime.so.* of Python's onnxruntime, by path or in $EDGEALIGN_ONNXRUNTIME",
               reason ? reason : path);
    }
    auto *get_base = reinterpret_cast<const void *(*)()>(dlsym(library, "OrtGetApiBase"));
    if (!get_base) {
        dlclose(library);
        refuse(EA_RUNTIME_MISSING, "'%s' is a library but not ONNX Runtime: it has no OrtGetApiBase", path);
    }
    return adopt(get_base());
}

std::shared_ptr<const Ort> Ort::adopt(const void *api_base) {
    const auto *base = static_cast<const ApiBase *>(api_base);
    if (!base) refuse(EA_INVALID_ARGUMENT, "OrtGetApiBase() gave nothing");
    const std::string version = base->get_version_string();
    // Looked at first, because an older ONNX Runtime prints a complaint when it is asked for a table that it lacks.
    int major = 0, minor = 0;
    if (std::sscanf(version.c_str(), "%d.%d", &major, &minor) != 2 || (major == 1 && minor < int(API_VERSION)))
        refuse(EA_RUNTIME_MISSING, "ONNX Runtime is %s: 1.%u or newer is needed", version.c_str(), API_VERSION);
    const void *api = base->get_api(API_VERSION);
    if (!api) refuse(EA_RUNTIME_MISSING, "ONNX Runtime %s lacks version %u of its C API", version.c_str(), API_VERSION);
    const std::shared_ptr<Ort> ort(new Ort);
    ort->version_ = version;
    ort->api_ = static_cast<void *const *>(api);
    ort->call("start", CREATE_ENV, LOG_ERRORS, "edgealign", &ort->env_);
    ort->call("start", CREATE_CPU_MEMORY_INFO, DEVICE_ALLOCATOR, MEMORY_DEFAULT, &ort->memory_info_);
    return ort;
}

Ort::~Ort() {
    if (!api_) return;
    release(RELEASE_MEMORY_INFO, memory_info_);
    release(RELEASE_ENV, env_);
}

void Ort::check(const char *doing, void *status) const {
    if (!status) return;
    const std::string text = reinterpret_cast<const char *(*)(const void *)>(api_[GET_ERROR_MESSAGE])(status);
    release(RELEASE_STATUS, status);
    refuse(EA_RUNTIME_FAILED, "ONNX Runtime %s cannot %s: %s", version_.c_str(), doing, text.c_str());
}

OrtSession::OrtSession(std::shared_ptr<const Ort> ort, const std::vector<uint8_t> &model) : ort_(std::move(ort)) {
    void *options = nullptr;
    ort_->call("load the encoder", CREATE_SESSION_OPTIONS, &options);
    const struct Released {
        const Ort &ort;
        void *options;
        ~Released() { ort.release(RELEASE_SESSION_OPTIONS, options); }
    } released{*ort_, options};
    ort_->call("load the encoder", SET_INTRA_OP_NUM_THREADS, options, 1);
    ort_->call("load the encoder", SET_INTER_OP_NUM_THREADS, options, 1);
    ort_->call("load the encoder", SET_SESSION_LOG_SEVERITY_LEVEL, options, LOG_ERRORS);
    ort_->call("load the encoder", CREATE_SESSION_FROM_ARRAY, ort_->env(), model.data(), model.size(), options,
               &session_);
}

OrtSession::~OrtSession() { ort_->release(RELEASE_SESSION, session_); }

void OrtSession::run(const char *input_name, float *input, const int64_t *input_shape, size_t input_rank,
                     const char *output_name, float *output, const int64_t output_shape[2]) const {
    struct Value {
        const Ort &ort;
        void *value = nullptr;
        ~Value() { ort.release(RELEASE_VALUE, value); }
    } in{*ort_}, out{*ort_};
    const auto bytes = [](const int64_t *shape, size_t rank) {
        size_t count = sizeof(float);
        for (size_t i = 0; i < rank; i++) count *= size_t(shape[i]);
        return count;
    };
    ort_->call("run the encoder", CREATE_TENSOR_WITH_DATA, ort_->memory_info(), input,
               bytes(input_shape, input_rank), input_shape, input_rank, ELEMENT_FLOAT, &in.value);
    ort_->call("run the encoder", CREATE_TENSOR_WITH_DATA, ort_->memory_info(), output, bytes(output_shape, 2),
               output_shape, size_t(2), ELEMENT_FLOAT, &out.value);
    const void *const inputs[] = {in.value};
    void *outputs[] = {out.value};
    ort_->call("run the encoder", RUN, session_, static_cast<const void *>(nullptr), &input_name,
               static_cast<const void *const *>(inputs), size_t(1), &output_name, size_t(1),
               static_cast<void **>(outputs));
}

namespace {

// The parts of ONNX's protobuf schema through which a TensorProto can be reached.
enum Message { MODEL, TRAINING, FUNCTION, GRAPH, NODE, ATTRIBUTE, SPARSE, TENSOR };
constexpr struct {
    Message within;
    uint64_t field;
    Message inner;
} INNER[] = {{MODEL, 7, GRAPH},      {MODEL, 20, TRAINING},    {MODEL, 25, FUNCTION},   {TRAINING, 1, GRAPH},
             {TRAINING, 2, GRAPH},   {FUNCTION, 7, NODE},      {FUNCTION, 11, ATTRIBUTE}, {GRAPH, 1, NODE},
             {GRAPH, 5, TENSOR},     {GRAPH, 15, SPARSE},      {NODE, 5, ATTRIBUTE},    {ATTRIBUTE, 5, TENSOR},
             {ATTRIBUTE, 6, GRAPH},  {ATTRIBUTE, 10, TENSOR},  {ATTRIBUTE, 11, GRAPH},  {ATTRIBUTE, 22, SPARSE},
             {ATTRIBUTE, 23, SPARSE}, {SPARSE, 1, TENSOR},     {SPARSE, 2, TENSOR}};
constexpr uint64_t TENSOR_EXTERNAL_DATA = 13, TENSOR_DATA_LOCATION = 14;
constexpr int MAX_ONNX_DEPTH = 64;

uint64_t varint(const uint8_t *&at, const uint8_t *end) {
    uint64_t value = 0;
    for (int shift = 0; at < end && shift < 70; shift += 7) {
        const uint8_t byte = *at++;
        if (shift < 64) value |= uint64_t(byte & 0x7f) << shift;
        if (byte < 0x80) return value;
    }
    refuse(EA_BUNDLE_UNREADABLE, "a number is cut short");
}

bool walk(const uint8_t *at, const uint8_t *end, Message message, int depth) {
    if (depth > MAX_ONNX_DEPTH) refuse(EA_BUNDLE_UNREADABLE, "nested deeper than %d levels", MAX_ONNX_DEPTH);
    while (at < end) {
        const uint64_t key = varint(at, end), field = key >> 3;
        const int wire = int(key & 7);
        uint64_t size = wire == 1 ? 8 : wire == 5 ? 4 : 0;
        if (wire == 0) {
            if (varint(at, end) != 0 && message == TENSOR && field == TENSOR_DATA_LOCATION) return true;
            continue;
        }
        if (wire == 2) {
            size = varint(at, end);
            if (message == TENSOR && field == TENSOR_EXTERNAL_DATA) return true;
        } else if (wire != 1 && wire != 5) {
            refuse(EA_BUNDLE_UNREADABLE, "wire type %d is not used by ONNX", wire);
        }
        if (size > uint64_t(end - at)) refuse(EA_BUNDLE_UNREADABLE, "a field reaches past its message");
        if (wire == 2)
            for (const auto &entry : INNER)
                if (entry.within == message && entry.field == field && walk(at, at + size, entry.inner, depth + 1))
                    return true;
        at += size;
    }
    return false;
}

}  // namespace

bool points_outside(const std::vector<uint8_t> &onnx_model) {
    return walk(onnx_model.data(), onnx_model.data() + onnx_model.size(), MODEL, 0);
}

}  // namespace ea
