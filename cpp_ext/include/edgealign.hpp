// edgealign.hpp: edgealign_rt.h for C++17. Handles free themselves, failures are edgealign::Error.
//
//     edgealign::Model model("bundles/speech", edgealign::Runtime("libonnxruntime.so.1"));
//     edgealign::Recognizer recognizer(model, "words.store");
//     const edgealign::Answer answer = recognizer.classify(samples, 16000);
//     std::puts(answer.label ? answer.label->c_str() : "(unknown)");
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "edgealign_rt.h"

struct OrtApiBase;  // of onnxruntime_c_api.h, which is not needed

namespace edgealign {

class Error : public std::runtime_error {
public:
    Error(ea_status status, const char *message)
        : std::runtime_error(*message ? message : ea_status_text(status)), status(status) {}
    const ea_status status;
};

namespace detail {

template <class Call>
void call(Call made) {
    char message[EA_MESSAGE_BYTES] = "";
    const ea_status status = made(message);
    if (status != EA_OK) throw Error(status, message);
}

template <class Handle, void (*release)(Handle *)>
struct Free {
    void operator()(Handle *handle) const { release(handle); }
};

template <class Handle, void (*release)(Handle *)>
using Owned = std::unique_ptr<Handle, Free<Handle, release>>;

}  // namespace detail

struct Candidate {
    std::string label;
    float distance;
    double probability;
};

// ea_answer with strings of its own.
struct Answer {
    bool has_sound = false;
    std::optional<std::string> label;  // none: unknown
    double probability = 0, distance = 0, threshold = 0;
    std::vector<Candidate> top;
    size_t n_sounds = 0;
    double start_s = 0, end_s = 0, heard_s = 0;
};

namespace detail {

inline Answer taken(const ea_recognizer *recognizer, const ea_answer &answer) {
    Answer made;
    made.has_sound = answer.has_sound != 0;
    if (answer.label) made.label = answer.label;
    made.probability = answer.probability, made.distance = answer.distance, made.threshold = answer.threshold;
    for (size_t i = 0; i < answer.n_top; i++) {
        const ea_match &match = answer.top[i];
        made.top.push_back(
            {ea_recognizer_label(recognizer, size_t(match.label)), match.distance, match.probability});
    }
    made.n_sounds = answer.n_sounds;
    made.start_s = answer.start_s, made.end_s = answer.end_s, made.heard_s = answer.heard_s;
    return made;
}

}  // namespace detail

class Runtime {
public:
    // Empty: $EDGEALIGN_ONNXRUNTIME, else libonnxruntime.so.1.
    explicit Runtime(const std::string &path = "") {
        detail::call([&](char *message) {
            ea_runtime *made = nullptr;
            const ea_status status = ea_runtime_open(path.empty() ? nullptr : path.c_str(), &made, message);
            handle_.reset(made);
            return status;
        });
    }
    // What the program's own OrtGetApiBase() returned. Not `const void *`: a path in quotes would be taken for one.
    explicit Runtime(const ::OrtApiBase *ort_api_base) {
        detail::call([&](char *message) {
            ea_runtime *made = nullptr;
            const ea_status status = ea_runtime_adopt(ort_api_base, &made, message);
            handle_.reset(made);
            return status;
        });
    }
    std::string version() const { return ea_runtime_version(handle_.get()); }
    const ea_runtime *get() const { return handle_.get(); }

private:
    detail::Owned<ea_runtime, ea_runtime_free> handle_;
};

class Model {
public:
    // variant: of the encoder; empty is the bundle's default.
    Model(const std::string &bundle, const Runtime &runtime, const std::string &variant = "") {
        const ea_model_options options = {sizeof options, variant.empty() ? nullptr : variant.c_str()};
        detail::call([&](char *message) {
            ea_model *made = nullptr;
            const ea_status status = ea_model_open(bundle.c_str(), runtime.get(), &options, &made, message);
            handle_.reset(made);
            return status;
        });
    }
    std::string name() const { return ea_model_name(get()); }
    std::string modality() const { return ea_model_modality(get()); }
    std::string variant() const { return ea_model_variant(get()); }
    size_t dim() const { return ea_model_dim(get()); }
    const uint8_t *encoder_sha256() const { return ea_model_encoder_sha256(get()); }
    double accept_probability() const { return ea_model_accept_probability(get()); }
    const ea_model *get() const { return handle_.get(); }

private:
    detail::Owned<ea_model, ea_model_free> handle_;
};

// For one thread at a time; any number of them share a model.
class Recognizer {
public:
    // store: need not exist before the first save; empty is in memory only.
    explicit Recognizer(const Model &model, const std::string &store = "") : dim_(model.dim()) {
        detail::call([&](char *message) {
            ea_recognizer *made = nullptr;
            const ea_status status =
                ea_recognizer_open(model.get(), store.empty() ? nullptr : store.c_str(), &made, message);
            handle_.reset(made);
            return status;
        });
    }

