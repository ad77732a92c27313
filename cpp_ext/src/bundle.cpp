#include "bundle.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "distances.hpp"
#include "level2.hpp"

namespace ea {
namespace {

constexpr int64_t MAX_MANIFEST_BYTES = 1 << 20, MAX_ONNX_BYTES = INT32_MAX, MAX_FILE_BYTES = 64 << 20;
constexpr size_t MAX_FILES = 64, MAX_NAME_CHARACTERS = 128, MAX_TEXT_CHARACTERS = 200;
constexpr double MAX_WINDOW_S = 60, MIN_WINDOW_S = 0.01;
constexpr double MAX_FRAMES = 100000, MAX_TEXT_WEIGHT = 100;
constexpr const char *MANIFEST = "manifest.json", *FILTERS = "filters.f32", *GOLDEN = "golden.npz";

#define EXPECT(holds, ...)                                     \
    do {                                                       \
        if (!(holds)) refuse(EA_BUNDLE_UNREADABLE, __VA_ARGS__); \
    } while (false)

bool is_plain_name(const std::string &name) {
    if (name.empty() || name.size() > MAX_NAME_CHARACTERS || name[0] == '.') return false;
    for (char c : name)
        if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || std::strchr("._-", c)))
            return false;
    return true;
}

// Code points of UTF-8.
size_t n_characters(const std::string &text) {
    return size_t(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

int64_t max_bytes(const std::string &name) {
    const bool onnx = name.size() >= 5 && name.compare(name.size() - 5, 5, ".onnx") == 0;
    return onnx ? MAX_ONNX_BYTES : MAX_FILE_BYTES;
}

// A regular file that lies directly in the folder; links, devices and oversized files are refused.
std::vector<uint8_t> read_plain_file(const std::string &folder, const std::string &name, int64_t most) {
    const std::string path = folder + "/" + name;
    struct Descriptor {
        int value;
        ~Descriptor() {
            if (value >= 0) close(value);
        }
    } const file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)};
    struct stat info;
    EXPECT(file.value >= 0 && fstat(file.value, &info) == 0,
           "'%s' cannot be read (errno %d): a bundle needs it as a regular file", path.c_str(), errno);
    EXPECT(S_ISREG(info.st_mode), "'%s' is not a regular file", path.c_str());
    EXPECT(info.st_size <= most, "'%s' has %lld bytes: at most %lld are read", path.c_str(),
           static_cast<long long>(info.st_size), static_cast<long long>(most));
    std::vector<uint8_t> bytes(static_cast<size_t>(info.st_size));
    for (size_t done = 0; done < bytes.size();) {
        const ssize_t count = read(file.value, bytes.data() + done, bytes.size() - done);
        if (count < 0 && errno == EINTR) continue;
        EXPECT(count > 0, "'%s' cannot be read to its end (errno %d)", path.c_str(), count < 0 ? errno : 0);
        done += size_t(count);
    }
    return bytes;
}

bool parse_sha256(const Json &value, Digest &digest) {
    if (value.kind != Json::TEXT || value.text.size() != 64) return false;
    for (size_t i = 0; i < 64; i++) {
        const char c = value.text[i];
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) return false;
        digest[i / 2] = uint8_t(i % 2 ? digest[i / 2] | digit : digit << 4);
    }
    return true;
}

void expect_keys(const Json &section, const char *name, std::initializer_list<const char *> keys) {
    EXPECT(section.kind == Json::OBJECT, "%s of the manifest is not an object", name);
    for (const char *key : keys) EXPECT(section.find(key), "%s of the manifest lacks '%s'", name, key);
    EXPECT(section.members.size() == keys.size(), "%s of the manifest has keys that are not known", name);
}

