/* The loop itself: making and ending it, ticks, stopping, embedding, forks, handles, statistics. */
#include "tl_test.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

/* Making a loop */

TEST_ON(default_loop_opens_and_closes, ON_ALL) {
  tl_loop *loop = tl_loop_create(NULL, NULL);
  ASSERT_TRUE(loop != NULL);
  ASSERT_STR(tl_loop_backend(loop), t_backend());
  ASSERT_EQ(tl_loop_close(loop), 0);
}

TEST_ON(closing_no_loop_is_allowed, ON_ONCE) { ASSERT_EQ(tl_loop_close(NULL), 0); }

TEST_ON(closing_counts_open_handles, ON_ALL) {
  tl_loop *loop = t_loop();
  ASSERT_OK(tl_timer_create(loop));
  ASSERT_OK(tl_timer_create(loop));
  tl_handle closed = ASSERT_OK(tl_timer_create(loop));
  t_close(loop, closed);
  ASSERT_EQ(tl_loop_close(loop), 2);
}

static int create_error(const char *name) {
  tl_loop_desc desc = {.backend = name, .allocator = t_allocator()};
  int error = 0;
  ASSERT_TRUE(tl_loop_create(&desc, &error) == NULL);
  ASSERT_TRUE(tl_loop_create(&desc, NULL) == NULL);
  return error;
}

TEST_ON(unknown_backend_is_an_error, ON_ONCE) {
  ASSERT_EQ(create_error("kqueue"), TL_EBACKEND);
  ASSERT_EQ(create_error("epol"), TL_EBACKEND);
  ASSERT_EQ(create_error("epoll "), TL_EBACKEND);
  setenv("TLOOP_BACKEND", "nonsense", 1);
  ASSERT_EQ(create_error(NULL), TL_EBACKEND);
}

TEST_ON(environment_chooses_and_desc_wins, ON_ONCE) {
  tl_loop_desc desc = {.allocator = t_allocator()};
  setenv("TLOOP_BACKEND", "poll", 1);
  tl_loop *loop = tl_loop_create(&desc, NULL);
  ASSERT_STR(tl_loop_backend(loop), "poll");
  tl_loop_close(loop);
  desc.backend = "dummy";
  loop = tl_loop_create(&desc, NULL);
  ASSERT_STR(tl_loop_backend(loop), "dummy");
  tl_loop_close(loop);
}

/* As container runtimes do: the call answers EPERM. */
static void forbid_io_uring(void) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
  ASSERT_SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  ASSERT_SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

TEST_ON(a_sandbox_without_io_uring_is_noticed_only_by_who_asks_for_it, ON_ONCE) {
  if (!strstr(tl_backends(), "io_uring")) SKIP("built without io_uring");
  forbid_io_uring();
  ASSERT_EQ(create_error("io_uring"), -EPERM);
  setenv("TLOOP_BACKEND", "io_uring", 1);
  ASSERT_EQ(create_error(NULL), -EPERM);
  unsetenv("TLOOP_BACKEND");
  tl_loop *loop = t_loop();
  ASSERT_STR(tl_loop_backend(loop), "epoll");
  t_end(loop);
}

TEST_ON(best_backend_is_the_first_listed, ON_ONCE) {
  ASSERT_STR(tl_backends(), "epoll, io_uring, poll, dummy");
  tl_loop *loop = t_loop();
  ASSERT_STR(tl_loop_backend(loop), "epoll");
  t_end(loop);
}

TEST_ON(incomplete_allocator_is_an_error, ON_ONCE) {
  for (int given = 1; given < 7; given++) {
    tl_loop_desc desc = {.allocator = t_allocator()};
    if (!(given & 1)) desc.allocator.alloc_fn = NULL;
    if (!(given & 2)) desc.allocator.realloc_fn = NULL;
    if (!(given & 4)) desc.allocator.free_fn = NULL;
    int error = 0;
    ASSERT_TRUE(tl_loop_create(&desc, &error) == NULL);
    ASSERT_EQ(error, -EINVAL);
  }
}

TEST(no_descriptors_left_is_an_error) {
  for (int more = 0; more < 2; more++) {
    t_limit_fds(more);
    int error = create_error(NULL);
    t_limit_fds(-1);
    ASSERT_EQ(error, -EMFILE);
  }
}

TEST_ON(version_and_texts, ON_ONCE) {
  ASSERT_STR(tl_version(), TL_VERSION);
  ASSERT_STR(tl_strerror(-ECONNREFUSED), "Connection refused");
  const int64_t codes[] = {TL_EBADH, TL_EKIND, TL_EBACKEND, TL_ELIMIT, -4005,     -99999,
                           -4000,    -1,       0,           1,         INT64_MIN, INT64_MAX};
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
    ASSERT_TRUE(tl_strerror(codes[i]) && *tl_strerror(codes[i]));
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < i; k++)
      ASSERT_TRUE(strcmp(tl_strerror(codes[i]), tl_strerror(codes[k])) != 0);
}

TEST_ON(prime_malloc, ON_ONCE) {
  ASSERT_EQ(tl_prime_malloc(8 << 20), 0);
  ASSERT_EQ(tl_prime_malloc(0), 0);
}

TEST_ON(two_loops_know_nothing_of_each_other, ON_ALL) {
  tl_loop *a = t_loop(), *b = t_loop();
  tl_handle timer = ASSERT_OK(tl_timer_create(a));
  ASSERT_EQ(t_stats(b).handles, 0);
  ASSERT_EQ(tl_timer_start(b, timer, 0, 0), TL_EBADH);
  ASSERT_EQ(tl_close(b, timer), TL_EBADH);
  t_close(a, timer);
  t_end(a);
  t_end(b);
}

/* Ticks */

static void due_timers(tl_loop *loop, tl_handle *timers, int count) {
  for (int i = 0; i < count; i++) {
    timers[i] = ASSERT_OK(tl_timer_create(loop));
    ASSERT_OK(tl_timer_start(loop, timers[i], -1, 0));
  }
}

static void close_all(tl_loop *loop, const tl_handle *handles, int count) {
  for (int i = 0; i < count; i++) ASSERT_OK(tl_close(loop, handles[i]));
}

