// The store in memory. store.cpp changes it, store_file.cpp reads and writes it.
#pragma once

#include <cstring>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "edgealign.h"
#include "sha256.hpp"

namespace ea {

struct StoreRow {
    uint32_t label;  // position in ea_store::labels
    uint32_t kind;
    uint64_t added_op;
    uint64_t removed_op;  // 0: it is there
    Digest source_sha256;
    std::string name;
};

bool valid_utf8(std::string_view text);
bool known_kind(uint32_t kind);

}  // namespace ea

struct ea_store {
    std::string modality;
    ea::Digest encoder_sha256;
    size_t dim;
    uint64_t n_ops = 0;
    uint64_t undo_floor = 0;  // operations up to this one cannot be undone
    std::vector<std::string> labels;  // in the order of their first enrollment
    std::vector<ea::StoreRow> rows;   // in the order of their enrollment
    std::vector<float> embeddings;    // [rows, dim]

    bool op_open = false;  // whether the next change belongs to the operation of the last one

    // What is there, for the getters: every change ends with it right.
    struct View {
        std::vector<size_t> rows;           // those not removed
        std::vector<uint32_t> labels;       // those that have such rows
        std::vector<int32_t> label_number;  // of every label, its position in `labels`, or -1
    } view;

    // For finding what is enrolled already; adding keeps it current, any other change resets it.
    struct Index {
        bool current = false;
        std::unordered_map<std::string, uint32_t> labels;
        std::unordered_set<std::string> sources;  // source_key of each row not removed
    } index;

    bool digest_current = false;
    ea::Digest digest;  // the checksum of the file

    const float *embedding(size_t row) const { return embeddings.data() + row * dim; }
    bool has(std::string_view label) const;
    void rebuild_view();
};
