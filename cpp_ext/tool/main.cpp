// edgealign-rt: names words without Python.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <glob.h>
#include <unistd.h>

#include "../src/utf8.hpp"
#include "edgealign.hpp"
#include "wav.hpp"

namespace {

enum Exit { DONE = 0, INTERNAL = 1, UNKNOWN = 1, USAGE = 2, ARTIFACT = 3, INPUT = 4, SOME_FAILED = 5, REFUSED = 6 };

constexpr const char *HELP =
    R"(edgealign-rt: names enrolled words, without Python

  edgealign-rt classify [options] FILE.wav...     the label of each clip, or unknown
  edgealign-rt listen   [options]                 words in raw PCM on standard input, as they are said; the header of a
                                                  WAV may come before it
  edgealign-rt enroll   [options] FILE.wav...     learn the word of each clip; its label is the name of its folder

  --store FILE      store; default: $EDGEALIGN_STORE/speech.store, else your user-data folder
  --bundle FOLDER   bundle; default: $EDGEALIGN_BUNDLE, else the one installed beside this program
  --runtime LIB     ONNX Runtime's shared library; default: $EDGEALIGN_ONNXRUNTIME, else that of the Python packages
                    beside this program, else libonnxruntime.so.1
  --variant NAME    of the encoder
  --top-k K         how many labels JSON lists (5)
  --json            one JSON object a line
  --fail-on-unknown exit with 1 if any answer is unknown (classify)
  --label LABEL     of all clips, in Unicode's normal form NFC (enroll)
  --rate HZ         of raw PCM (16000)
  --channels N      of raw PCM (1)
  --sample-format s16|f32   of raw PCM, little-endian (s16)
  --debounce S      the same label is not repeated within so many seconds (0.5)
  --version, --help

Exit codes: 0 done (unknown is an answer), 2 usage, 3 bundle, store or ONNX Runtime cannot be used, 4 no readable
input, 5 some files failed, 6 no sound to learn in any of them.
)";

struct Usage {
    std::string why;
};

struct Options {
    std::string store, bundle, runtime, variant, label, sample_format = "s16";
    size_t top_k = 5;
    bool json = false, fail_on_unknown = false;
    uint32_t rate = 16000, channels = 1;
    double debounce_s = 0.5;
    std::vector<std::string> files;
};

double number(const std::string &name, const char *text) {
    char *end = nullptr;
    const double value = std::strtod(text, &end);
    if (end == text || *end || !std::isfinite(value) || value < 0)
        throw Usage{name + " is '" + text + "': a number of at least 0 is expected"};
    return value;
}

uint32_t whole(const std::string &name, const char *text) {
    const double value = number(name, text);
    if (value != std::floor(value) || value > UINT32_MAX)
        throw Usage{name + " is '" + text + "': a whole number is expected"};
    return uint32_t(value);
}

Options parse(int count, char **words) {
    Options options;
    bool only_files = false;
    for (int i = 0; i < count; i++) {
        const std::string word = words[i];
        const auto value = [&] {
            if (i + 1 >= count) throw Usage{word + " needs a value"};
            return words[++i];
        };
        if (only_files || word.compare(0, 2, "--") != 0) options.files.push_back(word);
        else if (word == "--") only_files = true;
        else if (word == "--store") options.store = value();
        else if (word == "--bundle") options.bundle = value();
        else if (word == "--runtime") options.runtime = value();
        else if (word == "--variant") options.variant = value();
        else if (word == "--label") options.label = value();
        else if (word == "--top-k") options.top_k = whole(word, value());
        else if (word == "--json") options.json = true;
        else if (word == "--fail-on-unknown") options.fail_on_unknown = true;
        else if (word == "--rate") options.rate = whole(word, value());
        else if (word == "--channels") options.channels = whole(word, value());
        else if (word == "--sample-format") options.sample_format = value();
        else if (word == "--debounce") options.debounce_s = number(word, value());
        else throw Usage{"no option " + word};
    }
    if (options.top_k < 1 || options.top_k > EA_MAX_TOP) throw Usage{"--top-k must be 1 to 100"};
    if (options.sample_format != "s16" && options.sample_format != "f32")
        throw Usage{"--sample-format is '" + options.sample_format + "': expected s16 or f32"};
    return options;
}

