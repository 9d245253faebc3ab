// The declarations are C++17 too, and link with the C implementation.
#include "tloop.h"

extern "C" int other_unit(tl_loop *loop);

extern "C" int other_unit(tl_loop *loop) {
  tl_stats stats{};
  tl_event event{};
  event.kind = TL_EV_TIMER;
  return event.handle != 0 || tl_loop_stats(loop, &stats) < 0 || stats.live != 0;
}