TEST_ON(events_beyond_capacity_come_later, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle timers[10];
  tl_event events[3];
  due_timers(loop, timers, 10);
  for (int got = 0; got < 10;) {
    if (got) ASSERT_EQ(tl_loop_timeout(loop), 0);
    int n = (int)ASSERT_OK(tl_loop_poll(loop, events, 3, -1));
    ASSERT_EQ(n, got < 9 ? 3 : 1);
    for (int i = 0; i < n; i++) ASSERT_EQ(events[i].handle, timers[got + i]);
    got += n;
  }
  ASSERT_EQ(tl_loop_poll(loop, events, 3, 0), 0);
  close_all(loop, timers, 10);
  t_end(loop);
}

TEST_ON(a_tick_tells_how_many_events_there_are, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle timers[3];
  tl_event events[8];
  tl_tick tick = {.loop = loop, .events = events, .timeout_ns = -1, .capacity = 2, .count = 9};
  due_timers(loop, timers, 3);
  ASSERT_EQ(tl_loop_tick(&tick), 2);
  ASSERT_EQ(tick.count, 2);
  ASSERT_EQ(events[1].handle, timers[1]);
  ASSERT_EQ(tl_loop_tick(&tick), 1);
  ASSERT_EQ(tick.count, 1);
  ASSERT_EQ(events[0].handle, timers[2]);
  tick.timeout_ns = 0;
  ASSERT_EQ(tl_loop_tick(&tick), 0);
  ASSERT_EQ(tick.count, 0);
  tick.capacity = 0;
  tick.count = 9;
  ASSERT_EQ(tl_loop_tick(&tick), -EINVAL);
  ASSERT_EQ(tick.count, 0);
  close_all(loop, timers, 3);
  t_end(loop);
}

TEST_ON(capacity_must_be_positive, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_event event;
  ASSERT_EQ(tl_loop_poll(loop, &event, 0, 0), -EINVAL);
  ASSERT_EQ(tl_loop_poll(loop, &event, -1, 0), -EINVAL);
  t_end(loop);
}

/* An allocator whose blocks begin so many bytes after those of malloc. */
static void *shifted_alloc(void *user, size_t nbytes) {
  size_t by = *(size_t *)user;
  char *block = malloc(nbytes + by);
  return block ? block + by : NULL;
}

static void *shifted_realloc(void *user, void *ptr, size_t nbytes) {
  size_t by = *(size_t *)user;
  char *block = realloc((char *)ptr - by, nbytes + by);
  return block ? block + by : NULL;
}

static void shifted_free(void *user, void *ptr) { free((char *)ptr - *(size_t *)user); }

TEST_ON(arena_begins_on_a_page_boundary, ON_ONCE) {
  for (size_t by = 0; by < 4096; by += 16) {
    tl_allocator shifted = {shifted_alloc, shifted_realloc, shifted_free, &by};
    tl_loop *loop = tl_loop_create(&(tl_loop_desc){.allocator = shifted}, NULL);
    ASSERT_TRUE(loop);
    ASSERT_EQ((intptr_t)tl_loop_arena(loop) % 4096, 0);
    memset(tl_loop_arena(loop), 1, (size_t)tl_loop_arena_bytes(loop)); /* all of it is ours */
    ASSERT_EQ(tl_loop_close(loop), 0);
  }
}

/* Bytes stay valid until the next call, also those of events that did not fit into this one. */
TEST(bytes_of_late_events_are_intact) {
  tl_loop *loop = t_loop();
  tl_handle streams[5];
  int peers[5];
  for (int i = 0; i < 5; i++) {
    int fds[2];
    char bytes[100];
    t_socketpair(SOCK_STREAM, fds);
    streams[i] = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
    ASSERT_OK(tl_stream_read_start(loop, streams[i]));
    peers[i] = fds[1];
    t_pattern(bytes, sizeof bytes, (uint64_t)i);
    t_send_all(peers[i], bytes, sizeof bytes);
  }
  int seen = 0;
  while (seen < 5) {
    tl_event events[2];
    int n = (int)ASSERT_OK(tl_loop_poll(loop, events, 2, T_SECOND));
    for (int k = 0; k < n; k++) {
      ASSERT_EQ(events[k].kind, TL_EV_DATA);
      ASSERT_EQ(events[k].result, 100);
      int i = 0;
      while (streams[i] != events[k].handle) i++;
      t_check_pattern(tl_event_data(loop, &events[k]), 100, (uint64_t)i);
      ASSERT_TRUE(tl_event_data(loop, &events[k]) ==
                  (char *)tl_loop_arena(loop) + events[k].offset);
      ASSERT_LE(events[k].offset + 100, tl_loop_arena_bytes(loop));
    }
    seen += n;
  }
  for (int i = 0; i < 5; i++) close(peers[i]);
  close_all(loop, streams, 5);
  t_end(loop);
}

static void count_and_stop(tl_loop *loop, const tl_event *event, void *user) {
  if (event->kind != TL_EV_TIMER) return;
  ++*(int *)user;
  ASSERT_EQ(tl_loop_stop(loop), 0);
}

TEST_ON(stop_returns_after_the_present_event, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle timers[3];
  int count = 0;
  due_timers(loop, timers, 3);
  for (int i = 0; i < 3; i++) tl_set_callback(loop, timers[i], count_and_stop, &count);
  for (int i = 1; i <= 3; i++) {
    ASSERT_EQ(tl_loop_run(loop), 0);
    ASSERT_EQ(count, i);
  }
  close_all(loop, timers, 3);
  t_end(loop);
}

