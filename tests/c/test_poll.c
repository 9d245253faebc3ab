/* Readiness handles. */
#include "tl_test.h"

static tl_handle watch(tl_loop *loop, int fd, int mask) {
  tl_handle poll = ASSERT_OK(tl_poll_create(loop, fd));
  ASSERT_EQ(tl_poll_start(loop, poll, mask), 0);
  return poll;
}

static void fill(int fd) {
  char bytes[4096] = {0};
  t_nonblocking(fd);
  while (write(fd, bytes, sizeof bytes) > 0) continue;
  ASSERT_EQ(errno, EAGAIN);
}

static void drain(int fd) {
  char bytes[65536];
  t_nonblocking(fd);
  while (read(fd, bytes, sizeof bytes) > 0) continue;
}

static void close_pair(const int fds[2]) {
  close(fds[0]);
  close(fds[1]);
}

TEST(silent_descriptors_are_not_readable) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  tl_handle poll = watch(loop, fds[0], TL_READ);
  t_quiet(loop);
  t_close(loop, poll);
  close_pair(fds);
  t_end(loop);
}

TEST(level_triggered_events_come_with_every_tick) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  tl_handle poll = watch(loop, fds[0], TL_READ);
  t_send_all(fds[1], "x", 1);
  for (int i = 0; i < 5; i++) ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result, TL_READ);
  drain(fds[0]);
  t_quiet(loop);
  t_close(loop, poll);
  close_pair(fds);
  t_end(loop);
}

TEST(reader_and_writer_are_independent) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  tl_handle poll = watch(loop, fds[0], TL_READ | TL_WRITE);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result, TL_WRITE);
  t_send_all(fds[1], "x", 1);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result, TL_READ | TL_WRITE);
  ASSERT_EQ(tl_poll_start(loop, poll, TL_READ), 0); /* the writer goes, the reader stays */
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result, TL_READ);
  ASSERT_EQ(tl_poll_start(loop, poll, TL_WRITE), 0); /* and the other way round */
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result, TL_WRITE);
  fill(fds[0]);
  t_quiet(loop);
  ASSERT_EQ(tl_poll_start(loop, poll, TL_READ | TL_WRITE), 0);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result, TL_READ);
  ASSERT_EQ(tl_poll_start(loop, poll, 0), 0);
  t_quiet(loop);
  t_close(loop, poll);
  close_pair(fds);
  t_end(loop);
}

TEST(stopping_and_starting_again) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  t_send_all(fds[1], "x", 1);
  tl_handle poll = watch(loop, fds[0], TL_READ);
  for (int i = 0; i < 3; i++) {
    t_expect(loop, poll, TL_EV_POLL);
    ASSERT_EQ(tl_poll_start(loop, poll, 0), 0);
    ASSERT_EQ(tl_poll_start(loop, poll, 0), 0);
    t_quiet(loop);
    ASSERT_EQ(tl_poll_start(loop, poll, TL_READ), 0);
  }
  t_close(loop, poll);
  close_pair(fds);
  t_end(loop);
}

TEST(a_stop_in_the_same_tick_holds_back_the_event) {
  tl_loop *loop = t_loop();
  int a[2], b[2];
  tl_event event;
  t_pipe(a);
  t_pipe(b);
  t_send_all(a[1], "x", 1);
  t_send_all(b[1], "x", 1);
  tl_handle first = watch(loop, a[0], TL_READ), second = watch(loop, b[0], TL_READ);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), 1);
  tl_handle other = event.handle == first ? second : first;
  ASSERT_EQ(tl_poll_start(loop, other, 0), 0);
  ASSERT_EQ(tl_poll_start(loop, event.handle, 0), 0);
  t_quiet(loop);
  t_close(loop, first);
  t_close(loop, second);
  close_pair(a);
  close_pair(b);
  t_end(loop);
}

