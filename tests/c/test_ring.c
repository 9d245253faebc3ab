/* What io_uring does by completions: it takes bytes and connections before anybody asks for them, and
   holds the files meanwhile. All other tests run on it, too. */
#include "tl_test.h"

#include <netinet/in.h>
#include <pthread.h>

enum { PIECE = 100, PIECES = 50, LARGE = 3 << 20 };

static tl_loop *reading_pair(tl_handle *stream, int *peer) {
  tl_loop *loop = t_loop();
  t_tcp_pair(loop, stream, peer);
  ASSERT_OK(tl_stream_read_start(loop, *stream));
  t_quiet(loop);
  return loop;
}

/* No events; but requests may end, for which the loop wakes up. */
static void settle(tl_loop *loop) {
  tl_event event;
  for (int i = 0; i < 4; i++) ASSERT_EQ(ASSERT_OK(tl_loop_poll(loop, &event, 1, T_MS)), 0);
  t_quiet(loop);
}

static void send_pieces(int peer, int count) {
  char bytes[PIECE];
  for (int i = 0; i < count; i++) {
    t_pattern(bytes, PIECE, (uint64_t)i * PIECE);
    t_send_all(peer, bytes, PIECE);
  }
}

/* Wait for that many bytes of the pattern, from that offset on. */
static void expect_bytes(tl_loop *loop, tl_handle stream, uint64_t from, uint64_t until) {
  while (from < until) {
    tl_event event = t_expect(loop, stream, TL_EV_DATA);
    t_check_pattern(tl_event_data(loop, &event), (size_t)event.result, from);
    from += (uint64_t)event.result;
  }
  ASSERT_EQ(from, until);
}

static void end_pair(tl_loop *loop, tl_handle stream, int peer) {
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

/* Closing */

TEST_ON(a_closed_stream_has_ended_for_its_peer_at_once, ON_RING) {
  for (int kept = 0; kept < 2; kept++) {
    tl_handle stream;
    int peer;
    tl_loop *loop = reading_pair(&stream, &peer);
    int fd = kept ? tl_release_fd(loop, stream) : -1;
    ASSERT_OK(tl_close(loop, stream));
    if (kept) ASSERT_SYS(close(fd));
    t_expect_eof(peer);
    close(peer);
    t_end(loop);
  }
}

TEST_ON(a_kept_descriptor_is_its_owners_again, ON_RING) {
  tl_handle stream;
  int peer;
  tl_loop *loop = reading_pair(&stream, &peer);
  int fd = tl_release_fd(loop, stream);
  t_close(loop, stream);
  send_pieces(peer, 1);
  char bytes[PIECE];
  t_recv_all(fd, bytes, PIECE);
  t_check_pattern(bytes, PIECE, 0);
  close(fd);
  close(peer);
  t_end(loop);
}

TEST_ON(a_closed_listener_gives_up_its_port_at_once, ON_RING) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  t_quiet(loop);
  ASSERT_OK(tl_close(loop, listener));
  int fd = ASSERT_SYS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(connect(fd, (const void *)addr.data, addr.nbytes), -1);
  ASSERT_EQ(errno, ECONNREFUSED);
  close(fd);
  t_end(loop);
}

TEST_ON(a_loop_that_ends_lets_go_of_everything, ON_RING) {
  tl_handle stream;
  int peer;
  tl_loop *loop = reading_pair(&stream, &peer);
  tl_loop_close(loop);
  t_expect_eof(peer);
  close(peer);
}

/* Pausing */

TEST_ON(what_came_while_paused_comes_first_afterwards, ON_RING) {
  tl_handle stream;
  int peer;
  tl_loop *loop = reading_pair(&stream, &peer);
  ASSERT_OK(tl_stream_read_stop(loop, stream));
  send_pieces(peer, PIECES / 2);
  settle(loop);
  for (int i = PIECES / 2; i < PIECES; i++) {
    char bytes[PIECE];
    t_pattern(bytes, PIECE, (uint64_t)i * PIECE);
    t_send_all(peer, bytes, PIECE);
    if (i % 5 == 0) settle(loop);
  }
  shutdown(peer, SHUT_WR);
  settle(loop);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  expect_bytes(loop, stream, 0, PIECES * PIECE);
  t_expect(loop, stream, TL_EV_EOF);
  end_pair(loop, stream, peer);
}

