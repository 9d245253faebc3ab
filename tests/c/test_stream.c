/* Streams: connecting, accepting, moving bytes, flow control, all the ways to end. */
#include "tl_test.h"

#include <netinet/tcp.h>
#include <sys/stat.h>

/* Helpers */

/* A stream and its plain peer, with small kernel buffers so that queues fill soon. */
static tl_handle small_pair(tl_loop *loop, int *peer) {
  int fds[2], room = 4096;
  t_socketpair(SOCK_STREAM, fds);
  ASSERT_SYS(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
  *peer = fds[1];
  return ASSERT_OK(tl_stream_open(loop, fds[0], 0));
}

/* Write a pattern until at least so much is queued; returns how much was written. */
static uint64_t stuff(tl_loop *loop, tl_handle stream, int64_t queued, uint64_t offset) {
  char bytes[8192];
  uint64_t start = offset;
  while (ASSERT_OK(tl_queued(loop, stream)) < queued) {
    t_pattern(bytes, sizeof bytes, offset);
    ASSERT_OK(tl_stream_write(loop, stream, bytes, sizeof bytes));
    offset += sizeof bytes;
  }
  return offset - start;
}

/* What the peer has so far, without blocking; checks the pattern. Returns -1 at the end of file. */
static int64_t peer_read(int peer, uint64_t offset) {
  static char bytes[65536];
  ssize_t n = recv(peer, bytes, sizeof bytes, MSG_DONTWAIT);
  if (n < 0) {
    ASSERT_EQ(errno, EAGAIN);
    return 0;
  }
  t_check_pattern(bytes, (size_t)n, offset);
  return n ? n : -1;
}

/* Let loop and peer take turns until the peer has got so much. */
static void peer_read_all(tl_loop *loop, int peer, uint64_t nbytes) {
  uint64_t got = 0;
  for (int idle = 0; got < nbytes && idle < 2000; idle++) {
    tl_event event;
    int64_t n = peer_read(peer, got);
    ASSERT_GE(n, 0);
    got += (uint64_t)n;
    if (n) idle = 0;
    ASSERT_OK(tl_loop_poll(loop, &event, 1, n ? 0 : T_MS));
  }
  ASSERT_EQ(got, nbytes);
}

static void expect_peer_eof(tl_loop *loop, int peer) {
  int64_t n = 0;
  tl_event event;
  for (int i = 0; i < 1000 && n == 0; i++) {
    ASSERT_OK(tl_loop_poll(loop, &event, 1, T_MS));
    n = peer_read(peer, 0);
  }
  ASSERT_EQ(n, -1);
}

typedef struct tally {
  int by_kind[16];
  int64_t last_error;
} tally;

/* Everything that happens until nothing happens any more. */
static tally collect(tl_loop *loop) {
  tally all = {.last_error = 0};
  tl_event event;
  for (int silent = 0; silent < 3;) {
    if (ASSERT_OK(tl_loop_poll(loop, &event, 1, 2 * T_MS)) == 0) {
      silent++;
      continue;
    }
    silent = 0;
    ASSERT_LT(++all.by_kind[event.kind], 1000);
    if (event.result < 0) all.last_error = event.result;
  }
  return all;
}

static tl_addr unix_addr(const char *name, size_t nbytes) {
  tl_addr addr;
  ASSERT_EQ(tl_addr_unix(&addr, name, nbytes), 0);
  return addr;
}

static tl_addr abstract_addr(void) {
  char name[64] = {0};
  int n = snprintf(name + 1, sizeof name - 1, "tloop-test-%d", (int)getpid());
  return unix_addr(name, (size_t)n + 1);
}

/* A path in a new directory; `forget` removes both. */
static char socket_dir[64], socket_path[80];

static tl_addr path_addr(void) {
  strcpy(socket_dir, "/tmp/tloop-XXXXXX");
  ASSERT_TRUE(mkdtemp(socket_dir) != NULL);
  snprintf(socket_path, sizeof socket_path, "%s/s", socket_dir);
  return unix_addr(socket_path, strlen(socket_path));
}

static void forget_path(void) {
  unlink(socket_path);
  rmdir(socket_dir);
}

static tl_addr loopback6(void) {
  tl_addr addr;
  ASSERT_EQ(tl_addr_ip(&addr, "::1", 0), 0);
  return addr;
}

static void need_ip6(void) {
  tl_addr addr = loopback6();
  int fd = socket(AF_INET6, SOCK_STREAM, 0);
  bool usable = fd >= 0 && bind(fd, (const void *)addr.data, addr.nbytes) == 0;
  if (fd >= 0) close(fd);
  if (!usable) SKIP("no IPv6 loopback");
}

/* Both ends on the loop: client and accepted server stream. */
static void loop_pair(tl_loop *loop, tl_addr addr, tl_handle *client, tl_handle *server) {
  tl_handle listener = ASSERT_OK(tl_listener_bind(loop, &addr, 0, 0));
  ASSERT_EQ(tl_sockname(loop, listener, &addr), 0);
  *client = ASSERT_OK(tl_stream_connect(loop, &addr));
  *server = 0;
  bool connected = false;
  while (!*server || !connected) {
    tl_event event = t_next(loop);
    ASSERT_EQ(event.kind, event.handle == listener ? TL_EV_ACCEPT : TL_EV_CONNECT);
    if (event.handle == listener)
      *server = ASSERT_OK(event.result);
    else
      connected = ASSERT_OK(event.result) == 0;
  }
  t_close(loop, listener);
}

/* Echo and big transfers, over every kind of address */

typedef struct end {
  uint64_t sent, received, total;
  bool eof, drained, was_full;
  int *open;
} end;

static void send_more(tl_loop *loop, tl_handle stream, end *e) {
  char bytes[40000];
  int64_t queued = 0;
  while (e->sent < e->total && queued < 100000) {
    size_t n = 1 + t_below(sizeof bytes);
    if (n > e->total - e->sent) n = (size_t)(e->total - e->sent);
    t_pattern(bytes, n, e->sent);
    queued = ASSERT_OK(tl_stream_write(loop, stream, bytes, n));
    e->sent += n;
  }
  e->was_full |= queued >= 100000;
  if (e->sent == e->total) ASSERT_OK(tl_stream_shutdown(loop, stream));
}

static void on_end(tl_loop *loop, const tl_event *event, void *user) {
  end *e = user;
  if (event->kind == TL_EV_DATA) {
    ASSERT_GT(event->result, 0);
    t_check_pattern(tl_event_data(loop, event), (size_t)event->result, e->received);
    e->received += (uint64_t)event->result;
  } else if (event->kind == TL_EV_DRAIN) {
    ASSERT_LE(event->result, 16384);
    if (e->sent < e->total) send_more(loop, event->handle, e);
  } else if (event->kind == TL_EV_EOF) {
    ASSERT_TRUE(!e->eof);
    e->eof = true;
    --*e->open;
  } else if (event->kind != TL_EV_CLOSED) {
    t_fail(__FILE__, __LINE__, "kind %d: %s", (int)event->kind, tl_strerror(event->result));
  }
}

static void check_duplex(tl_addr addr, uint64_t nbytes) {
  tl_loop *loop = t_loop();
  int open = 2;
  end ends[2] = {{.total = nbytes, .open = &open}, {.total = nbytes / 2, .open = &open}};
  tl_handle streams[2];
  loop_pair(loop, addr, &streams[0], &streams[1]);
  for (int i = 0; i < 2; i++) {
    ASSERT_OK(tl_set_callback(loop, streams[i], on_end, &ends[i]));
    ASSERT_OK(tl_stream_read_start(loop, streams[i]));
    send_more(loop, streams[i], &ends[i]);
  }
  for (int i = 0; i < 1000000 && open; i++) ASSERT_OK(tl_loop_step(loop, T_SECOND));
  ASSERT_EQ(ends[0].received, nbytes / 2);
  ASSERT_EQ(ends[1].received, nbytes);
  if (nbytes > 1000000) ASSERT_TRUE(ends[0].was_full); /* else flow control was not tested */
  ASSERT_EQ(t_stats(loop).bytes_in, nbytes + nbytes / 2);
  ASSERT_EQ(t_stats(loop).bytes_out, nbytes + nbytes / 2);
  tl_close(loop, streams[0]), tl_close(loop, streams[1]);
  t_end(loop);
}

TEST(small_messages_over_ip4) { check_duplex(t_ip4(0), 1000); }
TEST(small_messages_over_abstract_unix) { check_duplex(abstract_addr(), 1000); }
TEST(big_transfer_over_ip4) { check_duplex(t_ip4(0), 24 << 20); }
TEST(big_transfer_over_abstract_unix) { check_duplex(abstract_addr(), 8 << 20); }

TEST(big_transfer_over_ip6) {
  need_ip6();
  check_duplex(loopback6(), 16 << 20);
}

TEST(big_transfer_over_unix_path) {
  check_duplex(path_addr(), 4 << 20);
  struct stat st;
  ASSERT_SYS(stat(socket_path, &st)); /* closing the listener left the file */
  forget_path();
}

/* Connecting */

static int unused_port(void) {
  tl_addr addr = t_ip4(0);
  socklen_t n = sizeof addr.data;
  int fd = ASSERT_SYS(socket(AF_INET, SOCK_STREAM, 0));
  ASSERT_SYS(bind(fd, (const void *)addr.data, addr.nbytes));
  ASSERT_SYS(getsockname(fd, (void *)addr.data, &n));
  close(fd);
  return tl_addr_port(&addr);
}

/* The refusal may come at once or as an event, and is the same. */
static void expect_refused(tl_loop *loop, const tl_addr *addr, int error) {
  tl_handle stream = tl_stream_connect(loop, addr);
  if (stream < 0) {
    ASSERT_EQ(stream, error);
    return;
  }
  ASSERT_EQ(t_expect(loop, stream, TL_EV_CONNECT).result, error);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), error);
  t_quiet(loop);
  ASSERT_EQ(tl_close(loop, stream), 0);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_CLOSED).result, 0);
}

