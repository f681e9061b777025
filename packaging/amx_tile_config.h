// Included ahead of every C++ file of llama.cpp (see setup-venv).
//
// GCC before 11.5, 12.4 and 13.3 tells its optimiser that _tile_loadconfig reads 8 of the 64 bytes
// (GCC bug 114098), drops the rest of the structure, and llama.cpp dies with a general protection
// fault in its first matrix product on processors with AMX. Debian 12 has such a GCC.
// The worker looks for the string below and keeps AMX off where a build lacks it.
#if defined(__cplusplus) && defined(__AMX_TILE__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg\t%0" ::"m"(*(const char(*)[64])(config)))
__attribute__((used)) static const char amx_tile_config_is_whole[] = "edged: amx tile config is whole";
#endif
