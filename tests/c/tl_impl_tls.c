/* The implementation with TLS for the tests, with its internal checks switched on. Contexts come from
   calloc, as mbedTLS' own memory does, so that test_tls_oom.c can let it fail. */
#define _GNU_SOURCE 1
#include <stdlib.h>
#define TL_MALLOC(n) calloc(1, n)
#define TL_REALLOC(p, n) realloc(p, n)
#define TL_FREE(p) free(p)
#define TL_ASSERT(x) ((x) ? (void)0 : __builtin_trap())
#define TLOOP_IMPLEMENTATION
#include "tloop_tls.h"