TEST(connection_refused) {
  tl_loop *loop = t_loop();
  for (int i = 0; i < 5; i++) {
    tl_addr addr = t_ip4(unused_port());
    expect_refused(loop, &addr, -ECONNREFUSED);
  }
  tl_addr missing = path_addr();
  expect_refused(loop, &missing, -ENOENT);
  forget_path();
  missing = abstract_addr();
  expect_refused(loop, &missing, -ECONNREFUSED);
  t_end(loop);
}

TEST(connect_to_nonsense) {
  tl_loop *loop = t_loop();
  tl_addr none;
  struct sockaddr odd = {.sa_family = 77};
  ASSERT_EQ(tl_addr_raw(&none, NULL, 0), 0);
  ASSERT_LT(tl_stream_connect(loop, &none), 0);
  ASSERT_LT(tl_listener_bind(loop, &none, 0, 0), 0);
  ASSERT_LT(tl_udp_bind(loop, &none, 0), 0);
  ASSERT_EQ(tl_addr_raw(&none, &odd, sizeof odd), 0);
  ASSERT_EQ(tl_stream_connect(loop, &none), -EAFNOSUPPORT);
  ASSERT_EQ(tl_listener_bind(loop, &none, 0, 0), -EAFNOSUPPORT);
  ASSERT_EQ(t_stats(loop).live, 0);
  t_end(loop);
}

TEST(nothing_works_while_connecting) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  char byte;
  tl_handle listener = t_listen(loop, &addr), stream = ASSERT_OK(tl_stream_connect(loop, &addr));
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), -ENOTCONN);
  ASSERT_EQ(tl_stream_writev(loop, stream, &(tl_buf){"x", 1}, 1), -ENOTCONN);
  ASSERT_EQ(tl_stream_read_start(loop, stream), -ENOTCONN);
  ASSERT_EQ(tl_stream_read_notify(loop, stream), -ENOTCONN);
  ASSERT_EQ(tl_stream_recv(loop, stream, &byte, 1), -ENOTCONN);
  ASSERT_LT(tl_stream_shutdown(loop, stream), 0);
  ASSERT_EQ(t_until(loop, stream, TL_EV_CONNECT).result, 0);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), 0);
  tl_close(loop, stream), tl_close(loop, listener);
  collect(loop);
  ASSERT_EQ(t_stats(loop).live, 1); /* the accepted one, whose handle this test let go */
  ASSERT_EQ(tl_loop_close(loop), 1);
}

TEST(closing_while_connecting) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  ASSERT_OK(t_listen(loop, &addr));
  for (int graceful = 0; graceful < 2; graceful++) {
    tl_handle stream = ASSERT_OK(tl_stream_connect(loop, &addr));
    ASSERT_EQ(graceful ? tl_stream_close(loop, stream) : tl_close(loop, stream), 0);
    for (;;) {
      tl_event event = t_next(loop);
      if (event.handle == stream)
        ASSERT_EQ(event.kind, TL_EV_CLOSED);
      else if (event.kind == TL_EV_ACCEPT)
        tl_close(loop, ASSERT_OK(event.result));
      if (event.handle == stream) break;
    }
  }
  tally rest = collect(loop); /* accepts that came later */
  tl_loop_close(loop);
  ASSERT_LE(rest.by_kind[TL_EV_ACCEPT], 2);
}

TEST(connected_sockets_are_well_behaved) {
  tl_loop *loop = t_loop();
  tl_handle streams[2];
  tl_addr names[2], peers[2];
  loop_pair(loop, t_ip4(0), &streams[0], &streams[1]);
  for (int i = 0; i < 2; i++) {
    int fd = tl_fd(loop, streams[i]), on = 0;
    socklen_t n = sizeof on;
    ASSERT_EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    ASSERT_EQ(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    ASSERT_SYS(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, &n));
    ASSERT_NE(on, 0);
    ASSERT_EQ(tl_sockname(loop, streams[i], &names[i]), 0);
    ASSERT_EQ(tl_peername(loop, streams[i], &peers[i]), 0);
    tl_addr both[2] = {t_ip4(1), t_ip4(1)};
    ASSERT_EQ(tl_names(loop, streams[i], 2, both), 2);
    ASSERT_EQ(tl_addr_port(&both[0]), 1);
    ASSERT_EQ(tl_names(loop, streams[i], 3, both), 3);
    ASSERT_MEM(&both[0], &names[i], sizeof both[0]);
    ASSERT_MEM(&both[1], &peers[i], sizeof both[1]);
  }
  ASSERT_MEM(&names[0], &peers[1], sizeof(tl_addr));
  ASSERT_MEM(&names[1], &peers[0], sizeof(tl_addr));
  tl_close(loop, streams[0]), tl_close(loop, streams[1]);
  t_end(loop);
}

/* Listening */

TEST(address_in_use) {
  tl_loop *loop = t_loop();
  tl_addr addr, path = path_addr();
  tl_handle listener = t_listen(loop, &addr);
  ASSERT_EQ(tl_listener_bind(loop, &addr, 0, 0), -EADDRINUSE);
  tl_handle local = ASSERT_OK(tl_listener_bind(loop, &path, 0, 0));
  ASSERT_EQ(tl_listener_bind(loop, &path, 0, 0), -EADDRINUSE);
  ASSERT_EQ(t_stats(loop).live, 2);
  t_close(loop, listener);
  t_close(loop, local);
  listener = ASSERT_OK(tl_listener_bind(loop, &addr, 0, 0)); /* SO_REUSEADDR */
  t_close(loop, listener);
  forget_path();
  t_end(loop);
}

TEST(an_address_that_is_not_ours) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  ASSERT_EQ(tl_addr_ip(&addr, "192.0.2.1", 0), 0);
  ASSERT_EQ(tl_listener_bind(loop, &addr, 0, 0), -EADDRNOTAVAIL);
  t_end(loop);
}

TEST(two_listeners_share_a_port) {
  tl_loop *loop = t_loop();
  tl_addr addr = t_ip4(0);
  tl_handle first = ASSERT_OK(tl_listener_bind(loop, &addr, 0, TL_REUSEPORT));
  t_bound(loop, first, &addr);
  tl_handle second = ASSERT_OK(tl_listener_bind(loop, &addr, 0, TL_REUSEPORT));
  t_close(loop, first);
  t_close(loop, second);
  t_end(loop);
}

TEST(ipv6_only_leaves_the_port_to_ipv4) {
  need_ip6();
  tl_loop *loop = t_loop();
  tl_addr any6, any4;
  ASSERT_EQ(tl_addr_ip(&any6, "::", 0), 0);
  tl_handle six = ASSERT_OK(tl_listener_bind(loop, &any6, 0, TL_IPV6ONLY));
  int port = t_bound(loop, six, &any6);
  ASSERT_EQ(tl_addr_ip(&any4, "0.0.0.0", port), 0);
  tl_handle four = ASSERT_OK(tl_listener_bind(loop, &any4, 0, 0));
  t_close(loop, six);
  t_close(loop, four);
  t_end(loop);
}

