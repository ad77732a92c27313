// The store on disk: docs/formats.md, format 1.
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <memory>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "distances.hpp"
#include "status.hpp"
#include "store.hpp"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers of the format are little-endian, as is the memory");

using namespace ea;

struct ea_store_lock {
    std::string path;
    int file;
};

namespace {

constexpr char MAGIC[8] = {'E', 'D', 'G', 'S', 'T', 'O', 'R', '\0'};
constexpr size_t HEAD_BYTES = 80, ROW_BYTES = 60, ALIGNMENT = 16, DIGEST_BYTES = sizeof(Digest);

class File {
public:
    explicit File(int descriptor) : descriptor_(descriptor) {}
    ~File() { close(); }
    File(const File &) = delete;
    int get() const { return descriptor_; }
    int release() {
        const int descriptor = descriptor_;
        descriptor_ = -1;
        return descriptor;
    }
    // False if what was written could not be kept after all.
    bool close() { return descriptor_ < 0 || ::close(release()) == 0; }

private:
    int descriptor_;
};

ea_status system_failure(char *message, const char *what, const std::string &path) {
    const int error = errno;
    char text[128] = "";
#if defined(__GLIBC__) && defined(_GNU_SOURCE)
    const char *reason = strerror_r(error, text, sizeof text);
#else
    const char *reason = strerror_r(error, text, sizeof text) ? "unknown error" : text;
#endif
    return fail(message, EA_IO, "cannot %s '%s': %s (errno %d)", what, path.c_str(), reason, error);
}

// The file itself where the path is a link: replacing the link would leave the file behind.
std::string resolved(const char *path) {
    struct stat info;
    if (lstat(path, &info) == 0 && S_ISLNK(info.st_mode)) {
        if (char *real = realpath(path, nullptr)) {
            const std::string result(real);
            std::free(real);
            return result;
        }
    }
    return path;
}

class Writer {
public:
    template <class T>
    void number(T value) {
        raw(&value, sizeof value);
    }
    void raw(const void *bytes, size_t count) {
        const auto *from = static_cast<const uint8_t *>(bytes);
        bytes_.insert(bytes_.end(), from, from + count);
    }
    void text(const std::string &value) {
        number(uint32_t(value.size()));
        raw(value.data(), value.size());
    }
    void pad() { bytes_.resize((bytes_.size() + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT); }
    std::vector<uint8_t> &bytes() { return bytes_; }

private:
    std::vector<uint8_t> bytes_;
};

// Reads from memory; what does not fit throws Damaged.
struct Damaged {
    const char *what;
};

class Reader {
public:
    Reader(const uint8_t *bytes, size_t count) : at_(bytes), left_(count) {}
    const uint8_t *raw(size_t count) {
        if (count > left_) throw Damaged{"it is cut short"};
        const uint8_t *here = at_;
        at_ += count, left_ -= count;
        return here;
    }
    template <class T>
    T number() {
        T value;
        std::memcpy(&value, raw(sizeof value), sizeof value);
        return value;
    }
    std::string text(size_t least, size_t most, const char *what) {
        const auto length = number<uint32_t>();
        if (length < least || length > most) throw Damaged{what};
        std::string value(reinterpret_cast<const char *>(raw(length)), length);
        if (!valid_utf8(value) || value.find('\0') != std::string::npos) throw Damaged{what};
        return value;
    }
    size_t left() const { return left_; }

private:
    const uint8_t *at_;
    size_t left_;
};

// The head is checked by itself before memory is taken for what it promises.
struct Head {
    uint32_t version, dim, n_labels, n_rows, modality_bytes, reserved;
    Digest encoder_sha256;
    uint64_t n_ops, undo_floor;