// Numbers of one section, by name; the keys were checked.
class Section {
public:
    Section(const Json &manifest, const char *name) : section_(*manifest.find(name)), name_(name) {}
    double real(const char *key) const {
        const Json &value = *section_.find(key);
        EXPECT(value.is_number() && std::isfinite(value.number), "'%s.%s' of the manifest is not a finite number",
               name_, key);
        return value.number;
    }
    double whole(const char *key, double least, double most) const {
        const Json &value = *section_.find(key);
        EXPECT(value.kind == Json::WHOLE && value.number >= least && value.number <= most,
               "'%s.%s' of the manifest is not a whole number in %.0f-%.0f", name_, key, least, most);
        return value.number;
    }

private:
    const Json &section_;
    const char *name_;
};

class Bundle {
public:
    explicit Bundle(const std::string &folder) : folder_(folder) {
        const std::vector<uint8_t> bytes = read_plain_file(folder, MANIFEST, MAX_MANIFEST_BYTES);
        try {
            manifest_ = Json::parse({reinterpret_cast<const char *>(bytes.data()), bytes.size()});
        } catch (const Json::Unusable &error) {
            refuse(EA_BUNDLE_UNREADABLE, "'%s' is not usable JSON: %s", MANIFEST, error.what.c_str());
        }
        check();
    }

    const Json &manifest() const { return manifest_; }
    bool is_format_1() const { return manifest_.find("format_version")->number == 1; }
    // Where `front_end` and `windows` are.
    const Json &input() const { return is_format_1() ? manifest_ : *manifest_.find("input"); }
    // How many recordings one text or picture counts as.
    double source_weight() const { return source_weight_; }
    const std::string &text(const char *key) const { return manifest_.find(key)->text; }

    // With size and SHA-256 checked on exactly these bytes.
    std::vector<uint8_t> read(const std::string &name) const {
        const Json &entry = *manifest_.find("files")->find(name);
        std::vector<uint8_t> bytes = read_plain_file(folder_, name, max_bytes(name));
        Digest stated;
        parse_sha256(*entry.find("sha256"), stated);
        EXPECT(double(bytes.size()) == entry.find("bytes")->number && sha256(bytes.data(), bytes.size()) == stated,
               "'%s/%s' differs from its manifest: copy or install the bundle again", folder_.c_str(), name.c_str());
        return bytes;
    }

    std::vector<uint8_t> read_matrix(const std::string &name, size_t n_rows, size_t n_columns, size_t item) const {
        std::vector<uint8_t> bytes = read(name);
        EXPECT(bytes.size() == n_rows * n_columns * item, "'%s' has %zu bytes, %zu x %zu values need %zu", name.c_str(),
               bytes.size(), n_rows, n_columns, n_rows * n_columns * item);
        return bytes;
    }

private:
    std::string folder_;
    Json manifest_;
    double source_weight_ = 1;

    void check() {
        EXPECT(manifest_.kind == Json::OBJECT, "%s is not an object", MANIFEST);
        const Json *format = manifest_.find("format"), *version = manifest_.find("format_version");
        EXPECT(format && format->kind == Json::TEXT && format->text == "edgealign-bundle",
               "its format is not 'edgealign-bundle'");
        EXPECT(version && version->kind == Json::WHOLE && (version->number == 1 || version->number == 2),
               "its format_version is not 1 or 2, which this edgealign reads");
        if (is_format_1())
            expect_keys(manifest_, "the top level",
                        {"format", "format_version", "name", "modality", "bundle_version", "dim", "front_end",
                         "windows", "encoder", "text_encoder", "bank", "calibration", "files", "fingerprint",
                         "license", "attribution"});
        else
            expect_keys(manifest_, "the top level",
                        {"format", "format_version", "name", "modality", "bundle_version", "dim", "input", "sources",
                         "encoder", "bank", "calibration", "files", "fingerprint", "license", "attribution"});
        for (const char *key : {"name", "modality", "bundle_version", "fingerprint", "license"}) {
            const Json &value = *manifest_.find(key);
            EXPECT(value.kind == Json::TEXT && n_characters(value.text) <= MAX_TEXT_CHARACTERS
                       && value.text.find('\0') == std::string::npos,
                   "'%s' of the manifest is not text of at most %zu characters", key, MAX_TEXT_CHARACTERS);
        }
        const std::string &modality = text("modality");
        EXPECT(modality != "image" || is_format_1(), "it is for pictures: this library hears sound");
        EXPECT(modality == "speech" || (modality == "audio" && !is_format_1()),
               "its modality is '%s': this library has speech, and audio in format 2", modality.c_str());
        const Json &dim = *manifest_.find("dim");
        EXPECT(dim.kind == Json::WHOLE && dim.number >= 1 && dim.number <= EA_MAX_DIM, "its dim is not usable");
        Digest fingerprint;
        EXPECT(parse_sha256(*manifest_.find("fingerprint"), fingerprint), "'fingerprint' is not a sha256");
        check_files();
        check_parts();
    }