std::string variable(const char *name) {
    const char *value = std::getenv(name);
    return value ? value : "";
}

// The folder edgealign/ of the Python package, where this program lies in its bin/; else nothing.
std::string package_folder() {
    char path[4096];
    const ssize_t count = readlink("/proc/self/exe", path, sizeof path - 1);
    if (count <= 0) return "";
    std::string folder(path, size_t(count));
    for (int i = 0; i < 2; i++) folder.erase(std::min(folder.rfind('/'), folder.size()));
    return folder;
}

std::string first_match(const std::string &pattern) {
    glob_t found = {};
    std::string match;
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0 && found.gl_pathc) match = found.gl_pathv[0];
    globfree(&found);
    return match;
}

void fill_in(Options &options) {
    const std::string package = package_folder();
    if (options.bundle.empty()) options.bundle = variable("EDGEALIGN_BUNDLE");
    if (options.bundle.empty()) options.bundle = package + "/bundles/speech";
    if (options.runtime.empty() && variable("EDGEALIGN_ONNXRUNTIME").empty())
        options.runtime = first_match(package + "/../onnxruntime/capi/libonnxruntime.so.*");
    if (options.store.empty()) {
        std::string folder = variable("EDGEALIGN_STORE");
        if (folder.empty()) {
            const std::string data = variable("XDG_DATA_HOME");
            folder = (data.empty() ? variable("HOME") + "/.local/share" : data) + "/edgealign";
        }
        options.store = folder + "/speech.store";
    }
}

// ---- Output, as `edgealign classify` prints it ----

// Control characters, and whatever could move a cursor or reverse text, as \u escapes; so is a byte that is no
// UTF-8, as the lone surrogate that Python makes of it.
std::string escaped(const std::string &text, bool json) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        auto [code, length] = ea::character_at(text, i);
        if (length == 0) {
            code = 0xdc00u | static_cast<unsigned char>(text[i]);
            length = 1;
        }
        const bool control = code < 0x20 || (code >= 0x7f && code < 0xa0);
        const bool turns = (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) || code == 0x200e
            || code == 0x200f || code == 0xfeff;
        if (control || turns || (code >= 0xd800 && code < 0xe000)) {
            char text_of[8];
            std::snprintf(text_of, sizeof text_of, "\\u%04x", code);
            out += text_of;
        } else {
            if (json && (code == '"' || code == '\\')) out.push_back('\\');
            out.append(text, i, length);
        }
        i += length;
    }
    return out;
}

std::string rounded(double value) {
    char text[64];
    std::snprintf(text, sizeof text, "%.6f", value);
    std::string number = text;
    number.erase(number.find_last_not_of('0') + 1);
    if (number.back() == '.') number.push_back('0');
    return number;
}

std::string quoted(const std::string &text) { return '"' + escaped(text, true) + '"'; }

std::string percent(double share) {
    char text[16];
    std::snprintf(text, sizeof text, "%.0f%%", 100 * share);
    return share > 0.99 ? ">99%" : share < 0.01 ? "<1%" : text;
}

std::string hex(const uint8_t *digest) {
    std::string text;
    char two[3];
    for (int i = 0; i < 32; i++) {
        std::snprintf(two, sizeof two, "%02x", digest[i]);
        text += two;
    }
    return text;
}

class Printer {
public:
    Printer(const Options &options, const edgealign::Model &model, const edgealign::Recognizer &recognizer)
        : options_(options), accept_(model.accept_probability()) {
        uint8_t digest[32] = {};
        // The checksum is kept with the store; nothing in it changes.
        ea_store_sha256(const_cast<ea_store *>(recognizer.store()), digest);
        source_ = "\"modality\": " + quoted(model.modality()) + ", \"store_sha256\": \"" + hex(digest)
                  + "\", \"encoder_sha256\": \"" + hex(model.encoder_sha256()) + "\", \"backend\": \"native\"";
    }

