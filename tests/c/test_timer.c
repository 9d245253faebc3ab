/* Timers: order, repetition, cancelling, limits; against a model on the virtual clock. */
#include "tl_test.h"

static tl_handle start(tl_loop *loop, int64_t delay_ns, int64_t repeat_ns) {
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_EQ(tl_timer_start(loop, timer, delay_ns, repeat_ns), 0);
  return timer;
}

static void close_all(tl_loop *loop, const tl_handle *timers, int count) {
  for (int i = 0; i < count; i++) ASSERT_OK(tl_close(loop, timers[i]));
}

/* All timers must fire in the order of the array, each once. */
static void expect_order(tl_loop *loop, const tl_handle *timers, int count) {
  for (int i = 0; i < count; i++) ASSERT_EQ(t_expect(loop, timers[i], TL_EV_TIMER).result, 1);
}

TEST_ON(deadlines_decide_the_order, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle c = start(loop, 3 * T_MS, 0), a = start(loop, 1 * T_MS, 0),
            b = start(loop, 2 * T_MS, 0);
  const tl_handle order[] = {a, b, c};
  expect_order(loop, order, 3);
  t_quiet(loop);
  close_all(loop, order, 3);
  t_end(loop);
}

TEST_ON(equal_deadlines_fire_in_start_order, ON_ALL) {
  enum { N = 100 };
  tl_loop *loop = t_loop();
  tl_handle timers[N];
  for (int i = 0; i < N; i++) timers[i] = ASSERT_OK(tl_timer_create(loop));
  for (int i = 0; i < N; i++) { /* shuffle: creation order must not matter */
    uint32_t k = t_below(N);
    tl_handle other = timers[k];
    timers[k] = timers[i], timers[i] = other;
  }
  int64_t deadline = tl_loop_now(loop) + T_MS;
  for (int i = 0; i < N; i++) ASSERT_EQ(tl_timer_start_at(loop, timers[i], deadline, 0), 0);
  expect_order(loop, timers, N);
  close_all(loop, timers, N);
  t_end(loop);
}

TEST_ON(negative_delays_come_first_and_keep_their_order, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle zero = start(loop, 0, 0), one = start(loop, -1, 0), far = start(loop, -T_SECOND, 0);
  tl_handle least = start(loop, INT64_MIN, 0), later = start(loop, 1, 0);
  const tl_handle order[] = {least, far, one, zero, later};
  expect_order(loop, order, 5);
  close_all(loop, order, 5);
  t_end(loop);
}

static void restart_now(tl_loop *loop, const tl_event *event, void *user) {
  if (event->kind != TL_EV_TIMER) return;
  ++*(int *)user;
  ASSERT_EQ(tl_timer_start(loop, event->handle, 0, 0), 0);
}

TEST_ON(restart_with_zero_waits_for_the_next_tick, ON_ALL) {
  tl_loop *loop = t_loop();
  int count = 0;
  tl_handle timer = start(loop, 0, 0);
  ASSERT_OK(tl_set_callback(loop, timer, restart_now, &count));
  for (int i = 1; i <= 10; i++) {
    ASSERT_EQ(tl_loop_step(loop, -1), 1);
    ASSERT_EQ(count, i);
  }
  t_close(loop, timer);
  t_end(loop);
}

/* Its new deadline lies before that of everything else. */
static void restart_before(tl_loop *loop, const tl_event *event, void *user) {
  if (event->kind != TL_EV_TIMER) return;
  ++*(int *)user;
  ASSERT_EQ(tl_timer_start(loop, event->handle, -T_SECOND, 0), 0);
}

static void count_data(tl_loop *loop, const tl_event *event, void *user) {
  (void)loop;
  if (event->kind == TL_EV_DATA) ++*(int *)user;
}