TEST(edge_comes_once_per_change) {
  tl_loop *loop = t_loop();
  int fds[2];
  bool rearm = !(tl_loop_caps(loop) & TL_CAP_EDGE);
  t_socketpair(SOCK_STREAM, fds);
  tl_handle poll = watch(loop, fds[0], TL_READ | TL_EDGE);
  for (int i = 0; i < 5; i++) {
    t_quiet(loop);
    t_send_all(fds[1], "x", 1);
    ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result & TL_READ, TL_READ);
    t_quiet(loop); /* the byte is still there, but nothing changes */
    drain(fds[0]);
    if (rearm || i % 2) ASSERT_EQ(tl_poll_rearm(loop, poll, TL_READ), 0);
  }
  t_close(loop, poll);
  close_pair(fds);
  t_end(loop);
}

TEST(edge_of_both_directions) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  tl_handle poll = watch(loop, fds[0], TL_READ | TL_WRITE | TL_EDGE);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result, TL_WRITE);
  t_quiet(loop);
  t_send_all(fds[1], "x", 1);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result & TL_READ, TL_READ);
  drain(fds[0]);
  ASSERT_EQ(tl_poll_rearm(loop, poll, TL_READ), 0);
  fill(fds[0]);
  ASSERT_EQ(tl_poll_rearm(loop, poll, TL_WRITE), 0);
  t_quiet(loop);
  drain(fds[1]);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result & TL_WRITE, TL_WRITE);
  t_quiet(loop);
  t_close(loop, poll);
  close_pair(fds);
  t_end(loop);
}

TEST(edge_reports_a_hangup) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  tl_handle poll = watch(loop, fds[0], TL_READ | TL_EDGE);
  t_quiet(loop);
  close(fds[1]);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result & TL_HUP, TL_HUP);
  t_quiet(loop);
  t_close(loop, poll);
  close(fds[0]);
  t_end(loop);
}

TEST(hangup_is_reported_unasked_while_watched_and_does_not_spin_after) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  fill(fds[0]);
  tl_handle poll = watch(loop, fds[0], TL_WRITE);
  t_quiet(loop);
  close(fds[1]);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result & TL_HUP, TL_HUP);
  ASSERT_EQ(tl_poll_start(loop, poll, 0), 0);
  t_quiet(loop);
  ASSERT_EQ(tl_poll_start(loop, poll, TL_READ), 0);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result & TL_HUP, TL_HUP);
  t_close(loop, poll);
  t_quiet(loop);
  close(fds[0]);
  t_end(loop);
}

TEST(error_is_reported) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  fill(fds[1]);
  tl_handle poll = watch(loop, fds[1], TL_WRITE);
  t_quiet(loop);
  close(fds[0]); /* the writing end of a broken pipe answers POLLERR */
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result & TL_ERR, TL_ERR);
  t_close(loop, poll);
  close(fds[1]);
  t_end(loop);
}

TEST(a_closed_descriptor_whose_number_is_reused) {
  tl_loop *loop = t_loop();
  int old[2], fresh[2];
  t_pipe(old);
  tl_handle poll = watch(loop, old[0], TL_READ);
  close_pair(old);
  t_pipe(fresh);
  ASSERT_EQ(fresh[0], old[0]);
  ASSERT_EQ(tl_poll_start(loop, poll, TL_READ), 0);
  t_quiet(loop);
  t_send_all(fresh[1], "x", 1);
  ASSERT_EQ(t_expect(loop, poll, TL_EV_POLL).result, TL_READ);
  t_close(loop, poll);
  close_pair(fresh);
  t_end(loop);
}

TEST(a_reused_number_with_a_new_handle) {
  tl_loop *loop = t_loop();
  int old[2], fresh[2];
  t_pipe(old);
  tl_handle stale = watch(loop, old[0], TL_READ);
  close_pair(old);
  t_pipe(fresh);
  tl_handle poll = watch(loop, fresh[0], TL_READ);
  t_close(loop, stale); /* must not take the new registration along */
  t_send_all(fresh[1], "x", 1);
  t_expect(loop, poll, TL_EV_POLL);
  t_close(loop, poll);
  close_pair(fresh);
  t_end(loop);
}