TEST_ON(stop_before_run_returns_at_once, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle timer;
  int count = 0;
  due_timers(loop, &timer, 1);
  tl_set_callback(loop, timer, count_and_stop, &count);
  ASSERT_EQ(tl_loop_stop(loop), 0);
  ASSERT_EQ(tl_loop_run(loop), 0);
  ASSERT_EQ(count, 0);
  ASSERT_EQ(tl_loop_run(loop), 0);
  ASSERT_EQ(count, 1);
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(run_without_handles_returns, ON_ALL) {
  tl_loop *loop = t_loop();
  ASSERT_EQ(tl_loop_run(loop), 0);
  t_end(loop);
}

typedef struct seen {
  int count, closed;
  int64_t kind;
  tl_handle victims[16];
  int victim_count;
} seen;

/* Closes itself and the listed others with its first event. */
static void close_victims(tl_loop *loop, const tl_event *event, void *user) {
  seen *all = user;
  if (event->kind == TL_EV_CLOSED) {
    all->closed++;
    return;
  }
  all->count++;
  all->kind = event->kind;
  for (int i = 0; i < all->victim_count; i++) ASSERT_EQ(tl_close(loop, all->victims[i]), 0);
}

TEST_ON(run_ends_when_the_last_handle_is_gone, ON_ALL) {
  tl_loop *loop = t_loop();
  seen all = {.victim_count = 1};
  due_timers(loop, all.victims, 1);
  tl_set_callback(loop, all.victims[0], close_victims, &all);
  ASSERT_EQ(tl_loop_run(loop), 0);
  ASSERT_EQ(all.count, 1);
  ASSERT_EQ(all.closed, 1);
  t_end(loop);
}

TEST_ON(step_counts_its_events, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_handle timers[4];
  due_timers(loop, timers, 4);
  ASSERT_EQ(tl_loop_step(loop, -1), 4);
  ASSERT_EQ(tl_loop_step(loop, 0), 0);
  close_all(loop, timers, 4);
  ASSERT_EQ(tl_loop_step(loop, -1), 4);
  t_end(loop);
}

TEST_ON(clock_moves_with_waits_and_updates, ON_REAL) {
  tl_loop *loop = t_loop();
  tl_event event;
  int64_t before = tl_loop_now(loop), real = t_clock();
  ASSERT_LE(before, real);
  ASSERT_EQ(tl_loop_now(loop), before);
  ASSERT_GE(tl_loop_update_now(loop), real);
  int64_t start = tl_loop_now(loop);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, 3 * T_MS), 0);
  ASSERT_GE(tl_loop_now(loop), start + 3 * T_MS);
  t_end(loop);
}

TEST_ON(timeout_for_embedding, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_event event;
  ASSERT_EQ(tl_loop_timeout(loop), -1);
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_EQ(tl_loop_timeout(loop), -1);
  ASSERT_OK(tl_timer_start(loop, timer, (int64_t)100 * T_SECOND, 0));
  ASSERT_GT(tl_loop_timeout(loop), 50LL * T_SECOND);
  ASSERT_LE(tl_loop_timeout(loop), 100LL * T_SECOND);
  ASSERT_OK(tl_timer_start(loop, timer, 0, 0));
  ASSERT_EQ(tl_loop_timeout(loop), 0);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 1);
  ASSERT_EQ(tl_loop_timeout(loop), -1);
  ASSERT_EQ(tl_loop_wake(loop), 0);
  ASSERT_EQ(tl_loop_timeout(loop), 0);
  t_expect(loop, 0, TL_EV_WAKE);
  ASSERT_EQ(tl_close(loop, timer), 0);
  ASSERT_EQ(tl_loop_timeout(loop), 0);
  t_expect(loop, timer, TL_EV_CLOSED);
  ASSERT_EQ(tl_loop_timeout(loop), -1);
  t_end(loop);
}

static int readable(int fd) {
  struct pollfd entry = {fd, POLLIN, 0};
  return ASSERT_SYS(poll(&entry, 1, 0));
}

TEST(descriptor_for_embedding) {
  tl_loop *loop = t_loop();
  int fds[2], fd = tl_loop_fd(loop);
  ASSERT_EQ(fd >= 0, (tl_loop_caps(loop) & TL_CAP_FD) != 0);
  if (fd < 0) ASSERT_EQ(fd, -ENOSYS);
  t_pipe(fds);
  tl_handle handle = ASSERT_OK(tl_poll_create(loop, fds[0]));
  ASSERT_OK(tl_poll_start(loop, handle, TL_READ));
  if (fd >= 0) {
    ASSERT_EQ(readable(fd), 0);
    t_send_all(fds[1], "x", 1);
    ASSERT_EQ(readable(fd), 1);
    t_expect(loop, handle, TL_EV_POLL);
  }
  t_close(loop, handle);
  close(fds[0]);
  close(fds[1]);
  t_end(loop);
}

/* A host sleeps in its own poll after it has asked for the time-out: a wake must reach it. */
TEST_ON(wake_reaches_a_foreign_main_loop, ON_EPOLL | ON_URING) {
  tl_loop *loop = t_loop();
  for (int i = 0; i < 3; i++) {
    ASSERT_EQ(tl_loop_timeout(loop), -1);
    ASSERT_EQ(readable(tl_loop_fd(loop)), 0);
    ASSERT_EQ(tl_loop_wake(loop), 0);
    ASSERT_EQ(readable(tl_loop_fd(loop)), 1);
    t_expect(loop, 0, TL_EV_WAKE);
    ASSERT_EQ(tl_loop_poll(loop, &(tl_event){0}, 1, 0), 0);
  }
  t_end(loop);
}

TEST_ON(capabilities, ON_ALL) {
  tl_loop *loop = t_loop();
  bool dummy = strcmp(t_backend(), "dummy") == 0, poll = strcmp(t_backend(), "poll") == 0;
  ASSERT_EQ((tl_loop_caps(loop) & TL_CAP_VIRTUAL) != 0, dummy);
  ASSERT_EQ((tl_loop_caps(loop) & TL_CAP_FD) != 0, !dummy && !poll);
  ASSERT_EQ(tl_dummy_ready(loop, 3, TL_READ), dummy ? 0 : -ENOTSUP);
  t_end(loop);
}

TEST_ON(virtual_clock_never_sleeps, ON_DUMMY) {
  tl_loop *loop = t_loop();
  tl_event event;
  int64_t start = tl_loop_now(loop);
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_OK(tl_timer_start(loop, timer, 3600LL * T_SECOND, 0));
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, 60LL * T_SECOND), 0);
  ASSERT_EQ(tl_loop_now(loop), start + 60LL * T_SECOND);
  ASSERT_EQ(tl_loop_update_now(loop), start + 60LL * T_SECOND);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 1);
  ASSERT_EQ(tl_loop_now(loop), start + 3600LL * T_SECOND);
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(scripted_readiness, ON_DUMMY) {
  tl_loop *loop = t_loop();
  tl_handle poll = ASSERT_OK(tl_poll_create(loop, 42));
  ASSERT_OK(tl_poll_start(loop, poll, TL_READ | TL_WRITE));
  ASSERT_EQ(tl_dummy_ready(loop, 42, TL_WRITE), 0);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result, TL_WRITE);
  ASSERT_EQ(tl_dummy_ready(loop, 42, TL_READ | TL_WRITE), 0);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result, TL_READ | TL_WRITE);
  t_quiet(loop);
  t_close(loop, poll);
  t_end(loop);
}

