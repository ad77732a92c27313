// The batched episodic step of training, forward and backward. It is compiled into the torch operators, not into the core:
// nothing on a device needs it.
//
// An episode has n_way labels with n_shot support rows each, and n_query queries with a target label each:
//     prototype, distance   as edgealign/kernels.py states them; no direction is a zero prototype
//     logits                -scale * distance
//     log_probabilities     log-softmax of the logits over the labels
//     loss                  mean over the queries of -log_probability of the target
// The gradient of a zero row, and through a prototype without direction, is zero.
//
// Episodes do not depend on each other and every sum has one order, so that neither threads nor repetition change a bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "edgealign.h"

namespace ea {

template <class Real>
struct EpisodicStep {
    size_t n_way, n_shot, n_query, dim;  // all at least 1
    int32_t metric;                      // an ea_metric
    Real scale;                          // finite, >= 0
    // Inputs, with the number of episodes as first dimension of all that follows.
    const Real *support;     // [., n_way, n_shot, dim]
    const Real *queries;     // [., n_query, dim]
    const int64_t *targets;  // [., n_query], each in [0, n_way)
    // Outputs of the forward step, inputs of the backward step.
    Real *losses;             // [.]
    Real *log_probabilities;  // [., n_query, n_way]
    Real *distances;          // [., n_query, n_way]
    Real *prototypes;         // [., n_way, dim]
};

template <class Real>
struct EpisodicGradients {
    // Of the outputs; NULL stands for zero.
    const Real *losses, *log_probabilities, *distances, *prototypes;
    // Of the inputs, to be filled. That of the scale has a part for each episode, to be summed.
    Real *support, *queries, *scale;
    bool beyond_caches = false;  // of so many episodes that no cache keeps them until they are used: not written to any
};

// Episodes `first` up to, not including, `end`. EA_NOT_FINITE for NaN or infinity in an input, EA_INVALID_ARGUMENT for a
// target or an option that makes no sense, EA_OUT_OF_MEMORY for the few rows of scratch memory that they allocate.
// Real is float, or double for tests of gradients: its rows must be longer than 1e-150, or zero, and shorter than 1e150.
template <class Real>
ea_status episodic_step(const EpisodicStep<Real> &step, size_t first, size_t end);
template <class Real>
ea_status episodic_step_backward(const EpisodicStep<Real> &step, const EpisodicGradients<Real> &gradients, size_t first,
                                 size_t end);

// ---- for src/episode.cpp alone: one episode, by the vectors of an instruction set (kernels/episode.hpp) ----

// What an episode cannot be computed from in this precision.
enum Trouble { NONE = 0, BEYOND_RANGE = 1, BAD_TARGET = 2 };

struct EpisodeKernels {
    const char *name;
    int (*forward)(const EpisodicStep<float> &step, size_t episode, float *scratch);
    int (*backward)(const EpisodicStep<float> &step, const EpisodicGradients<float> &gradients, size_t episode,
                    float *scratch);
};

}  // namespace ea
