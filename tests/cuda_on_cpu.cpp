// The CUDA kernels of the episodic step on a machine without a GPU: every thread of a block is a thread of the processor,
// and warps exchange values through memory. It says whether the kernels compute what they should, nothing about speed.
//
//     cuda_on_cpu f32|f64 n_episodes n_way n_shot n_query dim metric < arrays > arrays
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__

using std::exp, std::log, std::sqrt;

namespace ea::cuda {

constexpr int N_WARPS = 2, N_THREADS = 32 * N_WARPS;
struct Position {
    unsigned x;
};
thread_local Position threadIdx;
Position blockIdx, blockDim{N_THREADS};
double shared[N_WARPS];
std::barrier block_barrier(N_THREADS);
std::barrier<> warp_barriers[N_WARPS] = {std::barrier<>(32), std::barrier<>(32)};
double exchanged[N_THREADS];

void __syncthreads() { block_barrier.arrive_and_wait(); }
void __syncwarp() { warp_barriers[threadIdx.x / 32].arrive_and_wait(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    exchanged[threadIdx.x] = double(value);
    __syncwarp();
    const T other = T(exchanged[threadIdx.x ^ unsigned(mask)]);
    __syncwarp();
    return other;
}

void atomicOr(int *to, int bits) { std::atomic_ref<int>(*to) |= bits; }

}  // namespace ea::cuda

#include "../cpp_ext/cuda/episode.cuh"

template <class Kernel, class... Arguments>
void launch(size_t n_blocks, Kernel kernel, Arguments... arguments) {
    for (size_t e = 0; e < n_blocks; e++) {
        ea::cuda::blockIdx.x = unsigned(e);
        std::vector<std::jthread> threads;
        for (unsigned t = 0; t < ea::cuda::N_THREADS; t++)
            threads.emplace_back([=] {
                ea::cuda::threadIdx.x = t;
                kernel(arguments...);
            });
    }
}

template <class T>
std::vector<T> taken(size_t count) {
    std::vector<T> values(count);
    if (std::fread(values.data(), sizeof(T), count, stdin) != count) std::exit(2);
    return values;
}

template <class T>
void give(const std::vector<T> &values) {
    std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

template <class Real>
void run(size_t n_episodes, size_t n_way, size_t n_shot, size_t n_query, size_t dim, int32_t metric) {
    const size_t n_pairs = n_episodes * n_query * n_way, n_rows = n_episodes * n_way * dim;
    const auto support = taken<Real>(n_rows * n_shot), queries = taken<Real>(n_episodes * n_query * dim);
    const auto targets = taken<int64_t>(n_episodes * n_query);
    const auto scale = taken<Real>(1);
    const auto of_losses = taken<Real>(n_episodes), of_log_probabilities = taken<Real>(n_pairs);
    const auto of_distances = taken<Real>(n_pairs), of_prototypes = taken<Real>(n_rows);
    std::vector<Real> losses(n_episodes), log_probabilities(n_pairs), distances(n_pairs), prototypes(n_rows);
    std::vector<Real> of_support(support.size()), of_queries(queries.size()), of_scale(n_episodes);
    std::vector<Real> of_pairs(n_pairs), of_rows(n_rows), lengths(2 * n_episodes * n_query);
    std::vector<int> trouble(1);
    const ea::EpisodicStep<Real> step{n_way, n_shot, n_query, dim, metric, 0, support.data(), queries.data(),
                                      targets.data(), losses.data(), log_probabilities.data(), distances.data(),
                                      prototypes.data()};
    launch(n_episodes, ea::cuda::forward<Real>, step, scale.data(), trouble.data());
    const ea::EpisodicGradients<Real> gradients{of_losses.data(), of_log_probabilities.data(), of_distances.data(),
                                                of_prototypes.data(), of_support.data(), of_queries.data(),
                                                of_scale.data()};
    const ea::cuda::Scratch<Real> scratch{of_pairs.data(), of_rows.data(), lengths.data()};
    launch(n_episodes, ea::cuda::backward<Real>, step, scale.data(), gradients, scratch);
    give(trouble);
    for (const auto *values : {&losses, &log_probabilities, &distances, &prototypes, &of_support, &of_queries, &of_scale})
        give(*values);
}

int main(int, char **argv) {
    size_t n[5];
    for (int i = 0; i < 5; i++) n[i] = std::strtoul(argv[2 + i], nullptr, 10);
    const int32_t metric = std::atoi(argv[7]);
    (std::strcmp(argv[1], "f32") == 0 ? run<float> : run<double>)(n[0], n[1], n[2], n[3], n[4], metric);
}