TEST(timers_that_are_always_due_do_not_starve_io) {
  tl_loop *loop = t_loop();
  int fds[2], fired = 0, data = 0;
  t_socketpair(SOCK_STREAM, fds);
  tl_handle zero = start(loop, 0, 0), past = start(loop, 0, 0), repeat = start(loop, 1, 1);
  tl_handle stream = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
  ASSERT_OK(tl_set_callback(loop, zero, restart_now, &fired));
  ASSERT_OK(tl_set_callback(loop, past, restart_before, &fired));
  ASSERT_OK(tl_set_callback(loop, stream, count_data, &data));
  ASSERT_OK(tl_stream_read_start(loop, stream));
  for (int i = 0; i < 5; i++) {
    t_send_all(fds[1], "x", 1);
    ASSERT_OK(tl_loop_step(loop, -1));
    ASSERT_OK(tl_loop_step(loop, -1));
    ASSERT_EQ(data, i + 1);
  }
  ASSERT_GE(fired, 10);
  close(fds[1]);
  tl_close(loop, repeat), tl_close(loop, zero), tl_close(loop, past), tl_close(loop, stream);
  t_end(loop);
}

/* Never early, by the loop's clock and by the kernel's. */
TEST(real_timers_are_never_early) {
  enum { N = 60 };
  tl_loop *loop = t_loop();
  tl_handle timers[N];
  int64_t deadlines[N];
  for (int i = 0; i < N; i++) {
    int64_t delay = t_below(20 * T_MS);
    deadlines[i] = tl_loop_now(loop) + delay;
    timers[i] = start(loop, delay, 0);
  }
  for (int fired = 0; fired < N; fired++) {
    tl_event event = t_next(loop);
    int i = 0;
    while (timers[i] != event.handle) i++;
    ASSERT_GE(tl_loop_now(loop), deadlines[i]);
    ASSERT_GE(t_clock(), deadlines[i]);
  }
  close_all(loop, timers, N);
  t_end(loop);
}

TEST_ON(deadlines_are_met_exactly_on_the_virtual_clock, ON_DUMMY) {
  tl_loop *loop = t_loop();
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  const int64_t delays[] = {1, 999, 1000, T_MS, T_MS + 1, 86400LL * T_SECOND};
  for (int i = 0; i < 6; i++) {
    int64_t due = tl_loop_now(loop) + delays[i];
    ASSERT_EQ(tl_timer_start(loop, timer, delays[i], 0), 0);
    tl_event event;
    ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 1);
    ASSERT_EQ(tl_loop_now(loop), due);
  }
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(repeat_does_not_drift, ON_DUMMY) {
  tl_loop *loop = t_loop();
  tl_event event;
  int64_t base = tl_loop_now(loop);
  tl_handle timer = start(loop, 5 * T_MS, 10 * T_MS);
  for (int i = 0; i < 1000; i++) {
    ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 1);
    ASSERT_EQ(event.result, 1);
    ASSERT_EQ(tl_loop_now(loop), base + 5 * T_MS + i * (int64_t)(10 * T_MS));
  }
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(missed_periods_are_one_event, ON_DUMMY) {
  tl_loop *loop = t_loop();
  tl_event event;
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  int64_t base = tl_loop_now(loop);
  ASSERT_EQ(tl_timer_start_at(loop, timer, base - 35 * T_MS, 10 * T_MS), 0);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 1);
  ASSERT_EQ(event.result, 4); /* -35, -25, -15, -5 */
  ASSERT_EQ(tl_loop_now(loop), base);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 1);
  ASSERT_EQ(event.result, 1);
  ASSERT_EQ(tl_loop_now(loop), base + 5 * T_MS); /* the old grid */
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(a_period_that_ends_now_has_passed, ON_DUMMY) {
  tl_loop *loop = t_loop();
  tl_event event;
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  int64_t base = tl_loop_now(loop);
  ASSERT_EQ(tl_timer_start_at(loop, timer, base - 20, 10), 0);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 1);
  ASSERT_EQ(event.result, 3); /* -20, -10, 0 */
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 1);
  ASSERT_EQ(tl_loop_now(loop), base + 10);
  t_close(loop, timer);
  t_end(loop);
}