static void ignore_signal(int signo) { (void)signo; }

/* A repeating signal, so that it does not matter whether the first comes before the wait. */
static timer_t pester(int signo) {
  timer_t timer;
  struct sigevent how = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signo};
  struct itimerspec when = {{0, 2 * T_MS}, {0, 2 * T_MS}};
  ASSERT_TRUE(signal(signo, ignore_signal) != SIG_ERR);
  ASSERT_SYS(timer_create(CLOCK_MONOTONIC, &how, &timer));
  ASSERT_SYS(timer_settime(timer, 0, &when, NULL));
  return timer;
}

TEST_ON(interruption_ends_the_wait, ON_ALL) {
  tl_loop *loop = t_loop();
  tl_event event;
  timer_t timer = pester(SIGUSR2);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 0);
  ASSERT_EQ(tl_loop_step(loop, -1), 0);
  timer_delete(timer);
  t_end(loop);
}

/* Forks */

static void finish_child(tl_loop *loop) {
  ASSERT_GE(tl_loop_close(loop), 0);
  fflush(NULL);
  _exit(0);
}

static void join_child(pid_t pid) {
  int status;
  ASSERT_EQ(ASSERT_SYS(waitpid(pid, &status, 0)), pid);
  ASSERT_EQ(status, 0);
}

static void check_child_loop(tl_loop *loop, tl_handle poll, const int fds[2], tl_handle timer) {
  ASSERT_EQ(tl_loop_after_fork(loop), 0);
  ASSERT_OK(tl_timer_start(loop, timer, T_MS, 0));
  t_expect(loop, timer, TL_EV_TIMER);
  ASSERT_EQ(tl_loop_wake(loop), 0);
  t_expect(loop, 0, TL_EV_WAKE);
  t_quiet(loop);
  t_send_all(fds[1], "x", 1);
  t_expect(loop, poll, TL_EV_POLL);
  char byte;
  t_recv_all(fds[0], &byte, 1);
  t_close(loop, poll); /* must not reach the parent's poll set */
  finish_child(loop);
}

TEST(after_fork_child_and_parent_are_apart) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  tl_handle poll = ASSERT_OK(tl_poll_create(loop, fds[0]));
  ASSERT_OK(tl_poll_start(loop, poll, TL_READ));
  t_quiet(loop);
  pid_t pid = ASSERT_SYS(fork());
  if (pid == 0) check_child_loop(loop, poll, fds, timer);
  join_child(pid);
  t_quiet(loop);
  t_send_all(fds[1], "x", 1);
  t_expect(loop, poll, TL_EV_POLL);
  t_close(loop, poll);
  t_close(loop, timer);
  close(fds[0]);
  close(fds[1]);
  t_end(loop);
}

/* Several registrations must survive, not only one. */
TEST(after_fork_every_handle_is_watched_again) {
  enum { N = 20 };
  tl_loop *loop = t_loop();
  tl_handle streams[N];
  int peers[N];
  for (int i = 0; i < N; i++) {
    int fds[2];
    t_socketpair(SOCK_STREAM, fds);
    streams[i] = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
    ASSERT_OK(tl_stream_read_start(loop, streams[i]));
    peers[i] = fds[1];
  }
  pid_t pid = ASSERT_SYS(fork());
  if (pid == 0) {
    ASSERT_EQ(tl_loop_after_fork(loop), 0);
    for (int i = 0; i < N; i++) t_send_all(peers[i], "abc", 3);
    for (int i = 0; i < N; i++) ASSERT_EQ(t_next(loop).kind, TL_EV_DATA);
    t_quiet(loop);
    ASSERT_EQ(tl_loop_wake(loop), 0);
    t_expect(loop, 0, TL_EV_WAKE);
    finish_child(loop);
  }
  join_child(pid);
  close_all(loop, streams, N);
  for (int i = 0; i < N; i++) close(peers[i]);
  t_end(loop);
}

/* A new pipe, but no poll set. */
TEST(after_fork_an_unused_loop_is_cheap) {
  int before = t_open_fds();
  tl_loop *loop = t_loop();
  pid_t pid = ASSERT_SYS(fork());
  if (pid == 0) {
    for (int i = 0; i < 3; i++) {
      ASSERT_EQ(tl_loop_after_fork(loop), 0);
      ASSERT_EQ(t_open_fds(), before + 2);
      ASSERT_GE(fcntl(tl_loop_wake_fd(loop), F_GETFD), 0);
    }
    ASSERT_EQ(tl_loop_wake(loop), 0);
    finish_child(loop);
  }
  join_child(pid);
  t_end(loop);
}

TEST(after_fork_without_descriptors_the_next_wait_tries_again) {
  tl_loop *loop = t_loop();
  tl_event event;
  pid_t pid = ASSERT_SYS(fork());
  if (pid == 0) {
    struct rlimit none = {0, 0}, usual;
    ASSERT_SYS(getrlimit(RLIMIT_NOFILE, &usual));
    none.rlim_max = usual.rlim_max;
    ASSERT_SYS(setrlimit(RLIMIT_NOFILE, &none));
    ASSERT_EQ(tl_loop_after_fork(loop), -EMFILE);
    ASSERT_EQ(tl_loop_poll(loop, &event, 1, 0), -EMFILE);
    ASSERT_EQ(tl_loop_poll(loop, &event, 1, 0), -EMFILE);
    ASSERT_SYS(setrlimit(RLIMIT_NOFILE, &usual));
    ASSERT_EQ(tl_loop_poll(loop, &event, 1, 0), 0);
    ASSERT_EQ(tl_loop_wake(loop), 0);
    t_expect(loop, 0, TL_EV_WAKE);
    finish_child(loop);
  }
  join_child(pid);
  t_end(loop);
}