    explicit Head(Reader &reader) {
        reader.raw(sizeof MAGIC);
        version = reader.number<uint32_t>();
        dim = reader.number<uint32_t>();
        std::memcpy(encoder_sha256.data(), reader.raw(DIGEST_BYTES), DIGEST_BYTES);
        n_ops = reader.number<uint64_t>();
        undo_floor = reader.number<uint64_t>();
        n_labels = reader.number<uint32_t>();
        n_rows = reader.number<uint32_t>();
        modality_bytes = reader.number<uint32_t>();
        reserved = reader.number<uint32_t>();
    }

    // Whether a file of this many bytes can have this head.
    void check(uint64_t file_bytes) const {
        if (dim < 1 || dim > EA_MAX_DIM || n_labels > EA_MAX_LABELS || n_rows > EA_MAX_ROWS || n_labels > n_rows
            || modality_bytes < 1 || modality_bytes > EA_MAX_MODALITY_BYTES || reserved != 0 || undo_floor > n_ops)
            throw Damaged{"its head is damaged"};
        const uint64_t fixed = HEAD_BYTES + modality_bytes + 4ull * n_labels + uint64_t(ROW_BYTES) * n_rows
                               + 4ull * dim * n_rows + DIGEST_BYTES;
        const uint64_t texts = uint64_t(EA_MAX_LABEL_BYTES) * n_labels + uint64_t(EA_MAX_NAME_BYTES) * n_rows;
        if (file_bytes < fixed) throw Damaged{"it is cut short"};
        if (file_bytes > fixed + texts + ALIGNMENT) throw Damaged{"it has bytes after its end"};
    }
};

std::vector<uint8_t> serialize(const ea_store &store) {
    Writer writer;
    const size_t usual_name_bytes = 32, usual_label_bytes = 64;
    writer.bytes().reserve(HEAD_BYTES + store.labels.size() * usual_label_bytes
                           + store.rows.size() * (ROW_BYTES + usual_name_bytes + 4 * store.dim));
    writer.raw(MAGIC, sizeof MAGIC);
    writer.number(uint32_t(EA_STORE_FORMAT));
    writer.number(uint32_t(store.dim));
    writer.raw(store.encoder_sha256.data(), DIGEST_BYTES);
    writer.number(store.n_ops);
    writer.number(store.undo_floor);
    writer.number(uint32_t(store.labels.size()));
    writer.number(uint32_t(store.rows.size()));
    writer.number(uint32_t(store.modality.size()));
    writer.number(uint32_t(0));
    writer.raw(store.modality.data(), store.modality.size());
    for (const std::string &label : store.labels) writer.text(label);
    for (const StoreRow &row : store.rows) {
        writer.number(row.label);
        writer.number(row.kind);
        writer.number(row.added_op);
        writer.number(row.removed_op);
        writer.raw(row.source_sha256.data(), DIGEST_BYTES);
        writer.text(row.name);
    }
    writer.pad();
    writer.raw(store.embeddings.data(), store.embeddings.size() * sizeof(float));
    const Digest digest = sha256(writer.bytes().data(), writer.bytes().size());
    writer.raw(digest.data(), digest.size());
    return std::move(writer.bytes());
}

std::unique_ptr<ea_store> parse(const std::vector<uint8_t> &bytes) {
    const size_t body = bytes.size() - DIGEST_BYTES;
    Reader reader(bytes.data(), body);
    const Head head(reader);
    head.check(bytes.size());
    auto store = std::make_unique<ea_store>();
    store->digest = sha256(bytes.data(), body);
    store->digest_current = true;
    if (std::memcmp(store->digest.data(), bytes.data() + body, DIGEST_BYTES) != 0)
        throw Damaged{"its checksum does not fit its content"};

    store->encoder_sha256 = head.encoder_sha256;
    store->dim = head.dim;
    store->n_ops = head.n_ops;
    store->undo_floor = head.undo_floor;
    const auto *modality = reinterpret_cast<const char *>(reader.raw(head.modality_bytes));
    store->modality.assign(modality, head.modality_bytes);
    if (!valid_utf8(store->modality) || store->modality.find('\0') != std::string::npos)
        throw Damaged{"its modality is damaged"};
    std::unordered_set<std::string> seen;
    for (uint32_t l = 0; l < head.n_labels; l++) {
        store->labels.push_back(reader.text(1, EA_MAX_LABEL_BYTES, "a label is damaged"));
        if (!seen.insert(store->labels.back()).second) throw Damaged{"a label appears twice"};
    }
    std::vector<char> used(head.n_labels, 0);
    for (uint32_t i = 0; i < head.n_rows; i++) {
        StoreRow row;
        row.label = reader.number<uint32_t>();
        row.kind = reader.number<uint32_t>();
        row.added_op = reader.number<uint64_t>();
        row.removed_op = reader.number<uint64_t>();
        std::memcpy(row.source_sha256.data(), reader.raw(DIGEST_BYTES), DIGEST_BYTES);
        row.name = reader.text(0, EA_MAX_NAME_BYTES, "the name of a row is damaged");
        const bool in_order = row.added_op >= 1 && row.added_op <= head.n_ops && row.removed_op <= head.n_ops
                              && (row.removed_op == 0 || row.removed_op >= row.added_op);
        if (row.label >= head.n_labels || !known_kind(row.kind) || !in_order) throw Damaged{"a row is damaged"};
        used[row.label] = 1;
        store->rows.push_back(std::move(row));
    }
    for (char is_used : used)
        if (!is_used) throw Damaged{"a label has no rows"};
    while ((body - reader.left()) % ALIGNMENT)
        if (reader.number<uint8_t>() != 0) throw Damaged{"its padding is not zero"};
    const size_t count = size_t(head.n_rows) * head.dim;
    store->embeddings.resize(count);
    const uint8_t *embeddings = reader.raw(count * sizeof(float));
    if (count) std::memcpy(store->embeddings.data(), embeddings, count * sizeof(float));
    if (!all_finite(store->embeddings.data(), count)) throw Damaged{"an embedding holds NaN or infinity"};
    if (reader.left()) throw Damaged{"it has bytes after its end"};
    store->rebuild_view();
    return store;
}

bool read_all(int file, uint8_t *to, size_t count) {
    while (count > 0) {
        const ssize_t done = read(file, to, count);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) {
            if (done == 0) errno = EIO;  // it shrank while it was read
            return false;
        }
        to += done, count -= size_t(done);
    }
    return true;
}

bool write_all(int file, const uint8_t *from, size_t count) {
    while (count > 0) {
        const ssize_t done = write(file, from, count);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return false;
        from += done, count -= size_t(done);
    }
    return true;
}

}  // namespace