TEST(the_accept_event_names_the_peer) {
  tl_loop *loop = t_loop();
  tl_addr addr, local, path = abstract_addr();
  tl_handle listeners[2] = {t_listen(loop, &addr), ASSERT_OK(tl_listener_bind(loop, &path, 0, 0))};
  for (int i = 0; i < 2; i++) {
    int client = t_connect(i ? &path : &addr);
    tl_event event = t_until(loop, listeners[i], TL_EV_ACCEPT);
    socklen_t n = sizeof local.data;
    memset(&local, 0, sizeof local);
    ASSERT_SYS(getsockname(client, (void *)local.data, &n));
    local.nbytes = n;
    ASSERT_MEM(tl_event_addr(loop, &event), &local, sizeof local);
    t_close(loop, ASSERT_OK(event.result));
    t_close(loop, listeners[i]);
    close(client);
  }
  t_end(loop);
}

TEST(many_accepts_in_one_tick_but_not_all) {
  enum { N = 100 };
  static tl_event events[256];
  tl_loop *loop = t_loop();
  tl_addr addr;
  int clients[N], accepted = 0, ticks = 0;
  tl_handle listener = t_listen(loop, &addr);
  for (int i = 0; i < N; i++) clients[i] = t_connect(&addr);
  while (accepted < N) {
    int n = (int)ASSERT_OK(tl_loop_poll(loop, events, 256, T_SECOND)), in_tick = 0;
    for (int i = 0; i < n; i++) {
      if (events[i].kind != TL_EV_ACCEPT) continue;
      ASSERT_OK(tl_close(loop, ASSERT_OK(events[i].result)));
      in_tick++;
    }
    ASSERT_LE(in_tick, 64);
    accepted += in_tick;
    ticks++;
  }
  ASSERT_LE(ticks, 10);
  for (int i = 0; i < N; i++) close(clients[i]);
  t_close(loop, listener);
  t_end(loop);
}

/* slow: the pause is one second */
TEST(out_of_descriptors_accepting_pauses) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  int clients[2] = {t_connect(&addr), t_connect(&addr)};
  t_limit_fds(0);
  int64_t start = t_clock();
  ASSERT_EQ(t_expect(loop, listener, TL_EV_ACCEPT).result, -EMFILE);
  for (int i = 0; i < 3; i++) t_quiet(loop);
  t_limit_fds(-1);
  for (int i = 0; i < 2; i++) tl_close(loop, t_accept(loop, listener));
  ASSERT_GE(t_clock() - start, T_SECOND);
  close(clients[0]);
  close(clients[1]);
  t_close(loop, listener);
  t_end(loop);
}

TEST(closing_a_pausing_listener) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  int client = t_connect(&addr);
  t_limit_fds(0);
  ASSERT_EQ(t_expect(loop, listener, TL_EV_ACCEPT).result, -EMFILE);
  t_limit_fds(-1);
  t_close(loop, listener);
  ASSERT_EQ(tl_loop_timeout(loop), -1);
  close(client);
  t_end(loop);
}

static void close_listener(tl_loop *loop, const tl_event *event, void *user) {
  if (event->kind != TL_EV_ACCEPT) return;
  ++*(int *)user;
  ASSERT_OK(tl_close(loop, ASSERT_OK(event->result)));
  ASSERT_OK(tl_close(loop, event->handle));
}

TEST(closing_the_listener_in_its_callback_ends_accepting) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  int clients[5], count = 0;
  tl_handle listener = t_listen(loop, &addr);
  for (int i = 0; i < 5; i++) clients[i] = t_connect(&addr);
  ASSERT_OK(tl_set_callback(loop, listener, close_listener, &count));
  ASSERT_EQ(tl_loop_run(loop), 0);
  ASSERT_EQ(count, 1);
  for (int i = 0; i < 5; i++) close(clients[i]);
  t_end(loop);
}

TEST(an_adopted_listener) {
  tl_loop *loop = t_loop();
  tl_addr addr = t_ip4(0);
  int fd = ASSERT_SYS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_SYS(bind(fd, (const void *)addr.data, addr.nbytes));
  ASSERT_SYS(listen(fd, 5));
  ASSERT_EQ(tl_listener_open(loop, -1, 0), -EBADF);
  for (int round = 0; round < 2; round++) {
    tl_handle listener = ASSERT_OK(tl_listener_open(loop, fd, TL_KEEP_FD));
    t_bound(loop, listener, &addr);
    int client = t_connect(&addr);
    t_close(loop, t_accept(loop, listener));
    close(client);
    t_close(loop, listener);
  }
  tl_handle owner = ASSERT_OK(tl_listener_open(loop, fd, 0));
  t_close(loop, owner);
  ASSERT_EQ(fcntl(fd, F_GETFD), -1);
  t_end(loop);
}

TEST_ON(peername_is_known_after_a_reset, ON_READY) {
  tl_loop *loop = t_loop();
  tl_addr addr, client, seen;
  socklen_t n = sizeof client.data;
  tl_handle listener = t_listen(loop, &addr);
  int fd = t_connect(&addr);
  memset(&client, 0, sizeof client);
  ASSERT_SYS(getsockname(fd, (void *)client.data, &n));
  client.nbytes = n;
  t_reset(fd);
  tl_handle stream = t_accept(loop, listener);
  ASSERT_EQ(tl_peername(loop, stream, &seen), 0);
  ASSERT_MEM(&seen, &client, sizeof seen);
  tl_addr names[2];
  ASSERT_EQ(tl_names(loop, stream, 2, names), 2);
  ASSERT_MEM(&names[1], &client, sizeof client);
  ASSERT_EQ(tl_names(loop, listener, 3, names), 1); /* which has no peer */
  t_close(loop, stream);
  t_close(loop, listener);
  t_end(loop);
}

/* Writing */