TEST(after_fork_new_handles_before_the_first_tick) {
  tl_loop *loop = t_loop();
  pid_t pid = ASSERT_SYS(fork());
  if (pid == 0) {
    int fds[2];
    ASSERT_EQ(tl_loop_after_fork(loop), 0);
    t_pipe(fds);
    tl_handle a = ASSERT_OK(tl_poll_create(loop, fds[0]));
    tl_handle b = ASSERT_OK(tl_poll_create(loop, fds[1]));
    ASSERT_OK(tl_poll_start(loop, a, TL_READ));
    ASSERT_OK(tl_poll_start(loop, b, TL_WRITE));
    ASSERT_OK(tl_poll_start(loop, b, 0));
    t_send_all(fds[1], "x", 1);
    t_expect(loop, a, TL_EV_POLL);
    t_close(loop, b);
    finish_child(loop);
  }
  join_child(pid);
  t_end(loop);
}

TEST(after_fork_signals_stay_apart) {
  tl_loop *loop = t_loop();
  tl_handle signal = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  pid_t pid = ASSERT_SYS(fork());
  if (pid == 0) {
    ASSERT_EQ(tl_loop_after_fork(loop), 0);
    raise(SIGUSR1);
    t_expect(loop, signal, TL_EV_SIGNAL);
    finish_child(loop);
  }
  join_child(pid);
  t_quiet(loop);
  raise(SIGUSR1);
  t_expect(loop, signal, TL_EV_SIGNAL);
  t_close(loop, signal);
  t_end(loop);
}

static void use_loop_in_child(tl_loop *loop, const tl_event *event, void *user) {
  if (event->kind != TL_EV_TIMER) return;
  pid_t pid = ASSERT_SYS(fork());
  if (pid == 0) {
    ASSERT_EQ(tl_loop_after_fork(loop), 0);
    fflush(NULL);
    _exit(0);
  }
  join_child(pid);
  *(bool *)user = true;
}

TEST(fork_in_a_running_loop) {
  tl_loop *loop = t_loop();
  bool done = false;
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_OK(tl_set_callback(loop, timer, use_loop_in_child, &done));
  ASSERT_OK(tl_timer_start(loop, timer, 0, 0));
  t_spin(loop, &done);
  t_close(loop, timer);
  t_end(loop);
}

/* Handles */

enum { K_TIMER, K_POLL, K_SIGNAL, K_LISTENER, K_STREAM, K_UDP, K_COUNT };
enum {
  OF_TIMER = 1 << K_TIMER,
  OF_POLL = 1 << K_POLL,
  OF_STREAM = 1 << K_STREAM,
  OF_UDP = 1 << K_UDP,
  OF_FD = 1 << K_LISTENER | OF_STREAM | OF_UDP | OF_POLL,
  OF_ALL = (1 << K_COUNT) - 1
};

static tl_addr scratch_addr, scratch_addrs[2];
static char scratch[16];

#define CALL(name, expression) \
  static int64_t name(tl_loop *loop, tl_handle handle) { return (int64_t)(expression); }
CALL(do_set_callback, tl_set_callback(loop, handle, NULL, NULL))
CALL(do_fd, tl_fd(loop, handle))
CALL(do_sockname, tl_sockname(loop, handle, &scratch_addr))
CALL(do_peername, tl_peername(loop, handle, &scratch_addr))
CALL(do_names, tl_names(loop, handle, 3, scratch_addrs))
CALL(do_timer_start, tl_timer_start(loop, handle, T_SECOND, 0))
CALL(do_timer_start_at, tl_timer_start_at(loop, handle, INT64_MAX, 0))
CALL(do_timer_stop, tl_timer_stop(loop, handle))
CALL(do_poll_start, tl_poll_start(loop, handle, TL_READ))
CALL(do_poll_rearm, tl_poll_rearm(loop, handle, TL_READ))
CALL(do_read_start, tl_stream_read_start(loop, handle))
CALL(do_read_notify, tl_stream_read_notify(loop, handle))
CALL(do_read_mixed, tl_stream_read_mixed(loop, handle, 1000))
CALL(do_received, tl_stream_received(loop, handle, -EAGAIN, 1))
CALL(do_read_stop, tl_stream_read_stop(loop, handle))
CALL(do_recv, tl_stream_recv(loop, handle, scratch, sizeof scratch))
CALL(do_write, tl_stream_write(loop, handle, "x", 1))
CALL(do_writev, tl_stream_writev(loop, handle, &(tl_buf){"x", 1}, 1))
CALL(do_queued, tl_queued(loop, handle))
CALL(do_watermarks, tl_watermarks(loop, handle, 10, 5))
CALL(do_discard, tl_discard(loop, handle))
CALL(do_shutdown, tl_stream_shutdown(loop, handle))
CALL(do_udp_connect, tl_udp_connect(loop, handle, &scratch_addr))
CALL(do_udp_read_start, tl_udp_read_start(loop, handle))
CALL(do_udp_read_stop, tl_udp_read_stop(loop, handle))
CALL(do_udp_send, tl_udp_send(loop, handle, "x", 1, NULL))
CALL(do_udp_batch, tl_udp_send_batch(loop, handle, &(tl_datagram){"x", 1, NULL}, 1))
CALL(do_release, tl_release_fd(loop, handle))
CALL(do_stream_close, tl_stream_close(loop, handle))
CALL(do_close, tl_close(loop, handle))

typedef struct call {
  const char *name;
  int64_t (*run)(tl_loop *loop, tl_handle handle);
  int kinds;
} call;

