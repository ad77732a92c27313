#include "recognizer.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include <time.h>
#include <unistd.h>

#include "store.hpp"

using namespace ea;

namespace {

constexpr int LOCK_TRIES = 100;
constexpr long LOCK_PAUSE_NS = 10'000'000;

std::string short_hex(const uint8_t *digest) {
    char text[13];
    for (int i = 0; i < 6; i++) std::snprintf(text + 2 * i, 3, "%02x", digest[i]);
    return text;
}

}  // namespace

void ClipHash::begin(uint32_t sample_rate_hz) {
    hash_ = Sha256();
    n_waiting_ = 0;
    char rate[32];
    hash_.add(rate, size_t(std::snprintf(rate, sizeof rate, "%g Hz\n", double(sample_rate_hz))));
}

void ClipHash::add(const float *samples, size_t count) {
    if (count > ROOM - n_waiting_) {
        hash_.add(waiting_.get(), n_waiting_ * sizeof(float));
        n_waiting_ = 0;
    }
    std::copy_n(samples, count, waiting_.get() + n_waiting_);
    n_waiting_ += count;
}

Digest ClipHash::finish() {
    hash_.add(waiting_.get(), n_waiting_ * sizeof(float));
    n_waiting_ = 0;
    return hash_.finish();
}

ea_recognizer::ea_recognizer(std::shared_ptr<const Model> opened, const char *path)
    : model(std::move(opened)),
      store_path(path ? path : ""),
      embedding(model->dim),
      matches(EA_MAX_TOP),
      mono(Resampler::BLOCK) {
    if (model->finds_words())
        finder.emplace(model);
    else
        clip.emplace(model);
    store = load_or_create();
    renew_matcher();
}

ea_recognizer::Store ea_recognizer::load_or_create() const {
    char message[EA_MESSAGE_BYTES] = "";
    ea_store *opened = nullptr;
    ea_status status = EA_NOT_FOUND;
    if (!store_path.empty()) status = ea_store_load(store_path.c_str(), &opened, message);
    if (status == EA_NOT_FOUND)
        status = ea_store_create(model->modality.c_str(), model->encoder_sha256.data(), model->dim, &opened, message);
    require(status, message);
    Store result(opened);
    if (result->modality != model->modality || result->encoder_sha256 != model->encoder_sha256
        || result->dim != model->dim)
        refuse(EA_STORE_MISMATCH,
               "'%s' holds %s of encoder %s, but the bundle is for %s with encoder %s: use the bundle it was made "
               "with, or another store",
               store_path.c_str(), result->modality.c_str(), short_hex(result->encoder_sha256.data()).c_str(),
               model->modality.c_str(), short_hex(model->encoder_sha256.data()).c_str());
    return result;
}

void ea_recognizer::renew_matcher() {
    matcher.reset();
    if (ea_store_n_labels(store.get()) == 0) return;
    char message[EA_MESSAGE_BYTES] = "";
    ea_matcher *made = nullptr;
    require(ea_matcher_from_store(store.get(), model->bank.data(), model->n_bank, &model->calibration,
                                  model->text_weight, &made, message),
            message);
    matcher.reset(made);
    scratch.resize(ea_matcher_scratch_floats(made));
}

void ea_recognizer::begin(uint32_t rate_hz, uint32_t channels) {
    check_format(rate_hz, channels);
    in_clip = false;
    if (!resampler || rate_hz != sample_rate_hz) {
        resampler = std::make_unique<Resampler>(rate_hz, model->sample_rate_hz);
        resampled.resize(resampler->max_output());
    }
    resampler->reset();
    sample_rate_hz = rate_hz, n_channels = channels;
    n_frames = 0;
    source.begin(rate_hz);
    if (finder)
        finder->begin();
    else
        clip->begin();
    in_clip = true;
}

template <class Sample>
void ea_recognizer::push(const Sample *samples, size_t count) {
    if (!in_clip) refuse(EA_WRONG_STATE, "there is no clip to add to: call ea_recognizer_begin first");
    require_pointers(samples || count == 0);
    if (!fits_memory<Sample>(count, n_channels))
        refuse(EA_INVALID_ARGUMENT, "%zu frames of %u channel(s): no memory holds as many", count, n_channels);
    const ea_status status = check_samples(samples, count * n_channels);
    if (status != EA_OK)
        refuse(status, "a sample is NaN, infinite or beyond +-%g: samples between -1 and 1 are expected",
               double(EA_MAX_SAMPLE));
    for (size_t done = 0; done < count; done += Resampler::BLOCK) {
        const size_t n = std::min(Resampler::BLOCK, count - done);
        mix(samples + done * n_channels, n, n_channels, mono.data());
        source.add(mono.data(), n);
        hear(resampled.data(), resampler->push(mono.data(), n, resampled.data()));
    }
    n_frames += count;
}

