// Chooses the instruction set, once, when the library is loaded.
#include <cstdlib>
#include <cstring>

#include "edgealign.h"
#include "kernels.hpp"
#include "status.hpp"

namespace ea {

#define EA_TABLE(set) \
    namespace set {   \
    extern const Kernels table; \
    }
#if EA_HAVE_AVX512VNNI
EA_TABLE(avx512vnni)
#endif
#if EA_HAVE_AVX512
EA_TABLE(avx512)
#endif
#if EA_HAVE_AVX2
EA_TABLE(avx2)
#endif
#if EA_HAVE_NEON
EA_TABLE(neon)
#endif
#if EA_HAVE_BASELINE
EA_TABLE(baseline)
#endif
#undef EA_TABLE

namespace {

struct Set {
    const Kernels *table;
    bool runs_here;
};

// The widest that runs here and, if wanted is not null, has that name; null if there is none.
const Kernels *find(const char *wanted) {
#if EA_HAVE_AVX2
    __builtin_cpu_init();
#endif
    const Set sets[] = {
#if EA_HAVE_AVX512VNNI
        {&avx512vnni::table, __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512vnni")},
#endif
#if EA_HAVE_AVX512
        {&avx512::table, __builtin_cpu_supports("x86-64-v4") != 0},
#endif
#if EA_HAVE_AVX2
        {&avx2::table, __builtin_cpu_supports("x86-64-v3") != 0},
#endif
#if EA_HAVE_NEON
        {&neon::table, true},
#endif
#if EA_HAVE_BASELINE
        {&baseline::table, true},
#endif
    };
    for (const Set &set : sets)
        if (set.runs_here && (!wanted || !std::strcmp(wanted, set.table->name))) return set.table;
    return nullptr;
}

const char *wanted() {
    const char *name = std::getenv("EDGEALIGN_INSTRUCTION_SET");
    return name && *name ? name : nullptr;
}

const Kernels *choose() {
    const Kernels *found = find(wanted());
    return found ? found : find(nullptr);
}

const Kernels *const chosen = choose();

}  // namespace

const Kernels &kernels() { return *chosen; }

}  // namespace ea

const char *ea_instruction_set(void) { return ea::kernels().name; }

ea_status ea_instruction_set_check(char *message) {
    const char *name = ea::wanted();
    if (!name || !std::strcmp(name, ea::kernels().name)) return EA_OK;
    return ea::fail(message, EA_INVALID_ARGUMENT,
                    "EDGEALIGN_INSTRUCTION_SET asks for '%.40s', which this processor or this build of the core does "
                    "not have: unset it, the widest is '%s'",
                    name, ea::find(nullptr)->name);
}
