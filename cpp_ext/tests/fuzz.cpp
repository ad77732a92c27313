// Random shapes and bytes through the C interface, each in memory of exactly its size, so that a sanitizer sees whatever is
// read or written beyond it; results are compared with sums in float64. Prints the instruction set and the number of
// rounds; ends with 1, and a sentence, at the first wrong result.
//
//     fuzz SEED ROUNDS FOLDER [RUNTIME BUNDLE]
//
// FOLDER: for files of random bytes that pretend to be stores and recordings. BUNDLE: a copy, whose manifest is damaged
// anew in each round, opened with the library RUNTIME; what can be opened hears noise of random formats.
#include <edgealign_rt.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "wav.hpp"

namespace {

std::mt19937 generator;

size_t up_to(size_t most) { return std::uniform_int_distribution<size_t>(0, most)(generator); }

std::vector<float> numbers(size_t count) {
    static const float scales[] = {1, 1, 1, 1e-3f, 1e3f, 0, 1e-40f, 1e18f, 3e38f};
    const float scale = scales[up_to(8)];
    std::vector<float> made(count);
    for (float &value : made) value = scale * std::uniform_real_distribution<float>(-1, 1)(generator);
    if (count && up_to(9) == 0) made[up_to(count - 1)] = up_to(1) ? NAN : INFINITY;
    return made;
}

bool finite(const std::vector<float> &values) {
    for (float value : values)
        if (!std::isfinite(value)) return false;
    return true;
}

void expect(bool holds, const char *what) {
    if (holds) return;
    std::fprintf(stderr, "wrong: %s\n", what);
    std::exit(1);
}

void distances() {
    const size_t n_queries = up_to(40), n_prototypes = up_to(150), dim = 1 + up_to(up_to(3) ? 70 : 1100);
    const auto queries = numbers(n_queries * dim), prototypes = numbers(n_prototypes * dim);
    const int32_t storage = up_to(1) ? EA_INT8 : EA_FLOAT32, metric = int32_t(up_to(2));
    std::vector<float> out(n_queries * n_prototypes);
    ea_packed *packed = nullptr;
    char message[EA_MESSAGE_BYTES] = "";
    const ea_status status = ea_pack(prototypes.data(), n_prototypes, dim, storage, &packed, message);
    expect((status == EA_OK) == finite(prototypes), "pack refuses what is not finite, and nothing else");
    const auto kernel = metric == EA_COSINE ? ea_cosine : metric == EA_SQ_L2 ? ea_sq_l2 : ea_inner_product;
    const ea_status plain =
        kernel(queries.data(), n_queries, prototypes.data(), n_prototypes, dim, out.data());
    expect((plain == EA_OK) == (finite(queries) && finite(prototypes)), "distances refuse what is not finite");
    if (status != EA_OK) return;
    expect((ea_packed_distances(packed, queries.data(), n_queries, metric, 1 + up_to(2), out.data()) == EA_OK)
               == finite(queries),
           "packed distances refuse queries that are not finite");
    if (finite(queries) && storage == EA_FLOAT32) {
        for (size_t i = 0; i < n_queries; i++)
            for (size_t j = 0; j < n_prototypes; j++) {
                double qq = 0, pp = 0, dot = 0, difference = 0;
                for (size_t k = 0; k < dim; k++) {
                    const double q = queries[i * dim + k], p = prototypes[j * dim + k];
                    qq += q * q, pp += p * p, dot += q * p, difference += (q - p) * (q - p);
                }
                const double norm = std::sqrt(qq) * std::sqrt(pp), error = (double(dim) / 2 + 8) * 0x1p-24 * 1.01;
                const double want = metric == EA_SQ_L2    ? difference
                                    : metric == EA_COSINE ? norm > 0 ? 1 - dot / norm : qq > 0 || pp > 0
                                                          : dot;
                const double allowed = metric == EA_SQ_L2 ? error * (qq + pp) : metric == EA_COSINE ? error : error * norm;
                const float have = out[i * n_prototypes + j];
                if (std::isinf(have)) {
                    expect(std::fabs(want) + allowed >= 3.4028234e38, "infinite only beyond float32");
                } else {
                    expect(std::fabs(double(have) - want) <= allowed + 1e-43, "a packed distance");
                }
            }
    }
    if (n_prototypes) {
        const size_t k = 1 + up_to(n_prototypes - 1);
        std::vector<float> closest(n_queries * k), scratch(2 * n_prototypes);
        std::vector<int32_t> rows(n_queries * k), labels(n_prototypes);
        ea_packed_nearest(packed, queries.data(), n_queries, k, metric % 2, 1 + up_to(1), closest.data(), rows.data());
        ea_nearest(queries.data(), n_queries, prototypes.data(), n_prototypes, dim, k, metric % 2, scratch.data(),
                   closest.data(), rows.data());
        ea_packed_log_softmax(packed, queries.data(), n_queries, metric % 2, 0.5f, 1, out.data());
        const size_t n_labels = 1 + up_to(5);
        for (int32_t &label : labels) label = int32_t(up_to(n_labels));  // now and then one too large
        std::vector<float> of_labels(n_queries * n_labels);
        ea_packed_label_distances(packed, labels.data(), n_labels, queries.data(), n_queries, metric % 2, 1,
                                  of_labels.data());
    }
    ea_packed_free(packed);
}

void labeled() {
    const size_t n_rows = up_to(30), n_labels = up_to(6), dim = up_to(70);
    const auto rows = numbers(n_rows * dim), weights = numbers(n_rows);
    std::vector<int32_t> labels(n_rows), kinds(n_rows, EA_RECORDING);
    for (int32_t &label : labels) label = int32_t(up_to(n_labels + 1)) - 1;
    for (int32_t &kind : kinds) kind = int32_t(up_to(3));
    std::vector<float> scratch(n_labels), made(n_labels * dim), distances(n_rows);
    std::vector<double> sums(n_labels * (dim + 2));
    std::vector<uint8_t> valid(n_rows);
    ea_prototypes(rows.data(), labels.data(), n_rows, n_labels, dim, up_to(1) ? weights.data() : nullptr,
                  scratch.data(), made.data());
    ea_leave_one_out(rows.data(), labels.data(), n_rows, n_labels, dim, nullptr, sums.data(), distances.data(),
                     valid.data());
}

void sound() {
    ea_log_mel_options options = {};
    options.struct_size = sizeof options;
    options.n_fft = size_t(1) << up_to(11);
    options.n_mels = up_to(40);
    options.window_samples = up_to(600);
    options.hop_samples = up_to(300);
    options.energy_floor = up_to(5) ? 1e-10f : 0.0f;
    const auto filters = numbers(options.n_mels * (options.n_fft / 2 + 1)), samples = numbers(up_to(4000));
    ea_log_mel_plan *plan = nullptr;
    if (ea_log_mel_plan_create(&options, filters.data(), &plan) != EA_OK) return;
    const size_t n_frames = ea_log_mel_frames(plan, samples.size());
    std::vector<float> scratch(ea_log_mel_scratch_floats(plan)), out(options.n_mels * n_frames);
    ea_log_mel(plan, samples.data(), samples.size(), scratch.data(), out.data());
    ea_log_mel_plan_free(plan);
    const ea_span_options policy = {sizeof policy, 0.05, 6, 32, up_to(9), up_to(9), up_to(9), 1 + up_to(40)};
    std::vector<double> work(2 * n_frames + 1), spans(3 * (n_frames / 2 + 1));
    size_t n_spans = 0;
    ea_sound_spans(out.data(), options.n_mels, n_frames, &policy, work.data(), spans.data(), n_frames / 2 + 1,
                   &n_spans);
}

void windows() {
    const size_t n_groups = 1 + up_to(3), dim = n_groups * (1 + up_to(9)), n_frames = up_to(60);
    const size_t window = up_to(20), hop = up_to(9);
    auto frames = numbers(n_frames * dim), weights = numbers(n_frames * n_groups), profile = numbers(n_groups * window);
    if (up_to(3))
        for (float &value : weights) value = std::fabs(value);
    const bool has_profile = up_to(1);
    std::vector<double> scratch(ea_window_scratch_doubles(n_frames, dim, n_groups, has_profile));
    std::vector<float> stats(ea_n_windows(n_frames, window, hop) * 2 * dim);
    ea_window_stats(frames.data(), n_frames, dim, weights.data(), n_groups, has_profile ? profile.data() : nullptr, window,
                    hop, scratch.data(), stats.data());
    const size_t n_places = up_to(EA_MAX_PLACES + 1);
    auto places = numbers(n_groups * n_places);
    if (up_to(3))
        for (float &value : places) value = std::fabs(value);
    std::vector<int32_t> spans(2 * up_to(12));
    for (size_t i = 0; i + 1 < spans.size(); i += 2) {
        spans[i] = int32_t(up_to(n_frames));
        spans[i + 1] = spans[i] + int32_t(up_to(n_frames + 1));  // now and then one without frames, or beyond the last
        if (up_to(9)) spans[i + 1] = std::min(spans[i + 1], int32_t(n_frames));
    }
    std::vector<float> of_spans(spans.size() * dim);
    ea_span_stats(frames.data(), n_frames, dim, weights.data(), n_groups, places.data(), n_places, spans.data(),
                  spans.size() / 2, of_spans.data());
}

std::string read_file(const std::string &path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const std::string &path, const std::string &bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}

// Changes some bytes or none, now and then all, and may cut off the end.
std::string damaged(std::string bytes) {
    for (size_t i = up_to(4); i > 0; i--) bytes[up_to(bytes.size() - 1)] = char(up_to(255));
    if (up_to(2) == 0) bytes.resize(up_to(bytes.size()));
    if (up_to(9) == 0)
        for (char &byte : bytes) byte = char(up_to(255));
    return bytes;
}

void store(const std::string &folder) {
    const std::string path = folder + "/fuzz.store";
    const uint8_t digest[32] = {1, 2, 3};
    char message[EA_MESSAGE_BYTES];
    ea_store *made = nullptr;
    ea_store_lock *lock = nullptr;
    std::remove(path.c_str());
    expect(ea_store_create("speech", digest, 4, &made, message) == EA_OK, "a store is created");
    const float rows[] = {1, 0, 0, 0, 0, 1, 0, 0};
    uint8_t sources[64];
    for (uint8_t &byte : sources) byte = uint8_t(up_to(255));
    const char *names[] = {"a.wav", "b.wav"};
    size_t n_added;
    ea_store_add(made, "label", EA_RECORDING, rows, 2, sources, names, &n_added, message);
    expect(ea_store_lock_acquire(path.c_str(), &lock, message) == EA_OK, "a store is locked");
    expect(ea_store_save(made, path.c_str(), lock, message) == EA_OK, "a store is saved");
    ea_store_lock_release(lock);
    ea_store_free(made);
    write_file(path, damaged(read_file(path)));
    ea_store *loaded = nullptr;
    if (ea_store_load(path.c_str(), &loaded, message) == EA_OK) {
        for (size_t i = 0; i < ea_store_n_rows(loaded); i++) {
            ea_store_row row;
            ea_store_get_row(loaded, i, &row);
        }
        size_t n_moved = 0;
        ea_store_rename(loaded, "label", "other", &n_moved, message);
        ea_store_remove_row(loaded, 0, message);
        ea_store_undo(loaded, message);
    }
    ea_store_free(loaded);
    std::remove(path.c_str());
}

void recording(const std::string &folder) {
    const std::string path = folder + "/fuzz.wav";
    const auto little = [](uint32_t value, int count) {
        std::string bytes;
        for (int i = 0; i < count; i++) bytes += char(value >> 8 * i);
        return bytes;
    };
    const bool is_float = up_to(1);
    const uint32_t n_bits = is_float ? 32 << up_to(1) : 8 * uint32_t(1 + up_to(3)), n_channels = uint32_t(up_to(3));
    const std::string samples(up_to(300), char(up_to(255)));
    std::string bytes = "RIFF" + little(uint32_t(samples.size()) + 36, 4) + "WAVEfmt " + little(16, 4)
                        + little(is_float ? 3 : 1, 2) + little(n_channels, 2) + little(16000, 4)
                        + little(16000 * n_channels * n_bits / 8, 4) + little(n_channels * n_bits / 8, 2)
                        + little(n_bits, 2) + "data" + little(uint32_t(samples.size()), 4) + samples;
    write_file(path, up_to(1) ? damaged(bytes) : bytes);
    try {
        WavFile file(path);
        size_t n_samples = 0;
        for (std::vector<float> block; !(block = file.read(1 + up_to(20))).empty();) n_samples += block.size();
        expect(n_samples <= samples.size() + bytes.size(), "a recording has no more samples than its file has bytes");
    } catch (const std::runtime_error &) {
    }
    std::remove(path.c_str());
}

// Changes the first digit of a number or, as above, anything.
std::string damaged_manifest(std::string text) {
    if (up_to(3) == 0) return damaged(std::move(text));
    size_t at = 1 + up_to(text.size() - 1);
    while (at < text.size() && !(std::isdigit(text[at]) && std::strchr(" :,[-", text[at - 1]))) at++;
    const char *numbers[] = {"0", "1", "7", "-", "99", ".5", "e9", "e-300", "null", "{}", "4294967296"};
    if (at < text.size()) text.replace(at, 1, numbers[up_to(10)]);
    return text;
}

// Hears noise of some format with what the folder's bundle, or what is left of it, lets be opened.
void hear(const std::string &folder, const ea_runtime *runtime) {
    char message[EA_MESSAGE_BYTES];
    ea_model *model = nullptr;
    ea_recognizer *recognizer = nullptr;
    if (ea_model_open(folder.c_str(), runtime, nullptr, &model, message) != EA_OK) return;
    if (ea_recognizer_open(model, nullptr, &recognizer, message) == EA_OK) {
        const uint32_t rate = uint32_t(3000 + up_to(60000)), n_channels = uint32_t(up_to(3));
        ea_answer answer = {};
        answer.struct_size = sizeof answer;
        std::vector<float> embedding(ea_model_dim(model));
        size_t n_added = 0;
        if (ea_recognizer_begin(recognizer, rate, n_channels, message) == EA_OK) {
            for (size_t i = up_to(20); i > 0; i--) {
                const size_t n_frames = up_to(2000);
                ea_recognizer_push(recognizer, numbers(n_channels * n_frames).data(), n_frames, message);
            }
            if (ea_recognizer_enroll(recognizer, "label", "clip", &n_added, message) == EA_OK && up_to(1))
                ea_recognizer_begin(recognizer, rate, n_channels, message);
            ea_recognizer_classify(recognizer, up_to(3), &answer, message);
            ea_recognizer_embed(recognizer, embedding.data(), message);
        }
    }
    ea_recognizer_free(recognizer);
    ea_model_free(model);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 4 && argc != 6) return 2;
    generator.seed(unsigned(std::atoi(argv[1])));
    const int rounds = std::atoi(argv[2]);
    const std::string bundle = argc == 6 ? argv[5] : "", manifest_path = bundle + "/manifest.json";
    const std::string manifest = argc == 6 ? read_file(manifest_path) : "";
    ea_runtime *runtime = nullptr;
    char message[EA_MESSAGE_BYTES];
    if (argc == 6) expect(ea_runtime_open(argv[4], &runtime, message) == EA_OK && !manifest.empty(), "a bundle is there");
    for (int round = 0; round < rounds; round++) {
        distances();
        labeled();
        sound();
        windows();
        recording(argv[3]);
        if (round % 4 == 0) store(argv[3]);
        if (!runtime) continue;
        write_file(manifest_path, round % 4 ? damaged_manifest(manifest) : manifest);
        hear(bundle, runtime);
    }
    ea_runtime_free(runtime);
    std::printf("%s %d\n", ea_instruction_set(), rounds);
    return 0;
}
