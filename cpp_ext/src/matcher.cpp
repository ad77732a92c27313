#include <algorithm>
#include <cmath>
#include <vector>

#include "distances.hpp"
#include "edgealign.h"
#include "status.hpp"

using namespace ea;

struct ea_matcher {
    // What the decision knows of a label before a query comes.
    struct Label {
        double cohort_mean, cohort_sd, constant;  // constant: the terms of the logit that no query changes
    };
    size_t dim, n_labels, n_bank, top;
    double accept_logit, w_z, w_t, w_distance, w_margin, lone_margin;
    std::vector<float> prototypes, prototype_norms, bank, bank_norms;
    std::vector<Label> labels;
};

namespace {

// Keeps scores finite where a whole cohort lies at one distance.
constexpr double SMALLEST_SD = 1e-4;
constexpr size_t AT_ONCE = 4;  // rows that share a pass over the bank

// Moves the `top` smallest to the front. What is surely not among them, by a sample, is put aside first, at a few
// instructions a value and without a branch.
void smallest_first(float *distances, size_t count, size_t top) {
    constexpr size_t SAMPLE = 256;
    size_t left = count;
    if (count >= 4 * SAMPLE && top <= count / 8) {
        float sample[SAMPLE];
        for (size_t i = 0; i < SAMPLE; i++) sample[i] = distances[i * (count / SAMPLE)];
        const double expected = double(top) * SAMPLE / double(count);
        const size_t rank = std::min(SAMPLE - 1, size_t(expected + 4 * std::sqrt(expected) + 1));
        std::nth_element(sample, sample + rank, sample + SAMPLE);
        const float bound = sample[rank];
        size_t below = 0;
        for (size_t i = 0; i < count; i++) {
            const float distance = distances[i];
            distances[i] = distances[below], distances[below] = distance;
            below += distance < bound;
        }
        if (below >= top) left = below;
    }
    if (top < left) std::nth_element(distances, distances + top, distances + left);
}

// Mean and standard deviation of the `top` smallest distances, which are moved to the front.
void cohort(float *distances, size_t count, size_t top, double *mean, double *sd) {
    smallest_first(distances, count, top);
    double total = 0, squares = 0;
    for (size_t i = 0; i < top; i++) total += distances[i];
    *mean = total / double(top);
    for (size_t i = 0; i < top; i++) squares += (distances[i] - *mean) * (distances[i] - *mean);
    *sd = std::max(std::sqrt(squares / double(top)), SMALLEST_SD);
}

// The threshold exists only where a larger distance always means a smaller logit.
ea_status check(const ea_calibration *c, size_t n_bank, char *message) {
    if (!c || c->struct_size < sizeof *c)
        return fail(message, EA_INVALID_ARGUMENT, "the calibration is missing or its struct_size is not set");
    const double values[] = {c->w_bias,  c->w_z,    c->w_t,          c->w_distance, c->w_margin,     c->w_loo,
                             c->w_shots, c->w_text, c->accept_logit, c->prior_loo,  c->prior_weight, c->lone_margin};
    for (double value : values)
        if (!std::isfinite(value)) return fail(message, EA_NOT_FINITE, "the calibration holds NaN or infinity");
    if (c->w_z < 0 || c->w_t < 0 || c->w_margin < 0 || c->w_distance > 0)
        return fail(message, EA_INVALID_ARGUMENT,
                    "the calibration must have w_z, w_t, w_margin >= 0 and w_distance <= 0");
    if (c->w_margin - c->w_distance + (n_bank ? c->w_z + c->w_t : 0) <= 0)
        return fail(message, EA_INVALID_ARGUMENT, "no weight of the calibration looks at the distance%s",
                    n_bank ? "" : ", and there is no bank");
    if (c->prior_weight <= 0) return fail(message, EA_INVALID_ARGUMENT, "the calibration must have prior_weight > 0");
    if (n_bank && c->top < 1) return fail(message, EA_INVALID_ARGUMENT, "the calibration must have top >= 1");
    return EA_OK;
}

// The k closest labels of an embedding whose distances to the prototypes and to the bank are given; reorders the latter.
void decide(const ea_matcher &m, const float *distances, float *bank_distances, size_t k, ea_match *matches) {
    double cohort_mean = 0, cohort_sd = 1;
    if (m.n_bank) cohort(bank_distances, m.n_bank, m.top, &cohort_mean, &cohort_sd);
    size_t held = 0;
    float closest = INFINITY, second = INFINITY;  // `second` may equal `closest`
    for (size_t l = 0; l < m.n_labels; l++) {
        const float distance = distances[l];
        if (distance < closest) {
            second = closest, closest = distance;
        } else if (distance < second) {
            second = distance;
        }
        if (held == k && !(distance < matches[k - 1].distance)) continue;
        size_t at = held < k ? held++ : k - 1;
        for (; at > 0 && distance < matches[at - 1].distance; at--) matches[at] = matches[at - 1];
        matches[at].label = int32_t(l), matches[at].distance = distance;
    }
    for (size_t i = 0; i < k; i++) {
        ea_match &match = matches[i];
        const ea_matcher::Label &label = m.labels[match.label];
        const double distance = match.distance, other = i == 0 ? second : closest;
        const double margin = m.n_labels == 1 ? m.lone_margin : other - distance;
        match.logit = label.constant + m.w_z * (label.cohort_mean - distance) / label.cohort_sd
                      + m.w_t * (cohort_mean - distance) / cohort_sd + m.w_distance * distance + m.w_margin * margin;
        const double slope = m.w_distance - m.w_margin - m.w_z / label.cohort_sd - m.w_t / cohort_sd;
        match.threshold = distance + (m.accept_logit - match.logit) / slope;
        match.probability = 1 / (1 + std::exp(-match.logit));
        match.accepted = match.logit >= m.accept_logit;
    }
}

}  // namespace