    // A clip piece by piece: begin, push, push, then one of the functions without samples.
    void begin(uint32_t sample_rate_hz, uint32_t n_channels = 1) {
        detail::call([&](char *m) { return ea_recognizer_begin(get(), sample_rate_hz, n_channels, m); });
    }
    void push(const float *samples, size_t n_frames) {
        detail::call([&](char *m) { return ea_recognizer_push(get(), samples, n_frames, m); });
    }
    void push(const int16_t *samples, size_t n_frames) {
        detail::call([&](char *m) { return ea_recognizer_push_i16(get(), samples, n_frames, m); });
    }
    Answer classify(size_t top_k = 2) {
        ea_answer answer = {};
        answer.struct_size = sizeof answer;
        detail::call([&](char *m) { return ea_recognizer_classify(get(), top_k, &answer, m); });
        return detail::taken(get(), answer);
    }
    std::vector<float> embed() {
        std::vector<float> embedding(dim_);
        detail::call([&](char *m) { return ea_recognizer_embed(get(), embedding.data(), m); });
        return embedding;
    }
    // Whether the recording was new.
    bool enroll(const std::string &label, const std::string &name = "") {
        size_t n_added = 0;
        detail::call([&](char *m) { return ea_recognizer_enroll(get(), label.c_str(), name.c_str(), &n_added, m); });
        return n_added > 0;
    }

    // A mono clip at once.
    template <class Sample>
    Answer classify(const std::vector<Sample> &samples, uint32_t sample_rate_hz, size_t top_k = 2) {
        begin(sample_rate_hz);
        push(samples.data(), samples.size());
        return classify(top_k);
    }
    template <class Sample>
    bool enroll(const std::string &label, const std::vector<Sample> &samples, uint32_t sample_rate_hz) {
        begin(sample_rate_hz);
        push(samples.data(), samples.size());
        return enroll(label);
    }

    void save() {
        detail::call([&](char *m) { return ea_recognizer_save(get(), m); });
    }
    std::vector<std::string> labels() const {
        std::vector<std::string> all(ea_recognizer_n_labels(get()));
        for (size_t i = 0; i < all.size(); i++) all[i] = ea_recognizer_label(get(), i);
        return all;
    }
    const ea_store *store() const { return ea_recognizer_store(get()); }
    ea_recognizer *get() const { return handle_.get(); }

private:
    size_t dim_;
    detail::Owned<ea_recognizer, ea_recognizer_free> handle_;
};

// push in one thread, everything else in another; the recognizer must outlive it.
class Stream {
public:
    Stream(Recognizer &recognizer, uint32_t sample_rate_hz, uint32_t n_channels = 1, double debounce_s = 0,
           double ring_s = 0)
        : recognizer_(recognizer.get()) {
        const ea_stream_options options = {sizeof options, sample_rate_hz, n_channels, ring_s, debounce_s};
        detail::call([&](char *message) {
            ea_stream *made = nullptr;
            const ea_status status = ea_stream_open(recognizer.get(), &options, &made, message);
            handle_.reset(made);
            return status;
        });
    }
    // EA_LIMIT where the ring is full; never throws, so that it may be called by an audio callback.
    ea_status push(const float *samples, size_t n_frames) noexcept {
        return ea_stream_push(handle_.get(), samples, n_frames);
    }
    ea_status push(const int16_t *samples, size_t n_frames) noexcept {
        return ea_stream_push_i16(handle_.get(), samples, n_frames);
    }
    void end() noexcept { ea_stream_end(handle_.get()); }
    uint64_t n_dropped() const noexcept { return ea_stream_n_dropped(handle_.get()); }
    // The next word that ended; none where everything has been worked through.
    std::optional<Answer> poll(size_t top_k = 2) {
        ea_answer answer = {};
        answer.struct_size = sizeof answer;
        int32_t heard = 0;
        detail::call([&](char *m) { return ea_stream_poll(handle_.get(), top_k, &answer, &heard, m); });
        if (!heard) return std::nullopt;
        return detail::taken(recognizer_, answer);
    }

private:
    const ea_recognizer *recognizer_;  // which stays where it is when its Recognizer is moved
    detail::Owned<ea_stream, ea_stream_free> handle_;
};

}  // namespace edgealign