/* The last ones close; before them nothing may end a handle. */
static const call calls[] = {
    {"set_callback", do_set_callback, OF_ALL},
    {"fd", do_fd, OF_FD},
    {"sockname", do_sockname, OF_FD},
    {"peername", do_peername, OF_FD},
    {"names", do_names, OF_FD},
    {"timer_start", do_timer_start, OF_TIMER},
    {"timer_start_at", do_timer_start_at, OF_TIMER},
    {"timer_stop", do_timer_stop, OF_TIMER},
    {"poll_start", do_poll_start, OF_POLL},
    {"poll_rearm", do_poll_rearm, OF_POLL},
    {"read_start", do_read_start, OF_STREAM},
    {"notify", do_read_notify, OF_STREAM},
    {"mixed", do_read_mixed, OF_STREAM},
    {"received", do_received, OF_STREAM},
    {"read_stop", do_read_stop, OF_STREAM},
    {"recv", do_recv, OF_STREAM},
    {"write", do_write, OF_STREAM},
    {"writev", do_writev, OF_STREAM},
    {"queued", do_queued, OF_STREAM | OF_UDP},
    {"watermarks", do_watermarks, OF_STREAM | OF_UDP},
    {"shutdown", do_shutdown, OF_STREAM},
    {"discard", do_discard, OF_STREAM | OF_UDP},
    {"udp_connect", do_udp_connect, OF_UDP},
    {"udp_read_start", do_udp_read_start, OF_UDP},
    {"udp_read_stop", do_udp_read_stop, OF_UDP},
    {"udp_send", do_udp_send, OF_UDP},
    {"udp_batch", do_udp_batch, OF_UDP},
    {"release_fd", do_release, OF_FD},
    {"stream_close", do_stream_close, OF_STREAM},
    {"close", do_close, OF_ALL},
};
enum { CALLS = sizeof calls / sizeof *calls };

typedef struct zoo {
  tl_handle handles[K_COUNT];
  int fds[2], peer;
} zoo;

static void open_zoo(tl_loop *loop, zoo *z) {
  tl_addr addr;
  int pair[2];
  t_pipe(z->fds);
  t_socketpair(SOCK_STREAM, pair);
  z->peer = pair[1];
  z->handles[K_TIMER] = ASSERT_OK(tl_timer_create(loop));
  z->handles[K_POLL] = ASSERT_OK(tl_poll_create(loop, z->fds[0]));
  z->handles[K_SIGNAL] = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  z->handles[K_LISTENER] = t_listen(loop, &addr);
  z->handles[K_STREAM] = ASSERT_OK(tl_stream_open(loop, pair[0], 0));
  addr = t_ip4(0);
  z->handles[K_UDP] = ASSERT_OK(tl_udp_bind(loop, &addr, 0));
}

static void close_zoo(zoo *z) {
  close(z->fds[0]);
  close(z->fds[1]);
  close(z->peer);
}

static void expect_code(const call *c, int64_t got, int64_t wanted) {
  if (got != wanted)
    t_fail(__FILE__, __LINE__, "%s: %lld, wanted %lld", c->name, (long long)got, (long long)wanted);
}

TEST(functions_refuse_handles_of_another_kind) {
  tl_loop *loop = t_loop();
  zoo z;
  open_zoo(loop, &z);
  for (int c = 0; c < CALLS; c++)
    for (int kind = 0; kind < K_COUNT; kind++)
      if (!(calls[c].kinds & 1 << kind))
        expect_code(&calls[c], calls[c].run(loop, z.handles[kind]), TL_EKIND);
  close_all(loop, z.handles, K_COUNT);
  close_zoo(&z);
  t_end(loop);
}

TEST(functions_refuse_stale_and_invented_handles) {
  tl_loop *loop = t_loop();
  zoo z, heirs; /* the heirs take the slots of the dead */
  open_zoo(loop, &z);
  close_all(loop, z.handles, K_COUNT);
  for (int kind = 0; kind < K_COUNT; kind++) t_next(loop);
  t_quiet(loop);
  open_zoo(loop, &heirs);
  tl_handle bad[K_COUNT + 6] = {0,         -1, INT64_MAX,
                                INT64_MIN, 1,  heirs.handles[0] ^ ((tl_handle)1 << 40)};
  memcpy(bad + 6, z.handles, sizeof z.handles);
  for (int c = 0; c < CALLS; c++)
    for (int i = 0; i < K_COUNT + 6; i++) {
      expect_code(&calls[c], calls[c].run(loop, bad[i]), TL_EBADH);
      ASSERT_TRUE(tl_user(loop, bad[i]) == NULL);
    }
  ASSERT_EQ(t_stats(loop).live, K_COUNT);
  close_all(loop, heirs.handles, K_COUNT);
  close_zoo(&z);
  close_zoo(&heirs);
  t_end(loop);
}

/* Between tl_close and TL_EV_CLOSED the handle is as good as gone for all functions but tl_close. */
TEST(functions_refuse_closing_handles) {
  tl_loop *loop = t_loop();
  zoo z;
  open_zoo(loop, &z);
  close_all(loop, z.handles, K_COUNT);
  for (int c = 0; c < CALLS; c++)
    for (int kind = 0; kind < K_COUNT; kind++) {
      bool harmless = calls[c].run == do_close || calls[c].run == do_set_callback;
      expect_code(&calls[c], calls[c].run(loop, z.handles[kind]), harmless ? 0 : TL_EBADH);
    }
  for (int kind = 0; kind < K_COUNT; kind++) ASSERT_EQ(t_next(loop).kind, TL_EV_CLOSED);
  close_zoo(&z);
  t_end(loop);
}

static int by_value(const void *a, const void *b) {
  tl_handle x = *(const tl_handle *)a, y = *(const tl_handle *)b;
  return (x > y) - (x < y);
}

TEST_ON(handles_are_never_the_same_twice, ON_ALL) {
  enum { N = 5000 };
  static tl_handle all[N];
  tl_loop *loop = t_loop();
  for (int i = 0; i < N; i++) {
    all[i] = ASSERT_OK(tl_timer_create(loop));
    ASSERT_GT(all[i], 0);
    t_close(loop, all[i]);
    if (i) ASSERT_EQ(tl_close(loop, all[i - 1]), TL_EBADH);
  }
  qsort(all, N, sizeof *all, by_value);
  for (int i = 1; i < N; i++) ASSERT_NE(all[i - 1], all[i]);
  t_end(loop);
}

TEST_ON(callback_and_user, ON_ALL) {
  tl_loop *loop = t_loop();
  int token;
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_TRUE(tl_user(loop, timer) == NULL);
  ASSERT_OK(tl_set_callback(loop, timer, NULL, &token));
  ASSERT_TRUE(tl_user(loop, timer) == &token);
  ASSERT_OK(tl_timer_start(loop, timer, 0, 0));
  ASSERT_EQ(tl_loop_step(loop, -1), 1); /* delivered to nobody */
  t_close(loop, timer);
  t_end(loop);
}