ea_status ea_cohort_stats(const float *rows, size_t n_rows, const float *bank, size_t n_bank, size_t dim, size_t top,
                          float *scratch, float *stats) {
    if (dim == 0 || n_bank == 0 || top == 0) return EA_INVALID_ARGUMENT;
    float *norms = scratch, *distances = scratch + n_bank;
    if (!row_norms(bank, n_bank, dim, norms)) return EA_NOT_FINITE;
    for (size_t first = 0; first < n_rows; first += AT_ONCE) {
        const size_t count = std::min(AT_ONCE, n_rows - first);
        float row_norm[AT_ONCE];
        if (!row_norms(rows + first * dim, count, dim, row_norm)) return EA_NOT_FINITE;
        cosine_distances(rows + first * dim, row_norm, count, bank, norms, n_bank, dim, distances, n_bank);
        for (size_t i = 0; i < count; i++) {
            double mean, sd;
            cohort(distances + i * n_bank, n_bank, std::min(top, n_bank), &mean, &sd);
            stats[2 * (first + i)] = float(mean), stats[2 * (first + i) + 1] = float(sd);
        }
    }
    return EA_OK;
}

ea_status ea_matcher_create(const float *embeddings, const int32_t *labels, const int32_t *kinds, size_t n_rows,
                            size_t n_labels, size_t dim, const float *bank, size_t n_bank,
                            const ea_calibration *calibration, float text_weight, ea_matcher **matcher,
                            char *message) {
    const ea_status checked = check(calibration, n_bank, message);
    if (checked != EA_OK) return checked;
    if (n_labels == 0) return fail(message, EA_INVALID_ARGUMENT, "there is no label to match with");
    if (!embeddings || !labels || !kinds || (n_bank && !bank) || !matcher) return null_pointer(message);
    if (!(text_weight > 0) || !std::isfinite(text_weight))
        return fail(message, EA_INVALID_ARGUMENT, "text_weight must be a positive number");
    return guarded(message, [&] {
        std::vector<float> weights(n_rows), recordings(n_rows);
        std::vector<double> n_recordings(n_labels, 0), loo_total(n_labels, 0), loo_count(n_labels, 0);
        std::vector<char> seen(n_labels, 0);
        for (size_t i = 0; i < n_rows; i++) {
            if (labels[i] < 0 || size_t(labels[i]) >= n_labels)
                return fail(message, EA_INVALID_ARGUMENT, "row %zu has label %d of %zu", i, labels[i], n_labels);
            if (kinds[i] < EA_RECORDING || kinds[i] > EA_PICTURE)
                return fail(message, EA_INVALID_ARGUMENT, "row %zu has the unknown kind %d", i, kinds[i]);
            const bool recording = kinds[i] == EA_RECORDING;
            recordings[i] = recording ? 1.0f : 0.0f;
            weights[i] = recording ? 1.0f : text_weight;
            n_recordings[labels[i]] += recording;
            seen[labels[i]] = 1;
        }
        for (size_t l = 0; l < n_labels; l++)
            if (!seen[l]) return fail(message, EA_INVALID_ARGUMENT, "label %zu has no rows", l);

        const ea_calibration &c = *calibration;
        ea_matcher made;
        made.dim = dim, made.n_labels = n_labels, made.n_bank = n_bank, made.top = std::min(c.top, n_bank);
        made.accept_logit = c.accept_logit, made.lone_margin = c.lone_margin;
        made.w_z = n_bank ? c.w_z : 0, made.w_t = n_bank ? c.w_t : 0;
        made.w_distance = c.w_distance, made.w_margin = c.w_margin;
        made.prototypes.resize(n_labels * dim);
        std::vector<float> scratch(std::max(n_labels, 5 * n_bank));
        ea_status status = ea_prototypes(embeddings, labels, n_rows, n_labels, dim, weights.data(), scratch.data(),
                                         made.prototypes.data());
        if (status != EA_OK) return fail(message, status, "the embeddings: %s", ea_status_text(status));
        made.prototype_norms.resize(n_labels);
        row_norms(made.prototypes.data(), n_labels, dim, made.prototype_norms.data());

        std::vector<float> distances(n_rows), stats(2 * n_labels, 0.0f);
        std::vector<uint8_t> valid(n_rows);
        std::vector<double> sums(n_labels * (dim + 2));
        ea_leave_one_out(embeddings, labels, n_rows, n_labels, dim, recordings.data(), sums.data(), distances.data(),
                         valid.data());
        for (size_t i = 0; i < n_rows; i++) {
            if (!valid[i] || recordings[i] == 0) continue;
            loo_total[labels[i]] += distances[i];
            loo_count[labels[i]] += 1;
        }
        if (n_bank) {
            made.bank.assign(bank, bank + n_bank * dim);
            made.bank_norms.resize(n_bank);
            row_norms(bank, n_bank, dim, made.bank_norms.data());
            status = ea_cohort_stats(made.prototypes.data(), n_labels, bank, n_bank, dim, c.top, scratch.data(),
                                     stats.data());
            if (status != EA_OK) return fail(message, status, "the bank: %s", ea_status_text(status));
        }
        for (size_t l = 0; l < n_labels; l++) {
            const double loo = (c.prior_loo * c.prior_weight + loo_total[l]) / (c.prior_weight + loo_count[l]);
            const double constant = c.w_bias + c.w_loo * loo + c.w_shots * std::log2(1 + n_recordings[l])
                                    + (n_recordings[l] == 0 ? c.w_text : 0);
            made.labels.push_back({stats[2 * l], n_bank ? stats[2 * l + 1] : 1.0, constant});
        }
        *matcher = new ea_matcher(std::move(made));
        return EA_OK;
    });
}