/* epoll goes on reporting a closed descriptor as long as a duplicate lives. */
TEST(a_closed_descriptor_with_a_living_duplicate_does_not_spin) {
  tl_loop *loop = t_loop();
  int fds[2];
  tl_event event;
  t_pipe(fds);
  tl_handle poll = watch(loop, fds[0], TL_READ);
  int twin = ASSERT_SYS(dup(fds[0]));
  close(fds[0]);
  t_close(loop, poll);
  t_send_all(fds[1], "x", 1);
  for (int i = 0; i < 5; i++) ASSERT_EQ(tl_loop_poll(loop, &event, 1, 0), 0);
  t_quiet(loop);
  close(twin);
  close(fds[1]);
  t_end(loop);
}

TEST(a_reused_number_with_a_living_duplicate_does_not_spin) {
  tl_loop *loop = t_loop();
  int old[2], fresh[2];
  tl_event event;
  t_pipe(old);
  tl_handle poll = watch(loop, old[0], TL_READ);
  int twin = ASSERT_SYS(fcntl(old[0], F_DUPFD_CLOEXEC, 100));
  close(old[0]);
  t_pipe(fresh);
  ASSERT_EQ(fresh[0], old[0]);
  ASSERT_EQ(tl_poll_start(loop, poll, TL_READ), 0);
  t_send_all(old[1], "x", 1);
  for (int i = 0; i < 3; i++) ASSERT_OK(tl_loop_poll(loop, &event, 1, 0));
  t_quiet(loop);
  t_send_all(fresh[1], "x", 1);
  t_expect(loop, poll, TL_EV_POLL);
  t_close(loop, poll);
  close(twin);
  close(old[1]);
  close_pair(fresh);
  t_end(loop);
}

TEST(wrong_arguments) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  ASSERT_EQ(tl_poll_create(loop, -1), -EBADF);
  tl_handle poll = ASSERT_OK(tl_poll_create(loop, fds[0]));
  ASSERT_EQ(tl_poll_start(loop, poll, 64), -EINVAL);
  ASSERT_EQ(tl_poll_start(loop, poll, -1), -EINVAL);
  t_close(loop, poll);
  close_pair(fds);
  t_end(loop);
}

TEST(a_closed_descriptor_is_refused) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  close_pair(fds);
  tl_handle poll = ASSERT_OK(tl_poll_create(loop, fds[0]));
  ASSERT_EQ(tl_poll_start(loop, poll, TL_READ), -EBADF);
  t_quiet(loop);
  t_close(loop, poll);
  t_end(loop);
}

/* A table must not grow to the size of a number that no descriptor can have. */
TEST(a_huge_number_is_refused_cheaply) {
  tl_loop *loop = t_loop();
  const int numbers[] = {100000000, INT32_MAX};
  long before = t_mem.bytes;
  for (int i = 0; i < 2; i++) {
    tl_handle poll = ASSERT_OK(tl_poll_create(loop, numbers[i]));
    ASSERT_EQ(tl_poll_start(loop, poll, TL_READ), -EBADF);
    t_close(loop, poll);
  }
  ASSERT_LT(t_mem.bytes, before + 1000000);
  t_end(loop);
}

TEST_ON(a_regular_file_is_refused, ON_EPOLL | ON_URING) {
  tl_loop *loop = t_loop();
  FILE *file = tmpfile();
  tl_handle poll = ASSERT_OK(tl_poll_create(loop, fileno(file)));
  ASSERT_EQ(tl_poll_start(loop, poll, TL_READ), -EPERM);
  t_quiet(loop);
  t_close(loop, poll);
  fclose(file);
  t_end(loop);
}

TEST_ON(two_handles_for_one_descriptor_are_refused, ON_EPOLL | ON_URING) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  tl_handle first = watch(loop, fds[0], TL_READ), second = ASSERT_OK(tl_poll_create(loop, fds[0]));
  ASSERT_EQ(tl_poll_start(loop, second, TL_READ), -EEXIST);
  t_send_all(fds[1], "x", 1);
  t_expect(loop, first, TL_EV_POLL);
  t_close(loop, first);
  ASSERT_EQ(tl_poll_start(loop, second, TL_READ), 0);
  t_expect(loop, second, TL_EV_POLL);
  t_close(loop, second);
  close_pair(fds);
  t_end(loop);
}