    void clip(const std::string &file, const edgealign::Answer &answer) const {
        if (options_.json) {
            std::printf("{\"file\": %s, %s}\n", quoted(file).c_str(), json(answer).c_str());
        } else {
            std::printf("%s: %s\n", escaped(file, false).c_str(), text(answer).c_str());
        }
    }
    void heard(const edgealign::Answer &answer) const {
        if (options_.json) {
            std::printf("{\"file\": \"-\", %s, \"start_s\": %.4f, \"end_s\": %.4f, \"heard_s\": %.4f}\n",
                        json(answer).c_str(), answer.start_s, answer.end_s, answer.heard_s);
        } else {
            std::printf("%8.1f s  %s\n", answer.start_s, text(answer).c_str());
        }
        std::fflush(stdout);
    }

private:
    const Options &options_;
    const double accept_;
    std::string source_;

    std::string text(const edgealign::Answer &answer) const {
        if (!answer.has_sound) return "(unknown), no sound stands out";
        const std::string sure = percent(answer.probability) + " sure";
        std::string line = answer.label ? escaped(*answer.label, false) + ", " + sure
                                        : "(unknown), closest is " + escaped(answer.top[0].label, false) + ", " + sure
                                              + ", " + percent(accept_) + " needed";
        if (answer.top.size() > 1) line += ", then " + escaped(answer.top[1].label, false);
        return line;
    }
    std::string json(const edgealign::Answer &answer) const {
        const auto or_null = [&](double value) { return answer.has_sound ? rounded(value) : std::string("null"); };
        std::string line = "\"label\": " + (answer.label ? quoted(*answer.label) : "null")
                           + ", \"probability\": " + or_null(answer.probability)
                           + ", \"distance\": " + or_null(answer.distance)
                           + ", \"threshold\": " + or_null(answer.threshold) + ", \"runner_up\": ";
        line += answer.top.size() > 1 ? "{\"label\": " + quoted(answer.top[1].label)
                                            + ", \"distance\": " + rounded(double(answer.top[1].distance)) + "}"
                                      : "null";
        line += ", \"top\": [";
        for (size_t i = 0; i < answer.top.size() && i < options_.top_k; i++)
            line += (i ? ", {\"label\": " : "{\"label\": ") + quoted(answer.top[i].label)
                    + ", \"distance\": " + rounded(double(answer.top[i].distance))
                    + ", \"probability\": " + rounded(answer.top[i].probability) + "}";
        return line + "], " + source_;
    }
};

struct Opened {
    explicit Opened(const Options &options)
        : model(options.bundle, edgealign::Runtime(options.runtime), options.variant), recognizer(model, options.store) {}
    void expect_labels(const Options &options) const {
        if (recognizer.labels().empty())
            throw edgealign::Error(EA_NOT_FOUND,
                                   ("there is no store at '" + options.store + "', or it is empty: enroll clips first").c_str());
    }
    edgealign::Model model;
    edgealign::Recognizer recognizer;
};

// Pushes each file into the recognizer and does `what` with it; what was wrong with a file is said and counted by status.
template <class What>
std::vector<ea_status> for_each_file(const Options &options, edgealign::Recognizer &recognizer, What what) {
    if (options.files.empty()) throw Usage{"name at least one WAV file"};
    std::vector<ea_status> failures;
    for (const std::string &file : options.files) {
        try {
            WavFile wav(file);
            recognizer.begin(wav.sample_rate_hz(), wav.n_channels());
            constexpr size_t AT_ONCE = 4096;
            for (auto samples = wav.read(AT_ONCE); !samples.empty(); samples = wav.read(AT_ONCE))
                recognizer.push(samples.data(), samples.size() / wav.n_channels());
            what(file);
        } catch (const edgealign::Error &error) {
            failures.push_back(error.status);
            std::fprintf(stderr, "error: '%s': %s\n", escaped(file, false).c_str(), error.what());
        } catch (const std::runtime_error &error) {
            failures.push_back(EA_IO);
            std::fprintf(stderr, "error: %s\n", escaped(error.what(), false).c_str());
        }
    }
    return failures;
}

int classify(const Options &options) {
    Opened opened(options);
    opened.expect_labels(options);
    const Printer printer(options, opened.model, opened.recognizer);
    size_t n_unknown = 0;
    const auto failures = for_each_file(options, opened.recognizer, [&](const std::string &file) {
        const edgealign::Answer answer = opened.recognizer.classify(std::max<size_t>(options.top_k, 2));
        n_unknown += !answer.label;
        printer.clip(file, answer);
    });
    if (!failures.empty()) return failures.size() == options.files.size() ? INPUT : SOME_FAILED;
    return options.fail_on_unknown && n_unknown ? UNKNOWN : DONE;
}

