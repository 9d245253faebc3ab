/* Everything in one unit, with little used: unused functions must not warn. */
#define TLOOP_IMPLEMENTATION
#include "tloop.h"

int main(void) {
  tl_loop *loop = tl_loop_create(NULL, NULL);
  if (!loop) return 1;
  return tl_loop_close(loop) != 0;
}