TEST(writes_stay_in_order) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  uint64_t sent = 0;
  for (int i = 0; i < 500; i++) {
    char bytes[3000];
    size_t parts[3], at = 0;
    tl_buf bufs[3];
    for (int k = 0; k < 3; k++) {
      parts[k] = t_below(1000);
      bufs[k] = (tl_buf){bytes + at, parts[k]};
      at += parts[k];
    }
    t_pattern(bytes, at, sent);
    sent += at;
    int64_t queued =
        i % 2 ? tl_stream_writev(loop, stream, bufs, 3) : tl_stream_write(loop, stream, bytes, at);
    ASSERT_EQ(queued, tl_queued(loop, stream));
    ASSERT_EQ(t_stats(loop).queued, queued);
  }
  ASSERT_GT(tl_queued(loop, stream), 0);
  peer_read_all(loop, peer, sent);
  ASSERT_EQ(tl_queued(loop, stream), 0);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(thousands_of_buffers_in_one_write) {
  enum { N = 3000 };
  static tl_buf bufs[N];
  static char bytes[N * 100];
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  size_t total = 0;
  for (int i = 0; i < N; i++) {
    bufs[i] = (tl_buf){bytes + total, t_below(3) ? t_below(100) : 0};
    total += bufs[i].nbytes;
  }
  t_pattern(bytes, total, 0);
  int64_t queued = ASSERT_OK(tl_stream_writev(loop, stream, bufs, N));
  ASSERT_GT(queued, 0);
  ASSERT_LT(queued, total);
  memset(bytes, 0, sizeof bytes); /* what was queued is a copy */
  peer_read_all(loop, peer, total);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(empty_writes) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  ASSERT_EQ(tl_stream_write(loop, stream, NULL, 0), 0);
  ASSERT_EQ(tl_stream_writev(loop, stream, NULL, 0), 0);
  ASSERT_EQ(tl_stream_writev(loop, stream, &(tl_buf){NULL, 0}, 1), 0);
  ASSERT_EQ(tl_stream_writev(loop, stream, NULL, -1), -EINVAL);
  t_quiet(loop);
  stuff(loop, stream, 1000, 0);
  int64_t queued = tl_queued(loop, stream);
  ASSERT_EQ(tl_stream_write(loop, stream, NULL, 0), queued);
  ASSERT_EQ(tl_stream_writev(loop, stream, NULL, 0), queued);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(nothing_is_touched_beyond_the_callers_buffers) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  uint64_t sent = 0;
  for (size_t n = 1; n < 40000; n = n * 3 + 1) {
    char *bytes = t_guarded(n);
    t_pattern(bytes, n, sent);
    ASSERT_OK(tl_stream_write(loop, stream, bytes, n));
    sent += n;
  }
  peer_read_all(loop, peer, sent);
  char *room = t_guarded(5);
  t_send_all(peer, "123456789", 9);
  ASSERT_EQ(tl_stream_recv(loop, stream, room, 5), 5);
  ASSERT_MEM(room, "12345", 5);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(batch_of_writes_to_many_streams) {
  enum { N = 5 };
  tl_loop *loop = t_loop();
  tl_handle streams[N];
  int peers[N];
  int64_t rows[2 * N];
  char *bytes = t_guarded(0 + 1 + 2 + 3 + 4);
  t_pattern(bytes, 10, 0);
  for (int i = 0; i < N; i++) {
    rows[i] = streams[i] = small_pair(loop, &peers[i]);
    rows[N + i] = i;
  }
  ASSERT_EQ(tl_stream_write_batch(loop, rows, N, bytes), 0);
  for (int i = 0, at = 0; i < N; at += i++) {
    char got[N];
    ASSERT_EQ(rows[N + i], 0);
    t_recv_all(peers[i], got, (size_t)i);
    ASSERT_MEM(got, bytes + at, (size_t)i);
  }
  stuff(loop, streams[1], 1, 0);
  ASSERT_OK(tl_stream_shutdown(loop, streams[2]));
  t_close(loop, streams[3]);
  for (int i = 0; i < N; i++) rows[N + i] = 2;
  int64_t queued = tl_queued(loop, streams[1]);
  ASSERT_EQ(tl_stream_write_batch(loop, rows, N, bytes), 3);
  const int64_t answers[N] = {0, queued + 2, -EPIPE, TL_EBADH, 0};
  for (int i = 0; i < N; i++) ASSERT_EQ(rows[N + i], answers[i]);
  ASSERT_EQ(tl_stream_write_batch(loop, rows, -1, bytes), -EINVAL);
  ASSERT_EQ(tl_stream_write_batch(loop, NULL, 0, NULL), 0);
  for (int i = 0; i < N; i++) tl_close(loop, streams[i]), close(peers[i]);
  t_end(loop);
}

TEST(writes_of_a_batch_to_one_stream_are_one) {
  tl_loop *loop = t_loop();
  int peers[2];
  tl_handle one = small_pair(loop, &peers[0]), other = small_pair(loop, &peers[1]);
  int64_t rows[] = {one, one, other, one, 1, 2, 1, 0};
  tl_stats before, after;
  tl_loop_stats(loop, &before);
  ASSERT_EQ(tl_stream_write_batch(loop, rows, 4, "abcd"), 0);
  tl_loop_stats(loop, &after);
  ASSERT_LE(after.syscalls - before.syscalls, 2); /* one with io_uring */
  char got[4];
  t_recv_all(peers[0], got, 3);
  ASSERT_MEM(got, "abc", 3);
  t_recv_all(peers[1], got, 1);
  ASSERT_MEM(got, "d", 1);
  stuff(loop, one, 1, 0);
  int64_t queued = tl_queued(loop, one), more[] = {one, one, 1, 2};
  ASSERT_EQ(tl_stream_write_batch(loop, more, 2, "abc"), 1);
  ASSERT_EQ(more[2], 0);
  ASSERT_EQ(more[3], queued + 3);
  t_close(loop, one);
  t_close(loop, other);
  close(peers[0]);
  close(peers[1]);
  t_end(loop);
}

/* Watermarks, exactly: through a pipe of one page, which takes and gives whole pages only. */

enum { PAGE = 4096 };

static tl_handle page_pipe(tl_loop *loop, int *reader) {
  int fds[2];
  static char page[PAGE];
  t_pipe(fds);
  ASSERT_EQ(fcntl(fds[1], F_SETPIPE_SZ, PAGE), PAGE);
  *reader = fds[0];
  tl_handle stream = ASSERT_OK(tl_stream_open(loop, fds[1], 0));
  ASSERT_EQ(tl_stream_write(loop, stream, page, PAGE), 0);
  return stream;
}

static void add(tl_loop *loop, tl_handle stream, int64_t nbytes) {
  static char bytes[1 << 20];
  int64_t before = tl_queued(loop, stream);
  ASSERT_EQ(tl_stream_write(loop, stream, bytes, (size_t)nbytes), before + nbytes);
}

/* Let the reader take a page: the drain event's result, or -1 when none came. */
static int64_t take_page(tl_loop *loop, tl_handle stream, int reader) {
  char page[PAGE];
  tl_event event;
  int64_t before = tl_queued(loop, stream), wanted = before > PAGE ? before - PAGE : 0;
  t_recv_all(reader, page, before ? PAGE : 1);
  int n = 0;
  for (int i = 0; i < 100 && n == 0 && tl_queued(loop, stream) != wanted; i++)
    n = (int)ASSERT_OK(tl_loop_poll(loop, &event, 1, 10 * T_MS));
  ASSERT_EQ(tl_queued(loop, stream), wanted);
  if (!n) return -1;
  ASSERT_EQ(event.kind, TL_EV_DRAIN);
  ASSERT_EQ(event.result, wanted);
  return event.result;
}

TEST(drain_when_the_queue_becomes_empty) {
  tl_loop *loop = t_loop();
  int reader;
  tl_handle stream = page_pipe(loop, &reader);
  ASSERT_EQ(tl_watermarks(loop, stream, 10 * PAGE, 2 * PAGE), 0);
  add(loop, stream, 10 * PAGE); /* at high, but not above */
  for (int i = 9; i > 0; i--) ASSERT_EQ(take_page(loop, stream, reader), -1);
  ASSERT_EQ(take_page(loop, stream, reader), 0);
  t_quiet(loop);
  close(reader);
  t_close(loop, stream);
  t_end(loop);
}

TEST(drain_when_the_queue_falls_to_low) {
  tl_loop *loop = t_loop();
  int reader;
  tl_handle stream = page_pipe(loop, &reader);
  ASSERT_EQ(tl_watermarks(loop, stream, 10 * PAGE, 2 * PAGE), 0);
  for (int round = 0; round < 2; round++) {
    add(loop, stream, 10 * PAGE + 1 - tl_queued(loop, stream));
    for (int i = 9; i > 2; i--) ASSERT_EQ(take_page(loop, stream, reader), -1); /* 2 pages + 1 */
    ASSERT_EQ(take_page(loop, stream, reader), -1);
    ASSERT_EQ(take_page(loop, stream, reader), PAGE + 1);
  }
  ASSERT_EQ(take_page(loop, stream, reader), -1);
  ASSERT_EQ(take_page(loop, stream, reader), 0);
  t_quiet(loop);
  close(reader);
  t_close(loop, stream);
  t_end(loop);
}

TEST(drain_at_low_exactly_and_once_when_both_rules_hold) {
  tl_loop *loop = t_loop();
  int reader;
  tl_handle stream = page_pipe(loop, &reader);
  ASSERT_EQ(tl_watermarks(loop, stream, 2 * PAGE, PAGE), 0);
  add(loop, stream, 3 * PAGE);
  ASSERT_EQ(take_page(loop, stream, reader), -1);
  ASSERT_EQ(take_page(loop, stream, reader), PAGE);
  ASSERT_EQ(take_page(loop, stream, reader), 0);
  ASSERT_EQ(tl_watermarks(loop, stream, 0, 0), 0);
  add(loop, stream, PAGE);
  ASSERT_EQ(take_page(loop, stream, reader), 0);
  t_quiet(loop); /* not twice */
  close(reader);
  t_close(loop, stream);
  t_end(loop);
}

TEST(drain_rules_against_a_model) {
  tl_loop *loop = t_loop();
  int reader;
  tl_handle stream = page_pipe(loop, &reader);
  int64_t high = 65536, low = 16384; /* the defaults */
  bool above = false;
  for (int round = 0; round < 600; round++) {
    if (t_below(2)) {
      int64_t n = 1 + t_below(round % 7 ? 20000 : 80000);
      if (tl_queued(loop, stream) == 0) n += PAGE; /* keep the pipe full */
      if (tl_queued(loop, stream) + n > 300000) continue;
      if (tl_queued(loop, stream) == 0 && round) continue;
      add(loop, stream, n);
      above |= tl_queued(loop, stream) > high;
      continue;
    }
    int64_t queued = tl_queued(loop, stream);
    if (queued <= PAGE) continue; /* stays partly filled, else the page would not be whole */
    bool drains = above && queued - PAGE <= low;
    ASSERT_EQ(take_page(loop, stream, reader), drains ? queued - PAGE : -1);
    if (drains) above = false;
    if (t_below(20) == 0) {
      low = t_below(30000), high = low + t_below(60000);
      above = false;
      while (tl_queued(loop, stream) > PAGE) take_page(loop, stream, reader);
      ASSERT_EQ(tl_watermarks(loop, stream, high, low), 0);
      add(loop, stream, 2 * PAGE);
      above = tl_queued(loop, stream) > high;
    }
  }
  close(reader);
  t_close(loop, stream);
  t_end(loop);
}

TEST(wrong_watermarks) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  ASSERT_EQ(tl_watermarks(loop, stream, 10, 11), -EINVAL);
  ASSERT_EQ(tl_watermarks(loop, stream, 10, -1), -EINVAL);
  ASSERT_EQ(tl_watermarks(loop, stream, -1, -1), -EINVAL);
  ASSERT_EQ(tl_watermarks(loop, stream, INT64_MAX, INT64_MAX), 0);
  ASSERT_EQ(tl_watermarks(loop, stream, 0, 0), 0);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(discard_drops_the_queue_silently) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  uint64_t written = stuff(loop, stream, 200000, 0);
  int64_t queued = tl_queued(loop, stream);
  ASSERT_EQ(tl_discard(loop, stream), queued);
  ASSERT_EQ(tl_discard(loop, stream), 0);
  ASSERT_EQ(t_stats(loop).queued, 0);
  t_quiet(loop);
  peer_read_all(loop, peer, written - (uint64_t)queued);
  t_quiet(loop);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), 0);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(discard_lets_a_waiting_half_close_go) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  uint64_t written = stuff(loop, stream, 200000, 0);
  ASSERT_EQ(tl_stream_shutdown(loop, stream), 0);
  written -= (uint64_t)ASSERT_OK(tl_discard(loop, stream));
  peer_read_all(loop, peer, written);
  expect_peer_eof(loop, peer);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(discard_lets_a_graceful_close_go) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  stuff(loop, stream, 200000, 0);
  ASSERT_EQ(tl_stream_close(loop, stream), 0);
  if (tl_discard(loop, stream) >= 0)
    t_expect(loop, stream, TL_EV_CLOSED);
  else
    t_close(loop, stream);
  close(peer);
  t_end(loop);
}