    void check_files() const {
        const Json &files = *manifest_.find("files");
        EXPECT(files.kind == Json::OBJECT && files.members.size() <= MAX_FILES,
               "'files' is not a table of at most %zu files", MAX_FILES);
        for (const auto &[name, entry] : files.members) {
            EXPECT(is_plain_name(name) && name != MANIFEST, "a file name of the manifest is not a plain name");
            expect_keys(entry, "an entry of 'files'", {"sha256", "bytes"});
            Digest digest;
            const Json &bytes = *entry.find("bytes");
            EXPECT(parse_sha256(*entry.find("sha256"), digest) && bytes.kind == Json::WHOLE && bytes.number >= 0
                       && bytes.number <= double(max_bytes(name)),
                   "the entry of '%s' is not a sha256 and a size of at most %lld bytes", name.c_str(),
                   static_cast<long long>(max_bytes(name)));
        }
    }

    void check_text_encoder(const Json &text) {
        if (text.kind == Json::NOTHING) return;
        expect_keys(text, "'text_encoder'", {"file", "vocab", "weight"});
        expect_file(text.find("file"));
        expect_file(text.find("vocab"));
        source_weight_ = checked_weight(manifest_, "text_encoder");
    }

    // Texts and pictures come from elsewhere: of what makes embeddings of them, only the weight counts here.
    void check_sources(const Json &sources) {
        EXPECT(sources.kind == Json::OBJECT, "'sources' of the manifest is not an object");
        bool any = false;
        for (const auto &[name, source] : sources.members) {
            const bool is_text = name == "text";
            EXPECT(is_text || name == "image", "'sources' of the manifest has more than 'text' and 'image'");
            expect_keys(source, "a source", {"file", "weight", is_text ? "tokenizer" : "input"});
            expect_file(source.find("file"));
            const Json &part = *source.find(is_text ? "tokenizer" : "input");
            EXPECT(part.kind == Json::OBJECT, "a part of 'sources' of the manifest is not an object");
            if (is_text) expect_file(part.find("file"));
            const double weight = checked_weight(sources, name.c_str());
            EXPECT(!any || weight == source_weight_, "the sources of the manifest differ in their weight");
            any = true, source_weight_ = weight;
        }
    }

    static double checked_weight(const Json &parent, const char *name) {
        const double weight = Section(parent, name).real("weight");
        EXPECT(weight > 0 && weight <= MAX_TEXT_WEIGHT, "'%s.weight' is not in (0, 100]", name);
        return weight;
    }

    void expect_file(const Json *name) const {
        EXPECT(name && name->kind == Json::TEXT && manifest_.find("files")->find(name->text),
               "the manifest names a file but not its sha256");
    }

    void check_parts() {
        const Json &encoder = *manifest_.find("encoder");
        expect_keys(encoder, "'encoder'", {"default", "variants"});
        const Json &variants = *encoder.find("variants"), &chosen = *encoder.find("default");
        EXPECT(variants.kind == Json::OBJECT && chosen.kind == Json::TEXT && variants.find(chosen.text),
               "'encoder' of the manifest is not a default and its variants");
        for (const auto &variant : variants.members) expect_file(variant.second.find("file"));
        if (is_format_1())
            check_text_encoder(*manifest_.find("text_encoder"));
        else
            check_sources(*manifest_.find("sources"));
        const Json &bank = *manifest_.find("bank");
        expect_keys(bank, "'bank'", {"file", "rows"});
        expect_file(bank.find("file"));
        Section(manifest_, "bank").whole("rows", 0, 1e9);
        EXPECT(manifest_.find("files")->find(GOLDEN), "the manifest does not list '%s'", GOLDEN);
        EXPECT(manifest_.find("attribution")->kind == Json::LIST, "'attribution' of the manifest is not a list");
    }
};

