#include "store.hpp"

#include <algorithm>
#include <memory>

#include "distances.hpp"
#include "status.hpp"
#include "utf8.hpp"

using namespace ea;

bool ea::known_kind(uint32_t kind) { return kind >= EA_RECORDING && kind <= EA_PICTURE; }

bool ea::valid_utf8(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
        const size_t length = character_at(text, i).length;
        if (length == 0) return false;
        i += length;
    }
    return true;
}

namespace {

// What makes two rows the same enrollment.
std::string source_key(std::string_view label, uint32_t kind, const uint8_t *digest) {
    std::string key(label);
    key.push_back(char(kind));
    key.append(reinterpret_cast<const char *>(digest), sizeof(Digest));
    return key;
}

void refresh_index(ea_store &store) {
    if (store.index.current) return;
    store.index.labels.clear();
    store.index.sources.clear();
    for (uint32_t l = 0; l < store.labels.size(); l++) store.index.labels.emplace(store.labels[l], l);
    for (const StoreRow &row : store.rows)
        if (!row.removed_op)
            store.index.sources.insert(source_key(store.labels[row.label], row.kind, row.source_sha256.data()));
    store.index.current = true;
}

template <class Gone>
void erase_rows(ea_store &store, Gone gone) {
    size_t kept = 0;
    for (size_t i = 0; i < store.rows.size(); i++) {
        if (gone(store.rows[i])) continue;
        if (kept != i) {
            store.rows[kept] = std::move(store.rows[i]);
            std::copy_n(store.embedding(i), store.dim, &store.embeddings[kept * store.dim]);
        }
        kept++;
    }
    store.rows.resize(kept);
    store.embeddings.resize(kept * store.dim);
}

// Labels that no row refers to any more leave the table.
void erase_unused_labels(ea_store &store) {
    std::vector<uint32_t> moved_to(store.labels.size(), 0);
    for (const StoreRow &row : store.rows) moved_to[row.label] = 1;
    uint32_t kept = 0;
    for (size_t i = 0; i < store.labels.size(); i++) {
        if (!moved_to[i]) continue;
        if (kept != i) store.labels[kept] = std::move(store.labels[i]);
        moved_to[i] = kept++;
    }
    store.labels.resize(kept);
    for (StoreRow &row : store.rows) row.label = moved_to[row.label];
}

void changed(ea_store &store) { store.index.current = store.digest_current = false; }

// The number of the operation that the change about to be made belongs to.
uint64_t open_op(ea_store &store) {
    changed(store);
    if (store.op_open) return store.n_ops;
    store.op_open = true;
    store.n_ops++;
    if (store.n_ops > store.undo_floor + EA_MAX_UNDO) {
        store.undo_floor = store.n_ops - EA_MAX_UNDO;
        const auto gone = [&](const StoreRow &row) { return row.removed_op && row.removed_op <= store.undo_floor; };
        if (std::any_of(store.rows.begin(), store.rows.end(), gone)) {
            erase_rows(store, gone);
            erase_unused_labels(store);
            store.rebuild_view();
        }
    }
    return store.n_ops;
}

struct NewRow {
    std::string_view label, name;
    uint32_t kind;
    const uint8_t *source_sha256;
    const float *embedding;
};

// Adds what is not there yet: all of it or, with a message, nothing.
ea_status add_rows(ea_store &store, const std::vector<NewRow> &candidates, size_t *n_added, char *message) {
    *n_added = 0;
    refresh_index(store);
    std::vector<const NewRow *> wanted;
    std::unordered_set<std::string> new_sources;
    std::unordered_set<std::string_view> new_labels;
    for (const NewRow &row : candidates) {
        std::string key = source_key(row.label, row.kind, row.source_sha256);
        if (store.index.sources.count(key) || !new_sources.insert(std::move(key)).second) continue;
        if (!store.index.labels.count(std::string(row.label))) new_labels.insert(row.label);
        wanted.push_back(&row);
    }
    if (wanted.empty()) return EA_OK;
    if (store.rows.size() + wanted.size() > EA_MAX_ROWS)
        return fail(message, EA_LIMIT, "a store holds at most %d rows: remove labels, or use another store",
                    EA_MAX_ROWS);
    if (store.labels.size() + new_labels.size() > EA_MAX_LABELS)
        return fail(message, EA_LIMIT, "a store holds at most %d labels: remove labels, or use another store",
                    EA_MAX_LABELS);

    const size_t n_labels = store.labels.size();
    const bool was_open = store.op_open;
    const uint64_t op = open_op(store);
    // Opening an operation may have dropped labels of the past; otherwise the index still holds.
    store.index.current = was_open || store.labels.size() == n_labels;
    refresh_index(store);
    store.index.current = false;
    auto &view = store.view;
    bool label_came_back = false;
    for (const NewRow *row : wanted) {
        const auto found = store.index.labels.emplace(row->label, uint32_t(store.labels.size()));
        const uint32_t label = found.first->second;
        if (found.second) {
            store.labels.emplace_back(row->label);
            view.label_number.push_back(int32_t(view.labels.size()));
            view.labels.push_back(label);
        }
        label_came_back = label_came_back || view.label_number[label] < 0;
        view.rows.push_back(store.rows.size());
        Digest digest;
        std::memcpy(digest.data(), row->source_sha256, digest.size());
        store.rows.push_back({label, row->kind, op, 0, digest, std::string(row->name)});
        store.embeddings.insert(store.embeddings.end(), row->embedding, row->embedding + store.dim);
    }
    if (label_came_back) store.rebuild_view();
    store.index.sources.merge(new_sources);
    store.index.current = true;
    *n_added = wanted.size();
    return EA_OK;
}

// Marks rows that are there as removed by the open operation, or by a new one.
template <class Gone>
size_t remove_rows(ea_store &store, Gone gone) {
    const uint64_t op = open_op(store);
    size_t n_removed = 0;
    for (size_t i = 0; i < store.rows.size(); i++) {
        if (store.rows[i].removed_op || !gone(i)) continue;
        store.rows[i].removed_op = op;
        n_removed++;
    }
    store.rebuild_view();
    return n_removed;
}

ea_status check_label(const char *label, char *message) {
    const size_t label_bytes = std::strlen(label);
    if (label_bytes < 1 || label_bytes > EA_MAX_LABEL_BYTES)
        return fail(message, EA_INVALID_ARGUMENT, "the label has %zu bytes of UTF-8, expected 1 to %d", label_bytes,
                    EA_MAX_LABEL_BYTES);
    if (!valid_utf8(label)) return fail(message, EA_INVALID_ARGUMENT, "the label is not UTF-8");
    return EA_OK;
}

ea_status no_label(const char *label, char *message) {
    return fail(message, EA_NOT_FOUND, "the store has no label '%.100s'", label);
}

}  // namespace