ea_status ea_store_load(const char *path, ea_store **store, char *message) {
    if (!path || !store) return null_pointer(message);
    // O_NONBLOCK: opening a pipe must fail below, not wait for somebody to write to it.
    const File file(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.get() < 0 && errno == ENOENT) return fail(message, EA_NOT_FOUND, "there is no store at '%s'", path);
    struct stat info;
    if (file.get() < 0 || fstat(file.get(), &info) != 0) return system_failure(message, "read", path);
    if (!S_ISREG(info.st_mode))
        return fail(message, EA_STORE_UNREADABLE, "'%s' is not a file, so it is not a store", path);
    return guarded(message, [&] {
        const auto size = uint64_t(info.st_size);
        std::vector<uint8_t> bytes(size < HEAD_BYTES + DIGEST_BYTES ? size : HEAD_BYTES);
        if (!read_all(file.get(), bytes.data(), bytes.size())) return system_failure(message, "read", path);
        if (bytes.size() < sizeof MAGIC || std::memcmp(bytes.data(), MAGIC, sizeof MAGIC) != 0)
            return fail(message, EA_STORE_UNREADABLE, "'%s' is not a store: it does not begin with EDGSTOR", path);
        try {
            if (bytes.size() < HEAD_BYTES) throw Damaged{"it is cut short"};
            Reader reader(bytes.data(), bytes.size());
            const Head head(reader);
            if (head.version != EA_STORE_FORMAT)
                return fail(message, EA_STORE_UNREADABLE,
                            "'%s' is a store of format %u, and this version of edgealign reads format %d: "
                            "use a newer one",
                            path, head.version, EA_STORE_FORMAT);
            head.check(size);
            bytes.resize(size);
            if (!read_all(file.get(), bytes.data() + HEAD_BYTES, size - HEAD_BYTES))
                return system_failure(message, "read", path);
            *store = parse(bytes).release();
        } catch (const Damaged &damaged) {
            return fail(message, EA_STORE_UNREADABLE, "the store '%s' cannot be read: %s; restore it from a copy", path,
                        damaged.what);
        }
        return EA_OK;
    });
}

