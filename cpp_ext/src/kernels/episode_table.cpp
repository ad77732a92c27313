// Compiled once for each instruction set, as table.cpp, into the torch operators.
#include "episode.hpp"

#define EA_TEXT(name) #name
#define EA_NAME(name) EA_TEXT(name)

namespace ea::EA_SET {

extern const EpisodeKernels episode;
const EpisodeKernels episode = {EA_NAME(EA_SET), forward<float>, backward<float>};

}  // namespace ea::EA_SET
