#include "episode.hpp"

#include <algorithm>
#include <limits>
#include <new>
#include <string_view>
#include <type_traits>
#include <vector>

#define EA_SET exact
#include "kernels/episode.hpp"

namespace ea {

#define EA_TABLE(set) \
    namespace set {   \
    extern const EpisodeKernels episode; \
    }
#if EA_HAVE_AVX512
EA_TABLE(avx512)
#endif
#if EA_HAVE_AVX2
EA_TABLE(avx2)
#endif
#if EA_HAVE_NEON
EA_TABLE(neon)
#endif
#if EA_HAVE_BASELINE
EA_TABLE(baseline)
#endif
#undef EA_TABLE

namespace {

// That of the core, or the widest that it has all of.
const EpisodeKernels &chosen() {
    static const EpisodeKernels *const found = [] {
        const EpisodeKernels *const all[] = {
#if EA_HAVE_AVX512
            &avx512::episode,
#endif
#if EA_HAVE_AVX2
            &avx2::episode,
#endif
#if EA_HAVE_NEON
            &neon::episode,
#endif
#if EA_HAVE_BASELINE
            &baseline::episode,
#endif
        };
        const std::string_view name = ea_instruction_set();  // "avx512vnni" has all of avx512
        return *std::find_if(std::begin(all), std::end(all) - 1, [&](const EpisodeKernels *kernels) {
            return name.substr(0, std::string_view(kernels->name).size()) == kernels->name;
        });
    }();
    return *found;
}

int run_forward(const EpisodicStep<float> &s, size_t e, float *scratch) { return chosen().forward(s, e, scratch); }
int run_forward(const EpisodicStep<double> &s, size_t e, double *scratch) { return exact::forward(s, e, scratch); }
int run_backward(const EpisodicStep<float> &s, const EpisodicGradients<float> &g, size_t e, float *scratch) {
    return chosen().backward(s, g, e, scratch);
}
int run_backward(const EpisodicStep<double> &s, const EpisodicGradients<double> &g, size_t e, double *scratch) {
    return exact::backward(s, g, e, scratch);
}
using exact::backward_scratch;
using exact::forward_scratch;

// Memory on a line of the cache, all zero.
template <class Real>
class Scratch {
  public:
    explicit Scratch(size_t count) : memory(count + LINE) {}
    Real *data() {
        const size_t address = reinterpret_cast<size_t>(memory.data());
        return memory.data() + (64 - address % 64) % 64 / sizeof(Real);
    }

  private:
    static constexpr size_t LINE = 64 / sizeof(Real);
    std::vector<Real> memory;
};

ea_status status_of(int trouble) {
    if (trouble & BAD_TARGET) return EA_INVALID_ARGUMENT;
    return trouble ? EA_NOT_FINITE : EA_OK;
}

// One episode of float32 in float64: for rows that are zero, or beyond what float32 can square.
class Widened {
  public:
    Widened(const EpisodicStep<float> &s, size_t e) : s(s), e(e) {
        const size_t n_support = s.n_way * s.n_shot * s.dim, n_queries = s.n_query * s.dim;
        const size_t n_pairs = s.n_query * s.n_way, n_prototypes = s.n_way * s.dim;
        step = {s.n_way, s.n_shot, s.n_query, s.dim, s.metric, s.scale, copy(s.support, n_support),
                copy(s.queries, n_queries), s.targets + e * s.n_query, empty(1), empty(n_pairs), empty(n_pairs),
                empty(n_prototypes)};
        scratch = empty(std::max(forward_scratch(step), backward_scratch(step)));
        trouble = run_forward(step, 0, scratch);
    }
    ea_status forward_step() {
        give(step.losses, s.losses, 1);
        give(step.log_probabilities, s.log_probabilities, s.n_query * s.n_way);
        give(step.distances, s.distances, s.n_query * s.n_way);
        give(step.prototypes, s.prototypes, s.n_way * s.dim);
        return status_of(trouble);
    }
    ea_status backward_step(const EpisodicGradients<float> &g) {
        if (trouble) return status_of(trouble);
        const size_t n_pairs = s.n_query * s.n_way, n_support = s.n_way * s.n_shot * s.dim;
        const EpisodicGradients<double> wide = {copy(g.losses, 1), copy(g.log_probabilities, n_pairs),
                                                copy(g.distances, n_pairs), copy(g.prototypes, s.n_way * s.dim),
                                                empty(n_support), empty(s.n_query * s.dim), empty(1)};
        trouble = run_backward(step, wide, 0, scratch);
        give(wide.support, g.support, n_support);
        give(wide.queries, g.queries, s.n_query * s.dim);
        give(wide.scale, g.scale, 1);
        return status_of(trouble);
    }

