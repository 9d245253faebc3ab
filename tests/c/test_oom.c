/* Memory running out: at every single allocation, once or for good, of a life that touches every
   kind of object. Nothing may leak, crash or lie. */
#include "tl_test.h"

/* Only memory can have been the reason. */
static bool fine(int64_t rc) {
  if (rc < 0) ASSERT_EQ(rc, -ENOMEM);
  return rc >= 0;
}

typedef struct world {
  tl_loop *loop;
  tl_handle handles[200];
  int count, fds[16], fd_count;
  pid_t child;
} world;

static tl_handle keep(world *w, tl_handle handle) {
  if (!fine(handle)) return 0;
  w->handles[w->count++] = handle;
  return handle;
}

static int keep_fd(world *w, int fd) { return w->fds[w->fd_count++] = ASSERT_SYS(fd); }

static tl_addr abstract(const char *name) {
  tl_addr addr;
  char text[64] = {0};
  int n = snprintf(text + 1, sizeof text - 1, "tloop-%s-%d", name, (int)getpid());
  ASSERT_EQ(tl_addr_unix(&addr, text, (size_t)n + 1), 0);
  return addr;
}

static void make_timers(world *w) {
  for (int i = 0; i < 40; i++) {
    tl_handle timer = keep(w, tl_timer_create(w->loop));
    if (timer) fine(tl_timer_start(w->loop, timer, i % 3 ? T_MS : 0, i % 2 ? T_MS : 0));
  }
}

static void make_polls(world *w) {
  int fds[2];
  t_pipe(fds);
  keep_fd(w, fds[0]);
  keep_fd(w, fds[1]);
  int high = keep_fd(w, fcntl(fds[0], F_DUPFD_CLOEXEC, 300)); /* makes the table grow */
  const int watched[] = {fds[1], high};
  for (int i = 0; i < 2; i++) {
    tl_handle poll = keep(w, tl_poll_create(w->loop, watched[i]));
    if (poll) fine(tl_poll_start(w->loop, poll, TL_READ | TL_WRITE));
  }
}

static void make_child(world *w) {
  w->child = ASSERT_SYS(fork());
  if (w->child == 0) _exit(3);
  keep(w, tl_child_watch(w->loop, w->child));
}

static void make_streams(world *w) {
  static char bytes[100000];
  int fds[2];
  tl_addr addr = t_ip4(0);
  tl_handle listener = keep(w, tl_listener_bind(w->loop, &addr, 0, 0));
  if (listener) {
    ASSERT_EQ(tl_sockname(w->loop, listener, &addr), 0);
    keep(w, tl_stream_connect(w->loop, &addr));
    keep_fd(w, t_connect(&addr));
  }
  t_socketpair(SOCK_STREAM, fds);
  keep_fd(w, fds[0]);
  keep_fd(w, fds[1]);
  tl_handle stream = keep(w, tl_stream_open(w->loop, fds[0], TL_KEEP_FD));
  if (!stream) return;
  const tl_buf bufs[2] = {{bytes, sizeof bytes}, {bytes, 5000}};
  fine(tl_stream_read_start(w->loop, stream));
  for (int i = 0; i < 6; i++)
    if (!fine(tl_stream_writev(w->loop, stream, bufs, 2))) {
      ASSERT_EQ(tl_stream_write(w->loop, stream, bytes, 1), -ENOMEM); /* it is broken now */
      return;
    }
}

