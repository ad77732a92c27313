// Starts the kernels of episode.cuh on a stream of the current device. Without CUDA's or torch's headers, so that
// neither compiler sees the other's. They return CUDA's message, or NULL where all is well. n_episodes is at least 1 and
// below 2^31.
#pragma once

#include "../src/episode.hpp"

namespace ea::cuda {

enum Trouble { NOT_FINITE = 1, BAD_ARGUMENT = 2 };

template <class Real>
struct Scratch {     // of the backward step, for all episodes
    Real *of_pairs;  // [., n_query, n_way]
    Real *of_rows;   // [., n_way, dim]
    Real *queries;   // [., n_query, 2]
};

// Waits for the stream, because what is wrong with the inputs shows on the device: in *trouble, a sum of Trouble.
template <class Real>
const char *forward_step(const EpisodicStep<Real> &step, const Real *scale, size_t n_episodes, int *device_trouble,
                         int *trouble, void *stream);
template <class Real>
const char *backward_step(const EpisodicStep<Real> &step, const Real *scale, const EpisodicGradients<Real> &gradients,
                          const Scratch<Real> &scratch, size_t n_episodes, void *stream);

}  // namespace ea::cuda
