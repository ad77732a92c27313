// Arguments and results of the episodic step, checked once for the CPU and for CUDA.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../src/episode.hpp"

namespace ea::bind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline void expect(bool holds, const std::string &message) {
    if (!holds) throw std::runtime_error("edgealign: " + message);
}

template <class T>
T *data(const Tensor &tensor) {
    return static_cast<T *>(tensor.mutable_data_ptr());
}

inline std::string shape(const std::vector<int64_t> &sizes) {
    std::string text;
    for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return "[" + text + "]";
}

inline std::vector<int64_t> sizes(const Tensor &tensor) {
    std::vector<int64_t> all;
    for (int64_t i = 0; i < tensor.dim(); i++) all.push_back(tensor.size(i));
    return all;
}

struct Episodes {
    Tensor support, queries, targets, scale;
    int32_t metric;
    int64_t n_episodes, n_way, n_shot, n_query, dim;

    Episodes(const Tensor &given_support, const Tensor &given_queries, const Tensor &given_targets,
             const Tensor &given_scale, int64_t given_metric)
        : support(torch::stable::contiguous(given_support)), queries(torch::stable::contiguous(given_queries)),
          targets(torch::stable::contiguous(given_targets)), scale(given_scale), metric(int32_t(given_metric)) {
        expect(support.dim() == 4, "support must be [n_episodes, n_way, n_shot, dim], not " + shape(sizes(support)));
        n_episodes = support.size(0), n_way = support.size(1), n_shot = support.size(2), dim = support.size(3);
        expect(queries.dim() == 3, "queries must be [n_episodes, n_query, dim], not " + shape(sizes(queries)));
        n_query = queries.size(1);
        expect(n_way > 0 && n_shot > 0 && n_query > 0 && dim > 0,
               "an episode needs a label, a shot, a query and an element at least: support is " + shape(sizes(support))
                   + ", queries are " + shape(sizes(queries)));
        like(queries, {n_episodes, n_query, dim}, "queries");
        like(scale, {}, "scale");
        expect(targets.scalar_type() == ScalarType::Long && sizes(targets) == std::vector<int64_t>{n_episodes, n_query},
               "targets must be int64 " + shape({n_episodes, n_query}));
        same_device(targets, "targets");
        const auto type = support.scalar_type();
        expect(type == ScalarType::Float || type == ScalarType::Double, "support must be float32 or float64");
        expect(given_metric == EA_COSINE || given_metric == EA_SQ_L2, "metric must be 0 (cosine) or 1 (sq_l2)");
    }

    bool is_double() const { return support.scalar_type() == ScalarType::Double; }

    void same_device(const Tensor &tensor, const char *name) const {
        expect(tensor.is_cuda() == support.is_cuda() && tensor.get_device() == support.get_device(),
               std::string(name) + " must be on the device of support");
    }
    void like(const Tensor &tensor, const std::vector<int64_t> &wanted, const char *name) const {
        expect(tensor.scalar_type() == support.scalar_type(), std::string(name) + " must have the type of support");
        expect(sizes(tensor) == wanted,
               std::string(name) + " must be " + shape(wanted) + ", not " + shape(sizes(tensor)));
        same_device(tensor, name);
    }

    template <class Real, class Outputs>
    EpisodicStep<Real> step(const Outputs &made, Real scale_value) const {
        return {size_t(n_way), size_t(n_shot), size_t(n_query), size_t(dim), metric, scale_value,
                static_cast<const Real *>(support.const_data_ptr()), static_cast<const Real *>(queries.const_data_ptr()),
                static_cast<const int64_t *>(targets.const_data_ptr()), data<Real>(made.losses),
                data<Real>(made.log_probabilities), data<Real>(made.distances), data<Real>(made.prototypes)};
    }
};

struct Outputs {
    Tensor losses, log_probabilities, distances, prototypes;

    explicit Outputs(const Episodes &e)
        : losses(torch::stable::new_empty(e.support, {e.n_episodes})),
          log_probabilities(torch::stable::new_empty(e.support, {e.n_episodes, e.n_query, e.n_way})),
          distances(torch::stable::new_empty(e.support, {e.n_episodes, e.n_query, e.n_way})),
          prototypes(torch::stable::new_empty(e.support, {e.n_episodes, e.n_way, e.dim})) {}