TEST_ON(closed_comes_once_and_in_a_later_tick, ON_ALL) {
  tl_loop *loop = t_loop();
  seen all = {.victim_count = 1};
  due_timers(loop, all.victims, 1);
  ASSERT_OK(tl_set_callback(loop, all.victims[0], close_victims, &all));
  ASSERT_EQ(tl_loop_step(loop, -1), 1);
  ASSERT_EQ(all.closed, 0);
  ASSERT_EQ(tl_close(loop, all.victims[0]), 0); /* again */
  ASSERT_EQ(tl_loop_step(loop, -1), 1);
  ASSERT_EQ(all.closed, 1);
  ASSERT_EQ(tl_close(loop, all.victims[0]), TL_EBADH);
  ASSERT_EQ(tl_loop_step(loop, 0), 0);
  ASSERT_EQ(all.count, 1);
  t_end(loop);
}

/* The first of many ready handles closes all: the others must stay silent but for TL_EV_CLOSED. */
static void check_massacre(tl_loop *loop, seen *all, int64_t kind) {
  for (int i = 0; i < all->victim_count; i++)
    ASSERT_OK(tl_set_callback(loop, all->victims[i], close_victims, all));
  for (int i = 0; i < 1000 && all->closed < all->victim_count; i++)
    ASSERT_OK(tl_loop_step(loop, T_SECOND));
  ASSERT_EQ(all->count, 1);
  ASSERT_EQ(all->kind, kind);
  ASSERT_EQ(all->closed, all->victim_count);
  t_end(loop);
}

TEST_ON(callback_closes_other_due_timers, ON_ALL) {
  tl_loop *loop = t_loop();
  seen all = {.victim_count = 10};
  due_timers(loop, all.victims, 10);
  check_massacre(loop, &all, TL_EV_TIMER);
}

static void ready_streams(tl_loop *loop, seen *all, int *peers, bool notify) {
  for (int i = 0; i < all->victim_count; i++) {
    int fds[2];
    t_socketpair(SOCK_STREAM, fds);
    all->victims[i] = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
    if (notify)
      ASSERT_OK(tl_stream_read_notify(loop, all->victims[i]));
    else
      ASSERT_OK(tl_stream_read_start(loop, all->victims[i]));
    peers[i] = fds[1];
    t_send_all(peers[i], "hello", 5);
  }
}

TEST(callback_closes_other_ready_streams) {
  tl_loop *loop = t_loop();
  seen all = {.victim_count = 10};
  int peers[10];
  ready_streams(loop, &all, peers, false);
  check_massacre(loop, &all, TL_EV_DATA);
  for (int i = 0; i < 10; i++) close(peers[i]);
}

TEST(callback_closes_other_notified_streams) {
  tl_loop *loop = t_loop();
  seen all = {.victim_count = 10};
  int peers[10];
  ready_streams(loop, &all, peers, true);
  check_massacre(loop, &all, TL_EV_READABLE);
  for (int i = 0; i < 10; i++) close(peers[i]);
}

TEST(callback_closes_other_ready_polls) {
  tl_loop *loop = t_loop();
  seen all = {.victim_count = 10};
  int fds[10][2];
  for (int i = 0; i < 10; i++) {
    t_pipe(fds[i]);
    t_send_all(fds[i][1], "x", 1);
    all.victims[i] = ASSERT_OK(tl_poll_create(loop, fds[i][0]));
    ASSERT_OK(tl_poll_start(loop, all.victims[i], TL_READ));
  }
  check_massacre(loop, &all, TL_EV_POLL);
  for (int i = 0; i < 10; i++) close(fds[i][0]), close(fds[i][1]);
}

TEST(callback_closes_other_signals) {
  tl_loop *loop = t_loop();
  seen all = {.victim_count = 10};
  for (int i = 0; i < 10; i++) all.victims[i] = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  raise(SIGUSR1);
  check_massacre(loop, &all, TL_EV_SIGNAL);
}

/* The number of a closed descriptor may be taken at once, in the same callback. */
static void reuse_descriptor(tl_loop *loop, const tl_event *event, void *user) {
  seen *all = user;
  if (event->kind != TL_EV_DATA) return;
  if (all->count++) return;
  for (int i = 0; i < all->victim_count; i++)
    if (all->victims[i] != event->handle) ASSERT_EQ(tl_close(loop, all->victims[i]), 0);
  int fds[2];
  t_socketpair(SOCK_STREAM, fds); /* takes the numbers of the dead */
  all->victims[15] = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
  ASSERT_OK(tl_stream_read_start(loop, all->victims[15]));
  ASSERT_OK(tl_set_callback(loop, all->victims[15], reuse_descriptor, all));
  all->closed = fds[1];
}

TEST(reused_number_gets_no_event_of_the_old_handle) {
  tl_loop *loop = t_loop();
  seen all = {.victim_count = 4};
  int peers[4];
  ready_streams(loop, &all, peers, false);
  for (int i = 0; i < 4; i++)
    ASSERT_OK(tl_set_callback(loop, all.victims[i], reuse_descriptor, &all));
  for (int i = 0; i < 5; i++) ASSERT_OK(tl_loop_step(loop, 0));
  ASSERT_EQ(all.count, 1);
  t_send_all(all.closed, "x", 1);
  t_until(loop, all.victims[15], TL_EV_DATA);
  close_all(loop, all.victims + 15, 1);
  for (int i = 0; i < 4; i++) tl_close(loop, all.victims[i]), close(peers[i]);
  close(all.closed);
  t_end(loop);
}

static void note_close(tl_loop *loop, const tl_event *event, void *user) {
  (void)loop;
  *(bool *)user = event->kind == TL_EV_CLOSED;
}