bool ea_store::has(std::string_view label) const {
    return std::any_of(view.labels.begin(), view.labels.end(), [&](uint32_t l) { return labels[l] == label; });
}

void ea_store::rebuild_view() {
    view.rows.clear();
    view.labels.clear();
    view.label_number.assign(labels.size(), -1);
    for (size_t i = 0; i < rows.size(); i++) {
        if (rows[i].removed_op) continue;
        view.rows.push_back(i);
        view.label_number[rows[i].label] = 0;
    }
    for (uint32_t l = 0; l < labels.size(); l++) {
        if (view.label_number[l] < 0) continue;
        view.label_number[l] = int32_t(view.labels.size());
        view.labels.push_back(l);
    }
}

ea_status ea_store_create(const char *modality, const uint8_t encoder_sha256[32], size_t dim, ea_store **store,
                          char *message) {
    if (!modality || !encoder_sha256 || !store) return null_pointer(message);
    const size_t length = std::strlen(modality);
    if (length < 1 || length > EA_MAX_MODALITY_BYTES || !valid_utf8(modality))
        return fail(message, EA_INVALID_ARGUMENT, "the modality must be UTF-8 of 1 to %d bytes", EA_MAX_MODALITY_BYTES);
    if (dim < 1 || dim > EA_MAX_DIM)
        return fail(message, EA_INVALID_ARGUMENT, "dim is %zu, expected 1 to %d", dim, EA_MAX_DIM);
    return guarded(message, [&] {
        auto made = std::make_unique<ea_store>();
        made->modality = modality;
        std::memcpy(made->encoder_sha256.data(), encoder_sha256, made->encoder_sha256.size());
        made->dim = dim;
        *store = made.release();
        return EA_OK;
    });
}

