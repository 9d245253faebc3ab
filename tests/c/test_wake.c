/* Wake-ups from threads and signal handlers. Also built with ThreadSanitizer. */
#include "tl_test.h"

#include <pthread.h>
#include <sys/ioctl.h>

static int bytes_in_pipe(const tl_loop *loop) {
  int n = 0;
  ASSERT_SYS(ioctl(tl_loop_wake_fd(loop), FIONREAD, &n));
  return n;
}

TEST_ON(many_calls_are_one_event, ON_ALL) {
  tl_loop *loop = t_loop();
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 100; i++) ASSERT_EQ(tl_loop_wake(loop), 0);
    tl_event event = t_expect(loop, 0, TL_EV_WAKE);
    ASSERT_EQ(event.result, 0);
    t_quiet(loop);
  }
  ASSERT_EQ(t_stats(loop).wakes, 3);
  t_end(loop);
}

TEST_ON(no_system_call_while_the_loop_is_awake, ON_ALL) {
  tl_loop *loop = t_loop();
  for (int i = 0; i < 10; i++) ASSERT_EQ(tl_loop_wake(loop), 0);
  ASSERT_EQ(bytes_in_pipe(loop), 0);
  int64_t before = t_stats(loop).syscalls;
  t_expect(loop, 0, TL_EV_WAKE);
  ASSERT_EQ(t_stats(loop).syscalls - before, 1); /* the wait; nothing to read */
  t_end(loop);
}

static void wake_again(tl_loop *loop, const tl_event *event, void *user) {
  ASSERT_EQ(event->kind, TL_EV_WAKE);
  if (++*(int *)user < 5) ASSERT_EQ(tl_loop_wake(loop), 0);
}

TEST_ON(a_wake_inside_the_callback_is_the_next_tick, ON_ALL) {
  tl_loop *loop = t_loop();
  int count = 0;
  ASSERT_EQ(tl_loop_on_wake(loop, wake_again, &count), 0);
  ASSERT_EQ(tl_loop_wake(loop), 0);
  for (int i = 1; i <= 5; i++) {
    ASSERT_EQ(tl_loop_step(loop, -1), 1);
    ASSERT_EQ(count, i);
  }
  t_quiet(loop);
  t_end(loop);
}

static void wake_and_stop(tl_loop *loop, const tl_event *event, void *user) {
  *(int64_t *)user = event->kind;
  tl_loop_stop(loop);
}

TEST_ON(run_delivers_wakes, ON_ALL) {
  tl_loop *loop = t_loop();
  int64_t kind = 0;
  tl_handle timer = ASSERT_OK(tl_timer_create(loop)); /* something to run for */
  ASSERT_EQ(tl_loop_on_wake(loop, wake_and_stop, &kind), 0);
  ASSERT_EQ(tl_loop_wake(loop), 0);
  ASSERT_EQ(tl_loop_run(loop), 0);
  ASSERT_EQ(kind, TL_EV_WAKE);
  t_close(loop, timer);
  t_end(loop);
}

/* Threads */

typedef struct knocker {
  tl_loop *loop;
  int times;
  atomic_int *knocks;
  atomic_int *heard;
} knocker;

static void *knock(void *arg) {
  knocker *k = arg;
  for (int i = 0; i < k->times; i++) {
    atomic_fetch_add(k->knocks, 1);
    ASSERT_EQ(tl_loop_wake(k->loop), 0);
  }
  return NULL;
}

/* Whatever was written before a wake is seen with its event, so the last one cannot be missed. */
TEST_ON(no_wake_of_many_threads_is_lost, ON_ALL) {
  enum { THREADS = 8, TIMES = 2000 };
  tl_loop *loop = t_loop();
  atomic_int knocks = 0;
  pthread_t threads[THREADS];
  knocker k = {loop, TIMES, &knocks, NULL};
  for (int i = 0; i < THREADS; i++) ASSERT_EQ(pthread_create(&threads[i], NULL, knock, &k), 0);
  int events = 0;
  tl_event event;
  while (atomic_load(&knocks) < THREADS * TIMES || t_stats(loop).wakes == 0) {
    int n = (int)ASSERT_OK(tl_loop_poll(loop, &event, 1, -1));
    events += n;
    if (n) ASSERT_EQ(event.kind, TL_EV_WAKE);
  }
  for (int i = 0; i < THREADS; i++) ASSERT_EQ(pthread_join(threads[i], NULL), 0);
  while (ASSERT_OK(tl_loop_poll(loop, &event, 1, 0))) events++;
  ASSERT_LE(events, THREADS * TIMES);
  ASSERT_EQ(t_stats(loop).wakes, events);
  t_end(loop);
}

