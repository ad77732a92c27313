// The batched episodic step of src/episode.hpp on CUDA: the same formulas, one block for an episode, a warp for a row.
// No sum is made by atomics, so that results repeat to the bit. Rows are divided by their largest element before they
// are squared; where src/episode.cpp goes over to float64 for a squared difference, float32 overflows here.
#pragma once

#include "launch.hpp"

namespace ea::cuda {

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;
template <class Real>
__device__ Real warp_sum(Real value) {
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

template <class Real>
__device__ Real warp_max(Real value) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        const Real other = __shfl_xor_sync(ALL_LANES, value, step);
        value = other > value ? other : value;
    }
    return value;
}

// A row is largest / inverse long; a zero row has 1 and 0.
template <class Real>
struct Length {
    Real largest, inverse;

    __device__ Real unit(Real x) const { return x / largest * inverse; }
    __device__ Real of_row(Real of_unit) const { return of_unit * inverse / largest; }
};

template <class Real>
__device__ Length<Real> length_of(const Real *row, size_t dim, int lane, int *trouble) {
    Real largest = 0;
    bool finite = true;
    for (size_t d = lane; d < dim; d += WARP) {
        const Real size = row[d] < 0 ? -row[d] : row[d];
        finite &= size - size == 0;
        largest = size > largest ? size : largest;
    }
    if (!finite && trouble) atomicOr(trouble, NOT_FINITE);
    largest = warp_max(largest);
    if (!(largest > 0)) return {1, 0};
    Real squares = 0;
    for (size_t d = lane; d < dim; d += WARP) squares += row[d] / largest * (row[d] / largest);
    return {largest, 1 / sqrt(warp_sum(squares))};
}

template <class Real>
__device__ Real dot(const Real *a, const Real *b, size_t dim, int lane) {
    Real total = 0;
    for (size_t d = lane; d < dim; d += WARP) total += a[d] * b[d];
    return warp_sum(total);
}

// The sum over the warps, in their order, of what lane 0 of each has; for thread 0.
template <class Real>
__device__ Real block_sum(Real of_warp, Real *shared) {
    const int warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
    if (threadIdx.x % WARP == 0) shared[warp] = of_warp;
    __syncthreads();
    Real total = 0;
    for (int w = 0; w < n_warps; w++) total += shared[w];
    return total;
}

// Dynamic shared memory: one double for each warp.
template <class Real>
__global__ void forward(EpisodicStep<Real> s, const Real *scale_at, int *trouble) {
    extern __shared__ double shared[];
    const int lane = threadIdx.x % WARP;
    const size_t e = blockIdx.x, warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
    const size_t n_way = s.n_way, n_shot = s.n_shot, n_query = s.n_query, dim = s.dim;
    const Real scale = *scale_at;
    if (threadIdx.x == 0 && !(scale >= 0 && scale - scale == 0)) atomicOr(trouble, BAD_ARGUMENT);
    Real *prototypes = s.prototypes + e * n_way * dim;
    for (size_t n = warp; n < n_way; n += n_warps) {
        const Real *rows = s.support + (e * n_way + n) * n_shot * dim;
        Real *made = prototypes + n * dim;
        for (size_t d = lane; d < dim; d += WARP) made[d] = 0;
        for (size_t k = 0; k < n_shot; k++) {
            const Length<Real> length = length_of(rows + k * dim, dim, lane, trouble);
            for (size_t d = lane; d < dim; d += WARP) made[d] += length.unit(rows[k * dim + d]);
        }
        const Real length = sqrt(dot(made, made, dim, lane));
        const bool has_direction = length > Real(1e-6) * Real(n_shot);
        for (size_t d = lane; d < dim; d += WARP) made[d] = has_direction ? made[d] / length : 0;
    }
    __syncthreads();
    Real loss = 0;
    for (size_t q = warp; q < n_query; q += n_warps) {
        const Real *query = s.queries + (e * n_query + q) * dim;
        Real *distances = s.distances + (e * n_query + q) * n_way;
        Real *log_probabilities = s.log_probabilities + (e * n_query + q) * n_way;
        const Length<Real> length = length_of(query, dim, lane, trouble);
        for (size_t n = 0; n < n_way; n++) {
            const Real *made = prototypes + n * dim;
            Real total = 0, squares = 0;
            for (size_t d = lane; d < dim; d += WARP) {
                const Real difference = query[d] - made[d];
                total += s.metric == EA_SQ_L2 ? difference * difference : length.unit(query[d]) * made[d];
                squares += made[d] * made[d];
            }
            total = warp_sum(total);
            if (s.metric == EA_COSINE) {
                const bool neither = length.inverse == 0 && warp_sum(squares) == 0;
                total = 1 - total;
                total = neither || total < 0 ? 0 : total > 2 ? 2 : total;
            }
            if (lane == 0) distances[n] = total;
        }
        __syncwarp();
        Real closeness = -distances[0];  // of the closest; the largest of what is negative
        for (size_t n = lane; n < n_way; n += WARP) closeness = -distances[n] > closeness ? -distances[n] : closeness;
        closeness = warp_max(closeness);
        Real total = 0;
        for (size_t n = lane; n < n_way; n += WARP) total += exp((-closeness - distances[n]) * scale);
        total = log(warp_sum(total));
        for (size_t n = lane; n < n_way; n += WARP)
            log_probabilities[n] = (-closeness - distances[n]) * scale - total;
        const int64_t target = s.targets[e * n_query + q];
        const bool known = target >= 0 && size_t(target) < n_way;
        if (!known && lane == 0) atomicOr(trouble, BAD_ARGUMENT);
        __syncwarp();
        if (known) loss -= log_probabilities[target];
    }
    loss = block_sum(loss, reinterpret_cast<Real *>(shared));
    if (threadIdx.x == 0) s.losses[e] = loss / Real(n_query);
}

