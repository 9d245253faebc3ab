/* A program's own allocator, given by macros. */
#define _GNU_SOURCE 1 /* because of the include that comes before tloop.h */
#include <stdlib.h>

static long blocks;

static void *counted(void *ptr) {
  blocks += ptr != NULL;
  return ptr;
}

static void discounted(void *ptr) {
  blocks -= ptr != NULL;
  free(ptr);
}

#define TL_MALLOC(n) counted(malloc(n))
#define TL_REALLOC(p, n) realloc(p, n)
#define TL_FREE(p) discounted(p)
#define TLOOP_IMPLEMENTATION
#include "tloop.h"

int main(void) {
  tl_loop *loop = tl_loop_create(NULL, NULL);
  if (!loop || blocks < 1 || tl_timer_create(loop) < 0) return 1;
  return tl_loop_close(loop) != 1 || blocks != 0;
}
