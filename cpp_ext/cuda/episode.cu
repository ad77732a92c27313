#include "episode.cuh"

namespace ea::cuda {

constexpr int THREADS = 256, SHARED_BYTES = THREADS / WARP * sizeof(double);

namespace {
const char *message(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }
}  // namespace

template <class Real>
const char *forward_step(const EpisodicStep<Real> &step, const Real *scale, size_t n_episodes, int *device_trouble,
                         int *trouble, void *stream) {
    const auto on = cudaStream_t(stream);
    cudaError_t error = cudaMemsetAsync(device_trouble, 0, sizeof(int), on);
    if (error != cudaSuccess) return message(error);
    forward<<<unsigned(n_episodes), THREADS, SHARED_BYTES, on>>>(step, scale, device_trouble);
    if ((error = cudaGetLastError()) != cudaSuccess) return message(error);
    error = cudaMemcpyAsync(trouble, device_trouble, sizeof(int), cudaMemcpyDeviceToHost, on);
    return message(error == cudaSuccess ? cudaStreamSynchronize(on) : error);
}

template <class Real>
const char *backward_step(const EpisodicStep<Real> &step, const Real *scale, const EpisodicGradients<Real> &gradients,
                          const Scratch<Real> &scratch, size_t n_episodes, void *stream) {
    backward<<<unsigned(n_episodes), THREADS, SHARED_BYTES, cudaStream_t(stream)>>>(step, scale, gradients, scratch);
    return message(cudaGetLastError());
}

template const char *forward_step(const EpisodicStep<float> &, const float *, size_t, int *, int *, void *);
template const char *forward_step(const EpisodicStep<double> &, const double *, size_t, int *, int *, void *);
template const char *backward_step(const EpisodicStep<float> &, const float *, const EpisodicGradients<float> &,
                                   const Scratch<float> &, size_t, void *);
template const char *backward_step(const EpisodicStep<double> &, const double *, const EpisodicGradients<double> &,
                                   const Scratch<double> &, size_t, void *);

}  // namespace ea::cuda
