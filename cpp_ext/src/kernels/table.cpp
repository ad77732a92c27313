// Compiled once for each instruction set, with EA_SET as its name (see CMakeLists.txt).
#include "log_mel.hpp"
#include "panels_int8.hpp"
#include "resample.hpp"

#define EA_TEXT(name) #name
#define EA_NAME(name) EA_TEXT(name)

namespace ea::EA_SET {

extern const Kernels table;
const Kernels table = {
    EA_NAME(EA_SET),
    dots, sq_differences, squares, dots_and_squares, all_within, cosine_from_dots, add_scaled, weighted_stats,
    WIDTH, packed_distances, panel_sq_differences, round_to_int8,
    log_softmax, any_below,
    log_mel_frames, resample,
};

}  // namespace ea::EA_SET
