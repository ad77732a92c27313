// torch.ops.edgealign.*: schemas and CPU kernels on torch's stable ABI, so that one build loads into torch 2.10 and
// every later one. float32 goes to the core. float64 is written out below as the formulas stand in edgealign/kernels.py:
// it exists for gradcheck and for nothing else. Autograd and shapes are registered in edgealign/train/ops.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "edgealign.h"
#include "episodes.hpp"

using namespace ea::bind;

namespace {

void check(ea_status status) { expect(status == EA_OK, ea_status_text(status)); }

struct Matrix {
    Tensor kept;
    int64_t rows, columns;
    bool is_double;

    Matrix(const Tensor &tensor, const char *name) : kept(torch::stable::contiguous(tensor)) {
        expect(kept.dim() == 2, std::string(name) + " must have 2 dimensions");
        const auto type = kept.scalar_type();
        expect(type == ScalarType::Float || type == ScalarType::Double,
               std::string(name) + " must be float32 or float64");
        rows = kept.size(0), columns = kept.size(1), is_double = type == ScalarType::Double;
        expect(columns > 0, std::string(name) + " has rows without elements");
        if (is_double)
            for (int64_t i = 0; i < rows * columns; i++)
                expect(std::isfinite(float64()[i]), "NaN or infinity in " + std::string(name));
    }
    const float *float32() const { return static_cast<const float *>(kept.const_data_ptr()); }
    const double *float64() const { return static_cast<const double *>(kept.const_data_ptr()); }
    Tensor made(int64_t n_rows, int64_t n_columns) const { return torch::stable::new_empty(kept, {n_rows, n_columns}); }
};

double norm(const double *row, int64_t dim) {
    double squares = 0;
    for (int64_t i = 0; i < dim; i++) squares += row[i] * row[i];
    return std::sqrt(squares);
}

double sq_l2_exact(const double *q, const double *p, int64_t dim) {
    double total = 0;
    for (int64_t i = 0; i < dim; i++) total += (q[i] - p[i]) * (q[i] - p[i]);
    return total;
}

double cosine_exact(const double *q, const double *p, int64_t dim) {
    const double q_norm = norm(q, dim), p_norm = norm(p, dim);
    if (q_norm == 0 || p_norm == 0) return q_norm == p_norm ? 0 : 1;
    double dot = 0;
    for (int64_t i = 0; i < dim; i++) dot += q[i] * p[i];
    return 1 - std::clamp(dot / (q_norm * p_norm), -1.0, 1.0);
}

template <ea_status (*kernel)(const float *, size_t, const float *, size_t, size_t, float *),
          double (*exact)(const double *, const double *, int64_t)>
Tensor distances(Tensor queries, Tensor prototypes) {
    const Matrix q(queries, "queries"), p(prototypes, "prototypes");
    expect(q.columns == p.columns && q.is_double == p.is_double, "queries and prototypes must agree in width and type");
    Tensor made = q.made(q.rows, p.rows);
    if (q.is_double) {
        for (int64_t i = 0; i < q.rows; i++)
            for (int64_t j = 0; j < p.rows; j++)
                data<double>(made)[i * p.rows + j] =
                    exact(q.float64() + i * q.columns, p.float64() + j * q.columns, q.columns);
    } else {
        check(kernel(q.float32(), q.rows, p.float32(), p.rows, q.columns, data<float>(made)));
    }
    return made;
}

Tensor sq_l2(Tensor queries, Tensor prototypes) { return distances<ea_sq_l2, sq_l2_exact>(queries, prototypes); }
Tensor cosine(Tensor queries, Tensor prototypes) { return distances<ea_cosine, cosine_exact>(queries, prototypes); }

std::tuple<Tensor, Tensor> nearest(Tensor queries, Tensor prototypes, int64_t k, int64_t metric) {
    const Matrix q(queries, "queries"), p(prototypes, "prototypes");
    expect(q.columns == p.columns && q.is_double == p.is_double, "queries and prototypes must agree in width and type");
    expect(metric == EA_COSINE || metric == EA_SQ_L2, "metric must be 0 (cosine) or 1 (sq_l2)");
    expect(k >= 1 && k <= p.rows, "k must be 1 to the number of prototypes");
    Tensor found = q.made(q.rows, k);
    Tensor indices = torch::stable::new_empty(q.kept, {q.rows, k}, ScalarType::Long);
    if (q.is_double) {
        const Tensor all = metric == EA_COSINE ? cosine(queries, prototypes) : sq_l2(queries, prototypes);
        std::vector<int64_t> order(p.rows);
        for (int64_t i = 0; i < q.rows; i++) {
            const double *row = data<double>(all) + i * p.rows;
            for (int64_t j = 0; j < p.rows; j++) order[j] = j;
            std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return row[a] < row[b]; });
            for (int64_t j = 0; j < k; j++) {
                data<int64_t>(indices)[i * k + j] = order[j];
                data<double>(found)[i * k + j] = row[order[j]];
            }
        }
        return {found, indices};
    }
    std::vector<float> scratch(2 * p.rows);
    std::vector<int32_t> rows(q.rows * k);
    check(ea_nearest(q.float32(), q.rows, p.float32(), p.rows, q.columns, k, int32_t(metric), scratch.data(),
                     data<float>(found), rows.data()));
    std::copy(rows.begin(), rows.end(), data<int64_t>(indices));
    return {found, indices};
}

