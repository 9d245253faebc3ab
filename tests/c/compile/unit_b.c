/* The other unit: declarations only. */
#include "tloop.h"

int other_unit(tl_loop *loop);

int other_unit(tl_loop *loop) {
  tl_stats stats;
  return tl_loop_stats(loop, &stats) < 0 || stats.live != 0;
}
