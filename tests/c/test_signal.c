/* Signals: who gets them, coalescing, restoring what was there before. */
#include "tl_test.h"

#include <pthread.h>

TEST(a_signal_becomes_an_event) {
  tl_loop *loop = t_loop();
  tl_handle handle = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  t_quiet(loop);
  for (int i = 0; i < 5; i++) {
    raise(SIGUSR1);
    ASSERT_EQ(t_expect(loop, handle, TL_EV_SIGNAL).result, SIGUSR1);
    t_quiet(loop);
  }
  t_close(loop, handle);
  t_end(loop);
}

TEST(signals_that_come_together_are_one_event) {
  tl_loop *loop = t_loop();
  tl_handle handle = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  for (int i = 0; i < 100; i++) raise(SIGUSR1);
  t_expect(loop, handle, TL_EV_SIGNAL);
  t_quiet(loop);
  t_close(loop, handle);
  t_end(loop);
}

TEST(all_handles_of_one_signal_get_it) {
  enum { N = 5 };
  tl_loop *loop = t_loop();
  tl_handle handles[N], other = ASSERT_OK(tl_signal_create(loop, SIGUSR2));
  bool seen[N] = {false};
  for (int i = 0; i < N; i++) handles[i] = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  raise(SIGUSR1);
  for (int k = 0; k < N; k++) {
    tl_event event = t_next(loop);
    int i = 0;
    while (i < N && handles[i] != event.handle) i++;
    ASSERT_LT(i, N);
    ASSERT_TRUE(!seen[i]);
    seen[i] = true;
  }
  t_quiet(loop);
  for (int i = 0; i < N; i++) ASSERT_OK(tl_close(loop, handles[i]));
  tl_close(loop, other);
  t_end(loop);
}

TEST(all_loops_get_it) {
  tl_loop *loops[3];
  tl_handle handles[3];
  for (int i = 0; i < 3; i++) {
    loops[i] = t_loop();
    handles[i] = ASSERT_OK(tl_signal_create(loops[i], SIGUSR1));
  }
  for (int open = 3; open > 0; open--) {
    raise(SIGUSR1);
    for (int i = 0; i < open; i++) t_expect(loops[i], handles[i], TL_EV_SIGNAL);
    t_close(loops[open - 1], handles[open - 1]);
    t_end(loops[open - 1]);
  }
}

TEST(different_signals_are_told_apart) {
  tl_loop *loop = t_loop();
  const int signals[] = {SIGHUP, SIGINT, SIGUSR1, SIGTERM, SIGCHLD, SIGWINCH, SIGRTMIN, SIGRTMAX};
  enum { N = sizeof signals / sizeof *signals };
  tl_handle handles[N];
  for (int i = 0; i < N; i++) handles[i] = ASSERT_OK(tl_signal_create(loop, signals[i]));
  for (int i = 0; i < N; i++) {
    raise(signals[i]);
    ASSERT_EQ(t_expect(loop, handles[i], TL_EV_SIGNAL).result, signals[i]);
  }
  for (int i = 0; i < N; i++) raise(signals[i]);
  for (int i = 0; i < N; i++) ASSERT_EQ(t_next(loop).kind, TL_EV_SIGNAL);
  t_quiet(loop);
  for (int i = 0; i < N; i++) ASSERT_OK(tl_close(loop, handles[i]));
  t_end(loop);
}

TEST(signals_that_cannot_be_caught) {
  tl_loop *loop = t_loop();
  const int signals[] = {SIGKILL, SIGSTOP, 0, -1, 65, 1000, INT32_MAX, INT32_MIN, 32, 33};
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
    ASSERT_EQ(tl_signal_create(loop, signals[i]), -EINVAL);
  ASSERT_EQ(t_stats(loop).live, 0);
  t_end(loop);
}

static atomic_int former_calls;

static void former_handler(int signo, siginfo_t *info, void *context) {
  (void)signo, (void)info, (void)context;
  former_calls++;
}

static void expect_disposition(int signo, const struct sigaction *wanted) {
  struct sigaction now;
  ASSERT_SYS(sigaction(signo, NULL, &now));
  ASSERT_EQ(now.sa_flags & SA_SIGINFO, wanted->sa_flags & SA_SIGINFO);
  ASSERT_TRUE(now.sa_handler == wanted->sa_handler);
#ifndef __SANITIZE_THREAD__ /* ThreadSanitizer has masks of its own */
  for (int i = 1; i < 32; i++)
    ASSERT_EQ(sigismember(&now.sa_mask, i), sigismember(&wanted->sa_mask, i));
#endif
}

static void check_restored(tl_loop *loop, const struct sigaction *former) {
  ASSERT_SYS(sigaction(SIGUSR1, former, NULL));
  tl_handle a = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  tl_handle b = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  t_close(loop, a);
  raise(SIGUSR1);
  t_expect(loop, b, TL_EV_SIGNAL);
  t_close(loop, b);
  expect_disposition(SIGUSR1, former);
}

