/* Datagrams: IPv4, IPv6 and Unix; batches, errors, order, and what the kernel has no room for. */
#include "tl_test.h"

static tl_handle bind_reading(tl_loop *loop, tl_addr *addr) {
  tl_handle udp = ASSERT_OK(tl_udp_bind(loop, addr, 0));
  ASSERT_EQ(tl_sockname(loop, udp, addr), 0);
  ASSERT_EQ(tl_udp_read_start(loop, udp), 0);
  return udp;
}

/* A plain socket on the same kind of address. */
static int plain(tl_addr *addr) {
  socklen_t n = sizeof addr->data;
  int family = ((struct sockaddr *)(void *)addr->data)->sa_family;
  int fd = ASSERT_SYS(socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ASSERT_SYS(bind(fd, (const void *)addr->data, addr->nbytes));
  ASSERT_SYS(getsockname(fd, (void *)addr->data, &n));
  addr->nbytes = n;
  return fd;
}

static void send_plain(int fd, const void *data, size_t nbytes, const tl_addr *to) {
  ASSERT_EQ(ASSERT_SYS(sendto(fd, data, nbytes, 0, (const void *)to->data, to->nbytes)), nbytes);
}

static tl_event expect_datagram(tl_loop *loop, tl_handle udp, const void *data, size_t nbytes) {
  tl_event event = t_expect(loop, udp, TL_EV_DATAGRAM);
  ASSERT_EQ(event.result, nbytes);
  ASSERT_MEM(tl_event_data(loop, &event), data, nbytes);
  return event;
}

static tl_addr abstract(const char *name) {
  tl_addr addr;
  char text[64] = {0};
  int n = snprintf(text + 1, sizeof text - 1, "tloop-%s-%d", name, (int)getpid());
  ASSERT_EQ(tl_addr_unix(&addr, text, (size_t)n + 1), 0);
  return addr;
}

/* There and back, and the address is equal byte for byte. */
static void check_exchange(tl_addr here, tl_addr there) {
  tl_loop *loop = t_loop();
  tl_handle udp = bind_reading(loop, &here);
  int peer = plain(&there);
  char bytes[100];
  const size_t sizes[] = {1, 0, 100, 0, 7};
  for (int i = 0; i < 5; i++) {
    t_pattern(bytes, sizes[i], (uint64_t)i);
    send_plain(peer, bytes, sizes[i], &here);
    tl_event event = expect_datagram(loop, udp, bytes, sizes[i]);
    ASSERT_MEM(tl_event_addr(loop, &event), &there, sizeof there);
    ASSERT_EQ(tl_udp_send(loop, udp, bytes, sizes[i], tl_event_addr(loop, &event)), 0);
    char answer[200];
    ASSERT_EQ(ASSERT_SYS(recv(peer, answer, sizeof answer, 0)), sizes[i]);
    ASSERT_MEM(answer, bytes, sizes[i]);
  }
  ASSERT_EQ(t_stats(loop).bytes_in, 108);
  ASSERT_EQ(t_stats(loop).bytes_out, 108);
  close(peer);
  t_close(loop, udp);
  t_end(loop);
}

TEST(exchange_over_ip4) {
  tl_addr there = t_ip4(0);
  memset((char *)there.data + there.nbytes, 0, 128 - there.nbytes);
  check_exchange(t_ip4(0), there);
}

TEST(exchange_over_ip6) {
  tl_addr addr;
  ASSERT_EQ(tl_addr_ip(&addr, "::1", 0), 0);
  int fd = socket(AF_INET6, SOCK_DGRAM, 0);
  if (fd < 0 || bind(fd, (const void *)addr.data, addr.nbytes) < 0) SKIP("no IPv6 loopback");
  close(fd);
  check_exchange(addr, addr);
}

TEST(exchange_over_abstract_unix) { check_exchange(abstract("here"), abstract("there")); }

TEST(exchange_over_unix_paths) {
  char folder[] = "/tmp/tloop-XXXXXX", paths[2][64];
  tl_addr addrs[2];
  ASSERT_TRUE(mkdtemp(folder) != NULL);
  for (int i = 0; i < 2; i++) {
    snprintf(paths[i], sizeof paths[i], "%s/%d", folder, i);
    ASSERT_EQ(tl_addr_unix(&addrs[i], paths[i], strlen(paths[i])), 0);
  }
  check_exchange(addrs[0], addrs[1]);
  for (int i = 0; i < 2; i++) unlink(paths[i]);
  rmdir(folder);
}

TEST(a_sender_without_name) {
  tl_loop *loop = t_loop();
  tl_addr here = abstract("here");
  tl_handle udp = bind_reading(loop, &here);
  int peer = ASSERT_SYS(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  send_plain(peer, "x", 1, &here);
  tl_event event = expect_datagram(loop, udp, "x", 1);
  ASSERT_EQ(tl_event_addr(loop, &event)->nbytes, 0);
  close(peer);
  t_close(loop, udp);
  t_end(loop);
}

TEST(the_largest_datagrams_arrive_whole) {
  enum { MOST = 65507 };
  static char bytes[MOST + 1], answer[MOST + 1];
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here);
  int peer = plain(&there);
  t_pattern(bytes, MOST, 0);
  for (int i = 0; i < 3; i++) {
    send_plain(peer, bytes, (size_t)(MOST - i), &here);
    expect_datagram(loop, udp, bytes, (size_t)(MOST - i));
  }
  char *exact = t_guarded(MOST);
  memcpy(exact, bytes, MOST);
  ASSERT_EQ(tl_udp_send(loop, udp, exact, MOST, &there), 0);
  ASSERT_EQ(ASSERT_SYS(recv(peer, answer, sizeof answer, 0)), MOST);
  ASSERT_MEM(answer, bytes, MOST);
  ASSERT_EQ(tl_udp_send(loop, udp, bytes, MOST + 1, &there), -EMSGSIZE);
  ASSERT_EQ(tl_queued(loop, udp), 0);
  close(peer);
  t_close(loop, udp);
  t_end(loop);
}

TEST(large_unix_datagrams_arrive_whole) {
  enum { MOST = 150000 };
  static char bytes[MOST];
  tl_loop *loop = t_loop();
  tl_addr here = abstract("here"), there = abstract("there");
  tl_handle udp = bind_reading(loop, &here);
  int peer = plain(&there);
  t_pattern(bytes, MOST, 0);
  for (int i = 0; i < 3; i++) {
    send_plain(peer, bytes, (size_t)(MOST - i), &here);
    tl_event event = expect_datagram(loop, udp, bytes, (size_t)(MOST - i));
    ASSERT_LE(event.offset + event.result, tl_loop_arena_bytes(loop));
    ASSERT_MEM(tl_event_addr(loop, &event), &there, sizeof there);
  }
  close(peer);
  t_close(loop, udp);
  t_end(loop);
}

TEST(connected) {
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), friend_addr = t_ip4(0), stranger_addr = t_ip4(0), peer;
  tl_handle udp = bind_reading(loop, &here);
  int friendly = plain(&friend_addr), stranger = plain(&stranger_addr);
  ASSERT_EQ(tl_udp_send(loop, udp, "x", 1, NULL), -EDESTADDRREQ);
  ASSERT_EQ(tl_peername(loop, udp, &peer), -ENOTCONN);
  ASSERT_EQ(tl_udp_connect(loop, udp, &friend_addr), 0);
  ASSERT_EQ(tl_peername(loop, udp, &peer), 0);
  ASSERT_MEM(&peer, &friend_addr, sizeof peer);
  ASSERT_EQ(tl_udp_send(loop, udp, "hello", 5, NULL), 0);
  char bytes[8];
  ASSERT_EQ(ASSERT_SYS(recv(friendly, bytes, sizeof bytes, 0)), 5);
  send_plain(stranger, "spam", 4, &here);
  send_plain(friendly, "ham", 3, &here);
  expect_datagram(loop, udp, "ham", 3);
  t_quiet(loop);
  close(friendly);
  close(stranger);
  t_close(loop, udp);
  t_end(loop);
}

