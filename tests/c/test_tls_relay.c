/* Somebody in between: bytes that come one by one, a connection that is cut after any byte, a bit that
   is flipped in any byte. Whatever it does, both sides end with an error or with what was sent. */
#include "tls_test.h"

/* The relay's two descriptors, and what it does with the bytes of one direction. */
typedef struct wire {
  int client, server;
  size_t chunk;
  bool downwards;    /* cut and flip concern what the server sends */
  int64_t cut, flip; /* byte number, or -1 */
  int64_t passed[2]; /* bytes so far: upwards, downwards */
} wire;

static tl_loop *begin(wire *w, tls_plan plan) {
  int fds[2];
  tl_loop *loop = t_loop();
  t_socketpair(SOCK_STREAM, fds);
  w->client = fds[1];
  tls_a = (tls_end){.handle = ASSERT_OK(tl_stream_open(loop, fds[0], 0))};
  t_socketpair(SOCK_STREAM, fds);
  w->server = fds[1];
  tls_b = (tls_end){.handle = ASSERT_OK(tl_stream_open(loop, fds[0], 0))};
  t_nonblocking(w->client);
  t_nonblocking(w->server);
  tl_tls_attach_desc to = {.hostname = "server.example"};
  ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, plan.client, &to), 0);
  ASSERT_EQ(tl_tls_attach(loop, tls_b.handle, plan.server, NULL), 0);
  ASSERT_OK(tl_stream_read_start(loop, tls_a.handle));
  ASSERT_OK(tl_stream_read_start(loop, tls_b.handle));
  return loop;
}

static void pass(wire *w, bool down) {
  unsigned char bytes[4096];
  int from = down ? w->server : w->client, to = down ? w->client : w->server;
  int64_t *passed = &w->passed[down];
  size_t most = w->chunk < sizeof bytes ? w->chunk : sizeof bytes;
  bool concerned = down == w->downwards;
  if (concerned && w->cut >= 0 && w->cut - *passed < (int64_t)most)
    most = (size_t)(w->cut - *passed);
  ssize_t n = most ? read(from, bytes, most) : 0;
  if (n < 0) return;
  if (n == 0) { /* the end, or the cut */
    shutdown(to, SHUT_WR);
    if (concerned && w->cut == *passed) shutdown(from, SHUT_WR);
    return;
  }
  if (concerned && w->flip >= *passed && w->flip < *passed + n)
    bytes[w->flip - *passed] ^= (unsigned char)(1 << (w->flip % 8));
  if (send(to, bytes, (size_t)n, MSG_NOSIGNAL) == n)
    *passed += n; /* else the other side has closed */
}

static bool bad(const tls_end *end) {
  return end->failed || end->eof || (end->tls && end->tls_result);
}

static bool done(const tls_end *end) { return bad(end) || end->received == 5000; }

/* Returns whether everything arrived. */
static bool run(wire *w, tl_loop *loop) {
  bool sent[2] = {false, false};
  int64_t before = -1;
  int idle = 0;
  for (int i = 0; i < 200000 && !(done(&tls_a) && done(&tls_b)); i++) {
    pass(w, false);
    pass(w, true);
    tls_tick(loop, 0);
    tls_end *const ends[2] = {&tls_a, &tls_b};
    for (int k = 0; k < 2; k++)
      if (!sent[k] && ends[k]->tls && !ends[k]->tls_result && !ends[k]->failed)
        sent[k] = true, tls_send(loop, ends[k], 0, 5000);
    int64_t now = w->passed[0] + w->passed[1];
    idle = now == before ? idle + 1 : 0;
    before = now;
    /* A length that was flipped lets one side wait for ever. */
    if (bad(&tls_a) || idle > 20) shutdown(w->server, SHUT_WR);
    if (bad(&tls_b) || idle > 20) shutdown(w->client, SHUT_WR);
  }
  ASSERT_TRUE(done(&tls_a) && done(&tls_b));
  bool good = tls_a.received == 5000 && tls_b.received == 5000;
  tls_end_pair(loop);
  close(w->client);
  close(w->server);
  return good;
}

static tls_plan contexts(int32_t version) {
  tls_plan plan = {.version = version};
  plan.server = tls_server(&plan);
  plan.client = tls_client(&plan);
  return plan;
}