TEST(the_former_disposition_is_restored) {
  tl_loop *loop = t_loop();
  struct sigaction former = {.sa_handler = SIG_DFL};
  check_restored(loop, &former);
  former.sa_handler = SIG_IGN;
  check_restored(loop, &former);
  former.sa_sigaction = former_handler;
  former.sa_flags = SA_SIGINFO;
  sigaddset(&former.sa_mask, SIGUSR2);
  check_restored(loop, &former);
  ASSERT_EQ(former_calls, 0);
  raise(SIGUSR1);
  ASSERT_EQ(former_calls, 1);
  t_end(loop);
}

TEST(closing_the_loop_restores_too) {
  tl_loop *loop = t_loop();
  struct sigaction former;
  ASSERT_SYS(sigaction(SIGUSR1, NULL, &former));
  ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  ASSERT_EQ(tl_loop_close(loop), 2);
  expect_disposition(SIGUSR1, &former);
}

TEST(closing_drops_a_pending_signal) {
  tl_loop *loop = t_loop();
  tl_handle a = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  tl_handle b = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  raise(SIGUSR1);
  ASSERT_EQ(tl_close(loop, a), 0);
  for (int i = 0; i < 2; i++) {
    tl_event event = t_next(loop);
    ASSERT_EQ(event.kind, event.handle == a ? TL_EV_CLOSED : TL_EV_SIGNAL);
  }
  t_close(loop, b);
  t_end(loop);
}

TEST(system_calls_of_the_program_are_restarted) {
  tl_loop *loop = t_loop();
  struct sigaction now;
  tl_handle handle = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  ASSERT_SYS(sigaction(SIGUSR1, NULL, &now));
  ASSERT_EQ(now.sa_flags & SA_RESTART, SA_RESTART);
  t_close(loop, handle);
  t_end(loop);
}

static atomic_bool storm_over;

static void *storm(void *arg) {
  pid_t pid = getpid();
  for (int i = 0; i < *(int *)arg; i++) {
    kill(pid, SIGUSR1);
    kill(pid, SIGUSR2);
    if (i % 8 == 0) sched_yield();
  }
  storm_over = true;
  return NULL;
}

/* While watchers come and go, signals rain: nothing may be lost for good, hang or crash. */
TEST(storms) {
  int times = 5000;
  tl_loop *loop = t_loop();
  tl_handle steady = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  tl_handle keep = ASSERT_OK(tl_signal_create(loop, SIGUSR2)), come_and_go = 0;
  pthread_t thread;
  ASSERT_EQ(pthread_create(&thread, NULL, storm, &times), 0);
  int64_t seen = 0;
  while (!storm_over) {
    tl_event event;
    if (!come_and_go) come_and_go = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
    if (ASSERT_OK(tl_loop_poll(loop, &event, 1, T_MS)) == 0) continue;
    seen += event.kind == TL_EV_SIGNAL;
    if (event.kind == TL_EV_CLOSED)
      come_and_go = 0;
    else if (come_and_go)
      tl_close(loop, come_and_go);
  }
  ASSERT_EQ(pthread_join(thread, NULL), 0);
  tl_event rest;
  while (ASSERT_OK(tl_loop_poll(loop, &rest, 1, 0))) seen += rest.kind == TL_EV_SIGNAL;
  ASSERT_GE(seen, 2);
  ASSERT_LE(seen, 3 * times);
  t_unblock_signals();
  raise(SIGUSR1);
  t_until(loop, steady, TL_EV_SIGNAL);
  tl_close(loop, steady), tl_close(loop, keep);
  if (come_and_go) tl_close(loop, come_and_go);
  t_end(loop);
}

typedef struct watcher {
  pthread_t thread;
  atomic_bool *ready;
  int64_t seen;
} watcher;

static void *watch_in_thread(void *arg) {
  watcher *w = arg;
  tl_loop *loop = t_loop();
  tl_handle handle = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  *w->ready = true;
  tl_event event;
  while (ASSERT_OK(tl_loop_poll(loop, &event, 1, -1)) == 0) continue;
  w->seen += event.handle == handle && event.kind == TL_EV_SIGNAL;
  t_close(loop, handle);
  t_end(loop);
  return NULL;
}

/* The kernel hands the signal to some thread; the loops of all others must wake as well. */
TEST(loops_in_threads_wait_for_one_signal) {
  enum { N = 4 };
  watcher watchers[N] = {0};
  atomic_bool ready[N];
  for (int i = 0; i < N; i++) {
    ready[i] = false;
    watchers[i].ready = &ready[i];
    ASSERT_EQ(pthread_create(&watchers[i].thread, NULL, watch_in_thread, &watchers[i]), 0);
  }
  for (int i = 0; i < N; i++)
    while (!ready[i]) sched_yield();
  kill(getpid(), SIGUSR1);
  for (int i = 0; i < N; i++) {
    ASSERT_EQ(pthread_join(watchers[i].thread, NULL), 0);
    ASSERT_EQ(watchers[i].seen, 1);
  }
}