TEST(quiet_closing_tells_of_graceful_ends_only) {
  tl_loop_desc desc = {.allocator = t_allocator(), .quiet_close = true};
  tl_loop *loop = tl_loop_create(&desc, NULL);
  tl_handle timer = ASSERT_OK(tl_timer_create(loop)), streams[3];
  int fds[2], peers[3];
  for (int i = 0; i < 3; i++) {
    t_socketpair(SOCK_STREAM, fds);
    streams[i] = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
    peers[i] = fds[1];
  }
  ASSERT_OK(tl_timer_start(loop, timer, 0, 0));
  ASSERT_OK(tl_close(loop, timer));
  ASSERT_OK(tl_close(loop, streams[0]));
  ASSERT_OK(tl_stream_close(loop, streams[1]));
  ASSERT_OK(tl_close(loop, streams[2]));
  t_expect(loop, streams[1], TL_EV_CLOSED);
  t_quiet(loop);
  ASSERT_EQ(t_stats(loop).live, 0);
  ASSERT_EQ(tl_close(loop, streams[0]), TL_EBADH);
  for (int i = 0; i < 3; i++) {
    ASSERT_EQ(tl_close(loop, streams[i]), TL_EBADH);
    close(peers[i]);
  }
  tl_handle again = ASSERT_OK(tl_timer_create(loop));
  ASSERT_TRUE(again != timer);
  ASSERT_OK(tl_close(loop, again));
  ASSERT_OK(tl_loop_run(loop)); /* nothing is left, so nothing is waited for */
  t_socketpair(SOCK_STREAM, fds);
  tl_handle last = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
  bool told = false;
  ASSERT_OK(tl_set_callback(loop, last, note_close, &told));
  ASSERT_OK(tl_stream_close(loop, last));
  ASSERT_OK(tl_loop_run(loop));
  ASSERT_TRUE(told);
  close(fds[1]);
  ASSERT_EQ(tl_loop_close(loop), 0);
}

/* Shutting down */

static int64_t make_any(tl_loop *loop, int kind, const tl_addr *addr, int fd) {
  switch (kind) {
    case 0: return tl_timer_create(loop);
    case 1: return tl_poll_create(loop, fd);
    case 2: return tl_signal_create(loop, SIGUSR1);
    case 3: return tl_listener_bind(loop, addr, 0, 0);
    case 4: return tl_stream_open(loop, fd, 0);
    case 5: return tl_udp_bind(loop, addr, 0);
    case 6: return tl_stream_connect(loop, addr);
    case 7: return tl_udp_open(loop, fd, 0);
    case 8: return tl_listener_open(loop, fd, 0);
    default: return tl_child_watch(loop, 1);
  }
}

TEST(after_shutdown_every_function_answers_with_an_error) {
  int before = t_open_fds();
  tl_loop *loop = t_loop();
  zoo z;
  tl_event event;
  open_zoo(loop, &z);
  ASSERT_EQ(tl_loop_shutdown(loop), K_COUNT);
  ASSERT_EQ(t_open_fds(), before + 3); /* the zoo's own */
  for (int c = 0; c < CALLS; c++)
    for (int kind = 0; kind < K_COUNT; kind++) ASSERT_LT(calls[c].run(loop, z.handles[kind]), 0);
  tl_addr addr = t_ip4(0);
  for (int kind = 0; kind < 10; kind++) ASSERT_LT(make_any(loop, kind, &addr, z.peer), 0);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), -EBADF);
  ASSERT_LT(tl_loop_step(loop, -1), 0);
  ASSERT_EQ(tl_loop_wake(loop), 0);
  ASSERT_EQ(tl_loop_after_fork(loop), 0);
  ASSERT_EQ(tl_loop_shutdown(loop), 0);
  ASSERT_EQ(t_open_fds(), before + 3);
  close_zoo(&z);
  ASSERT_EQ(tl_loop_close(loop), 0);
}

/* Statistics */

TEST(statistics_count) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  tl_handle stream = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
  ASSERT_OK(tl_stream_read_start(loop, stream));
  ASSERT_EQ(tl_stream_write(loop, stream, "12345", 5), 0);
  t_send_all(fds[1], "123", 3);
  t_expect(loop, stream, TL_EV_DATA);
  ASSERT_EQ(tl_loop_wake(loop), 0);
  ASSERT_EQ(tl_loop_wake(loop), 0);
  t_expect(loop, 0, TL_EV_WAKE);
  tl_stats stats = t_stats(loop);
  ASSERT_EQ(stats.bytes_in, 3);
  ASSERT_EQ(stats.bytes_out, 5);
  ASSERT_EQ(stats.events, 2);
  ASSERT_EQ(stats.wakes, 1);
  ASSERT_EQ(stats.handles, 1);
  ASSERT_EQ(stats.live, 1);
  ASSERT_EQ(stats.queued, 0);
  ASSERT_GE(stats.ticks, 2);
  ASSERT_GE(stats.syscalls, 4);
  close(fds[1]);
  t_close(loop, stream);
  ASSERT_EQ(t_stats(loop).handles, 1);
  ASSERT_EQ(t_stats(loop).live, 0);
  t_end(loop);
}

TEST(waiting_counts_as_idle) {
  tl_loop *loop = t_loop();
  tl_event event;
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, 5 * T_MS), 0);
  ASSERT_GE(t_stats(loop).idle_ns, 4 * T_MS);
  ASSERT_EQ(t_stats(loop).events, 0);
  t_end(loop);
}

/* One receive and one send per request, and one wait per tick, on io_uring for ring and set: nothing
   else. */
TEST(a_request_costs_one_receive_and_one_send) {
  enum { ROUNDS = 100 };
  tl_loop *loop = t_loop();
  tl_handle stream;
  int peer;
  char bytes[1024];
  t_tcp_pair(loop, &stream, &peer);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  int64_t before = t_stats(loop).syscalls;
  for (int i = 0; i < ROUNDS; i++) {
    t_send_all(peer, bytes, sizeof bytes);
    tl_event event = t_expect(loop, stream, TL_EV_DATA);
    ASSERT_EQ(tl_stream_write(loop, stream, tl_event_data(loop, &event), sizeof bytes), 0);
    t_recv_all(peer, bytes, sizeof bytes);
  }
  int per_request = strcmp(t_backend(), "io_uring") == 0 ? 4 : 3;
  ASSERT_LE(t_stats(loop).syscalls - before, per_request * ROUNDS + 10);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}