static void make_udp(world *w) {
  tl_addr here = abstract("here"), there = abstract("there"), ip = t_ip4(0);
  int peer = keep_fd(w, socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ASSERT_SYS(bind(peer, (const void *)there.data, there.nbytes));
  tl_handle udp = keep(w, tl_udp_bind(w->loop, &here, 0));
  tl_datagram items[3] = {{"abc", 3, &there}, {"", 0, &there}, {"x", 1, &there}};
  for (int i = 0; udp && i < 20; i++) fine(tl_udp_send(w->loop, udp, "hello", 5, &there));
  if (udp) fine(tl_udp_send_batch(w->loop, udp, items, 3));
  udp = keep(w, tl_udp_bind(w->loop, &ip, 0));
  if (udp) fine(tl_udp_read_start(w->loop, udp));
  ASSERT_EQ(t_stats(w->loop).live, w->count);
}

/* Errors of events: memory, or what the peer of a victim of it sees. */
static void check_event(world *w, const tl_event *event) {
  int64_t rc = event->result;
  if (event->kind == TL_EV_ACCEPT && fine(rc))
    keep(w, rc);
  else if (rc < 0)
    ASSERT_TRUE(rc == -ENOMEM || rc == -ECONNRESET || rc == -EPIPE || rc == -ECONNREFUSED);
}

static void tick(world *w, int times) {
  static tl_event events[64];
  for (int i = 0; i < times; i++) {
    int n = tl_loop_poll(w->loop, events, 64, T_MS);
    if (!fine(n)) continue;
    for (int k = 0; k < n; k++) check_event(w, &events[k]);
  }
}

static void end_world(world *w) {
  for (int i = 0; i < w->count; i++) tl_close(w->loop, w->handles[i]);
  t_mem.fail_at = 0;
  t_end(w->loop);
  for (int i = 0; i < w->fd_count; i++) close(w->fds[i]);
  if (w->child > 0) waitpid(w->child, NULL, 0);
}

static void live(void) {
  world w = {.count = 0};
  tl_loop_desc desc = {.allocator = t_allocator()};
  int error = 0;
  w.loop = tl_loop_create(&desc, &error);
  if (!w.loop) {
    ASSERT_EQ(error, -ENOMEM);
    return;
  }
  make_timers(&w);
  keep(&w, tl_signal_create(w.loop, SIGUSR1));
  make_polls(&w);
  make_child(&w);
  make_streams(&w);
  make_udp(&w);
  tick(&w, 2);
  fine(tl_loop_after_fork(w.loop)); /* makes the poll set anew */
  tick(&w, 2);
  end_world(&w);
}

static void exhaust(bool for_good) {
  int fds = t_open_fds();
  long last = 0;
  for (long n = 1; n == 1 || last >= n - 1; n++) {
    t_mem.calls = 0;
    t_mem.fail_on = for_good;
    t_mem.fail_at = n;
    live();
    last = t_mem.calls;
    t_mem.fail_at = 0;
    ASSERT_EQ(t_mem.blocks, 0);
    ASSERT_EQ(t_open_fds(), fds);
    ASSERT_LT(n, 5000);
  }
  ASSERT_GT(last, 50); /* else nothing was tested */
}

TEST_ON(every_allocation_fails_once, ON_REAL | SLOW) { exhaust(false); }
TEST_ON(every_allocation_fails_and_all_after_it, ON_REAL | SLOW) { exhaust(true); }

static void memory(bool there) {
  t_mem.fail_on = true;
  t_mem.fail_at = there ? 0 : t_mem.calls + 1;
}

TEST_ON(a_failed_start_leaves_the_timer_as_it_was, ON_ALL) {
  enum { N = 16 }; /* the first size of the table */
  tl_loop *loop = t_loop();
  tl_handle timers[N + 1];
  for (int i = 0; i <= N; i++) timers[i] = ASSERT_OK(tl_timer_create(loop));
  for (int i = 0; i < N; i++) ASSERT_OK(tl_timer_start(loop, timers[i], i, 0));
  memory(false);
  ASSERT_EQ(tl_timer_start(loop, timers[N], 0, 0), -ENOMEM);
  int rc = tl_timer_start(loop, timers[0], 3600LL * T_SECOND, 0);
  memory(true);
  ASSERT_TRUE(rc == 0 || rc == -ENOMEM);
  for (int i = rc == 0; i < N; i++) t_expect(loop, timers[i], TL_EV_TIMER);
  t_quiet(loop);
  for (int i = 0; i <= N; i++) ASSERT_OK(tl_close(loop, timers[i]));
  t_end(loop);
}

TEST_ON(a_failed_creation_leaves_the_table_usable, ON_ALL) {
  tl_loop *loop = t_loop();
  static tl_handle timers[300];
  for (int i = 0; i < 300; i++) {
    memory(false);
    ASSERT_EQ(tl_timer_create(loop), -ENOMEM);
    memory(true);
    timers[i] = ASSERT_OK(tl_timer_create(loop));
  }
  ASSERT_EQ(t_stats(loop).live, 300);
  for (int i = 0; i < 300; i++) ASSERT_OK(tl_close(loop, timers[i]));
  t_end(loop);
}

TEST(a_stream_without_memory_for_its_queue_is_broken) {
  static char bytes[1 << 20];
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  tl_handle stream = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
  ASSERT_OK(tl_stream_read_start(loop, stream));
  memory(false);
  ASSERT_EQ(tl_stream_write(loop, stream, bytes, sizeof bytes), -ENOMEM);
  memory(true);
  ASSERT_EQ(tl_queued(loop, stream), 0);
  ASSERT_LT(tl_stream_write(loop, stream, bytes, 1), 0);
  t_quiet(loop);
  close(fds[1]);
  t_close(loop, stream);
  t_end(loop);
}

/* What the poll set needs may fail; as soon as there is memory, everything is watched again. */
TEST(a_new_poll_set_without_memory) {
  enum { N = 20 };
  for (long skipped = 0; skipped < 6; skipped++) {
    tl_loop *loop = t_loop();
    tl_handle polls[N];
    int fds[N][2];
    static tl_event events[64];
    for (int i = 0; i < N; i++) {
      t_pipe(fds[i]);
      t_send_all(fds[i][1], "x", 1);
      polls[i] = ASSERT_OK(tl_poll_create(loop, fds[i][0]));
      ASSERT_OK(tl_poll_start(loop, polls[i], TL_READ));
    }
    t_mem.fail_on = true;
    t_mem.fail_at = t_mem.calls + 1 + skipped;
    fine(tl_loop_after_fork(loop));
    for (int i = 0; i < 3; i++) fine(tl_loop_poll(loop, events, 64, 0));
    memory(true);
    ASSERT_EQ(tl_loop_poll(loop, events, 64, T_SECOND), N);
    for (int i = 0; i < N; i++) {
      ASSERT_OK(tl_close(loop, polls[i]));
      close(fds[i][0]);
      close(fds[i][1]);
    }
    t_end(loop);
  }
}

/* Accepting without memory is reported, pauses, and does not lose the listener. */
TEST(accepting_without_memory_pauses) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  int client = t_connect(&addr);
  memory(false);
  ASSERT_EQ(t_expect(loop, listener, TL_EV_ACCEPT).result, -ENOMEM);
  memory(true);
  t_quiet(loop);
  close(client);
  t_close(loop, listener);
  t_end(loop);
}
