// ONNX Runtime through its C table of functions, without its headers and without linking to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ea {

class Ort {
public:
    static std::shared_ptr<const Ort> open(const char *path);
    static std::shared_ptr<const Ort> adopt(const void *api_base);
    ~Ort();
    Ort(const Ort &) = delete;

    const std::string &version() const { return version_; }

    // Calls function `index` of OrtApi, which returns an OrtStatus; a Failure that begins with `doing` where it is one.
    template <class... Arguments>
    void call(const char *doing, int index, Arguments... arguments) const {
        using Function = void *(*)(Arguments...);
        check(doing, reinterpret_cast<Function>(api_[index])(arguments...));
    }
    template <class Handle>
    void release(int index, Handle *handle) const {
        using Function = void (*)(void *);
        if (handle) reinterpret_cast<Function>(api_[index])(handle);
    }
    const void *memory_info() const { return memory_info_; }
    const void *env() const { return env_; }

private:
    Ort() = default;
    void check(const char *doing, void *status) const;

    void *const *api_ = nullptr;
    void *env_ = nullptr, *memory_info_ = nullptr;
    std::string version_;
};

// float32 in, float32 out; a session may run in many threads.
class OrtSession {
public:
    OrtSession(std::shared_ptr<const Ort> ort, const std::vector<uint8_t> &model);
    ~OrtSession();
    OrtSession(const OrtSession &) = delete;

    const Ort &ort() const { return *ort_; }
    // output must have the size that the graph gives; its shape has 2 elements.
    void run(const char *input_name, float *input, const int64_t *input_shape, size_t input_rank,
             const char *output_name, float *output, const int64_t output_shape[2]) const;

private:
    std::shared_ptr<const Ort> ort_;
    void *session_ = nullptr;
};

// Whether a tensor of an ONNX model names data in another file. A Failure where the bytes are not protobuf.
bool points_outside(const std::vector<uint8_t> &onnx_model);

}  // namespace ea