TEST(refusals_are_events_and_receiving_goes_on) {
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here);
  close(plain(&there));
  ASSERT_EQ(tl_udp_connect(loop, udp, &there), 0);
  for (int i = 0; i < 3; i++) {
    ASSERT_EQ(tl_udp_send(loop, udp, "anybody?", 8, NULL), 0);
    ASSERT_EQ(t_expect(loop, udp, TL_EV_ERROR).result, -ECONNREFUSED);
    t_quiet(loop);
  }
  int peer = plain(&there);
  send_plain(peer, "here", 4, &here);
  expect_datagram(loop, udp, "here", 4);
  close(peer);
  t_close(loop, udp);
  t_end(loop);
}

TEST(a_refusal_while_not_reading_does_not_spin) {
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here);
  close(plain(&there));
  ASSERT_EQ(tl_udp_connect(loop, udp, &there), 0);
  ASSERT_EQ(tl_udp_read_stop(loop, udp), 0);
  ASSERT_EQ(tl_udp_send(loop, udp, "anybody?", 8, NULL), 0);
  t_quiet(loop);
  t_quiet(loop);
  ASSERT_EQ(tl_udp_read_start(loop, udp), 0);
  ASSERT_EQ(t_expect(loop, udp, TL_EV_ERROR).result, -ECONNREFUSED);
  t_close(loop, udp);
  t_end(loop);
}

