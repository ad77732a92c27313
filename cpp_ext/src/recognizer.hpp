// One handle of level 2: a store, its matcher, and the clip that is being heard.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "clip_windows.hpp"
#include "intake.hpp"
#include "sha256.hpp"
#include "word_finder.hpp"

namespace ea {

// The SHA-256 of a clip, computed when it is asked for: only a clip that is learned needs it. What is longer than the
// room is computed on the way.
class ClipHash {
public:
    void begin(uint32_t sample_rate_hz);
    void add(const float *samples, size_t count);  // count <= Resampler::BLOCK
    Digest finish();

private:
    static constexpr size_t ROOM = 1 << 20;  // samples: a minute at 16 kHz
    Room<float> waiting_{ROOM};
    size_t n_waiting_ = 0;
    Sha256 hash_;
};

}  // namespace ea

struct ea_runtime {
    std::shared_ptr<const ea::Ort> ort;
};

struct ea_model {
    std::shared_ptr<const ea::Model> model;
};

struct ea_recognizer {
    struct StoreFree {
        void operator()(ea_store *store) const { ea_store_free(store); }
    };
    struct MatcherFree {
        void operator()(ea_matcher *matcher) const { ea_matcher_free(matcher); }
    };
    struct Learned {
        std::string label, name;
        std::vector<float> embedding;
        ea::Digest source_sha256;
    };
    using Store = std::unique_ptr<ea_store, StoreFree>;

    ea_recognizer(std::shared_ptr<const ea::Model> model, const char *store_path);

    // Whether the label of this word is known, and what it is: fills all of the answer but the times.
    void name_word(const ea::Word &word, size_t top_k, ea_answer *answer);
    void name_embedding(size_t top_k, ea_answer *answer);
    // Ends the clip; whether `embedding` is now that of its word, or of all of it.
    bool embed_clip();

    std::shared_ptr<const ea::Model> model;
    std::string store_path;  // empty: in memory only
    Store store;
    std::unique_ptr<ea_matcher, MatcherFree> matcher;  // none while there is no label
    std::vector<float> embedding, scratch;
    std::vector<ea_match> matches;
    std::vector<Learned> unsaved;

    bool in_clip = false;
    uint32_t sample_rate_hz = 0, n_channels = 0;
    uint64_t n_frames = 0;
    std::unique_ptr<ea::Resampler> resampler;
    std::vector<float> mono, resampled;
    ea::ClipHash source;  // of the rate and the mono samples before resampling
    // One of them, as the bundle's windows say.
    std::optional<ea::WordFinder> finder;
    std::optional<ea::ClipEncoder> clip;
    void hear(const float *samples, size_t count);

    void begin(uint32_t rate_hz, uint32_t channels);
    template <class Sample>
    void push(const Sample *samples, size_t count);
    void end_clip();
    double heard_s() const { return double(n_frames) / double(sample_rate_hz); }
    Store load_or_create() const;
    void renew_matcher();
    void save();
};