static void *knock_and_wait(void *arg) {
  knocker *k = arg;
  for (int i = 1; i <= k->times; i++) {
    atomic_store(k->knocks, i);
    ASSERT_EQ(tl_loop_wake(k->loop), 0);
    while (atomic_load(k->heard) < i) sched_yield();
  }
  return NULL;
}

/* Each round waits without limit: one lost wake-up and the test hangs. */
TEST_ON(ping_pong_with_a_thread, ON_ALL) {
  enum { ROUNDS = 3000 };
  tl_loop *loop = t_loop();
  atomic_int knocks = 0, heard = 0;
  pthread_t thread;
  knocker k = {loop, ROUNDS, &knocks, &heard};
  ASSERT_EQ(pthread_create(&thread, NULL, knock_and_wait, &k), 0);
  for (int i = 1; i <= ROUNDS; i++) {
    tl_event event;
    while (ASSERT_OK(tl_loop_poll(loop, &event, 1, -1)) == 0) continue;
    ASSERT_EQ(event.kind, TL_EV_WAKE);
    ASSERT_EQ(atomic_load(&knocks), i);
    atomic_store(&heard, i);
  }
  ASSERT_EQ(pthread_join(thread, NULL), 0);
  ASSERT_EQ(t_stats(loop).wakes, ROUNDS);
  t_end(loop);
}

/* The loop sleeps on a timer far away; the wake ends the wait, not the timer. */
TEST(a_sleeping_loop_is_woken) {
  tl_loop *loop = t_loop();
  atomic_int knocks = 0;
  pthread_t thread;
  knocker k = {loop, 1, &knocks, NULL};
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_OK(tl_timer_start(loop, timer, 3600LL * T_SECOND, 0));
  ASSERT_EQ(pthread_create(&thread, NULL, knock, &k), 0);
  tl_event event;
  while (ASSERT_OK(tl_loop_poll(loop, &event, 1, -1)) == 0) continue;
  ASSERT_EQ(event.kind, TL_EV_WAKE);
  ASSERT_EQ(pthread_join(thread, NULL), 0);
  t_close(loop, timer);
  t_end(loop);
}

/* Signal handlers */

static tl_loop *handler_loop;

static void wake_in_handler(int signo) {
  int saved = errno;
  (void)signo;
  tl_loop_wake(handler_loop);
  errno = saved;
}

TEST_ON(wake_inside_a_signal_handler, ON_ALL) {
  tl_loop *loop = handler_loop = t_loop();
  ASSERT_TRUE(signal(SIGUSR1, wake_in_handler) != SIG_ERR);
  for (int i = 0; i < 10; i++) {
    raise(SIGUSR1);
    raise(SIGUSR1);
    t_expect(loop, 0, TL_EV_WAKE);
  }
  t_quiet(loop);
  t_end(loop);
}

static void *raise_signals(void *arg) {
  pthread_t target = *(pthread_t *)arg;
  for (int i = 0; i < 1000; i++) {
    ASSERT_EQ(pthread_kill(target, SIGUSR1), 0);
    if (i % 16 == 0) sched_yield();
  }
  return NULL;
}