int enroll(const Options &options) {
    const auto label_of = [&](const std::string &file) {
        return options.label.empty() ? std::filesystem::path(file).parent_path().filename().string() : options.label;
    };
    for (const std::string &file : options.files)
        if (label_of(file).empty()) throw Usage{"'" + file + "' lies in no folder that names its label: give --label"};
    Opened opened(options);
    size_t n_new = 0;
    const auto failures = for_each_file(options, opened.recognizer, [&](const std::string &file) {
        n_new += opened.recognizer.enroll(label_of(file), std::filesystem::path(file).filename().string());
    });
    const size_t n_learned = options.files.size() - failures.size();
    if (n_new) {
        const auto folder = std::filesystem::path(options.store).parent_path();
        std::error_code ignored;  // saving says what is wrong
        if (!folder.empty()) std::filesystem::create_directories(folder, ignored);
        opened.recognizer.save();
    }
    if (n_learned)
        std::printf("learned %zu recordings (%zu known already) into %s, which holds %zu labels\n", n_new,
                    n_learned - n_new, escaped(options.store, false).c_str(), opened.recognizer.labels().size());
    if (n_learned) return failures.empty() ? DONE : SOME_FAILED;
    const bool silent = std::find(failures.begin(), failures.end(), EA_NO_SOUND) != failures.end();
    return silent ? REFUSED : INPUT;
}

std::string described(uint32_t rate_hz, uint32_t n_channels, const std::string &samples) {
    return std::to_string(rate_hz) + " Hz, " + std::to_string(n_channels) + " channel(s) and " + samples;
}

// Where the samples of a pipe lie: behind the header of a WAV, as far as that says, or from the first byte to the last;
// nothing while that is open. Any other file is refused: heard as PCM, it would be noise without a word.
std::optional<WavSamples> samples_in_pipe(const std::vector<char> &start, const Options &options) {
    if (start.size() < 12) return std::nullopt;
    const auto begins = [&](const char *magic) { return !std::memcmp(start.data(), magic, std::strlen(magic)); };
    const bool is_wav = (begins("RIFF") || begins("RF64")) && !std::memcmp(start.data() + 8, "WAVE", 4);
    for (const char *magic : {"RIFF", "RF64", "fLaC", "OggS", "FORM", "ID3", "caff"})
        if (begins(magic) && !is_wav)
            throw std::runtime_error(std::string("standard input begins with ") + magic +
                                     ", as files do: raw PCM is expected, such as arecord -t raw writes it");
    if (!is_wav) return WavSamples{0, UINT64_MAX};
    WavFormat found;
    std::optional<WavSamples> samples;
    try {
        samples = find_samples(reinterpret_cast<const uint8_t *>(start.data()), start.size(), &found);
    } catch (const std::runtime_error &error) {
        throw std::runtime_error(std::string("standard input begins as a WAV file does, and ") + error.what());
    }
    if (!samples) return samples;
    const std::string coded = found.tag == 1 && found.bits == 16   ? "s16"
                              : found.tag == 3 && found.bits == 32 ? "f32"
                                                                   : std::to_string(found.bits) + " bits";
    const std::string have = described(found.rate_hz, found.n_channels, coded);
    const std::string want = described(options.rate, options.channels, options.sample_format);
    if (have != want)
        throw Usage{"standard input begins as a WAV file of " + have + " does, but raw PCM of " + want
                    + " is expected: say what comes with --rate, --channels and --sample-format"};
    return samples;
}

// Appends what standard input gives; false at its end.
bool read_on(std::vector<char> &bytes, size_t at_most) {
    const size_t held = bytes.size();
    bytes.resize(held + at_most);
    ssize_t count;
    do count = read(STDIN_FILENO, bytes.data() + held, at_most);
    while (count < 0 && errno == EINTR);
    if (count < 0) throw std::runtime_error(std::string("standard input breaks off: ") + std::strerror(errno));
    bytes.resize(held + size_t(count));
    return count > 0;
}