void ea_store_free(ea_store *store) { delete store; }

const char *ea_store_modality(const ea_store *store) { return store ? store->modality.c_str() : nullptr; }
const uint8_t *ea_store_encoder_sha256(const ea_store *store) {
    return store ? store->encoder_sha256.data() : nullptr;
}
size_t ea_store_dim(const ea_store *store) { return store ? store->dim : 0; }
uint64_t ea_store_n_ops(const ea_store *store) { return store ? store->n_ops : 0; }

size_t ea_store_n_labels(const ea_store *store) {
    return store ? store->view.labels.size() : 0;
}

const char *ea_store_label(const ea_store *store, size_t label) {
    return label < ea_store_n_labels(store) ? store->labels[store->view.labels[label]].c_str() : nullptr;
}

size_t ea_store_n_rows(const ea_store *store) {
    return store ? store->view.rows.size() : 0;
}

ea_status ea_store_get_row(const ea_store *store, size_t index, ea_store_row *row) {
    if (index >= ea_store_n_rows(store) || !row) return EA_INVALID_ARGUMENT;
    const size_t at = store->view.rows[index];
    const StoreRow &found = store->rows[at];
    *row = {store->view.label_number[found.label], int32_t(found.kind), found.name.c_str(),
            found.source_sha256.data(), store->embedding(at)};
    return EA_OK;
}

void ea_store_begin_op(ea_store *store) {
    if (store) store->op_open = false;
}

ea_status ea_store_add(ea_store *store, const char *label, int32_t kind, const float *embeddings, size_t n_rows,
                       const uint8_t *source_sha256s, const char *const *names, size_t *n_added, char *message) {
    if (!store || !label || !n_added || (n_rows && (!embeddings || !source_sha256s || !names)))
        return null_pointer(message);
    if (const ea_status status = check_label(label, message)) return status;
    if (!known_kind(uint32_t(kind)))
        return fail(message, EA_INVALID_ARGUMENT, "%d is not a kind of sample", kind);
    for (size_t i = 0; i < n_rows; i++)
        if (!names[i] || std::strlen(names[i]) > EA_MAX_NAME_BYTES || !valid_utf8(names[i]))
            return fail(message, EA_INVALID_ARGUMENT, "the name of sample %zu is not UTF-8 of at most %d bytes", i,
                        EA_MAX_NAME_BYTES);
    if (!all_finite(embeddings, n_rows * store->dim))
        return fail(message, EA_NOT_FINITE, "NaN or infinity in the embeddings of '%.100s'", label);
    return guarded(message, [&] {
        // All of these may be this store's own, whose memory moves while it is changed.
        const std::string kept_label(label);
        const std::vector<std::string> kept_names(names, names + n_rows);
        const std::vector<float> kept_embeddings(embeddings, embeddings + n_rows * store->dim);
        const std::vector<uint8_t> kept_sources(source_sha256s, source_sha256s + sizeof(Digest) * n_rows);
        std::vector<NewRow> candidates;
        for (size_t i = 0; i < n_rows; i++)
            candidates.push_back({kept_label, kept_names[i], uint32_t(kind), &kept_sources[sizeof(Digest) * i],
                                  &kept_embeddings[i * store->dim]});
        return add_rows(*store, candidates, n_added, message);
    });
}

ea_status ea_store_remove(ea_store *store, const char *label, size_t *n_removed, char *message) {
    if (!store || !label || !n_removed) return null_pointer(message);
    return guarded(message, [&] {
        *n_removed = 0;
        if (!store->has(label)) return no_label(label, message);
        const std::string kept_label(label);  // it may be this store's own, whose memory moves while it is changed
        *n_removed = remove_rows(*store, [&](size_t i) { return store->labels[store->rows[i].label] == kept_label; });
        return EA_OK;
    });
}

ea_status ea_store_remove_row(ea_store *store, size_t index, char *message) {
    if (!store) return null_pointer(message);
    return guarded(message, [&] {
        if (index >= store->view.rows.size())
            return fail(message, EA_NOT_FOUND, "the store has %zu rows, and none with the index %zu",
                        store->view.rows.size(), index);
        open_op(*store);  // may drop rows of the past, which moves the others
        const size_t gone = store->view.rows[index];
        remove_rows(*store, [&](size_t i) { return i == gone; });
        return EA_OK;
    });
}