TEST(real_repeats_stay_on_the_grid) {
  tl_loop *loop = t_loop();
  int64_t base = tl_loop_now(loop), periods = 0;
  tl_handle timer = start(loop, T_MS, T_MS);
  while (periods < 20) {
    periods += t_expect(loop, timer, TL_EV_TIMER).result;
    ASSERT_GE(tl_loop_now(loop), base + periods * T_MS);
    ASSERT_LT(tl_loop_now(loop), base + (periods + 1) * T_MS);
  }
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(stop, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_EQ(tl_timer_stop(loop, timer), 0);
  ASSERT_EQ(tl_timer_start(loop, timer, 0, 0), 0);
  ASSERT_EQ(tl_timer_stop(loop, timer), 1);
  ASSERT_EQ(tl_timer_stop(loop, timer), 0);
  t_quiet(loop);
  ASSERT_EQ(tl_timer_start(loop, timer, 0, T_MS), 0);
  t_expect(loop, timer, TL_EV_TIMER);
  ASSERT_EQ(tl_timer_stop(loop, timer), 1); /* it repeats */
  t_quiet(loop);
  ASSERT_EQ(tl_timer_start(loop, timer, 0, 0), 0);
  t_expect(loop, timer, TL_EV_TIMER);
  ASSERT_EQ(tl_timer_stop(loop, timer), 0); /* it has fired */
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(start_again_replaces, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle late = start(loop, 0, T_MS), soon = start(loop, 3600LL * T_SECOND, 0);
  ASSERT_EQ(tl_timer_start(loop, late, 3600LL * T_SECOND, 0), 0);
  ASSERT_EQ(tl_timer_start(loop, soon, 1, 0), 0);
  t_expect(loop, soon, TL_EV_TIMER);
  t_quiet(loop);
  t_close(loop, late);
  t_close(loop, soon);
  t_end(loop);
}

TEST_ON(a_due_event_that_was_not_delivered_can_be_stopped, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_event event;
  tl_handle a = start(loop, -2, 0), b = start(loop, -1, 0), c = start(loop, 0, 10);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 1);
  ASSERT_EQ(event.handle, a);
  ASSERT_EQ(tl_timer_stop(loop, b), 1);
  ASSERT_EQ(tl_timer_stop(loop, c), 1);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, 0), 0);
  ASSERT_EQ(tl_timer_start(loop, b, 0, 0), 0);
  ASSERT_EQ(t_next(loop).handle, b);
  t_close(loop, a), t_close(loop, b), t_close(loop, c);
  t_end(loop);
}

typedef struct stopper {
  tl_handle others[10];
  int fired;
} stopper;

static void stop_others(tl_loop *loop, const tl_event *event, void *user) {
  stopper *s = user;
  if (event->kind != TL_EV_TIMER) return;
  s->fired++;
  for (int i = 0; i < 10; i++) ASSERT_OK(tl_timer_stop(loop, s->others[i]));
}

TEST_ON(callback_stops_other_due_timers, ON_ALL) {
  tl_loop *loop = t_loop();
  stopper s = {.fired = 0};
  for (int i = 0; i < 10; i++) {
    s.others[i] = start(loop, 0, i % 2 ? T_MS : 0);
    ASSERT_OK(tl_set_callback(loop, s.others[i], stop_others, &s));
  }
  ASSERT_EQ(tl_loop_step(loop, -1), 1);
  ASSERT_EQ(tl_loop_step(loop, 3 * T_MS), 0);
  ASSERT_EQ(s.fired, 1);
  close_all(loop, s.others, 10);
  t_end(loop);
}

static void stop_self(tl_loop *loop, const tl_event *event, void *user) {
  if (event->kind != TL_EV_TIMER) return;
  if (++*(int *)user == 3) ASSERT_EQ(tl_timer_stop(loop, event->handle), 1);
}