void ea_recognizer::hear(const float *samples, size_t count) {
    if (finder)
        finder->add(samples, count);
    else
        clip->add(samples, count);
}

void ea_recognizer::end_clip() {
    if (!in_clip) refuse(EA_WRONG_STATE, "there is no clip: call ea_recognizer_begin and ea_recognizer_push first");
    in_clip = false;
    if (heard_s() < MIN_DURATION_S)
        refuse(EA_INVALID_ARGUMENT, "the clip holds %llu frame(s): at least %.0f ms are needed",
               static_cast<unsigned long long>(n_frames), MIN_DURATION_S * 1e3);
    while (const size_t n = resampler->finish(resampled.data())) hear(resampled.data(), n);
    if (finder) finder->finish();
}

bool ea_recognizer::embed_clip() {
    end_clip();
    if (!finder)
        clip->finish(embedding.data());
    else if (finder->n_sounds)
        finder->word.encode(*model, embedding.data());
    else
        return false;
    return true;
}

void ea_recognizer::name_word(const Word &word, size_t top_k, ea_answer *answer) {
    if (!matcher) refuse(EA_WRONG_STATE, "there are no labels yet: enroll clips first");
    word.encode(*model, embedding.data());
    name_embedding(top_k, answer);
}

void ea_recognizer::name_embedding(size_t top_k, ea_answer *answer) {
    require(ea_classify(matcher.get(), embedding.data(), top_k, scratch.data(), matches.data(), &answer->n_top),
            "the embedding cannot be matched");
    const ea_match &best = matches[0];
    answer->has_sound = 1;
    answer->label = best.accepted ? ea_store_label(store.get(), size_t(best.label)) : nullptr;
    answer->probability = best.probability;
    answer->distance = double(best.distance);
    answer->threshold = best.threshold;
    answer->top = matches.data();
}

void ea_recognizer::save() {
    if (store_path.empty()) refuse(EA_WRONG_STATE, "the recognizer was opened without a store to save to");
    if (unsaved.empty()) return;
    char message[EA_MESSAGE_BYTES] = "";
    struct Lock {
        ea_store_lock *lock = nullptr;
        ~Lock() { ea_store_lock_release(lock); }
    } held;
    ea_status status = EA_BUSY;
    for (int i = 0; i < LOCK_TRIES; i++) {
        status = ea_store_lock_acquire(store_path.c_str(), &held.lock, message);
        if (status != EA_BUSY) break;
        const timespec pause = {0, LOCK_PAUSE_NS};
        nanosleep(&pause, nullptr);
    }
    require(status, message);
    Store current = load_or_create();
    ea_store_begin_op(current.get());
    for (const Learned &row : unsaved) {
        const char *name = row.name.c_str();
        size_t n_added = 0;
        require(ea_store_add(current.get(), row.label.c_str(), EA_RECORDING, row.embedding.data(), 1,
                             row.source_sha256.data(), &name, &n_added, message),
                message);
    }
    require(ea_store_save(current.get(), store_path.c_str(), held.lock, message), message);
    store = std::move(current);
    unsaved.clear();
    renew_matcher();
}

// ---- The C functions ----

ea_status ea_runtime_open(const char *path, ea_runtime **runtime, char *message) {
    return at_boundary(message, [&] {
        require_pointers(runtime);
        *runtime = new ea_runtime{Ort::open(path)};
    });
}

ea_status ea_runtime_adopt(const void *ort_api_base, ea_runtime **runtime, char *message) {
    return at_boundary(message, [&] {
        require_pointers(runtime);
        *runtime = new ea_runtime{Ort::adopt(ort_api_base)};
    });
}

void ea_runtime_free(ea_runtime *runtime) { delete runtime; }

const char *ea_runtime_version(const ea_runtime *runtime) { return runtime ? runtime->ort->version().c_str() : nullptr; }

ea_status ea_model_open(const char *bundle, const ea_runtime *runtime, const ea_model_options *options,
                        ea_model **model, char *message) {
    return at_boundary(message, [&] {
        require_pointers(bundle && runtime && model);
        if (options) require_struct(options, "ea_model_options");
        *model = new ea_model{Model::open(bundle, runtime->ort, options ? options->variant : nullptr)};
    });
}

void ea_model_free(ea_model *model) { delete model; }

