// Prototypes as the kernels of panels want them, see kernels/panels.hpp.
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
    ea::Panels panels;  // points into what follows
    std::unique_ptr<void, Free> memory;
    std::vector<float> squares, inverses, scales;
};