    // As the forward step left them; the backward step has no use for the losses.
    Outputs(const Episodes &e, const Tensor &given_log_probabilities, const Tensor &given_distances,
            const Tensor &given_prototypes)
        : losses(torch::stable::new_empty(e.support, {0})),
          log_probabilities(torch::stable::contiguous(given_log_probabilities)),
          distances(torch::stable::contiguous(given_distances)),
          prototypes(torch::stable::contiguous(given_prototypes)) {
        e.like(log_probabilities, {e.n_episodes, e.n_query, e.n_way}, "log_probabilities");
        e.like(distances, {e.n_episodes, e.n_query, e.n_way}, "distances");
        e.like(prototypes, {e.n_episodes, e.n_way, e.dim}, "prototypes");
    }

    std::tuple<Tensor, Tensor, Tensor, Tensor> all() const { return {losses, log_probabilities, distances, prototypes}; }
};

struct Gradients {
    OptionalTensor losses, log_probabilities, distances, prototypes;
    Tensor support, queries, scale;

    Gradients(const Episodes &e, const OptionalTensor &of_losses, const OptionalTensor &of_log_probabilities,
              const OptionalTensor &of_distances, const OptionalTensor &of_prototypes)
        : losses(given(e, of_losses, {e.n_episodes}, "of_losses")),
          log_probabilities(
              given(e, of_log_probabilities, {e.n_episodes, e.n_query, e.n_way}, "of_log_probabilities")),
          distances(given(e, of_distances, {e.n_episodes, e.n_query, e.n_way}, "of_distances")),
          prototypes(given(e, of_prototypes, {e.n_episodes, e.n_way, e.dim}, "of_prototypes")),
          support(torch::stable::new_empty(e.support, {e.n_episodes, e.n_way, e.n_shot, e.dim})),
          queries(torch::stable::new_empty(e.support, {e.n_episodes, e.n_query, e.dim})),
          scale(torch::stable::new_empty(e.support, {e.n_episodes})) {}

    static OptionalTensor given(const Episodes &e, const OptionalTensor &gradient, const std::vector<int64_t> &wanted,
                                const char *name) {
        if (!gradient) return {};
        e.like(*gradient, wanted, name);
        return torch::stable::contiguous(*gradient);
    }

    template <class Real>
    EpisodicGradients<Real> pointers() const {
        const auto of = [](const OptionalTensor &t) { return t ? data<Real>(*t) : nullptr; };
        return {of(losses), of(log_probabilities), of(distances), of(prototypes),
                data<Real>(support), data<Real>(queries), data<Real>(scale)};
    }

    std::tuple<Tensor, Tensor, Tensor> all() const { return {support, queries, scale}; }
};

constexpr const char *BAD_TARGET_OR_SCALE =
    "a target is not in [0, n_way), or the scale is negative or not finite";

using Forward = void(const Episodes &, const Outputs &);
using Backward = void(const Episodes &, const Outputs &, const Gradients &);

template <Forward of_float, Forward of_double>
std::tuple<Tensor, Tensor, Tensor, Tensor> episodic_step(Tensor support, Tensor queries, Tensor targets, Tensor scale,
                                                         int64_t metric) {
    const Episodes episodes(support, queries, targets, scale, metric);
    const Outputs made(episodes);
    (episodes.is_double() ? of_double : of_float)(episodes, made);
    return made.all();
}

template <Backward of_float, Backward of_double>
std::tuple<Tensor, Tensor, Tensor> episodic_step_backward(OptionalTensor of_losses, OptionalTensor of_log_probabilities,
                                                          OptionalTensor of_distances, OptionalTensor of_prototypes,
                                                          Tensor support, Tensor queries, Tensor targets, Tensor scale,
                                                          int64_t metric, Tensor log_probabilities, Tensor distances,
                                                          Tensor prototypes) {
    const Episodes episodes(support, queries, targets, scale, metric);
    const Outputs made(episodes, log_probabilities, distances, prototypes);
    const Gradients gradients(episodes, of_losses, of_log_probabilities, of_distances, of_prototypes);
    (episodes.is_double() ? of_double : of_float)(episodes, made, gradients);
    return gradients.all();
}

}  // namespace ea::bind