/* Reading */

TEST(stop_leaves_the_bytes_in_the_kernel) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  for (int i = 0; i < 3; i++) {
    t_send_all(peer, "hello", 5);
    t_quiet(loop);
    ASSERT_EQ(tl_stream_read_start(loop, stream), 0);
    ASSERT_EQ(tl_stream_read_start(loop, stream), 0);
    tl_event event = t_expect(loop, stream, TL_EV_DATA);
    ASSERT_EQ(event.result, 5);
    ASSERT_MEM(tl_event_data(loop, &event), "hello", 5);
    ASSERT_EQ(tl_stream_read_stop(loop, stream), 0);
    ASSERT_EQ(tl_stream_read_stop(loop, stream), 0);
  }
  close(peer);
  t_quiet(loop);
  ASSERT_EQ(tl_stream_read_start(loop, stream), 0);
  t_expect(loop, stream, TL_EV_EOF);
  t_quiet(loop);
  t_close(loop, stream);
  t_end(loop);
}

typedef struct group {
  tl_handle streams[8];
  int events;
} group;

static void stop_group(tl_loop *loop, const tl_event *event, void *user) {
  group *g = user;
  if (event->kind != TL_EV_DATA && event->kind != TL_EV_READABLE) return;
  g->events++;
  for (int i = 0; i < 8; i++) ASSERT_OK(tl_stream_read_stop(loop, g->streams[i]));
}

/* The first of eight ready streams pauses all: no byte may be delivered, and none lost. */
static void check_group_stop(bool notify) {
  tl_loop *loop = t_loop();
  group g = {.events = 0};
  int peers[8];
  for (int i = 0; i < 8; i++) {
    g.streams[i] = small_pair(loop, &peers[i]);
    t_send_all(peers[i], "hello", 5);
    ASSERT_OK(tl_set_callback(loop, g.streams[i], stop_group, &g));
    ASSERT_OK(notify ? tl_stream_read_notify(loop, g.streams[i])
                     : tl_stream_read_start(loop, g.streams[i]));
  }
  for (int i = 0; i < 3; i++) ASSERT_OK(tl_loop_step(loop, 0));
  ASSERT_EQ(g.events, 1);
  int rest = 0;
  for (int i = 0; i < 8; i++) {
    char bytes[8];
    int64_t n = tl_stream_recv(loop, g.streams[i], bytes, sizeof bytes);
    ASSERT_TRUE(n == 5 || n == -EAGAIN);
    rest += n == 5;
  }
  ASSERT_EQ(rest, notify ? 8 : 7);
  for (int i = 0; i < 8; i++) tl_close(loop, g.streams[i]), close(peers[i]);
  t_end(loop);
}

TEST(a_callback_pauses_other_ready_streams) { check_group_stop(false); }
TEST(a_callback_pauses_other_notified_streams) { check_group_stop(true); }

TEST(notify_and_recv) {
  tl_loop *loop = t_loop();
  int peer;
  char bytes[16];
  tl_handle stream = small_pair(loop, &peer);
  ASSERT_EQ(tl_stream_recv(loop, stream, bytes, sizeof bytes), -EAGAIN);
  ASSERT_EQ(tl_stream_read_notify(loop, stream), 0);
  t_quiet(loop);
  t_send_all(peer, "0123456789", 10);
  for (int i = 0; i < 2; i++) {
    t_expect(loop, stream, TL_EV_READABLE);
    ASSERT_EQ(tl_stream_recv(loop, stream, bytes, 5), 5);
    ASSERT_MEM(bytes, i ? "56789" : "01234", 5);
  }
  ASSERT_EQ(tl_stream_recv(loop, stream, bytes, 5), -EAGAIN);
  t_quiet(loop);
  ASSERT_EQ(t_stats(loop).bytes_in, 10);
  close(peer);
  t_expect(loop, stream, TL_EV_READABLE);
  ASSERT_EQ(tl_stream_recv(loop, stream, bytes, 5), 0);
  t_quiet(loop);
  t_close(loop, stream);
  t_end(loop);
}

TEST(changing_the_way_of_reading) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  ASSERT_EQ(tl_stream_read_start(loop, stream), 0);
  t_send_all(peer, "abc", 3);
  ASSERT_EQ(tl_stream_read_notify(loop, stream), 0);
  t_expect(loop, stream, TL_EV_READABLE);
  t_expect(loop, stream, TL_EV_READABLE);
  ASSERT_EQ(tl_stream_read_start(loop, stream), 0);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_DATA).result, 3);
  close(peer);
  t_expect(loop, stream, TL_EV_EOF);
  t_close(loop, stream);
  t_end(loop);
}

static void expect_read(tl_loop *loop, tl_handle stream, int peer, size_t nbytes, int kind) {
  static char bytes[1000];
  t_pattern(bytes, nbytes, 0);
  t_send_all(peer, bytes, nbytes);
  tl_event event = t_expect(loop, stream, kind);
  if (kind == TL_EV_READABLE) {
    memset(bytes, 0, nbytes);
    ASSERT_EQ(tl_stream_recv(loop, stream, bytes, sizeof bytes), (int64_t)nbytes);
    t_check_pattern(bytes, nbytes, 0);
  } else {
    ASSERT_EQ(event.result, (int64_t)nbytes);
    t_check_pattern(tl_event_data(loop, &event), nbytes, 0);
  }
  t_quiet(loop);
}