TEST(stop_and_start) {
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here);
  int peer = plain(&there);
  for (int i = 0; i < 3; i++) {
    ASSERT_EQ(tl_udp_read_stop(loop, udp), 0);
    send_plain(peer, "x", 1, &here);
    t_quiet(loop);
    ASSERT_EQ(tl_udp_read_start(loop, udp), 0);
    expect_datagram(loop, udp, "x", 1);
  }
  close(peer);
  t_close(loop, udp);
  t_end(loop);
}

/* More than a batch at once: in order, none lost, and no more than a batch in one tick. */
TEST(many_at_once_come_in_order) {
  enum { N = 200 };
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here);
  int peer = plain(&there), next = 0;
  for (int i = 0; i < N; i++) send_plain(peer, &i, sizeof i, &here);
  while (next < N) {
    static tl_event events[256];
    int n = (int)ASSERT_OK(tl_loop_poll(loop, events, 256, T_SECOND));
    ASSERT_LE(n, 64);
    for (int i = 0; i < n; i++, next++) {
      ASSERT_EQ(events[i].kind, TL_EV_DATAGRAM);
      ASSERT_MEM(tl_event_data(loop, &events[i]), &next, sizeof next);
      ASSERT_MEM(tl_event_addr(loop, &events[i]), &there, sizeof there);
    }
  }
  close(peer);
  t_close(loop, udp);
  t_end(loop);
}

/* The same, when the array is too small for a batch: the rest keeps its bytes. */
TEST(a_batch_over_several_calls) {
  enum { N = 50 };
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here);
  int peer = plain(&there);
  for (int i = 0; i < N; i++) send_plain(peer, &i, sizeof i, &here);
  for (int next = 0; next < N;) {
    tl_event events[7];
    int n = (int)ASSERT_OK(tl_loop_poll(loop, events, 7, T_SECOND));
    for (int i = 0; i < n; i++, next++)
      ASSERT_MEM(tl_event_data(loop, &events[i]), &next, sizeof next);
  }
  close(peer);
  t_close(loop, udp);
  t_end(loop);
}

TEST(thousands_in_order) {
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here), other = bind_reading(loop, &there);
  for (int i = 0; i < 5000; i++) {
    ASSERT_EQ(tl_udp_send(loop, udp, &i, sizeof i, &there), 0);
    if (i % 50 != 49) continue;
    for (int k = i - 49; k <= i; k++) expect_datagram(loop, other, &k, sizeof k);
  }
  t_close(loop, udp);
  t_close(loop, other);
  t_end(loop);
}

static void close_it(tl_loop *loop, const tl_event *event, void *user) {
  if (event->kind != TL_EV_DATAGRAM) return;
  ++*(int *)user;
  ASSERT_EQ(tl_close(loop, event->handle), 0);
}

TEST(closing_in_the_middle_of_a_batch) {
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here);
  int peer = plain(&there), count = 0;
  for (int i = 0; i < 20; i++) send_plain(peer, "x", 1, &here);
  ASSERT_OK(tl_set_callback(loop, udp, close_it, &count));
  ASSERT_EQ(tl_loop_run(loop), 0);
  ASSERT_EQ(count, 1);
  close(peer);
  t_end(loop);
}

TEST(two_sockets_share_a_tick) {
  enum { N = 100 };
  tl_loop *loop = t_loop();
  tl_addr addrs[2] = {t_ip4(0), t_ip4(0)}, there = t_ip4(0);
  tl_handle sockets[2];
  int next[2] = {0}, peer = plain(&there);
  for (int i = 0; i < 2; i++) sockets[i] = bind_reading(loop, &addrs[i]);
  for (int i = 0; i < 2 * N; i++) send_plain(peer, &i, sizeof i, &addrs[i % 2]);
  while (next[0] + next[1] < 2 * N) {
    tl_event event = t_next(loop);
    int which = event.handle == sockets[1], wanted = 2 * next[which]++ + which;
    ASSERT_EQ(event.kind, TL_EV_DATAGRAM);
    ASSERT_MEM(tl_event_data(loop, &event), &wanted, sizeof wanted);
  }
  close(peer);
  tl_close(loop, sockets[0]), tl_close(loop, sockets[1]);
  t_end(loop);
}