ea_status ea_store_lock_acquire(const char *path, ea_store_lock **lock, char *message) {
    if (!path || !lock) return null_pointer(message);
    return guarded(message, [&] {
        const std::string target = resolved(path), name = target + ".lock";
        // A store that was made read-only stays as it is, though its folder would let it be replaced.
        if (access(target.c_str(), W_OK) != 0 && errno != ENOENT) return system_failure(message, "write", target);
        File file(open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
        if (file.get() < 0) return system_failure(message, "write", name);
        if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
            if (errno == EWOULDBLOCK) return fail(message, EA_BUSY, "somebody else is writing '%s'", path);
            return system_failure(message, "lock", name);
        }
        *lock = new ea_store_lock{target, file.get()};
        file.release();
        return EA_OK;
    });
}

void ea_store_lock_release(ea_store_lock *lock) {
    if (lock) close(lock->file);
    delete lock;
}

ea_status ea_store_save(ea_store *store, const char *path, const ea_store_lock *lock, char *message) {
    if (!store || !path) return null_pointer(message);
    return guarded(message, [&] {
        const std::string target = resolved(path), partial = target + ".partial";
        if (!lock || lock->path != target)
            return fail(message, EA_INVALID_ARGUMENT, "saving '%s' takes the lock of that path", path);
        const std::vector<uint8_t> bytes = serialize(*store);
        // The lock makes sure that nobody else uses this name; one that was left behind by a crash is in the way.
        unlink(partial.c_str());
        File file(open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
        if (file.get() < 0) return system_failure(message, "write", partial);
        const bool kept = write_all(file.get(), bytes.data(), bytes.size()) && fsync(file.get()) == 0 && file.close();
        // Rename, do not rewrite: a power cut must leave either the old store or the new one.
        if (!kept || rename(partial.c_str(), target.c_str()) != 0) {
            const ea_status status = system_failure(message, "write", target);
            unlink(partial.c_str());
            return status;
        }
        // The new name is on the disk once its folder is. Some file systems cannot do that, which is no failure.
        const size_t slash = target.rfind('/');
        const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : target.substr(0, slash);
        const File opened(open(folder.c_str(), O_RDONLY | O_CLOEXEC));
        if (opened.get() >= 0) fsync(opened.get());
        std::memcpy(store->digest.data(), bytes.data() + bytes.size() - DIGEST_BYTES, DIGEST_BYTES);
        store->digest_current = true;
        return EA_OK;
    });
}

ea_status ea_store_sha256(ea_store *store, uint8_t digest[32]) {
    if (!store || !digest) return EA_INVALID_ARGUMENT;
    return guarded(nullptr, [&] {
        if (!store->digest_current) {
            const std::vector<uint8_t> bytes = serialize(*store);
            std::memcpy(store->digest.data(), bytes.data() + bytes.size() - DIGEST_BYTES, DIGEST_BYTES);
            store->digest_current = true;
        }
        std::memcpy(digest, store->digest.data(), DIGEST_BYTES);
        return EA_OK;
    });
}