TEST(mixed_reading_follows_the_sizes) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  ASSERT_EQ(tl_stream_read_mixed(loop, stream, 0), -EINVAL);
  ASSERT_EQ(tl_stream_read_mixed(loop, stream, 800), 0);
  expect_read(loop, stream, peer, 799, TL_EV_DATA);
  expect_read(loop, stream, peer, 800, TL_EV_DATA);
  expect_read(loop, stream, peer, 1000, TL_EV_READABLE);
  expect_read(loop, stream, peer, 200, TL_EV_READABLE);
  expect_read(loop, stream, peer, 199, TL_EV_READABLE);
  expect_read(loop, stream, peer, 900, TL_EV_DATA);
  expect_read(loop, stream, peer, 1, TL_EV_READABLE);
  expect_read(loop, stream, peer, 1, TL_EV_DATA);
  ASSERT_EQ(tl_stream_read_start(loop, stream), 0);
  for (int i = 0; i < 2; i++) expect_read(loop, stream, peer, 1000, TL_EV_DATA);
  ASSERT_EQ(tl_stream_read_mixed(loop, stream, 800), 0);
  expect_read(loop, stream, peer, 800, TL_EV_DATA);
  close(peer);
  t_expect(loop, stream, TL_EV_READABLE);
  ASSERT_EQ(tl_stream_recv(loop, stream, &(char){0}, 1), 0);
  t_quiet(loop);
  t_close(loop, stream);
  t_end(loop);
}

static void receive_as_host(tl_loop *loop, tl_handle stream, size_t asked, int64_t expected) {
  char bytes[16];
  t_expect(loop, stream, TL_EV_READABLE);
  ssize_t n = recv(tl_fd(loop, stream), bytes, asked, 0);
  int64_t result = n < 0 ? -errno : n;
  ASSERT_EQ(result, expected);
  ASSERT_EQ(tl_stream_received(loop, stream, result, asked), 0);
}

/* edge: the kernel tells once, so a full receive is followed by another look. */
static void check_received(tl_loop *loop, tl_handle stream, int peer, bool edge) {
  int64_t before = t_stats(loop).bytes_in;
  ASSERT_EQ(tl_stream_read_notify(loop, stream), 0);
  t_send_all(peer, "0123456789", 10);
  receive_as_host(loop, stream, 5, 5);
  receive_as_host(loop, stream, 5, 5); /* all that was asked for: there may be more */
  if (edge) receive_as_host(loop, stream, 5, -EAGAIN);
  t_quiet(loop);
  t_send_all(peer, "abc", 3);
  receive_as_host(loop, stream, 5, 3);
  t_quiet(loop);
  ASSERT_EQ(t_stats(loop).bytes_in, before + 13);
  t_send_all(peer, "end", 3);
  ASSERT_SYS(shutdown(peer, SHUT_WR));
  receive_as_host(loop, stream, 16, 3); /* short, but the end is behind it */
  receive_as_host(loop, stream, 16, 0);
  t_quiet(loop);
  ASSERT_EQ(tl_stream_write(loop, stream, "still", 5), 0);
  ASSERT_EQ(tl_stream_received(loop, stream, -ECONNRESET, 5), 0);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), -ECONNRESET);
  ASSERT_EQ(tl_stream_received(loop, stream, 5, 5), 0); /* broken already: nothing to tell */
  close(peer);
  t_close(loop, stream);
}

TEST(hosts_receive_by_themselves) {
  tl_loop *loop = t_loop();
  tl_handle stream;
  int peer;
  stream = small_pair(loop, &peer);
  check_received(loop, stream, peer, false);
  t_tcp_pair(loop, &stream, &peer);
  if (tl_loop_caps(loop) & TL_CAP_RECEIVED) {
    check_received(loop, stream, peer, tl_loop_caps(loop) & TL_CAP_EDGE);
  } else {
    ASSERT_EQ(tl_stream_received(loop, stream, 5, 5), -EOPNOTSUPP);
    close(peer);
    t_close(loop, stream);
  }
  t_end(loop);
}

/* Ten senders with more than the arena holds: one tick is bounded, and nobody starves. */
TEST(receiving_is_bounded_and_fair) {
  enum { N = 10 };
  tl_loop *loop = t_loop();
  tl_handle streams[N];
  int peers[N], ticks = 0;
  uint64_t sent[N], received[N] = {0}, missing = 0;
  static char bytes[100000];
  for (int i = 0; i < N; i++) {
    int fds[2];
    t_socketpair(SOCK_STREAM, fds);
    streams[i] = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
    peers[i] = fds[1];
    ASSERT_OK(tl_stream_read_start(loop, streams[i]));
    t_pattern(bytes, sizeof bytes, 0);
    sent[i] = (uint64_t)ASSERT_SYS(send(peers[i], bytes, sizeof bytes, MSG_DONTWAIT));
    missing += sent[i];
  }
  while (missing) {
    static tl_event events[256];
    int64_t in_tick = 0;
    int n = (int)ASSERT_OK(tl_loop_poll(loop, events, 256, T_SECOND));
    for (int k = 0; k < n; k++) {
      int i = 0;
      while (streams[i] != events[k].handle) i++;
      ASSERT_EQ(events[k].kind, TL_EV_DATA);
      t_check_pattern(tl_event_data(loop, &events[k]), (size_t)events[k].result, received[i]);
      received[i] += (uint64_t)events[k].result;
      missing -= (uint64_t)events[k].result;
      in_tick += events[k].result;
    }
    ASSERT_LE(in_tick, tl_loop_arena_bytes(loop));
    if (++ticks == 2 * N)
      for (int i = 0; i < N; i++) ASSERT_GT(received[i], 0);
  }
  for (int i = 0; i < N; i++) {
    ASSERT_EQ(received[i], sent[i]);
    tl_close(loop, streams[i]), close(peers[i]);
  }
  t_end(loop);
}

/* Half-close */

TEST(half_close_sends_the_queue_first_and_keeps_reading) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  uint64_t sent = stuff(loop, stream, 200000, 0);
  ASSERT_EQ(tl_stream_shutdown(loop, stream), 0);
  ASSERT_EQ(tl_stream_shutdown(loop, stream), 0);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), -EPIPE);
  peer_read_all(loop, peer, sent);
  expect_peer_eof(loop, peer);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), -EPIPE);
  ASSERT_EQ(tl_stream_read_start(loop, stream), 0);
  t_send_all(peer, "hello", 5);
  ASSERT_EQ(t_until(loop, stream, TL_EV_DATA).result, 5);
  close(peer);
  t_expect(loop, stream, TL_EV_EOF);
  t_quiet(loop);
  t_close(loop, stream);
  t_end(loop);
}

TEST(half_close_of_the_peer_keeps_writing) {
  tl_loop *loop = t_loop();
  tl_handle stream;
  int peer;
  t_tcp_pair(loop, &stream, &peer);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  t_send_all(peer, "bye", 3);
  ASSERT_SYS(shutdown(peer, SHUT_WR));
  t_expect(loop, stream, TL_EV_DATA);
  t_expect(loop, stream, TL_EV_EOF);
  t_quiet(loop);
  char bytes[5];
  ASSERT_EQ(tl_stream_write(loop, stream, "hello", 5), 0);
  t_recv_all(peer, bytes, 5);
  ASSERT_EQ(tl_stream_close(loop, stream), 0);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_CLOSED).result, 0);
  t_expect_eof(peer);
  close(peer);
  t_end(loop);
}

/* Closing */

TEST(graceful_close_sends_the_queue) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  uint64_t sent = stuff(loop, stream, 300000, 0), got = 0;
  ASSERT_EQ(tl_stream_close(loop, stream), 0);
  ASSERT_EQ(tl_stream_close(loop, stream), 0);
  ASSERT_LT(tl_stream_write(loop, stream, "x", 1), 0);
  ASSERT_LT(tl_stream_read_start(loop, stream), 0);
  t_send_all(peer, "too late", 8); /* nobody listens any more */
  tl_event event = {0};
  while (event.kind != TL_EV_CLOSED) {
    got += (uint64_t)peer_read(peer, got);
    if (ASSERT_OK(tl_loop_poll(loop, &event, 1, T_MS))) ASSERT_EQ(event.kind, TL_EV_CLOSED);
  }
  ASSERT_EQ(event.result, 0);
  while (got < sent) got += (uint64_t)peer_read(peer, got);
  ASSERT_EQ(got, sent);
  close(peer);
  t_end(loop);
}