ea_status ea_store_rename(ea_store *store, const char *label, const char *new_label, size_t *n_moved, char *message) {
    if (!store || !label || !new_label || !n_moved) return null_pointer(message);
    *n_moved = 0;
    if (const ea_status status = check_label(new_label, message)) return status;
    if (!std::strcmp(label, new_label))
        return fail(message, EA_INVALID_ARGUMENT, "'%.100s' is the name of the label already", label);
    return guarded(message, [&] {
        if (!store->has(label)) return no_label(label, message);
        // Copies: what they are made of moves while they are added, and the labels may be this store's own.
        const std::string kept_label(label), kept_new_label(new_label);
        std::vector<StoreRow> moved;
        std::vector<float> embeddings;
        for (size_t at : store->view.rows) {
            if (store->labels[store->rows[at].label] != kept_label) continue;
            moved.push_back(store->rows[at]);
            embeddings.insert(embeddings.end(), store->embedding(at), store->embedding(at) + store->dim);
        }
        std::vector<NewRow> candidates;
        for (const StoreRow &row : moved)
            candidates.push_back({kept_new_label, row.name, row.kind, row.source_sha256.data(),
                                  embeddings.data() + candidates.size() * store->dim});
        if (const ea_status status = add_rows(*store, candidates, n_moved, message)) return status;
        remove_rows(*store, [&](size_t i) { return store->labels[store->rows[i].label] == kept_label; });
        return EA_OK;
    });
}

ea_status ea_store_merge(ea_store *store, const ea_store *other, size_t *n_added, char *message) {
    if (!store || !other || !n_added) return null_pointer(message);
    if (store->modality != other->modality || store->dim != other->dim
        || store->encoder_sha256 != other->encoder_sha256)
        return fail(message, EA_STORE_MISMATCH,
                    "the stores were made with different encoders: only stores of one encoder can be merged");
    return guarded(message, [&] {
        *n_added = 0;
        if (store == other) return EA_OK;
        std::vector<NewRow> candidates;
        for (size_t i = 0; i < other->rows.size(); i++) {
            const StoreRow &row = other->rows[i];
            if (row.removed_op) continue;
            candidates.push_back(
                {other->labels[row.label], row.name, row.kind, row.source_sha256.data(), other->embedding(i)});
        }
        return add_rows(*store, candidates, n_added, message);
    });
}

ea_status ea_store_undo(ea_store *store, char *message) {
    if (!store) return null_pointer(message);
    if (store->n_ops == 0) return fail(message, EA_NOTHING_TO_UNDO, "nothing has been enrolled or removed yet");
    if (store->n_ops == store->undo_floor)
        return fail(message, EA_NOTHING_TO_UNDO, "only the last %d operations can be undone", EA_MAX_UNDO);
    return guarded(message, [&] {
        changed(*store);
        const uint64_t op = store->n_ops;
        erase_rows(*store, [&](const StoreRow &row) { return row.added_op == op; });
        for (StoreRow &row : store->rows)
            if (row.removed_op == op) row.removed_op = 0;
        erase_unused_labels(*store);
        store->rebuild_view();
        store->n_ops--;
        store->op_open = false;
        return EA_OK;
    });
}

ea_status ea_matcher_from_store(const ea_store *store, const float *bank, size_t n_bank,
                                const ea_calibration *calibration, float text_weight, ea_matcher **matcher,
                                char *message) {
    if (!store || !matcher) return null_pointer(message);
    return guarded(message, [&] {
        std::vector<float> embeddings;
        std::vector<int32_t> labels, kinds;
        for (size_t at : store->view.rows) {
            const StoreRow &row = store->rows[at];
            embeddings.insert(embeddings.end(), store->embedding(at), store->embedding(at) + store->dim);
            labels.push_back(store->view.label_number[row.label]);
            kinds.push_back(int32_t(row.kind));
        }
        return ea_matcher_create(embeddings.data(), labels.data(), kinds.data(), labels.size(),
                                 store->view.labels.size(), store->dim, bank, n_bank, calibration, text_weight,
                                 matcher, message);
    });
}