int listen(const Options &options) {
    if (!options.files.empty()) throw Usage{"listen reads raw PCM from standard input and takes no files"};
    Opened opened(options);
    opened.expect_labels(options);
    const Printer printer(options, opened.model, opened.recognizer);
    edgealign::Stream stream(opened.recognizer, options.rate, options.channels, options.debounce_s);
    const bool is_float = options.sample_format == "f32";
    const size_t frame = options.channels * (is_float ? sizeof(float) : sizeof(int16_t));
    const size_t block = std::max<size_t>(1, options.rate / 100) * frame;
    std::vector<char> bytes;
    bytes.reserve(2 * block);
    bool at_start = true;
    uint64_t left = UINT64_MAX;  // bytes of samples that are still to come
    for (bool goes_on = true; goes_on;) {
        goes_on = read_on(bytes, block);
        if (at_start) {
            const std::optional<WavSamples> samples = samples_in_pipe(bytes, options);
            if (!samples && goes_on) continue;
            if (!samples && bytes.size() >= 12) throw std::runtime_error("standard input ends in the header of a WAV");
            if (samples) {
                bytes.erase(bytes.begin(), bytes.begin() + ptrdiff_t(samples->at));
                left = samples->bytes;
            }
            at_start = false;
        }
        if (bytes.size() >= left) {
            bytes.resize(size_t(left));
            goes_on = false;
        }
        const size_t n_frames = bytes.size() / frame;
        const ea_status status = is_float ? stream.push(reinterpret_cast<const float *>(bytes.data()), n_frames)
                                          : stream.push(reinterpret_cast<const int16_t *>(bytes.data()), n_frames);
        if (status != EA_OK) throw edgealign::Error(status, "");
        bytes.erase(bytes.begin(), bytes.begin() + ptrdiff_t(n_frames * frame));
        if (left != UINT64_MAX) left -= n_frames * frame;
        if (!goes_on) stream.end();
        while (const auto answer = stream.poll(std::max<size_t>(options.top_k, 2))) printer.heard(*answer);
    }
    return DONE;
}

int exit_code(ea_status status) {
    switch (status) {
        case EA_INVALID_ARGUMENT: return USAGE;
        case EA_NOT_FINITE: return INPUT;
        default: return ARTIFACT;
    }
}

int run(int count, char **words) {
    const std::string command = count > 1 ? words[1] : "";
    if (command == "--version") return std::printf("edgealign-rt %s\n", ea_version()), DONE;
    if (command == "--help" || command == "-h") return std::fputs(HELP, stdout), DONE;
    int (*const run_command)(const Options &) = command == "classify" ? classify
                                                : command == "listen" ? listen
                                                : command == "enroll" ? enroll
                                                                      : nullptr;
    if (!run_command) {
        std::fputs(HELP, stderr);
        return USAGE;
    }
    for (int i = 2; i < count; i++)
        if (!std::strcmp(words[i], "--help") || !std::strcmp(words[i], "-h")) return std::fputs(HELP, stdout), DONE;
    Options options = parse(count - 2, words + 2);
    char why[EA_MESSAGE_BYTES] = "";
    if (const ea_status status = ea_instruction_set_check(why)) throw edgealign::Error(status, why);
    fill_in(options);
    return run_command(options);
}

int guarded(int count, char **words) {
    try {
        return run(count, words);
    } catch (const Usage &usage) {
        std::fprintf(stderr, "error: %s; see edgealign-rt --help\n", escaped(usage.why, false).c_str());
        return USAGE;
    } catch (const edgealign::Error &error) {
        std::fprintf(stderr, "error: %s\n", escaped(error.what(), false).c_str());
        return exit_code(error.status);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "error: %s\n", escaped(error.what(), false).c_str());
        return INPUT;
    }
}

}  // namespace

int main(int count, char **words) {
    std::signal(SIGPIPE, SIG_DFL);
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // ONNX Runtime from 1.32 on leaves a device id and reports its use
    int code = guarded(count, words);
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
        std::fputs("error: standard output cannot be written\n", stderr);
        code = INTERNAL;
    }
    // All of ours is closed by now; what ONNX Runtime still wants to tidy up takes longer than naming a clip.
    std::_Exit(code);
}