  private:
    double *empty(size_t count) { return kept.emplace_back(count).data(); }
    const double *copy(const float *values, size_t count) {
        return values ? kept.emplace_back(values + e * count, values + (e + 1) * count).data() : nullptr;
    }
    void give(const double *values, float *to, size_t count) const {
        for (size_t i = 0; i < count; i++) to[e * count + i] = float(values[i]);
    }

    const EpisodicStep<float> &s;
    const size_t e;
    EpisodicStep<double> step;
    std::vector<std::vector<double>> kept;  // moving a vector leaves its elements where they are
    double *scratch;
    int trouble;
};

template <class Real>
bool makes_sense(const EpisodicStep<Real> &s) {
    return s.n_way && s.n_shot && s.n_query && s.dim && (s.metric == EA_COSINE || s.metric == EA_SQ_L2) && s.scale >= 0
           && s.scale <= std::numeric_limits<Real>::max();
}

// Every episode in turn, until one fails. `fast` computes in Real; what float32 cannot do, `exact` does in float64.
template <class Real, class Fast, class Exact>
ea_status each(const EpisodicStep<Real> &step, size_t first, size_t end, size_t n_scratch, Fast fast, Exact exact) {
    if (!makes_sense(step)) return EA_INVALID_ARGUMENT;
    try {
        Scratch<Real> scratch(n_scratch);
        for (size_t e = first; e < end; e++) {
            const int trouble = fast(e, scratch.data());
            ea_status status = status_of(trouble);
            if constexpr (std::is_same_v<Real, float>)
                if (trouble == BEYOND_RANGE) status = exact(Widened(step, e));
            if (status != EA_OK) return status;
        }
        return EA_OK;
    } catch (const std::bad_alloc &) {
        return EA_OUT_OF_MEMORY;
    }
}

}  // namespace

template <class Real>
ea_status episodic_step(const EpisodicStep<Real> &step, size_t first, size_t end) {
    return each(
        step, first, end, forward_scratch(step), [&](size_t e, Real *scratch) { return run_forward(step, e, scratch); },
        [&](Widened episode) { return episode.forward_step(); });
}

template <class Real>
ea_status episodic_step_backward(const EpisodicStep<Real> &step, const EpisodicGradients<Real> &gradients, size_t first,
                                 size_t end) {
    return each(
        step, first, end, backward_scratch(step),
        [&](size_t e, Real *scratch) { return run_backward(step, gradients, e, scratch); },
        [&](Widened episode) {
            if constexpr (std::is_same_v<Real, float>) return episode.backward_step(gradients);
        });
}

template ea_status episodic_step(const EpisodicStep<float> &, size_t, size_t);
template ea_status episodic_step(const EpisodicStep<double> &, size_t, size_t);
template ea_status episodic_step_backward(const EpisodicStep<float> &, const EpisodicGradients<float> &, size_t,
                                          size_t);
template ea_status episodic_step_backward(const EpisodicStep<double> &, const EpisodicGradients<double> &, size_t,
                                          size_t);

}  // namespace ea
