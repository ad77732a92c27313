// Prototypes as the kernels of strips want them: a strip is two panels, see kernels/panels.hpp.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "edgealign.h"
#include "kernels.hpp"

struct ea_packed {
    struct Free {
        void operator()(void *memory) const { std::free(memory); }
    };
    size_t n_prototypes, dim, stride;  // stride: of a prototype in int8, a multiple of 4
    int32_t storage;                   // ea_storage
    std::unique_ptr<void, Free> strips;
    size_t strip_bytes, n_strips;
    // One for each prototype, filled up to whole strips with such as disturb nothing.
    std::vector<float> squares, inverses, scales;
};