/* Batches out */

TEST(send_batch) {
  enum { N = 150 };
  static tl_datagram items[N];
  static int numbers[N];
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here);
  int peer = plain(&there);
  for (int i = 0; i < N; i++) {
    numbers[i] = i;
    items[i] = (tl_datagram){&numbers[i], i % 10 ? sizeof(int) : 0, &there};
  }
  int64_t before = t_stats(loop).syscalls;
  ASSERT_EQ(tl_udp_send_batch(loop, udp, items, N), N);
  ASSERT_LE(t_stats(loop).syscalls - before, 5);
  for (int i = 0; i < N; i++) {
    int got = -1;
    ASSERT_EQ(ASSERT_SYS(recv(peer, &got, sizeof got, 0)), items[i].nbytes);
    if (i % 10) ASSERT_EQ(got, i);
  }
  ASSERT_EQ(tl_udp_send_batch(loop, udp, items, 0), 0);
  close(peer);
  t_close(loop, udp);
  t_end(loop);
}

TEST(rows_with_a_bad_one) {
  enum { N = 70 };
  static char bytes[70000 + N];
  static int64_t rows[2 * N];
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here);
  int peer = plain(&there);
  for (int i = 0; i < N; i++) {
    rows[i] = i == 66 ? 70000 : i % 2;
    rows[N + i] = i == 3 ? 0 : (int64_t)(intptr_t)&there;
    bytes[i < 66 ? (i + 1) / 2 : 70000 + i / 2] = (char)i;
  }
  ASSERT_EQ(tl_udp_send_rows(loop, udp, rows, N, bytes), 2);
  for (int i = 0; i < N; i++) ASSERT_EQ(rows[i], i == 3 ? -EDESTADDRREQ : i == 66 ? -EMSGSIZE : 0);
  for (int i = 0; i < N; i++) {
    if (i == 3 || i == 66) continue;
    ASSERT_EQ(ASSERT_SYS(recv(peer, bytes, 8, 0)), i % 2);
  }
  ASSERT_EQ(recv(peer, bytes, 8, MSG_DONTWAIT), -1);
  ASSERT_EQ(tl_udp_send_rows(loop, udp, rows, -1, bytes), -EINVAL);
  ASSERT_EQ(tl_udp_send_rows(loop, udp, rows, 0, bytes), 0);
  rows[0] = rows[1] = 0;
  t_close(loop, udp);
  ASSERT_EQ(tl_udp_send_rows(loop, udp, rows, 1, bytes), 1);
  ASSERT_EQ(rows[0], TL_EBADH);
  close(peer);
  t_end(loop);
}

TEST(a_batch_with_a_bad_one) {
  static char big[70000];
  tl_loop *loop = t_loop();
  tl_addr here = t_ip4(0), there = t_ip4(0);
  tl_handle udp = bind_reading(loop, &here);
  int peer = plain(&there);
  char bytes[8];
  const tl_datagram items[] = {
      {"a", 1, &there}, {"b", 1, &there}, {big, sizeof big, &there}, {"c", 1, &there}};
  ASSERT_EQ(tl_udp_send_batch(loop, udp, items, 4), 2);
  ASSERT_EQ(tl_udp_send_batch(loop, udp, items + 2, 2), -EMSGSIZE);
  ASSERT_EQ(tl_udp_send_batch(loop, udp, &(tl_datagram){"a", 1, NULL}, 1), -EDESTADDRREQ);
  ASSERT_EQ(ASSERT_SYS(recv(peer, bytes, 8, 0)), 1);
  ASSERT_EQ(ASSERT_SYS(recv(peer, bytes, 8, 0)), 1);
  ASSERT_EQ(recv(peer, bytes, 8, MSG_DONTWAIT), -1);
  close(peer);
  t_close(loop, udp);
  t_end(loop);
}

/* No room in the kernel: Unix datagrams have that at once, when the receiver does not read. */

typedef struct jam {
  tl_loop *loop;
  tl_handle udp;
  tl_addr there;
  int peer, sent;
} jam;

