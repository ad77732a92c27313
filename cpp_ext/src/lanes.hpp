// The lanes of the kernels for code that is compiled once: the loader picks among clones of its functions.
#pragma once

#if EA_HAVE_CLONES
#define EA_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EA_CLONES
#endif

#define EA_SET clones
#include "kernels/lanes.hpp"

namespace ea {
using namespace clones;
}
