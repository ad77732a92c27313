// torch.ops.edgealign.episodic_step on CUDA. A library of its own, loaded where torch has CUDA: it needs a symbol of
// libtorch_cuda, and links the CUDA runtime statically.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <climits>

#include "../cuda/launch.hpp"
#include "episodes.hpp"

using namespace ea::bind;

namespace {

// The device of the tensors is the current one, and its current stream is at hand, while this lives.
struct OnDevice {
    torch::stable::accelerator::DeviceGuard guard;
    void *stream = nullptr;

    explicit OnDevice(const Episodes &episodes) : guard(episodes.support.get_device()) {
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(episodes.support.get_device(), &stream));
        expect(episodes.n_episodes <= INT_MAX, "too many episodes for one step");
    }
};

void check(const char *message) {
    if (message) expect(false, std::string("CUDA says: ") + message);
}

template <class Real>
void forward(const Episodes &episodes, const Outputs &made) {
    if (episodes.n_episodes == 0) return;
    const OnDevice on(episodes);
    const Tensor device_trouble = torch::stable::new_empty(episodes.support, {1}, ScalarType::Int);
    int trouble = 0;
    check(ea::cuda::forward_step(episodes.step<Real>(made, Real(0)), data<Real>(episodes.scale), episodes.n_episodes,
                                 data<int>(device_trouble), &trouble, on.stream));
    expect(!(trouble & ea::cuda::BAD_ARGUMENT), BAD_TARGET_OR_SCALE);
    expect(!(trouble & ea::cuda::NOT_FINITE), "NaN or infinity in an input");
}

template <class Real>
void backward(const Episodes &episodes, const Outputs &made, const Gradients &gradients) {
    if (episodes.n_episodes == 0) return;
    const OnDevice on(episodes);
    const auto rows = [&](int64_t n_rows, int64_t n_columns) {
        return torch::stable::new_empty(episodes.support, {episodes.n_episodes, n_rows, n_columns});
    };
    const Tensor of_pairs = rows(episodes.n_query, episodes.n_way), of_rows = rows(episodes.n_way, episodes.dim);
    const Tensor queries = rows(episodes.n_query, 2);
    const ea::cuda::Scratch<Real> scratch{data<Real>(of_pairs), data<Real>(of_rows), data<Real>(queries)};
    check(ea::cuda::backward_step(episodes.step<Real>(made, Real(0)), data<Real>(episodes.scale),
                                  gradients.pointers<Real>(), scratch, episodes.n_episodes, on.stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(edgealign, CUDA, m) {
    m.impl("episodic_step", TORCH_BOX((&episodic_step<forward<float>, forward<double>>)));
    m.impl("episodic_step_backward", TORCH_BOX((&episodic_step_backward<backward<float>, backward<double>>)));
}