static jam make_jam(bool connected) {
  jam j = {.loop = t_loop(), .there = abstract("there")};
  tl_addr here = abstract("here");
  j.udp = ASSERT_OK(tl_udp_bind(j.loop, &here, 0));
  j.peer = plain(&j.there);
  if (connected) ASSERT_EQ(tl_udp_connect(j.loop, j.udp, &j.there), 0);
  while (tl_queued(j.loop, j.udp) == 0) {
    int64_t queued =
        tl_udp_send(j.loop, j.udp, &j.sent, sizeof j.sent, connected ? NULL : &j.there);
    ASSERT_OK(queued);
    ASSERT_EQ(queued, tl_queued(j.loop, j.udp));
    j.sent++;
    ASSERT_LT(j.sent, 100000);
  }
  return j;
}

static void send_more(jam *j, int count, bool connected) {
  for (int i = 0; i < count; i++, j->sent++)
    ASSERT_GT(tl_udp_send(j->loop, j->udp, &j->sent, sizeof j->sent, connected ? NULL : &j->there),
              0);
}

static void expect_in_order(jam *j) {
  tl_event event;
  bool drained = false;
  for (int next = 0; next < j->sent;) {
    int got;
    if (recv(j->peer, &got, sizeof got, MSG_DONTWAIT) == sizeof got) ASSERT_EQ(got, next++);
    if (ASSERT_OK(tl_loop_poll(j->loop, &event, 1, T_MS)) == 0) continue;
    ASSERT_EQ(event.kind, TL_EV_DRAIN);
    ASSERT_EQ(event.result, tl_queued(j->loop, j->udp));
    drained |= event.result == 0;
  }
  ASSERT_EQ(tl_queued(j->loop, j->udp), 0);
  if (!drained) ASSERT_EQ(t_expect(j->loop, j->udp, TL_EV_DRAIN).result, 0);
  t_quiet(j->loop);
}

static void end_jam(jam *j) {
  if (j->peer >= 0) close(j->peer);
  t_close(j->loop, j->udp);
  t_end(j->loop);
}

TEST(queued_datagrams_go_out_in_order) {
  jam j = make_jam(true);
  send_more(&j, 50, true);
  t_quiet(j.loop);
  expect_in_order(&j);
  end_jam(&j);
}

TEST(queued_datagrams_go_out_in_order_without_connection) {
  jam j = make_jam(false);
  send_more(&j, 50, false);
  expect_in_order(&j);
  end_jam(&j);
}

/* The own socket counts as writable although the receiver is full. */
TEST(a_full_receiver_does_not_spin) {
  jam j = make_jam(false);
  tl_event event;
  int64_t before = t_stats(j.loop).ticks, until = t_clock() + 20 * T_MS;
  while (t_clock() < until) ASSERT_EQ(ASSERT_OK(tl_loop_poll(j.loop, &event, 1, 20 * T_MS)), 0);
  ASSERT_LT(t_stats(j.loop).ticks - before, 60);
  expect_in_order(&j);
  end_jam(&j);
}

TEST(a_batch_into_a_jam) {
  jam j = make_jam(true);
  enum { N = 20 };
  tl_datagram items[N];
  int numbers[N];
  for (int i = 0; i < N; i++) {
    numbers[i] = j.sent++;
    items[i] = (tl_datagram){&numbers[i], sizeof(int), NULL};
  }
  ASSERT_EQ(tl_udp_send_batch(j.loop, j.udp, items, N), N);
  memset(numbers, 0, sizeof numbers); /* what was queued is a copy */
  expect_in_order(&j);
  end_jam(&j);
}

/* Sending fails later: the event says so, the queue empties, and whoever waits for that is told. */
TEST(a_queue_that_fails_still_drains) {
  jam j = make_jam(true);
  send_more(&j, 3, true);
  close(j.peer);
  j.peer = -1;
  int errors = 0, drains = 0;
  for (int i = 0; i < 100 && !drains; i++) {
    tl_event event = t_next(j.loop);
    errors += event.kind == TL_EV_ERROR;
    drains += event.kind == TL_EV_DRAIN && event.result == 0;
    if (event.kind == TL_EV_ERROR)
      ASSERT_TRUE(event.result == -ECONNREFUSED || event.result == -ENOTCONN);
  }
  t_quiet(j.loop);
  ASSERT_GE(errors, 1);
  ASSERT_EQ(drains, 1);
  ASSERT_LT(tl_udp_send(j.loop, j.udp, "x", 1, NULL), 0);
  end_jam(&j);
}