void read_front_end(const Bundle &bundle, Model &model) {
    EXPECT(bundle.manifest().find("files")->find(FILTERS), "the manifest does not list '%s'", FILTERS);
    expect_keys(*bundle.input().find("front_end"), "'front_end'",
                {"version", "sample_rate_hz", "window_samples", "hop_samples", "n_fft", "n_mels", "energy_floor",
                 "low_hz", "high_hz"});
    const Section section(bundle.input(), "front_end");
    section.whole("version", 1, 1);
    ea_log_mel_options options = {};
    options.struct_size = sizeof options;
    options.n_fft = size_t(section.whole("n_fft", 64, 4096));
    EXPECT((options.n_fft & (options.n_fft - 1)) == 0, "n_fft %zu is not a power of two", options.n_fft);
    options.window_samples = size_t(section.whole("window_samples", 1, double(options.n_fft)));
    options.hop_samples = size_t(section.whole("hop_samples", 1, double(options.window_samples)));
    options.n_mels = size_t(section.whole("n_mels", 1, 512));
    const double energy_floor = section.real("energy_floor");
    EXPECT(energy_floor > 0 && energy_floor < 1, "energy_floor is not in (0, 1)");
    options.energy_floor = float(energy_floor);
    section.real("low_hz"), section.real("high_hz");
    model.sample_rate_hz = uint32_t(section.whole("sample_rate_hz", 8000, 48000));
    model.hop_samples = options.hop_samples, model.window_samples = options.window_samples;
    model.n_mels = options.n_mels, model.energy_floor = energy_floor;

    const std::vector<uint8_t> bytes =
        bundle.read_matrix(FILTERS, options.n_mels, options.n_fft / 2 + 1, sizeof(float));
    std::vector<float> filters(bytes.size() / sizeof(float));
    std::memcpy(filters.data(), bytes.data(), bytes.size());
    ea_log_mel_plan *plan = nullptr;
    const ea_status status = ea_log_mel_plan_create(&options, filters.data(), &plan);
    model.log_mel.reset(plan);
    EXPECT(status != EA_NOT_FINITE, "'%s' holds NaN or infinity", FILTERS);
    require(status, "the front end of the manifest makes no sense");
}

void read_clip_windows(const Bundle &bundle, Model &model) {
    expect_keys(*bundle.input().find("windows"), "'windows'", {"version", "window_s", "hop_s", "min_s"});
    const Section section(bundle.input(), "windows");
    const double window_s = section.real("window_s"), hop_s = section.real("hop_s"), min_s = section.real("min_s");
    EXPECT(window_s > 0 && window_s <= MAX_WINDOW_S, "window_s is not in (0, %.0f]", MAX_WINDOW_S);
    EXPECT(hop_s >= MIN_WINDOW_S && hop_s <= window_s, "hop_s is not in [%.2f, window_s]", MIN_WINDOW_S);
    EXPECT(min_s >= MIN_WINDOW_S && min_s <= window_s, "min_s is not in [%.2f, window_s]", MIN_WINDOW_S);
    const auto samples = [&](double s) { return size_t(std::floor(s * double(model.sample_rate_hz) + 0.5)); };
    model.clip = {samples(window_s), samples(hop_s), samples(min_s)};
}

