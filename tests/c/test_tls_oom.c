/* Memory running out, ours and mbedTLS': contexts, connections and sessions fail, but nothing leaks,
   crashes or pretends to be good. Linked so that each calloc comes by here. */
#include "tls_test.h"

void *__real_calloc(size_t count, size_t nbytes); /* NOLINT(bugprone-reserved-identifier) */
void *__wrap_calloc(size_t count, size_t nbytes); /* NOLINT(bugprone-reserved-identifier) */

void *__wrap_calloc(size_t count, size_t nbytes) {
  long call = atomic_fetch_add(&t_mem.calls, 1) + 1, at = t_mem.fail_at;
  if (at && (call == at || (t_mem.fail_on && call > at))) return NULL;
  return __real_calloc(count, nbytes);
}

static tl_tls *context(int32_t role, int32_t version) {
  int64_t error = 0;
  tl_tls_desc desc = {.role = role,
                      .min_version = version,
                      .max_version = version,
                      .alpn = "h2,http/1.1",
                      .ca_file = tls_path("authority")};
  tl_tls *tls = tl_tls_create(&desc, &error);
  ASSERT_EQ(tls == NULL, error < 0);
  if (!tls || role == TL_TLS_CLIENT) return tls;
  if (tl_tls_add_cert_file(tls, tls_path("chain"), NULL, NULL, NULL) == 0) return tls;
  tl_tls_release(tls);
  return NULL;
}

static bool ended(const tls_end *end) { return end->failed || (end->tls && end->tls_result); }

/* The events that come while both sides are well; false when one is not. */
static bool until(tl_loop *loop, const bool *a, const bool *b) {
  for (int i = 0; i < 2000 && !(*a && *b); i++) {
    if (ended(&tls_a) || ended(&tls_b)) return false;
    tl_event events[8];
    int n = tl_loop_poll(loop, events, 8, T_MS);
    for (int k = 0; k < n; k++) {
      tls_end *end = events[k].handle == tls_a.handle ? &tls_a : &tls_b;
      if (events[k].kind == TL_EV_TLS) end->tls = true, end->tls_result = events[k].result;
      if (events[k].kind == TL_EV_ERROR) end->failed = true;
      if (events[k].kind == TL_EV_EOF) end->eof = true;
      if (events[k].kind != TL_EV_DATA) continue;
      t_check_pattern(tl_event_data(loop, &events[k]), (size_t)events[k].result, end->received);
      end->received += (uint64_t)events[k].result;
      end->ready = end->received == 40000;
    }
  }
  return *a && *b;
}

static void keep_session(tl_loop *loop) {
  unsigned char bytes[8192];
  int64_t error, nbytes;
  tl_tls_session *session = tl_tls_session_get(loop, tls_a.handle, &error);
  if (!session) return;
  nbytes = tl_tls_session_save(session, bytes, sizeof bytes);
  tl_tls_session_release(session);
  if (nbytes > 0) tl_tls_session_release(tl_tls_session_load(bytes, (size_t)nbytes, &error));
}

/* Returns whether all went well. */
static bool talk(tl_loop *loop, tl_tls *server, tl_tls *client) {
  static unsigned char data[40000];
  tl_tls_attach_desc to = {.hostname = "server.example"};
  t_pattern(data, sizeof data, 0);
  if (tl_tls_attach(loop, tls_b.handle, server, NULL) < 0) return false;
  if (tl_tls_attach(loop, tls_a.handle, client, &to) < 0) return false;
  if (!until(loop, &tls_a.tls, &tls_b.tls) || ended(&tls_a) || ended(&tls_b)) return false;
  if (tl_stream_read_start(loop, tls_a.handle) < 0) return false;
  if (tl_stream_read_start(loop, tls_b.handle) < 0) return false;
  if (tl_stream_write(loop, tls_a.handle, data, sizeof data) < 0) return false;
  if (tl_stream_write(loop, tls_b.handle, data, sizeof data) < 0) return false;
  if (!until(loop, &tls_a.ready, &tls_b.ready)) return false;
  keep_session(loop);
  if (tl_stream_close(loop, tls_a.handle) < 0 || tl_stream_close(loop, tls_b.handle) < 0)
    return false;
  return true;
}

static bool live(int32_t version) {
  int fds[2], error;
  bool good = false;
  tl_loop_desc desc = {.allocator = t_allocator()};
  tl_loop *loop = tl_loop_create(&desc, &error);
  if (!loop) return false;
  t_socketpair(SOCK_STREAM, fds);
  tls_a = (tls_end){.handle = tl_stream_open(loop, fds[0], 0)};
  tls_b = (tls_end){.handle = tl_stream_open(loop, fds[1], 0)};
  if (tls_a.handle < 0) close(fds[0]);
  if (tls_b.handle < 0) close(fds[1]);
  tl_tls *server = context(TL_TLS_SERVER, version), *client = context(TL_TLS_CLIENT, version);
  if (server && client && tls_a.handle > 0 && tls_b.handle > 0) good = talk(loop, server, client);
  t_mem.fail_at = 0;
  tl_tls_release(server);
  tl_tls_release(client);
  if (!good) (void)tl_close(loop, tls_a.handle), (void)tl_close(loop, tls_b.handle);
  t_end(loop);
  return good;
}

/* A handshake makes thousands of allocations, most of them for big numbers: early ones are tried one
   by one, later ones in growing steps. */
static void exhaust(int32_t version, bool for_good) {
  long last = 0;
  ASSERT_TRUE(live(version)); /* what a process has once is there */
  int fds = t_open_fds();
  for (long n = 1; n == 1 || last >= n; n += 1 + n / 40) {
    t_mem.calls = 0;
    t_mem.fail_on = for_good;
    t_mem.fail_at = n;
    (void)live(version);
    last = t_mem.calls;
    ASSERT_EQ(t_mem.blocks, 0);
    ASSERT_EQ(t_open_fds(), fds);
  }
  t_mem.fail_at = 0;
  ASSERT_TRUE(live(version)); /* and nothing is spoilt */
}

TEST_ON(an_allocation_fails_in_tls12, ON_ONCE | SLOW) { exhaust(TL_TLS_1_2, false); }
TEST_ON(an_allocation_fails_in_tls13, ON_ONCE | SLOW) { exhaust(TL_TLS_1_3, false); }
TEST_ON(all_allocations_fail_in_tls12, ON_ONCE | SLOW) { exhaust(TL_TLS_1_2, true); }
TEST_ON(all_allocations_fail_in_tls13, ON_ONCE | SLOW) { exhaust(TL_TLS_1_3, true); }
