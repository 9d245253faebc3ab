/* The implementation for the tests, with its internal checks switched on. */
#define TL_ASSERT(x) ((x) ? (void)0 : __builtin_trap())
#define TLOOP_IMPLEMENTATION
#include "tloop.h"