Tensor prototypes(Tensor embeddings, Tensor labels, int64_t n_labels, std::optional<Tensor> weights) {
    const Matrix e(embeddings, "embeddings");
    const Tensor l = torch::stable::contiguous(labels);
    expect(l.scalar_type() == ScalarType::Long && l.dim() == 1 && l.size(0) == e.rows,
           "labels must be int64, one for each embedding");
    expect(n_labels >= 0, "n_labels must not be negative");
    std::vector<int32_t> numbers(e.rows);
    for (int64_t i = 0; i < e.rows; i++) {
        const int64_t label = data<int64_t>(l)[i];
        expect(label >= 0 && label < n_labels, "a label is not in [0, n_labels)");
        numbers[i] = int32_t(label);
    }
    std::optional<Tensor> w;
    if (weights) {
        w = torch::stable::contiguous(*weights);
        expect(w->scalar_type() == e.kept.scalar_type() && w->dim() == 1 && w->size(0) == e.rows,
               "weights must be one for each embedding and of their type");
    }
    Tensor made = e.made(n_labels, e.columns);
    if (!e.is_double) {
        std::vector<float> scratch(n_labels);
        check(ea_prototypes(e.float32(), numbers.data(), e.rows, n_labels, e.columns, w ? data<float>(*w) : nullptr,
                            scratch.data(), data<float>(made)));
        return made;
    }
    double *out = data<double>(made);
    std::vector<double> totals(n_labels, 0.0);
    std::fill(out, out + n_labels * e.columns, 0.0);
    for (int64_t i = 0; i < e.rows; i++) {
        const double *row = e.float64() + i * e.columns;
        const double weight = w ? data<double>(*w)[i] : 1.0, length = norm(row, e.columns);
        expect(std::isfinite(weight) && weight >= 0, "weights must be finite and not negative");
        totals[numbers[i]] += weight;
        for (int64_t j = 0; length > 0 && j < e.columns; j++)
            out[numbers[i] * e.columns + j] += weight * row[j] / length;
    }
    for (int64_t label = 0; label < n_labels; label++) {
        double *row = out + label * e.columns;
        const double length = norm(row, e.columns);
        for (int64_t j = 0; j < e.columns; j++) row[j] = length > 1e-6 * totals[label] ? row[j] / length : 0;
    }
    return made;
}

// ---- the batched episodic step ----

constexpr int64_t BEYOND_CACHES_BYTES = 4 << 20;  // of gradients: more than a core has for itself

// Runs kernel(first, end) over the episodes in torch's threads; no exception may leave it.
template <class Kernel>
void over_episodes(int64_t n_episodes, const Kernel &kernel) {
    std::atomic<int> worst{EA_OK};
    torch::stable::parallel_for(0, n_episodes, 1, [&](int64_t first, int64_t end) {
        const ea_status status = kernel(size_t(first), size_t(end));
        if (status != EA_OK) worst = status;
    });
    expect(worst != EA_INVALID_ARGUMENT, BAD_TARGET_OR_SCALE);
    check(ea_status(worst.load()));
}

template <class Real>
void forward(const Episodes &episodes, const Outputs &made) {
    const auto step = episodes.step<Real>(made, *data<Real>(episodes.scale));
    over_episodes(episodes.n_episodes, [&](size_t a, size_t b) { return ea::episodic_step(step, a, b); });
}

template <class Real>
void backward(const Episodes &episodes, const Outputs &made, const Gradients &gradients) {
    const auto step = episodes.step<Real>(made, *data<Real>(episodes.scale));
    auto g = gradients.pointers<Real>();
    const int64_t n_rows = episodes.n_episodes * (episodes.n_way * episodes.n_shot + episodes.n_query);
    g.beyond_caches = n_rows * episodes.dim * int64_t(sizeof(Real)) > BEYOND_CACHES_BYTES;
    over_episodes(episodes.n_episodes, [&](size_t a, size_t b) { return ea::episodic_step_backward(step, g, a, b); });
}

}  // namespace

STABLE_TORCH_LIBRARY(edgealign, m) {
    m.def("sq_l2(Tensor queries, Tensor prototypes) -> Tensor");
    m.def("cosine(Tensor queries, Tensor prototypes) -> Tensor");
    m.def("nearest(Tensor queries, Tensor prototypes, int k=1, int metric=0) -> (Tensor, Tensor)");
    m.def("prototypes(Tensor embeddings, Tensor labels, SymInt n_labels, Tensor? weights=None) -> Tensor");
    m.def("episodic_step(Tensor support, Tensor queries, Tensor targets, Tensor scale, int metric=0) -> (Tensor, Tensor, "
          "Tensor, Tensor)");
    m.def("episodic_step_backward(Tensor? of_losses, Tensor? of_log_probabilities, Tensor? of_distances, Tensor? "
          "of_prototypes, Tensor support, Tensor queries, Tensor targets, Tensor scale, int metric, Tensor "
          "log_probabilities, Tensor distances, Tensor prototypes) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(edgealign, CPU, m) {
    m.impl("sq_l2", TORCH_BOX(&sq_l2));
    m.impl("cosine", TORCH_BOX(&cosine));
    m.impl("nearest", TORCH_BOX(&nearest));
    m.impl("prototypes", TORCH_BOX(&prototypes));
    m.impl("episodic_step", TORCH_BOX((&episodic_step<forward<float>, forward<double>>)));
    m.impl("episodic_step_backward", TORCH_BOX((&episodic_step_backward<backward<float>, backward<double>>)));
}