/* The handler runs at any point of the loop's own code. */
TEST_ON(handlers_interrupt_the_loop_anywhere, ON_ALL) {
  tl_loop *loop = handler_loop = t_loop();
  pthread_t self = pthread_self(), thread;
  ASSERT_TRUE(signal(SIGUSR1, wake_in_handler) != SIG_ERR);
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_OK(tl_timer_start(loop, timer, 0, 10000));
  ASSERT_EQ(pthread_create(&thread, NULL, raise_signals, &self), 0);
  int wakes = 0, timers = 0;
  while (timers < 200) {
    tl_event event = t_next(loop);
    wakes += event.kind == TL_EV_WAKE;
    timers += event.kind == TL_EV_TIMER;
  }
  ASSERT_EQ(pthread_join(thread, NULL), 0);
  ASSERT_LE(wakes, 1000);
  t_unblock_signals();
  raise(SIGUSR1);
  t_until(loop, 0, TL_EV_WAKE);
  t_close(loop, timer);
  t_end(loop);
}

/* The wake descriptor, for foreign handlers */

TEST_ON(bytes_become_signals, ON_ALL) {
  tl_loop *loop = t_loop();
  const unsigned char bytes[] = {SIGINT, 0, SIGTERM, 64, 200, 255};
  t_send_all(tl_loop_wake_fd(loop), bytes, sizeof bytes);
  for (size_t i = 0; i < sizeof bytes; i++)
    if (bytes[i]) ASSERT_EQ(t_expect(loop, 0, TL_EV_SIGNAL).result, bytes[i]);
  t_quiet(loop);
  t_end(loop);
}

TEST_ON(a_zero_byte_only_ends_the_wait, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_event event;
  t_send_all(tl_loop_wake_fd(loop), "", 1);
  int n = (int)ASSERT_OK(tl_loop_poll(loop, &event, 1, -1));
  if (n) ASSERT_EQ(event.kind, TL_EV_WAKE);
  t_quiet(loop);
  t_end(loop);
}

TEST_ON(more_bytes_than_one_read_takes, ON_ALL) {
  enum { N = 3000 };
  tl_loop *loop = t_loop();
  unsigned char bytes[N];
  for (int i = 0; i < N; i++) bytes[i] = (unsigned char)(1 + i % 64);
  t_send_all(tl_loop_wake_fd(loop), bytes, N);
  for (int i = 0; i < N; i++) ASSERT_EQ(t_expect(loop, 0, TL_EV_SIGNAL).result, bytes[i]);
  t_quiet(loop);
  t_end(loop);
}

TEST_ON(a_full_pipe_loses_no_wake, ON_ALL) {
  tl_loop *loop = t_loop();
  int fd = tl_loop_wake_fd(loop);
  int64_t written = 0, seen = 0;
  while (write(fd, "\1", 1) == 1) written++;
  ASSERT_EQ(errno, EAGAIN);
  ASSERT_EQ(tl_loop_wake(loop), 0);
  bool woken = false;
  while (seen < written || !woken) {
    tl_event event = t_next(loop);
    seen += event.kind == TL_EV_SIGNAL;
    woken |= event.kind == TL_EV_WAKE;
  }
  ASSERT_EQ(seen, written);
  t_quiet(loop);
  t_end(loop);
}

TEST_ON(the_wake_descriptor_is_private_and_never_blocks, ON_ALL) {
  tl_loop *loop = t_loop();
  int fd = tl_loop_wake_fd(loop);
  ASSERT_EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  ASSERT_EQ(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  if (tl_loop_caps(loop) & TL_CAP_FD)
    ASSERT_EQ(fcntl(tl_loop_fd(loop), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  t_end(loop);
}

static void record_signal(tl_loop *loop, const tl_event *event, void *user) {
  if (event->kind == TL_EV_SIGNAL) *(int64_t *)user = event->result;
  tl_loop_stop(loop);
}

TEST_ON(foreign_signals_reach_the_wake_callback, ON_ALL) {
  tl_loop *loop = t_loop();
  int64_t signo = 0;
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_EQ(tl_loop_on_wake(loop, record_signal, &signo), 0);
  t_send_all(tl_loop_wake_fd(loop), "\2", 1);
  ASSERT_EQ(tl_loop_run(loop), 0);
  ASSERT_EQ(signo, 2);
  t_close(loop, timer);
  t_end(loop);
}
