/* Timers: a repeating one, one that fires once, and one that is cancelled in time. */
#define TLOOP_IMPLEMENTATION
#include "tloop.h"

#define MS INT64_C(1000000)

static void on_late(tl_loop *loop, const tl_event *ev, void *user) {
  (void)loop, (void)user;
  if (ev->kind == TL_EV_TIMER) puts("never printed");
}

static void on_once(tl_loop *loop, const tl_event *ev, void *user) {
  (void)user;
  if (ev->kind != TL_EV_TIMER) return;
  puts("once");
  tl_close(loop, ev->handle);
}

static void on_tick(tl_loop *loop, const tl_event *ev, void *user) {
  int *count = user;
  if (ev->kind != TL_EV_TIMER) return;
  printf("tick %d\n", ++*count);
  if (*count < 3) return;
  tl_close(loop, ev->handle);
  puts("done");
}

static tl_handle start(tl_loop *loop, int64_t delay_ns, int64_t repeat_ns, tl_event_cb callback,
                       void *user) {
  tl_handle timer = tl_timer_create(loop);
  tl_set_callback(loop, timer, callback, user);
  tl_timer_start(loop, timer, delay_ns, repeat_ns);
  return timer;
}

int main(void) {
  int count = 0;
  tl_loop *loop = tl_loop_create(NULL, NULL);
  if (!loop) return 1;
  start(loop, 20 * MS, 20 * MS, on_tick, &count);
  start(loop, 1 * MS, 0, on_once, NULL);
  tl_close(loop, start(loop, 3600 * 1000 * MS, 0, on_late, NULL));
  int rc = tl_loop_run(loop); /* ends by itself when no handle is left */
  tl_loop_close(loop);
  return rc < 0;
}