TEST_ON(a_paused_stream_holds_its_peer_back, ON_RING) {
  static char bytes[LARGE];
  tl_handle stream;
  int peer, room = 65536;
  tl_loop *loop = reading_pair(&stream, &peer);
  ASSERT_SYS(setsockopt(tl_fd(loop, stream), SOL_SOCKET, SO_RCVBUF, &room, sizeof room));
  ASSERT_SYS(setsockopt(peer, SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
  ASSERT_OK(tl_stream_read_stop(loop, stream));
  t_nonblocking(peer);
  t_pattern(bytes, sizeof bytes, 0);
  size_t sent = 0;
  for (int idle = 0; idle < 5;) {
    ssize_t n = send(peer, bytes + sent, sizeof bytes - sent, MSG_NOSIGNAL);
    idle = n > 0 ? 0 : idle + 1;
    if (n > 0) sent += (size_t)n;
    settle(loop);
  }
  ASSERT_LT(sent, sizeof bytes); /* the loop took no more than it had blocks */
  ASSERT_OK(tl_stream_read_start(loop, stream));
  expect_bytes(loop, stream, 0, sent);
  end_pair(loop, stream, peer);
}

TEST_ON(what_was_received_can_be_fetched, ON_RING) {
  tl_handle stream;
  int peer;
  char bytes[2 * PIECE];
  tl_loop *loop = reading_pair(&stream, &peer);
  ASSERT_OK(tl_stream_read_stop(loop, stream));
  send_pieces(peer, 2);
  settle(loop); /* the ring has them */
  ASSERT_EQ(tl_stream_recv(loop, stream, bytes, 30), 30);
  ASSERT_EQ(tl_stream_recv(loop, stream, bytes + 30, sizeof bytes - 30), 2 * PIECE - 30);
  t_check_pattern(bytes, sizeof bytes, 0);
  ASSERT_EQ(tl_stream_recv(loop, stream, bytes, sizeof bytes), -EAGAIN);
  settle(loop); /* the request has been taken back: now the kernel has what comes */
  t_send_all(peer, "now", 3);
  ASSERT_EQ(tl_stream_recv(loop, stream, bytes, sizeof bytes), 3);
  ASSERT_OK(tl_stream_read_notify(loop, stream));
  send_pieces(peer, 1);
  t_expect(loop, stream, TL_EV_READABLE);
  ASSERT_EQ(tl_stream_recv(loop, stream, bytes, sizeof bytes), PIECE);
  t_check_pattern(bytes, PIECE, 0);
  settle(loop);
  close(peer);
  t_expect(loop, stream, TL_EV_READABLE);
  ASSERT_EQ(tl_stream_recv(loop, stream, bytes, sizeof bytes), 0);
  t_close(loop, stream);
  t_end(loop);
}

/* Running out */

typedef struct feed {
  int fds[8];
  size_t nbytes;
} feed;

static void *feed_all(void *argument) {
  const feed *f = argument;
  char *bytes = malloc(f->nbytes);
  t_pattern(bytes, f->nbytes, 0);
  for (size_t at = 0; at < f->nbytes; at += 65536)
    for (int i = 0; i < 8; i++)
      t_send_all(f->fds[i], bytes + at, f->nbytes - at < 65536 ? f->nbytes - at : 65536);
  for (int i = 0; i < 8; i++) close(f->fds[i]);
  free(bytes);
  return NULL;
}

TEST_ON(more_comes_than_there_are_blocks, ON_RING) {
  tl_loop *loop = t_loop();
  feed f = {.nbytes = LARGE};
  pthread_t thread;
  tl_handle streams[8];
  uint64_t got[8] = {0};
  tl_event events[16];
  for (int i = 0; i < 8; i++) {
    t_tcp_pair(loop, &streams[i], &f.fds[i]);
    ASSERT_OK(tl_stream_read_start(loop, streams[i]));
  }
  ASSERT_EQ(pthread_create(&thread, NULL, feed_all, &f), 0);
  for (int ended = 0; ended < 8;) {
    int n = (int)ASSERT_OK(tl_loop_poll(loop, events, 16, -1));
    for (int k = 0; k < n; k++) {
      int i = 0;
      while (streams[i] != events[k].handle) i++;
      ended += events[k].kind == TL_EV_EOF;
      if (events[k].kind == TL_EV_EOF) continue;
      ASSERT_EQ(events[k].kind, TL_EV_DATA);
      t_check_pattern(tl_event_data(loop, &events[k]), (size_t)events[k].result, got[i]);
      got[i] += (uint64_t)events[k].result;
      /* one that pauses in between does not hold up the others */
      ASSERT_OK(tl_stream_read_stop(loop, streams[i]));
      ASSERT_OK(tl_stream_read_start(loop, streams[i]));
    }
  }
  pthread_join(thread, NULL);
  for (int i = 0; i < 8; i++) {
    ASSERT_EQ(got[i], LARGE);
    t_close(loop, streams[i]);
  }
  t_end(loop);
}

TEST_ON(without_memory_for_blocks_it_receives_all_the_same, ON_RING) {
  tl_handle stream;
  int peer;
  tl_loop *loop = reading_pair(&stream, &peer);
  t_mem.fail_on = true;
  t_mem.fail_at = t_mem.calls + 1;
  for (int i = 0; i < 300; i++) { /* more than there are blocks, each taking one */
    send_pieces(peer, 1);
    expect_bytes(loop, stream, 0, PIECE);
  }
  ASSERT_OK(tl_stream_read_stop(loop, stream));
  for (int i = 0; i < 100; i++) {
    t_send_all(peer, "x", 1);
    tl_event event;
    ASSERT_EQ(ASSERT_OK(tl_loop_poll(loop, &event, 1, 0)), 0);
  }
  ASSERT_OK(tl_stream_read_start(loop, stream));
  for (int64_t left = 100; left > 0;) left -= t_expect(loop, stream, TL_EV_DATA).result;
  t_mem.fail_at = 0;
  t_quiet(loop);
  end_pair(loop, stream, peer);
}

/* Listeners */

TEST_ON(what_a_closed_listener_had_accepted_ends, ON_RING) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_event event;
  tl_handle listener = t_listen(loop, &addr);
  int clients[3], before = t_open_fds();
  for (int i = 0; i < 3; i++) clients[i] = t_connect(&addr);
  ASSERT_EQ(ASSERT_OK(tl_loop_poll(loop, &event, 1, -1)), 1);
  ASSERT_EQ(event.kind, TL_EV_ACCEPT);
  ASSERT_OK(tl_close(loop, listener));
  t_close(loop, event.result);
  for (int i = 0; i < 3; i++) {
    t_expect_eof(clients[i]);
    close(clients[i]);
  }
  ASSERT_EQ(t_open_fds(), before - 1); /* the listener's own */
  t_end(loop);
}

TEST_ON(a_connection_that_was_reset_before_it_was_taken_is_not_told_of, ON_RING) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  int before = t_open_fds();
  t_reset(t_connect(&addr));
  t_quiet(loop);
  ASSERT_EQ(t_open_fds(), before);
  int client = t_connect(&addr);
  t_close(loop, t_accept(loop, listener));
  close(client);
  t_close(loop, listener);
  t_end(loop);
}