TEST(abort_during_a_graceful_close) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  stuff(loop, stream, 300000, 0);
  ASSERT_EQ(tl_stream_close(loop, stream), 0);
  t_quiet(loop); /* the peer does not read: it would last for ever */
  ASSERT_EQ(tl_close(loop, stream), 0);
  t_expect(loop, stream, TL_EV_CLOSED);
  t_quiet(loop);
  close(peer);
  t_end(loop);
}

TEST(a_graceful_close_that_fails_says_so_once) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  stuff(loop, stream, 300000, 0);
  ASSERT_EQ(tl_stream_close(loop, stream), 0);
  close(peer);
  ASSERT_LT(t_expect(loop, stream, TL_EV_CLOSED).result, 0);
  t_end(loop);
}

TEST(a_graceful_close_without_queue_is_immediate) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  ASSERT_OK(tl_stream_write(loop, stream, "bye", 3));
  ASSERT_EQ(tl_stream_close(loop, stream), 0);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_CLOSED).result, 0);
  char bytes[3];
  t_recv_all(peer, bytes, 3);
  t_expect_eof(peer);
  close(peer);
  t_end(loop);
}

TEST(tl_loop_close_drops_everything) {
  tl_loop *loop = t_loop();
  int peers[4];
  for (int i = 0; i < 4; i++) {
    tl_handle stream = small_pair(loop, &peers[i]);
    stuff(loop, stream, 100000, 0);
    if (i == 1) tl_stream_close(loop, stream);
    if (i == 2) tl_stream_shutdown(loop, stream);
    if (i == 3) tl_close(loop, stream);
  }
  ASSERT_EQ(tl_loop_close(loop), 3);
  for (int i = 0; i < 4; i++) close(peers[i]);
}

/* Errors */

enum { IDLE, READING, NOTIFIED, QUEUED, QUEUED_READING, SHUT, FINISHING, RECEIVED, STATES };

static void enter_state(tl_loop *loop, tl_handle stream, int peer, int state) {
  if (state == READING || state == QUEUED_READING) ASSERT_OK(tl_stream_read_start(loop, stream));
  if (state == NOTIFIED) ASSERT_OK(tl_stream_read_notify(loop, stream));
  if (state == QUEUED || state == QUEUED_READING || state == SHUT || state == FINISHING)
    stuff(loop, stream, 100000, 0);
  if (state == SHUT) ASSERT_OK(tl_stream_shutdown(loop, stream));
  if (state == FINISHING) ASSERT_OK(tl_stream_close(loop, stream));
  if (state == RECEIVED) t_send_all(peer, "unread", 6);
}

/* A reset comes as one event at most, never spins, and leaves the stream closable. */
static void check_reset(int state) {
  tl_loop *loop = t_loop();
  tl_handle stream;
  int peer, room = 4096;
  t_tcp_pair(loop, &stream, &peer);
  ASSERT_SYS(setsockopt(tl_fd(loop, stream), SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
  enter_state(loop, stream, peer, state);
  t_reset(peer);
  if (state == NOTIFIED) {
    char byte;
    t_expect(loop, stream, TL_EV_READABLE);
    ASSERT_EQ(tl_stream_recv(loop, stream, &byte, 1), -ECONNRESET);
  }
  tally seen = collect(loop);
  t_quiet(loop);
  if (state == FINISHING) {
    ASSERT_EQ(seen.by_kind[TL_EV_CLOSED], 1);
    ASSERT_LT(seen.last_error, 0);
  } else {
    ASSERT_LE(seen.by_kind[TL_EV_ERROR], 1);
    if (state == READING || state == QUEUED || state == SHUT) {
      ASSERT_EQ(seen.by_kind[TL_EV_ERROR], 1);
      ASSERT_TRUE(seen.last_error == -ECONNRESET || seen.last_error == -EPIPE);
    }
    ASSERT_LT(tl_stream_write(loop, stream, "x", 1), 0);
    ASSERT_EQ(tl_queued(loop, stream), 0);
    ASSERT_EQ(tl_close(loop, stream), 0);
    t_expect(loop, stream, TL_EV_CLOSED);
  }
  t_end(loop);
}

TEST(reset_while_idle) { check_reset(IDLE); }
TEST(reset_while_reading) { check_reset(READING); }
TEST(reset_while_notified) { check_reset(NOTIFIED); }
TEST(reset_with_a_queue) { check_reset(QUEUED); }
TEST(reset_with_a_queue_while_reading) { check_reset(QUEUED_READING); }
TEST(reset_before_a_half_close) { check_reset(SHUT); }
TEST(reset_during_a_graceful_close) { check_reset(FINISHING); }
TEST(reset_with_unread_bytes) { check_reset(RECEIVED); }

TEST(hangup_of_a_paused_stream_does_not_spin) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  ASSERT_OK(tl_stream_read_stop(loop, stream));
  t_send_all(peer, "last words", 10);
  close(peer);
  t_quiet(loop);
  t_quiet(loop);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  ASSERT_EQ(t_expect(loop, stream, TL_EV_DATA).result, 10);
  t_expect(loop, stream, TL_EV_EOF);
  t_close(loop, stream);
  t_end(loop);
}

TEST(writing_to_a_closed_peer_raises_no_signal) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  close(peer);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), -EPIPE);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), -EPIPE);
  tl_buf bufs[2] = {{"x", 1}, {"y", 1}};
  ASSERT_EQ(tl_stream_writev(loop, stream, bufs, 2), -EPIPE);
  t_quiet(loop); /* the caller knows already */
  t_close(loop, stream);
  stream = small_pair(loop, &peer);
  stuff(loop, stream, 100000, 0);
  close(peer); /* and now from the queue */
  tl_event event = t_expect(loop, stream, TL_EV_ERROR);
  ASSERT_LT(event.result, 0);
  ASSERT_EQ(event.offset, TL_WRITE);
  t_close(loop, stream);
  t_end(loop);
}

/* Pipes, terminals, and other people's descriptors */

TEST(both_ends_of_a_pipe) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  tl_handle in = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
  tl_handle out = ASSERT_OK(tl_stream_open(loop, fds[1], 0));
  ASSERT_OK(tl_stream_read_start(loop, in));
  ASSERT_EQ(tl_stream_write(loop, out, "through", 7), 0);
  ASSERT_EQ(t_expect(loop, in, TL_EV_DATA).result, 7);
  uint64_t sent = stuff(loop, out, 100000, 0), got = 0;
  ASSERT_EQ(tl_stream_close(loop, out), 0);
  while (got < sent) {
    tl_event event = t_next(loop);
    if (event.kind != TL_EV_DATA) continue;
    t_check_pattern(tl_event_data(loop, &event), (size_t)event.result, got);
    got += (uint64_t)event.result;
  }
  t_until(loop, in, TL_EV_EOF);
  t_close(loop, in);
  t_end(loop);
}

static void break_a_pipe(tl_loop *loop) {
  int fds[2];
  t_pipe(fds);
  tl_handle out = ASSERT_OK(tl_stream_open(loop, fds[1], 0));
  stuff(loop, out, 100000, 0);
  close(fds[0]);
  ASSERT_EQ(t_expect(loop, out, TL_EV_ERROR).result, -EPIPE);
  t_quiet(loop);
  t_close(loop, out);
}

TEST(a_pipe_without_reader) {
  tl_loop *loop = t_loop();
  break_a_pipe(loop); /* the default action of SIGPIPE would end this test */
  signal(SIGPIPE, SIG_IGN);
  break_a_pipe(loop);
  t_end(loop);
}

/* What the program does with SIGPIPE is not touched, and its own SIGPIPE is not swallowed. */
TEST(a_broken_pipe_leaves_signals_as_they_were) {
  tl_loop *loop = t_loop();
  sigset_t broken, now;
  break_a_pipe(loop);
  sigemptyset(&broken);
  sigaddset(&broken, SIGPIPE);
  sigprocmask(SIG_SETMASK, NULL, &now);
  ASSERT_EQ(sigismember(&now, SIGPIPE), 0);
  sigprocmask(SIG_BLOCK, &broken, NULL);
  raise(SIGPIPE);
  break_a_pipe(loop);
  sigpending(&now);
  ASSERT_EQ(sigismember(&now, SIGPIPE), 1);
  signal(SIGPIPE, SIG_IGN); /* which drops the pending one */
  sigprocmask(SIG_UNBLOCK, &broken, NULL);
  t_end(loop);
}