const char *ea_model_name(const ea_model *model) { return model ? model->model->name.c_str() : nullptr; }
const char *ea_model_modality(const ea_model *model) { return model ? model->model->modality.c_str() : nullptr; }
const char *ea_model_variant(const ea_model *model) { return model ? model->model->variant.c_str() : nullptr; }
size_t ea_model_dim(const ea_model *model) { return model ? model->model->dim : 0; }
const uint8_t *ea_model_encoder_sha256(const ea_model *model) {
    return model ? model->model->encoder_sha256.data() : nullptr;
}
double ea_model_accept_probability(const ea_model *model) {
    return model ? 1 / (1 + std::exp(-model->model->calibration.accept_logit)) : 0;
}

ea_status ea_recognizer_open(const ea_model *model, const char *store, ea_recognizer **recognizer, char *message) {
    return at_boundary(message, [&] {
        require_pointers(model && recognizer);
        *recognizer = new ea_recognizer(model->model, store);
    });
}

void ea_recognizer_free(ea_recognizer *recognizer) { delete recognizer; }

ea_status ea_recognizer_begin(ea_recognizer *recognizer, uint32_t sample_rate_hz, uint32_t n_channels,
                              char *message) {
    return at_boundary(message, [&] {
        require_pointers(recognizer);
        recognizer->begin(sample_rate_hz, n_channels);
    });
}

ea_status ea_recognizer_push(ea_recognizer *recognizer, const float *samples, size_t n_frames, char *message) {
    return at_boundary(message, [&] {
        require_pointers(recognizer);
        recognizer->push(samples, n_frames);
    });
}

ea_status ea_recognizer_push_i16(ea_recognizer *recognizer, const int16_t *samples, size_t n_frames, char *message) {
    return at_boundary(message, [&] {
        require_pointers(recognizer);
        recognizer->push(samples, n_frames);
    });
}

ea_status ea_recognizer_classify(ea_recognizer *recognizer, size_t top_k, ea_answer *answer, char *message) {
    return at_boundary(message, [&] {
        require_pointers(recognizer);
        require_struct(answer, "the answer");
        if (top_k < 1 || top_k > EA_MAX_TOP) refuse(EA_INVALID_ARGUMENT, "top_k is %zu: 1 to %d", top_k, EA_MAX_TOP);
        if (!recognizer->matcher) refuse(EA_WRONG_STATE, "there are no labels yet: enroll clips first");
        ea_recognizer &r = *recognizer;
        ea_answer made = {};
        made.struct_size = answer->struct_size;
        const bool has_sound = r.embed_clip();
        made.heard_s = r.heard_s();
        if (has_sound) {
            r.name_embedding(top_k, &made);
            made.n_sounds = r.finder ? r.finder->n_sounds : 1;
            made.start_s = r.finder ? r.finder->start_s : 0;
            made.end_s = r.finder ? r.finder->end_s : made.heard_s;
        }
        *answer = made;
    });
}

namespace {

void embed_clip(ea_recognizer &r) {
    if (!r.embed_clip()) refuse(EA_NO_SOUND, "no sound stands out of the %.1f s of the clip", r.heard_s());
}

}  // namespace

ea_status ea_recognizer_embed(ea_recognizer *recognizer, float *embedding, char *message) {
    return at_boundary(message, [&] {
        require_pointers(recognizer && embedding);
        embed_clip(*recognizer);
        std::copy(recognizer->embedding.begin(), recognizer->embedding.end(), embedding);
    });
}

ea_status ea_recognizer_enroll(ea_recognizer *recognizer, const char *label, const char *name, size_t *n_added,
                               char *message) {
    return at_boundary(message, [&] {
        require_pointers(recognizer && label);
        ea_recognizer &r = *recognizer;
        embed_clip(r);
        ea_recognizer::Learned row{label, name ? name : "", r.embedding, r.source.finish()};
        const char *short_name = row.name.c_str();
        char why[EA_MESSAGE_BYTES] = "";
        size_t added = 0;
        r.unsaved.reserve(r.unsaved.size() + 1);
        require(ea_store_add(r.store.get(), label, EA_RECORDING, row.embedding.data(), 1, row.source_sha256.data(),
                             &short_name, &added, why),
                why);
        if (n_added) *n_added = added;
        if (added == 0) return;
        r.unsaved.push_back(std::move(row));
        r.renew_matcher();
    });
}

ea_status ea_recognizer_save(ea_recognizer *recognizer, char *message) {
    return at_boundary(message, [&] {
        require_pointers(recognizer);
        recognizer->save();
    });
}

size_t ea_recognizer_n_labels(const ea_recognizer *recognizer) {
    return recognizer ? ea_store_n_labels(recognizer->store.get()) : 0;
}

const char *ea_recognizer_label(const ea_recognizer *recognizer, size_t label) {
    return recognizer ? ea_store_label(recognizer->store.get(), label) : nullptr;
}

const ea_store *ea_recognizer_store(const ea_recognizer *recognizer) {
    return recognizer ? recognizer->store.get() : nullptr;
}