void ea_matcher_free(ea_matcher *matcher) { delete matcher; }

size_t ea_matcher_scratch_floats(const ea_matcher *matcher) {
    return matcher ? matcher->n_labels + matcher->n_bank : 0;
}

ea_status ea_classify(const ea_matcher *matcher, const float *embedding, size_t top_k, float *scratch,
                      ea_match *matches, size_t *n_matches) {
    return ea_classify_many(matcher, embedding, 1, top_k, scratch, matches, n_matches);
}

ea_status ea_classify_many(const ea_matcher *matcher, const float *embeddings, size_t n_embeddings, size_t top_k,
                           float *scratch, ea_match *matches, size_t *n_matches) {
    if (!matcher || top_k == 0 || !scratch || !n_matches || (n_embeddings && (!embeddings || !matches)))
        return EA_INVALID_ARGUMENT;
    const ea_matcher &m = *matcher;
    const size_t k = std::min(top_k, m.n_labels);
    for (size_t first = 0; first < n_embeddings; first += AT_ONCE) {
        const size_t count = std::min(AT_ONCE, n_embeddings - first);
        const float *rows = embeddings + first * m.dim;
        float norms[AT_ONCE], *distances = scratch, *bank_distances = scratch + count * m.n_labels;
        if (!row_norms(rows, count, m.dim, norms)) return EA_NOT_FINITE;
        cosine_distances(rows, norms, count, m.prototypes.data(), m.prototype_norms.data(), m.n_labels, m.dim,
                         distances, m.n_labels);
        if (m.n_bank)
            cosine_distances(rows, norms, count, m.bank.data(), m.bank_norms.data(), m.n_bank, m.dim, bank_distances,
                             m.n_bank);
        for (size_t i = 0; i < count; i++)
            decide(m, distances + i * m.n_labels, bank_distances + i * m.n_bank, k, matches + (first + i) * k);
    }
    *n_matches = k;
    return EA_OK;
}