TEST(writing_to_the_reading_end) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  tl_handle in = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
  ASSERT_EQ(tl_stream_write(loop, in, "x", 1), -EBADF);
  close(fds[1]);
  t_close(loop, in);
  t_end(loop);
}

TEST(a_terminal_whose_other_end_closes) {
  tl_loop *loop = t_loop();
  int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0) SKIP("no pseudo-terminals here");
  int slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (slave < 0) SKIP("no pseudo-terminals here");
  tl_handle stream = ASSERT_OK(tl_stream_open(loop, master, 0));
  ASSERT_OK(tl_stream_read_start(loop, stream));
  t_send_all(slave, "hello", 5);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_DATA).result, 5);
  close(slave);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_EOF).result, -EIO);
  t_quiet(loop);
  t_close(loop, stream);
  t_end(loop);
}

TEST(what_cannot_be_a_stream) {
  tl_loop *loop = t_loop();
  FILE *file = tmpfile();
  int folder = ASSERT_SYS(open("/tmp", O_RDONLY | O_DIRECTORY)), spare = ASSERT_SYS(dup(0));
  close(spare);
  ASSERT_EQ(tl_stream_open(loop, fileno(file), 0), -EINVAL);
  ASSERT_EQ(tl_stream_open(loop, folder, 0), -EINVAL);
  ASSERT_EQ(tl_stream_open(loop, spare, 0), -EBADF);
  ASSERT_EQ(tl_stream_open(loop, -1, 0), -EBADF);
  ASSERT_EQ(fcntl(fileno(file), F_GETFL) & O_NONBLOCK, 0); /* still the caller's, and unchanged */
  fclose(file);
  close(folder);
  ASSERT_EQ(t_stats(loop).handles, 0);
  t_end(loop);
}

TEST(kept_descriptors_stay_open) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  for (int round = 0; round < 3; round++) {
    tl_handle stream = ASSERT_OK(tl_stream_open(loop, fds[0], round < 2 ? TL_KEEP_FD : 0));
    ASSERT_OK(tl_stream_read_start(loop, stream));
    t_send_all(fds[1], "x", 1);
    t_expect(loop, stream, TL_EV_DATA);
    if (round == 2) ASSERT_EQ(tl_release_fd(loop, stream), fds[0]);
    if (round == 1)
      ASSERT_EQ(tl_stream_close(loop, stream), 0);
    else
      ASSERT_EQ(tl_close(loop, stream), 0);
    t_expect(loop, stream, TL_EV_CLOSED);
    t_send_all(fds[1], "y", 1); /* nobody watches it any more */
    t_quiet(loop);
    char byte;
    t_recv_all(fds[0], &byte, 1);
  }
  close(fds[0]);
  close(fds[1]);
  t_end(loop);
}

TEST(a_descriptor_closed_behind_our_back) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  tl_handle stream = ASSERT_OK(tl_stream_open(loop, fds[0], TL_KEEP_FD));
  ASSERT_OK(tl_stream_read_start(loop, stream));
  close(fds[0]);
  collect(loop); /* an error or nothing, but no crash */
  t_quiet(loop);
  ASSERT_LT(tl_stream_write(loop, stream, "x", 1), 0);
  t_close(loop, stream);
  close(fds[1]);
  t_end(loop);
}

/* epoll would report the duplicate for ever. */
TEST(an_owned_descriptor_with_a_living_duplicate) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = small_pair(loop, &peer);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  int twin = ASSERT_SYS(dup(tl_fd(loop, stream)));
  t_close(loop, stream);
  t_send_all(peer, "x", 1);
  tl_event event;
  for (int i = 0; i < 3; i++) ASSERT_EQ(tl_loop_poll(loop, &event, 1, 0), 0);
  t_quiet(loop);
  close(twin);
  close(peer);
  t_end(loop);
}

/* Random lives: whatever happens in whatever order, the rules about events hold. */

typedef struct life {
  tl_handle stream;
  int peer;
  bool closing, finishing, eof, error, closed, reading, notify;
  uint64_t sent, received;
} life;

static void check_event(tl_loop *loop, life *l, const tl_event *event) {
  ASSERT_TRUE(!l->closed);
  if (event->kind == TL_EV_CLOSED) {
    ASSERT_TRUE(l->closing || l->finishing);
    l->closed = true;
    return;
  }
  ASSERT_TRUE(!l->closing && !l->finishing);
  if (event->kind != TL_EV_DRAIN) ASSERT_TRUE(!l->error);
  if (event->kind == TL_EV_DATA) {
    ASSERT_TRUE(l->reading && !l->notify && !l->eof);
    t_check_pattern(tl_event_data(loop, event), (size_t)event->result, l->received);
    l->received += (uint64_t)event->result;
    ASSERT_LE(l->received, l->sent);
  } else if (event->kind == TL_EV_READABLE) {
    ASSERT_TRUE(l->reading && l->notify);
  } else if (event->kind == TL_EV_EOF) {
    ASSERT_TRUE(l->reading && !l->eof);
    l->eof = true;
    l->reading = false;
  } else if (event->kind == TL_EV_ERROR) {
    ASSERT_LT(event->result, 0);
    l->error = true;
  }
}

static void peer_action(life *l) {
  static char bytes[30000];
  size_t n = 1 + t_below(sizeof bytes);
  switch (t_below(12)) {
    case 0: t_reset(l->peer), l->peer = -1; break;
    case 1: close(l->peer), l->peer = -1; break;
    case 2: shutdown(l->peer, SHUT_WR); break;
    case 3:
    case 4: (void)!recv(l->peer, bytes, n, MSG_DONTWAIT); break;
    default: {
      t_pattern(bytes, n, l->sent);
      ssize_t done = send(l->peer, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (done > 0) l->sent += (uint64_t)done;
    }
  }
}

static void recv_some(tl_loop *loop, life *l) {
  char bytes[5000];
  int64_t n = tl_stream_recv(loop, l->stream, bytes, sizeof bytes);
  if (n > 0) {
    t_check_pattern(bytes, (size_t)n, l->received);
    l->received += (uint64_t)n;
  }
  if (n == 0) l->eof = true, l->reading = false;
  if (n < 0 && n != -EAGAIN) l->error = true;
}

static void own_action(tl_loop *loop, life *l) {
  static char bytes[60000];
  switch (t_below(14)) {
    case 0: l->closing = tl_close(loop, l->stream) == 0; break;
    case 1:
      ASSERT_EQ(tl_stream_close(loop, l->stream), 0);
      l->finishing = true;
      break;
    case 2: tl_stream_shutdown(loop, l->stream); break;
    case 3:
      ASSERT_EQ(tl_stream_read_stop(loop, l->stream), 0);
      l->reading = false;
      break;
    case 4:
    case 5:
      if (tl_stream_read_start(loop, l->stream) == 0) l->reading = true, l->notify = l->eof = false;
      break;
    case 6:
      if (tl_stream_read_notify(loop, l->stream) == 0) l->reading = l->notify = true;
      break;
    case 7:
    case 8: recv_some(loop, l); break;
    default: {
      int64_t rc = tl_stream_write(loop, l->stream, bytes, t_below(sizeof bytes));
      if (rc < 0 && rc != -EPIPE) l->error = true;
      if (rc == -EPIPE && tl_stream_read_start(loop, l->stream) < 0)
        l->error = true;
      else if (rc == -EPIPE)
        l->reading = true, l->notify = l->eof = false;
    }
  }
}

TEST(random_lives_keep_the_rules) {
  tl_loop *loop = t_loop();
  for (int round = 0; round < 300; round++) {
    life l = {.peer = -1};
    t_tcp_pair(loop, &l.stream, &l.peer);
    for (int step = 0; step < 60 && !l.closed; step++) {
      tl_event event;
      if (l.peer >= 0 && t_below(2)) peer_action(&l);
      if (!l.closing && !l.finishing && t_below(2)) own_action(loop, &l);
      if (ASSERT_OK(tl_loop_poll(loop, &event, 1, 0))) check_event(loop, &l, &event);
    }
    if (!l.closed && !l.closing) l.closing = tl_close(loop, l.stream) == 0;
    while (!l.closed) {
      tl_event event = t_next(loop);
      check_event(loop, &l, &event);
    }
    if (l.peer >= 0) close(l.peer);
    ASSERT_EQ(t_stats(loop).live, 0);
    ASSERT_EQ(t_stats(loop).queued, 0);
  }
  t_end(loop);
}