static void release(const tls_plan *plan) {
  tl_tls_release(plan->server);
  tl_tls_release(plan->client);
}

TEST_ON(bytes_may_come_in_any_portions, ON_REAL | SLOW) {
  static const size_t chunks[] = {1, 2, 5, 6, 100, 4096};
  TLS_EACH_VERSION(v) {
    tls_plan plan = contexts(v);
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
      wire w = {.chunk = chunks[i], .cut = -1, .flip = -1};
      ASSERT_TRUE(run(&w, begin(&w, plan)));
    }
    release(&plan);
  }
}

/* A cut after each byte of the handshake, a flip in every 13th, which has no factor in common with
   the lengths of anything here; of the data, which all records protect alike, only a few. */
static void disturb(int32_t version, bool cut) {
  tls_plan plan = contexts(version);
  for (int down = 0; down < 2; down++) {
    wire w = {.chunk = 4096, .cut = -1, .flip = -1};
    ASSERT_TRUE(run(&w, begin(&w, plan)));
    int64_t total = w.passed[down];
    ASSERT_GT(total, 5200);
    for (int64_t at = 0; at < total; at += at < total - 5000 ? (cut ? 1 : 13) : 977) {
      wire disturbed = {.chunk = 4096, .downwards = down, .cut = -1, .flip = -1};
      *(cut ? &disturbed.cut : &disturbed.flip) = at;
      bool good = run(&disturbed, begin(&disturbed, plan));
      if (cut) ASSERT_TRUE(!good); /* a flipped version number of a record may do no harm */
    }
  }
  release(&plan);
}

TEST_ON(a_cut_after_any_byte_tls12, ON_ONCE | SLOW) { disturb(TL_TLS_1_2, true); }
TEST_ON(a_cut_after_any_byte_tls13, ON_ONCE | SLOW) { disturb(TL_TLS_1_3, true); }
TEST_ON(a_flip_in_any_byte_tls12, ON_ONCE | SLOW) { disturb(TL_TLS_1_2, false); }
TEST_ON(a_flip_in_any_byte_tls13, ON_ONCE | SLOW) { disturb(TL_TLS_1_3, false); }

/* More than a record may have, with a header that is good otherwise. */
static void too_long(int32_t version, bool down) {
  wire w = {.chunk = 4096, .cut = -1, .flip = -1};
  tls_plan plan = contexts(version);
  tl_loop *loop = begin(&w, plan);
  const tls_end *to = down ? &tls_a : &tls_b;
  while (!tls_a.tls || !tls_b.tls) pass(&w, false), pass(&w, true), tls_tick(loop, 0);
  ASSERT_EQ(send(down ? w.client : w.server, "\x17\x03\x03\x48\x01", 5, MSG_NOSIGNAL), 5);
  tls_wait(loop, &to->failed);
  ASSERT_TRUE(to->error < 0 && to->error != TL_ETLS_TRUNCATED);
  ASSERT_EQ(to->received, 0);
  tls_end_pair(loop);
  close(w.client);
  close(w.server);
  release(&plan);
}

TEST_ON(a_record_that_is_too_long, ON_REAL) {
  TLS_EACH_VERSION(v) {
    too_long(v, false);
    too_long(v, true);
  }
}

/* The time is for all of the handshake, however often a byte of it comes. */
TEST_ON(who_sends_byte_by_byte_is_given_up, ON_REAL) {
  tls_plan plan = contexts(TL_TLS_1_3);
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  tls_b = (tls_end){.handle = ASSERT_OK(tl_stream_open(loop, fds[0], 0))};
  tl_tls_attach_desc to = {.handshake_timeout_ns = 20 * T_MS};
  ASSERT_EQ(tl_tls_attach(loop, tls_b.handle, plan.server, &to), 0);
  ASSERT_EQ(send(fds[1], "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc", 9, MSG_NOSIGNAL), 9);
  for (int n = 0; !tls_b.tls; n++) {
    ASSERT_LT(n, 0x3ffc);
    ASSERT_EQ(send(fds[1], "", 1, MSG_NOSIGNAL), 1);
    tls_tick(loop, T_MS);
  }
  ASSERT_EQ(tls_b.tls_result, -ETIMEDOUT);
  tls_end_pair(loop);
  close(fds[1]);
  release(&plan);
}