TEST_ON(callback_stops_its_own_repetition, ON_ALL) {
  tl_loop *loop = t_loop();
  int fired = 0;
  tl_handle timer = start(loop, 1, T_MS);
  ASSERT_OK(tl_set_callback(loop, timer, stop_self, &fired));
  for (int i = 0; i < 8; i++) ASSERT_OK(tl_loop_step(loop, 2 * T_MS));
  ASSERT_EQ(fired, 3);
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(negative_repeat_is_an_error_and_changes_nothing, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle timer = start(loop, 1, 0);
  ASSERT_EQ(tl_timer_start(loop, timer, 3600LL * T_SECOND, -1), -EINVAL);
  ASSERT_EQ(tl_timer_start_at(loop, timer, 0, INT64_MIN), -EINVAL);
  t_expect(loop, timer, TL_EV_TIMER);
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(sums_are_clamped, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_event event;
  const int64_t extremes[] = {INT64_MAX, INT64_MAX - 1, INT64_MAX / 2, INT64_C(1) << 62};
  for (int i = 0; i < 4; i++) {
    tl_handle never = start(loop, extremes[i], extremes[3 - i]);
    ASSERT_EQ(tl_loop_poll(loop, &event, 1, 0), 0);
    ASSERT_GT(tl_loop_timeout(loop), T_SECOND);
    t_close(loop, never);
  }
  t_end(loop);
}

TEST_ON(long_missed_repeats_are_clamped, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  const int64_t far[] = {INT64_MIN, INT64_MIN + 1, -(INT64_C(1) << 62), -INT64_MAX};
  const int64_t repeats[] = {1, 3, T_SECOND, INT64_C(1) << 62, INT64_MAX - 1, INT64_MAX};
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 6; k++) {
      ASSERT_EQ(tl_timer_start_at(loop, timer, far[i], repeats[k]), 0);
      ASSERT_GE(t_expect(loop, timer, TL_EV_TIMER).result, 1);
      ASSERT_OK(tl_timer_stop(loop, timer));
    }
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(waits_of_any_length_are_accepted, ON_DUMMY) {
  tl_loop *loop = t_loop();
  tl_event event;
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, INT64_MAX), 0);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, INT64_MAX), 0); /* the clock is at its end */
  t_end(loop);
}

TEST(long_waits_end_with_a_near_timer) {
  tl_loop *loop = t_loop();
  tl_event event;
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  const int64_t waits[] = {-1, INT64_MIN, INT64_MAX, 3600LL * T_SECOND};
  for (int i = 0; i < 4; i++) {
    ASSERT_EQ(tl_timer_start(loop, timer, T_MS, 0), 0);
    ASSERT_EQ(tl_loop_poll(loop, &event, 1, waits[i]), 1);
  }
  t_close(loop, timer);
  t_end(loop);
}

/* When the heap is full, a repeating timer must still find its place again without memory. */
TEST_ON(repeats_need_no_memory, ON_ALL) {
  enum { N = 16 };
  tl_loop *loop = t_loop();
  tl_handle timers[N];
  tl_event events[N];
  for (int i = 0; i < N; i++) timers[i] = start(loop, 0, 1);
  t_mem.fail_on = true;
  t_mem.fail_at = t_mem.calls + 1;
  for (int round = 0; round < 20; round++) ASSERT_EQ(tl_loop_poll(loop, events, N, -1), N);
  t_mem.fail_at = 0;
  close_all(loop, timers, N);
  t_end(loop);
}

static void shuffle(tl_handle *timers, int count) {
  for (int i = 0; i < count; i++) {
    uint32_t k = t_below((uint32_t)count);
    tl_handle other = timers[k];
    timers[k] = timers[i], timers[i] = other;
  }
}

TEST_ON(a_million_timers, ON_EPOLL | ON_DUMMY | SLOW) {
  enum { N = 1000000 };
  tl_loop *loop = t_loop();
  tl_handle *timers = malloc(N * sizeof *timers);
  for (int i = 0; i < N; i++) timers[i] = start(loop, t_below(1000), 0);
  shuffle(timers, N);
  for (int i = 0; i < N / 2; i++) ASSERT_EQ(tl_timer_stop(loop, timers[i]), 1);
  static tl_event events[4096];
  int fired = 0;
  while (fired < N / 2) fired += (int)ASSERT_OK(tl_loop_poll(loop, events, 4096, -1));
  ASSERT_EQ(fired, N / 2);
  ASSERT_EQ(tl_loop_timeout(loop), -1);
  close_all(loop, timers, N);
  for (int closed = 0; closed < N;) closed += (int)ASSERT_OK(tl_loop_poll(loop, events, 4096, 0));
  free(timers);
  t_end(loop);
}