TEST_ON(many_connections_at_once, ON_RING) {
  enum { N = 200 };
  tl_loop *loop = t_loop();
  tl_addr addr, peer;
  tl_event event;
  tl_handle listener = t_listen(loop, &addr), streams[N];
  int clients[N];
  for (int i = 0; i < N; i++) clients[i] = t_connect(&addr);
  for (int i = 0; i < N; i++) {
    ASSERT_EQ(ASSERT_OK(tl_loop_poll(loop, &event, 1, -1)), 1);
    ASSERT_EQ(event.kind, TL_EV_ACCEPT);
    streams[i] = ASSERT_OK(event.result);
    ASSERT_EQ(tl_peername(loop, streams[i], &peer), 0);
    ASSERT_MEM(&peer, tl_event_addr(loop, &event), sizeof peer);
    ASSERT_EQ(fcntl(tl_fd(loop, streams[i]), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  }
  t_quiet(loop);
  for (int i = 0; i < N; i++) {
    close(clients[i]);
    t_close(loop, streams[i]);
  }
  t_close(loop, listener);
  t_end(loop);
}

TEST_ON(without_descriptors_accepting_pauses, ON_RING | SLOW) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  int client = t_connect(&addr);
  t_limit_fds(0);
  ASSERT_EQ(t_expect(loop, listener, TL_EV_ACCEPT).result, -EMFILE);
  t_quiet(loop);
  t_limit_fds(-1);
  t_close(loop, t_accept(loop, listener)); /* a second later */
  close(client);
  t_close(loop, listener);
  t_end(loop);
}

/* Other processes and threads */

TEST_ON(a_child_takes_nothing_from_its_parent, ON_RING) {
  tl_handle stream;
  int peer, go[2];
  tl_loop *loop = reading_pair(&stream, &peer);
  t_pipe(go);
  pid_t child = ASSERT_SYS(fork());
  if (child == 0) {
    char byte;
    ASSERT_OK(tl_loop_after_fork(loop));
    ASSERT_OK(tl_close(loop, stream));
    tl_loop_close(loop);
    _exit(read(go[0], &byte, 1) != 1);
  }
  send_pieces(peer, PIECES);
  expect_bytes(loop, stream, 0, PIECES * PIECE);
  ASSERT_OK(tl_close(loop, stream));
  t_send_all(go[1], "x", 1);
  int status;
  ASSERT_SYS(waitpid(child, &status, 0));
  ASSERT_EQ(status, 0);
  t_expect_eof(peer);
  close(peer);
  close(go[0]);
  close(go[1]);
  t_end(loop);
}

TEST_ON(a_child_goes_on_with_a_ring_of_its_own, ON_RING) {
  tl_handle stream;
  int peer;
  tl_loop *loop = reading_pair(&stream, &peer);
  pid_t child = ASSERT_SYS(fork());
  if (child == 0) {
    ASSERT_OK(tl_loop_after_fork(loop));
    send_pieces(peer, 1);
    expect_bytes(loop, stream, 0, PIECE);
    t_quiet(loop);
    tl_loop_close(loop);
    _exit(0);
  }
  int status;
  ASSERT_SYS(waitpid(child, &status, 0));
  ASSERT_EQ(status, 0);
  t_quiet(loop);
  end_pair(loop, stream, peer);
}

typedef struct visit {
  tl_loop *loop;
  tl_handle stream;
  uint64_t from, until;
} visit;

static void *visit_loop(void *argument) {
  const visit *v = argument;
  expect_bytes(v->loop, v->stream, v->from, v->until);
  return NULL;
}

TEST_ON(a_loop_that_moves_to_another_thread_keeps_what_has_come, ON_RING) {
  tl_handle stream;
  int peer;
  pthread_t thread;
  tl_loop *loop = reading_pair(&stream, &peer);
  ASSERT_OK(tl_stream_read_stop(loop, stream));
  send_pieces(peer, PIECES);
  settle(loop);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  visit v = {loop, stream, 0, PIECES * PIECE};
  ASSERT_EQ(pthread_create(&thread, NULL, visit_loop, &v), 0);
  pthread_join(thread, NULL);
  send_pieces(peer, PIECES);
  expect_bytes(loop, stream, 0, PIECES * PIECE);
  end_pair(loop, stream, peer);
}

/* Batches */

TEST_ON(a_batch_is_one_system_call, ON_URING | ON_RING) {
  enum { N = 40 };
  tl_loop *loop = t_loop();
  tl_handle streams[N];
  int64_t rows[2 * N];
  int peers[N];
  char bytes[N], byte;
  t_pattern(bytes, N, 0);
  for (int i = 0; i < N; i++) {
    t_tcp_pair(loop, &streams[i], &peers[i]);
    rows[i] = streams[i];
    rows[N + i] = 1;
  }
  int64_t before = t_stats(loop).syscalls, out = t_stats(loop).bytes_out;
  ASSERT_EQ(tl_stream_write_batch(loop, rows, N, bytes), 0);
  ASSERT_EQ(t_stats(loop).syscalls - before, 1);
  ASSERT_EQ(t_stats(loop).bytes_out - out, N);
  for (int i = 0; i < N; i++) {
    t_recv_all(peers[i], &byte, 1);
    ASSERT_EQ(byte, bytes[i]);
    close(peers[i]);
    t_close(loop, streams[i]);
  }
  t_end(loop);
}

TEST_ON(what_is_left_to_the_ring_can_be_chosen, ON_EPOLL | ON_URING | ON_RING) {
  setenv("TLOOP_URING", "none", 1);
  tl_handle stream, other;
  int peer, other_peer;
  tl_loop *loop = reading_pair(&stream, &peer);
  t_tcp_pair(loop, &other, &other_peer);
  int64_t before = t_stats(loop).syscalls;
  int64_t rows[4] = {stream, other, 1, 1};
  ASSERT_EQ(tl_stream_write_batch(loop, rows, 2, "xy"), 0);
  ASSERT_EQ(t_stats(loop).syscalls - before, 2);
  ASSERT_OK(tl_stream_read_stop(loop, stream));
  send_pieces(peer, 1);
  t_quiet(loop);
  char bytes[PIECE];
  t_recv_all(tl_fd(loop, stream), bytes, PIECE); /* it was still in the kernel */
  close(other_peer);
  t_close(loop, other);
  end_pair(loop, stream, peer);
}

/* What the kernel takes of the first is not all, so the second has to wait. */
TEST(rows_of_one_stream_stay_in_order) {
  tl_loop *loop = t_loop();
  tl_handle stream, other;
  int peer, other_peer, room = 8192;
  char *bytes = malloc(LARGE), *got = malloc(LARGE);
  t_pattern(bytes, LARGE, 0);
  t_tcp_pair(loop, &stream, &peer);
  t_tcp_pair(loop, &other, &other_peer);
  ASSERT_SYS(setsockopt(tl_fd(loop, stream), SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
  int64_t rows[10] = {stream, stream, other, stream, stream, 1, LARGE / 2 - 1, 0, 1, LARGE / 2 - 1};
  ASSERT_EQ(tl_stream_write_batch(loop, rows, 5, bytes), 2);
  ASSERT_EQ(rows[5], 0);
  ASSERT_GT(rows[6], 0);
  ASSERT_EQ(rows[8], 0);
  ASSERT_EQ(rows[9], rows[6] + LARGE / 2);
  for (size_t at = 0; at < LARGE;) {
    tl_event event;
    ssize_t n = recv(peer, got + at, LARGE - at, MSG_DONTWAIT);
    if (n > 0) at += (size_t)n;
    ASSERT_OK(tl_loop_poll(loop, &event, 1, 0));
  }
  t_check_pattern(got, LARGE, 0);
  free(bytes);
  free(got);
  close(other_peer);
  t_close(loop, other);
  end_pair(loop, stream, peer);
}

TEST(a_batch_tells_of_broken_streams) {
  tl_loop *loop = t_loop();
  tl_handle streams[2];
  int peers[2];
  for (int i = 0; i < 2; i++) t_tcp_pair(loop, &streams[i], &peers[i]);
  t_reset(peers[0]);
  int64_t rows[4] = {streams[0], streams[1], 1, 1};
  ASSERT_EQ(tl_stream_write_batch(loop, rows, 2, "ab"), 1);
  ASSERT_TRUE(rows[2] == -ECONNRESET || rows[2] == -EPIPE);
  ASSERT_EQ(rows[3], 0);
  ASSERT_LT(tl_stream_write(loop, streams[0], "x", 1), 0);
  t_close(loop, streams[0]);
  end_pair(loop, streams[1], peers[1]);
}