TEST(a_failed_start_keeps_what_was_watched) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  tl_handle poll = watch(loop, fds[0], TL_READ);
  ASSERT_EQ(tl_poll_start(loop, poll, 64), -EINVAL);
  t_send_all(fds[1], "x", 1);
  t_expect(loop, poll, TL_EV_POLL);
  t_close(loop, poll);
  close_pair(fds);
  t_end(loop);
}

TEST(closing_leaves_the_descriptor_open) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  tl_handle poll = watch(loop, fds[0], TL_READ);
  ASSERT_EQ(tl_fd(loop, poll), fds[0]);
  ASSERT_EQ(fcntl(fds[0], F_GETFL) & O_NONBLOCK, 0); /* nor was it changed */
  t_close(loop, poll);
  t_send_all(fds[1], "x", 1);
  char byte;
  t_recv_all(fds[0], &byte, 1);
  close_pair(fds);
  t_end(loop);
}

/* More than one kernel batch: nobody may be forgotten. */
TEST(hundreds_of_ready_descriptors) {
  enum { N = 600 };
  static int fds[N][2];
  static tl_handle polls[N];
  static bool seen[N];
  tl_loop *loop = t_loop();
  for (int i = 0; i < N; i++) {
    t_pipe(fds[i]);
    polls[i] = watch(loop, fds[i][0], TL_READ);
    t_send_all(fds[i][1], "x", 1);
  }
  int count = 0;
  for (int round = 0; round < 20 * N && count < N; round++) {
    tl_event event = t_next(loop);
    int i = 0;
    while (polls[i] != event.handle) i++;
    count += !seen[i];
    seen[i] = true;
  }
  ASSERT_EQ(count, N);
  for (int i = 0; i < N; i++) {
    ASSERT_OK(tl_close(loop, polls[i]));
    close_pair(fds[i]);
  }
  t_end(loop);
}

/* Random starts, stops, closes and reuse, against what poll(2) would say. */
TEST(random_histories) {
  enum { N = 12 };
  tl_loop *loop = t_loop();
  int fds[N][2], masks[N] = {0};
  tl_handle polls[N];
  tl_event events[64];
  for (int i = 0; i < N; i++) {
    t_socketpair(SOCK_STREAM, fds[i]);
    polls[i] = ASSERT_OK(tl_poll_create(loop, fds[i][0]));
  }
  for (int round = 0; round < 2000; round++) {
    int i = (int)t_below(N);
    switch (t_below(6)) {
      case 0: t_send_all(fds[i][1], "x", 1); break;
      case 1: drain(fds[i][0]); break;
      case 2:
        ASSERT_EQ(tl_close(loop, polls[i]), 0);
        if (t_below(2)) close_pair(fds[i]), t_socketpair(SOCK_STREAM, fds[i]);
        polls[i] = ASSERT_OK(tl_poll_create(loop, fds[i][0]));
        masks[i] = 0;
        break;
      default: masks[i] = (int)t_below(4); ASSERT_EQ(tl_poll_start(loop, polls[i], masks[i]), 0);
    }
    int n = (int)ASSERT_OK(tl_loop_poll(loop, events, 64, 0)), got[N] = {0};
    for (int k = 0; k < n; k++)
      for (int h = 0; h < N; h++)
        if (events[k].handle == polls[h] && events[k].kind == TL_EV_POLL)
          got[h] = (int)events[k].result;
    for (int h = 0; h < N; h++) {
      char byte;
      bool in = recv(fds[h][0], &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
      ASSERT_EQ(got[h], masks[h] & (TL_WRITE | (in ? TL_READ : 0)));
    }
  }
  for (int i = 0; i < N; i++) {
    ASSERT_OK(tl_close(loop, polls[i]));
    close_pair(fds[i]);
  }
  t_end(loop);
}