/* A random history against a model that is only a list. */

enum { MODEL = 200 };

typedef struct model_timer {
  tl_handle handle;
  int64_t deadline, repeat;
  uint64_t seq;
  bool running;
} model_timer;

typedef struct model {
  model_timer timers[MODEL];
  uint64_t seq;
  bool closing; /* the event of a closed handle ends the wait */
} model;

static model_timer *next_due(model *m, int64_t now) {
  model_timer *best = NULL;
  for (int i = 0; i < MODEL; i++) {
    model_timer *t = &m->timers[i];
    if (!t->running || t->deadline > now) continue;
    if (!best || t->deadline < best->deadline ||
        (t->deadline == best->deadline && t->seq < best->seq))
      best = t;
  }
  return best;
}

static int64_t earliest(const model *m) {
  int64_t least = INT64_MAX;
  for (int i = 0; i < MODEL; i++)
    if (m->timers[i].running && m->timers[i].deadline < least) least = m->timers[i].deadline;
  return least;
}

/* Repeating timers live on grids of their own, so that their order is never a matter of taste. */
static void random_start(tl_loop *loop, model *m, int i) {
  model_timer *t = &m->timers[i];
  t->repeat = t_below(4) ? 0 : 1024 * (int64_t)(1 + t_below(50));
  t->deadline = (tl_loop_now(loop) / 1024 + t_below(100) - 20) * 1024 + (t->repeat ? 1 + i : 0);
  t->seq = ++m->seq;
  t->running = true;
  ASSERT_EQ(tl_timer_start_at(loop, t->handle, t->deadline, t->repeat), 0);
}

static void random_action(tl_loop *loop, model *m) {
  int i = (int)t_below(MODEL);
  model_timer *t = &m->timers[i];
  switch (t_below(8)) {
    case 0:
      ASSERT_EQ(tl_timer_stop(loop, t->handle), t->running);
      t->running = false;
      break;
    case 1:
      ASSERT_EQ(tl_close(loop, t->handle), 0);
      t->handle = ASSERT_OK(tl_timer_create(loop));
      t->running = false;
      m->closing = true;
      break;
    default: random_start(loop, m, i);
  }
}

/* Events of one tick are those that were due when it began, in order; then repeats are due again. */
static void check_tick(model *m, int64_t now, const tl_event *events, int count) {
  model before = *m;
  for (int i = 0; i < count; i++) {
    if (events[i].kind == TL_EV_CLOSED) continue;
    model_timer *due = next_due(&before, now);
    ASSERT_TRUE(due != NULL);
    ASSERT_EQ(events[i].handle, due->handle);
    due->running = false;
    model_timer *t = &m->timers[due - before.timers];
    int64_t periods = t->repeat ? 1 + (now - t->deadline) / t->repeat : 1;
    ASSERT_EQ(events[i].result, periods);
    t->running = t->repeat > 0;
    t->deadline += periods * t->repeat;
    t->seq = ++m->seq;
  }
  ASSERT_TRUE(next_due(&before, now) == NULL);
}

TEST_ON(random_histories_match_the_model, ON_DUMMY) {
  static model m;
  static tl_event events[4 * MODEL];
  tl_loop *loop = t_loop();
  for (int i = 0; i < MODEL; i++) m.timers[i].handle = ASSERT_OK(tl_timer_create(loop));
  for (int round = 0; round < 3000; round++) {
    for (uint32_t k = t_below(20); k > 0; k--) random_action(loop, &m);
    int64_t wait = t_below(3) ? 0 : 1024 * (int64_t)t_below(40), now = tl_loop_now(loop);
    int n = (int)ASSERT_OK(tl_loop_poll(loop, events, 4 * MODEL, wait));
    int64_t expected = earliest(&m) < now + wait ? earliest(&m) : now + wait;
    if (expected < now || m.closing) expected = now;
    m.closing = false;
    ASSERT_EQ(tl_loop_now(loop), expected);
    check_tick(&m, expected, events, n);
  }
  for (int i = 0; i < MODEL; i++) ASSERT_OK(tl_close(loop, m.timers[i].handle));
  t_end(loop);
}
