/* One of two translation units: this one carries the implementation. */
#define TLOOP_IMPLEMENTATION
#include "tloop.h"
#include "tloop.h" /* twice is harmless */

int other_unit(tl_loop *loop);

static void on_timer(tl_loop *loop, const tl_event *event, void *user) {
  *(int *)user += event->kind == TL_EV_TIMER;
  tl_close(loop, event->handle);
}

int main(void) {
  int fired = 0;
  tl_loop *loop = tl_loop_create(NULL, NULL);
  if (!loop) return 1;
  tl_handle timer = tl_timer_create(loop);
  tl_set_callback(loop, timer, on_timer, &fired);
  tl_timer_start(loop, timer, 1000, 0);
  int bad = tl_loop_run(loop) < 0 || fired != 1 || other_unit(loop) != 0;
  return bad || tl_loop_close(loop) != 0;
}