template <class Real>
__global__ void backward(EpisodicStep<Real> s, const Real *scale_at, EpisodicGradients<Real> g, Scratch<Real> scratch) {
    extern __shared__ double shared[];
    const int lane = threadIdx.x % WARP;
    const size_t e = blockIdx.x, warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
    const size_t n_way = s.n_way, n_shot = s.n_shot, n_query = s.n_query, dim = s.dim;
    const Real scale = *scale_at, of_loss = g.losses ? g.losses[e] / Real(n_query) : 0;
    const Real *prototypes = s.prototypes + e * n_way * dim;
    Real of_scale = 0;
    for (size_t q = warp; q < n_query; q += n_warps) {
        const size_t row = e * n_query + q;
        const Real *query = s.queries + row * dim, *given = g.log_probabilities + row * n_way;
        const int64_t target = s.targets[row];
        Real *of_pairs = scratch.of_pairs + row * n_way;
        Real of_all = 0, of_query = 0, of_mine = 0;
        if (g.log_probabilities)
            for (size_t n = lane; n < n_way; n += WARP) of_all += given[n];
        of_all = warp_sum(of_all);
        for (size_t n = lane; n < n_way; n += WARP) {
            const Real distance = s.distances[row * n_way + n];
            Real of_logit = exp(s.log_probabilities[row * n_way + n]) * (of_loss - of_all);
            if (int64_t(n) == target) of_logit -= of_loss;
            if (g.log_probabilities) of_logit += given[n];
            of_mine -= of_logit * distance;
            Real of_distance = -scale * of_logit + (g.distances ? g.distances[row * n_way + n] : 0);
            if (s.metric == EA_SQ_L2) of_distance *= 2;
            of_query += of_distance * (s.metric == EA_SQ_L2 ? 1 : 1 - distance);
            of_pairs[n] = of_distance;
        }
        of_scale += warp_sum(of_mine);
        of_query = warp_sum(of_query);
        Length<Real> length{1, 1};
        if (s.metric == EA_COSINE) length = length_of(query, dim, lane, static_cast<int *>(nullptr));
        if (lane == 0) scratch.queries[2 * row] = length.largest, scratch.queries[2 * row + 1] = length.inverse;
        __syncwarp();
        for (size_t d = lane; d < dim; d += WARP) {
            Real of_unit = of_query * length.unit(query[d]);
            for (size_t n = 0; n < n_way; n++) of_unit -= of_pairs[n] * prototypes[n * dim + d];
            g.queries[row * dim + d] = length.of_row(of_unit);
        }
    }
    __syncthreads();
    for (size_t n = warp; n < n_way; n += n_warps) {
        const Real *made = prototypes + n * dim, *rows = s.support + (e * n_way + n) * n_shot * dim;
        Real *of_made = scratch.of_rows + (e * n_way + n) * dim, *of_support = g.support + (e * n_way + n) * n_shot * dim;
        for (size_t d = lane; d < dim; d += WARP) {
            Real total = g.prototypes ? g.prototypes[(e * n_way + n) * dim + d] : 0;
            for (size_t q = 0; q < n_query; q++) {
                const size_t row = e * n_query + q;
                const Length<Real> length{scratch.queries[2 * row], scratch.queries[2 * row + 1]};
                total -= scratch.of_pairs[row * n_way + n] * length.unit(s.queries[row * dim + d]);
            }
            of_made[d] = total;
        }
        // What stretches the prototype is taken out; then what stretches each row, on unit rows.
        const Real radial = dot(of_made, made, dim, lane);
        for (size_t d = lane; d < dim; d += WARP) of_made[d] -= radial * made[d];
        Real sum_length = 0;  // of the sum of the unit rows, which is along the prototype
        for (size_t k = 0; k < n_shot; k++) {
            const Length<Real> length = length_of(rows + k * dim, dim, lane, static_cast<int *>(nullptr));
            Real on_made = 0;
            for (size_t d = lane; d < dim; d += WARP) on_made += length.unit(rows[k * dim + d]) * made[d];
            sum_length += warp_sum(on_made);
        }
        const Real outer = sum_length > Real(1e-6) * Real(n_shot) ? 1 / sum_length : 0;
        for (size_t k = 0; k < n_shot; k++) {
            const Real *row = rows + k * dim;
            const Length<Real> length = length_of(row, dim, lane, static_cast<int *>(nullptr));
            Real inner = 0;
            for (size_t d = lane; d < dim; d += WARP) inner += length.unit(row[d]) * of_made[d];
            inner = warp_sum(inner);
            for (size_t d = lane; d < dim; d += WARP)
                of_support[k * dim + d] = length.of_row((of_made[d] - length.unit(row[d]) * inner) * outer);
        }
    }
    of_scale = block_sum(of_scale, reinterpret_cast<Real *>(shared));
    if (threadIdx.x == 0) g.scale[e] = of_scale;
}

}  // namespace ea::cuda