void read_windows(const Bundle &bundle, Model &model) {
    const Json &windows = *bundle.input().find("windows");
    EXPECT(windows.kind == Json::OBJECT, "'windows' of the manifest is not an object");
    const Json *version = windows.find("version");
    if (!bundle.is_format_1() && version && version->kind == Json::WHOLE && version->number == 2) {
        read_clip_windows(bundle, model);
        return;
    }
    expect_keys(windows, "'windows'",
                {"version", "min_frames", "floor_quantile", "above_floor_db", "below_peak_db", "merge_frames",
                 "min_span_frames", "pad_frames", "max_frames"});
    const Section section(bundle.input(), "windows");
    section.whole("version", 1, 1);
    ea_span_options &spans = model.spans;
    spans.struct_size = sizeof spans;
    spans.floor_quantile = section.real("floor_quantile");
    spans.above_floor_db = section.real("above_floor_db");
    spans.below_peak_db = section.real("below_peak_db");
    EXPECT(spans.floor_quantile >= 0 && spans.floor_quantile <= 1, "floor_quantile is not in [0, 1]");
    EXPECT(spans.above_floor_db >= 0 && spans.below_peak_db > 0, "a level of the window policy is negative");
    spans.merge_frames = size_t(section.whole("merge_frames", 0, MAX_FRAMES));
    spans.min_frames = size_t(section.whole("min_span_frames", 0, MAX_FRAMES));
    spans.pad_frames = size_t(section.whole("pad_frames", 0, MAX_FRAMES));
    spans.max_frames = size_t(section.whole("max_frames", 1, MAX_FRAMES));
    model.min_frames = size_t(section.whole("min_frames", 1, double(spans.max_frames)));
}

// What the encoder takes, in either format.
void read_input(const Bundle &bundle, Model &model) {
    if (bundle.is_format_1()) {
        read_front_end(bundle, model);
        read_windows(bundle, model);
        return;
    }
    const Json &input = bundle.input();
    EXPECT(input.kind == Json::OBJECT && input.find("kind") && input.find("kind")->kind == Json::TEXT,
           "'input' of the manifest names no kind");
    const std::string &kind = input.find("kind")->text;
    const bool has_front_end = input.find("front_end") != nullptr;
    EXPECT(kind == "log_mel" || kind == "waveform", "its encoder takes '%s': this library has log_mel and waveform",
           kind.c_str());
    model.takes_waveform = kind == "waveform";
    if (!model.takes_waveform)
        expect_keys(input, "'input'", {"kind", "front_end", "windows"});
    else if (has_front_end)
        expect_keys(input, "'input'", {"kind", "sample_rate_hz", "windows", "front_end"});
    else
        expect_keys(input, "'input'", {"kind", "sample_rate_hz", "windows"});
    if (has_front_end) read_front_end(bundle, model);
    if (model.takes_waveform) {
        const Json &rate = *input.find("sample_rate_hz");
        EXPECT(rate.kind == Json::WHOLE && rate.number >= 4000 && rate.number <= 500000,
               "'input.sample_rate_hz' of the manifest is not a whole number in 4000-500000");
        EXPECT(!has_front_end || rate.number == double(model.sample_rate_hz),
               "'input' of the manifest has two sample rates");
        model.sample_rate_hz = uint32_t(rate.number);
    }
    read_windows(bundle, model);
    EXPECT(!model.takes_waveform || has_front_end == model.finds_words(),
           "'input' of the manifest has a front end for windows, or none for words");
}

void read_calibration(const Bundle &bundle, Model &model) {
    expect_keys(*bundle.manifest().find("calibration"), "'calibration'",
                {"w_bias", "w_z", "w_t", "w_distance", "w_margin", "w_loo", "w_shots", "w_text", "accept_logit", "top",
                 "prior_loo", "prior_weight", "lone_margin"});
    const Section section(bundle.manifest(), "calibration");
    ea_calibration &c = model.calibration;
    c.struct_size = sizeof c;
    c.w_bias = section.real("w_bias"), c.w_z = section.real("w_z"), c.w_t = section.real("w_t");
    c.w_distance = section.real("w_distance"), c.w_margin = section.real("w_margin");
    c.w_loo = section.real("w_loo"), c.w_shots = section.real("w_shots"), c.w_text = section.real("w_text");
    c.accept_logit = section.real("accept_logit"), c.prior_loo = section.real("prior_loo");
    c.prior_weight = section.real("prior_weight"), c.lone_margin = section.real("lone_margin");
    const double top = section.real("top");
    EXPECT(top >= 1 && top <= 1e9 && top == std::floor(top), "'calibration.top' is not a whole number of at least 1");
    c.top = size_t(top);
    // The rest is what the matcher itself refuses: it is asked with one label, which needs nothing of the store, and
    // with one row of the bank.
    const std::vector<float> row(model.dim, 1.0f);
    const int32_t label = 0, kind = EA_RECORDING;
    ea_matcher *matcher = nullptr;
    char message[EA_MESSAGE_BYTES] = "";
    const ea_status status = ea_matcher_create(row.data(), &label, &kind, 1, 1, model.dim, model.bank.data(),
                                               std::min<size_t>(model.n_bank, 1), &c, model.text_weight, &matcher, message);
    ea_matcher_free(matcher);
    if (status == EA_INVALID_ARGUMENT) refuse(EA_BUNDLE_UNREADABLE, "%s", message);
    require(status, message);
}