TEST(empty_datagrams_can_wait_too) {
  jam j = make_jam(true);
  ASSERT_GE(tl_udp_send(j.loop, j.udp, NULL, 0, NULL), 0);
  int got, empty = 0;
  tl_event event;
  for (int i = 0; i < 1000 && !empty; i++) {
    ssize_t n = recv(j.peer, &got, sizeof got, MSG_DONTWAIT);
    empty += n == 0;
    ASSERT_OK(tl_loop_poll(j.loop, &event, 1, T_MS));
  }
  ASSERT_EQ(empty, 1);
  end_jam(&j);
}

TEST(closing_drops_the_queue) {
  jam j = make_jam(true);
  send_more(&j, 5, true);
  end_jam(&j);
}

TEST(empty_datagrams_count_in_the_queue) {
  jam j = make_jam(true);
  int64_t before = tl_queued(j.loop, j.udp);
  ASSERT_EQ(tl_udp_send(j.loop, j.udp, NULL, 0, NULL), before + TL_DATAGRAM_HEADER);
  ASSERT_EQ(tl_discard(j.loop, j.udp), before + TL_DATAGRAM_HEADER);
  ASSERT_EQ(tl_queued(j.loop, j.udp), 0);
  end_jam(&j);
}

TEST(discard_drops_datagrams_silently) {
  jam j = make_jam(true);
  send_more(&j, 5, true);
  ASSERT_EQ(tl_discard(j.loop, j.udp), 6 * (sizeof(int) + TL_DATAGRAM_HEADER));
  j.sent -= 6;
  int got;
  for (int i = 0; i < j.sent; i++) {
    ASSERT_EQ(ASSERT_SYS(recv(j.peer, &got, sizeof got, 0)), sizeof got);
    ASSERT_EQ(got, i);
  }
  t_quiet(j.loop);
  end_jam(&j);
}

/* Options and descriptors */

static int option(tl_loop *loop, tl_handle handle, int level, int name) {
  int value = 0;
  socklen_t n = sizeof value;
  ASSERT_SYS(getsockopt(tl_fd(loop, handle), level, name, &value, &n));
  return value != 0;
}

TEST(flags) {
  tl_loop *loop = t_loop();
  tl_addr addr = t_ip4(0);
  tl_handle plain_udp = ASSERT_OK(tl_udp_bind(loop, &addr, 0));
  ASSERT_EQ(option(loop, plain_udp, SOL_SOCKET, SO_BROADCAST), 0);
  ASSERT_EQ(option(loop, plain_udp, SOL_SOCKET, SO_REUSEPORT), 0);
  tl_handle udp = ASSERT_OK(tl_udp_bind(loop, &addr, TL_BROADCAST | TL_REUSEPORT));
  ASSERT_EQ(option(loop, udp, SOL_SOCKET, SO_BROADCAST), 1);
  ASSERT_EQ(option(loop, udp, SOL_SOCKET, SO_REUSEPORT), 1);
  ASSERT_EQ(fcntl(tl_fd(loop, udp), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  ASSERT_EQ(fcntl(tl_fd(loop, udp), F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  t_bound(loop, plain_udp, &addr);
  ASSERT_EQ(tl_udp_bind(loop, &addr, 0), -EADDRINUSE);
  t_close(loop, udp);
  t_close(loop, plain_udp);
  t_end(loop);
}

TEST(adopted_sockets) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_DGRAM, fds);
  ASSERT_EQ(tl_udp_open(loop, -1, 0), -EBADF);
  for (int round = 0; round < 2; round++) {
    tl_handle udp = ASSERT_OK(tl_udp_open(loop, fds[0], round ? 0 : TL_KEEP_FD));
    ASSERT_EQ(tl_udp_read_start(loop, udp), 0);
    ASSERT_EQ(send(fds[1], "x", 1, 0), 1);
    expect_datagram(loop, udp, "x", 1);
    ASSERT_EQ(tl_udp_send(loop, udp, "y", 1, NULL), 0);
    char byte;
    ASSERT_EQ(recv(fds[1], &byte, 1, 0), 1);
    t_close(loop, udp);
  }
  ASSERT_EQ(fcntl(fds[0], F_GETFD), -1);
  close(fds[1]);
  t_end(loop);
}

TEST(what_is_no_socket) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  ASSERT_EQ(tl_udp_open(loop, fds[0], 0), -ENOTSOCK);
  ASSERT_GE(fcntl(fds[0], F_GETFD), 0);
  close(fds[0]);
  ASSERT_EQ(tl_udp_open(loop, fds[0], 0), -EBADF);
  close(fds[1]);
  t_end(loop);
}