void read_bank(const Bundle &bundle, Model &model) {
    const Json &entry = *bundle.manifest().find("bank");
    model.n_bank = size_t(entry.find("rows")->number);
    const std::vector<uint8_t> bytes = bundle.read_matrix(entry.find("file")->text, model.n_bank, model.dim, 2);
    model.bank.resize(model.n_bank * model.dim);
    EXPECT(unit_rows_from_halves(bytes.data(), model.n_bank, model.dim, model.bank.data()),
           "a row of the bank is not of unit length");
}

void read_encoder(const Bundle &bundle, Model &model, std::shared_ptr<const Ort> ort, const char *wanted) {
    const Json &encoder = *bundle.manifest().find("encoder");
    model.variant = wanted ? wanted : encoder.find("default")->text;
    const Json *variant = encoder.find("variants")->find(model.variant);
    if (!variant) refuse(EA_INVALID_ARGUMENT, "it has no encoder variant '%s'", model.variant.c_str());
    const std::string &file = variant->find("file")->text;
    const std::vector<uint8_t> bytes = bundle.read(file);
    bool outside = false;
    try {
        outside = points_outside(bytes);
    } catch (const Failure &failure) {
        refuse(failure.status, "'%s' is not an ONNX model: %s", file.c_str(), failure.what.c_str());
    }
    EXPECT(!outside, "'%s' points to data in other files, which is never followed", file.c_str());
    model.encoder = std::make_unique<OrtSession>(std::move(ort), bytes);
}

}  // namespace

void Model::encode(float *input, size_t size, float *embedding) const {
    const int64_t log_mel_shape[] = {1, int64_t(n_mels), int64_t(size)}, waveform_shape[] = {1, int64_t(size)};
    const int64_t output_shape[] = {1, int64_t(dim)};
    if (takes_waveform)
        encoder->run("waveform", input, waveform_shape, 2, "embedding", embedding, output_shape);
    else
        encoder->run("log_mel", input, log_mel_shape, 3, "embedding", embedding, output_shape);
    if (!all_finite(embedding, dim))
        refuse(EA_BUNDLE_UNREADABLE, "the encoder of the bundle answered with NaN or infinity");
}

std::shared_ptr<const Model> Model::open(const std::string &folder, std::shared_ptr<const Ort> ort,
                                         const char *variant) {
    struct stat info;
    if (stat(folder.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
        refuse(EA_BUNDLE_UNREADABLE, "no bundle at '%s': a bundle is a folder with a %s", folder.c_str(), MANIFEST);
    try {
        const Bundle bundle(folder);
        auto model = std::make_shared<Model>();
        model->name = bundle.text("name");
        model->modality = bundle.text("modality");
        model->dim = size_t(bundle.manifest().find("dim")->number);
        parse_sha256(*bundle.manifest().find("fingerprint"), model->encoder_sha256);
        model->text_weight = float(bundle.source_weight());
        read_input(bundle, *model);
        read_bank(bundle, *model);
        read_calibration(bundle, *model);
        read_encoder(bundle, *model, std::move(ort), variant);
        return model;
    } catch (const Failure &failure) {
        refuse(failure.status, "bundle '%s': %s", folder.c_str(), failure.what.c_str());
    }
}

}  // namespace ea
