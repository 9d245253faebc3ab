/* TLS streams against themselves: data, ends, time-outs, what is refused and how that is told. */
#include "tls_test.h"

static const size_t sizes[] = {1, 5, 16384, 16385, 100000, 1 << 20};

/* Data */

static void exchange(const tls_plan *plan) {
  tl_loop *loop = tls_connect(plan);
  uint64_t sent = 0;
  ASSERT_EQ(tls_a.tls_result, 0);
  ASSERT_EQ(tls_b.tls_result, 0);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    tls_send(loop, &tls_a, sent, sizes[i]);
    tls_send(loop, &tls_b, sent, sizes[i]);
    sent += sizes[i];
    tls_wait_bytes(loop, &tls_a, sent);
    tls_wait_bytes(loop, &tls_b, sent);
  }
  tls_quiet(loop);
  ASSERT_OK(tl_stream_close(loop, tls_a.handle));
  tls_wait(loop, &tls_b.eof);
  tls_quiet(loop);
  ASSERT_OK(tl_stream_close(loop, tls_b.handle));
  tls_wait(loop, &tls_a.closed);
  tls_wait(loop, &tls_b.closed);
  ASSERT_EQ(tls_a.close_result, 0);
  ASSERT_EQ(tls_b.close_result, 0);
  t_end(loop);
}

TEST(bytes_arrive_over_tcp) { TLS_EACH_VERSION(v) exchange(&(tls_plan){.version = v}); }

TEST(bytes_arrive_over_a_unix_socket) {
  TLS_EACH_VERSION(v) exchange(&(tls_plan){.version = v, .unix_socket = true});
}

TEST(bytes_arrive_with_rsa_and_with_a_chain) {
  TLS_EACH_VERSION(v) {
    exchange(&(tls_plan){.version = v, .cert = "rsa"});
    exchange(&(tls_plan){.version = v, .cert = "chain"});
  }
}

TEST(bytes_arrive_with_both_certificates) {
  TLS_EACH_VERSION(v) {
    exchange(&(tls_plan){
        .version = v, .client_cert = "client", .server_verify = TL_TLS_VERIFY_REQUIRED});
  }
}

TEST(many_buffers_share_records) {
  tl_loop *loop = tls_connect(&(tls_plan){0});
  static unsigned char bytes[50000];
  tl_buf bufs[1000];
  t_pattern(bytes, sizeof bytes, 0);
  for (int i = 0; i < 1000; i++) bufs[i] = (tl_buf){bytes + 50 * i, 50};
  ASSERT_EQ(tl_stream_writev(loop, tls_a.handle, bufs, 1000), 0);
  tls_wait_bytes(loop, &tls_b, sizeof bytes);
  ASSERT_LT(t_stats(loop).bytes_out,
            60000); /* a record of its own would cost each buffer 22 more */
  ASSERT_EQ(tl_stream_writev(loop, tls_a.handle, bufs, 0), 0);
  ASSERT_EQ(tl_stream_write(loop, tls_a.handle, bytes, 0), 0);
  tls_quiet(loop);
  tls_end_pair(loop);
}

/* The reader decides how much it takes: what is left in a record, or was received with it, must come
   without any new sign from the kernel. */
static void read_by_hand(bool unix_socket, size_t step) {
  enum { N = 40000 };
  tl_loop *loop = tls_connect(&(tls_plan){.unix_socket = unix_socket});
  static unsigned char bytes[N];
  ASSERT_OK(tl_stream_read_notify(loop, tls_b.handle));
  ASSERT_EQ(tl_stream_received(loop, tls_b.handle, 1, 1), -EOPNOTSUPP);
  tls_send(loop, &tls_a, 0, N);
  ASSERT_OK(tl_stream_close(loop, tls_a.handle));
  uint64_t taken = 0;
  for (int64_t n = 1; n > 0 || n == -EAGAIN;) {
    tls_b.ready = false;
    tls_wait(loop, &tls_b.ready);
    n = tl_stream_recv(loop, tls_b.handle, bytes, step);
    if (n == -EAGAIN) continue;
    ASSERT_LE(ASSERT_OK(n), step);
    t_check_pattern(bytes, (size_t)n, taken);
    taken += (uint64_t)n;
  }
  ASSERT_EQ(taken, N);
  ASSERT_EQ(tl_stream_recv(loop, tls_b.handle, bytes, step), 0);
  tls_end_pair(loop);
}

TEST(reading_by_hand) {
  for (int kind = 0; kind < 2; kind++) {
    read_by_hand(kind, 37);
    read_by_hand(kind, 5000);
    read_by_hand(kind, 40000);
  }
}

/* While one has read half of a record, the other one of the same loop reads and writes: what mbedTLS
   has in its memory for records, which they share, stays each one's own. */
TEST_ON(turns_are_taken_within_records, ON_ONCE) {
  TLS_EACH_VERSION(version) {
    enum { N = 50000 };
    tl_loop *loop = tls_connect(&(tls_plan){.version = version});
    static unsigned char bytes[N];
    uint64_t taken = 0, answered = 0;
    ASSERT_OK(tl_stream_read_notify(loop, tls_b.handle));
    tls_send(loop, &tls_a, 0, N);
    while (taken < N) {
      tls_b.ready = false;
      tls_wait(loop, &tls_b.ready);
      int64_t n = tl_stream_recv(loop, tls_b.handle, bytes, 1 + t_below(3000));
      if (n == -EAGAIN) continue;
      t_check_pattern(bytes, (size_t)ASSERT_OK(n), taken);
      taken += (uint64_t)n;
      tls_send(loop, &tls_b, answered, (size_t)n);
      answered += (uint64_t)n;
      tls_wait_bytes(loop, &tls_a, answered);
    }
    tls_end_pair(loop);
  }
}

TEST(a_pause_holds_everything_back) {
  for (int kind = 0; kind < 2; kind++) {
    enum { N = 3000000 };
    tl_loop *loop = tls_connect(&(tls_plan){.unix_socket = kind});
    ASSERT_OK(tl_stream_read_stop(loop, tls_b.handle));
    tls_send(loop, &tls_a, 0, N);
    ASSERT_GT(tl_queued(loop, tls_a.handle), 65536);
    for (int i = 0; i < 20; i++) tls_tick(loop, T_MS);
    tls_quiet(loop);
    ASSERT_EQ(tls_b.received, 0);
    ASSERT_EQ(tls_a.drains, 0);
    ASSERT_OK(tl_stream_read_start(loop, tls_b.handle));
    tls_wait_bytes(loop, &tls_b, N);
    ASSERT_GE(tls_a.drains, 1);
    ASSERT_EQ(tl_queued(loop, tls_a.handle), 0);
    tls_end_pair(loop);
  }
}

/* Stopping in the middle of what came with one receive, and going on later. */
static void stop_after_first(tl_loop *loop, const tl_event *event, void *user) {
  uint64_t *received = user;
  if (event->kind != TL_EV_DATA) return;
  t_check_pattern(tl_event_data(loop, event), (size_t)event->result, *received);
  *received += (uint64_t)event->result;
  ASSERT_OK(tl_stream_read_stop(loop, event->handle));
}

TEST(a_reader_may_stop_after_each_event) {
  enum { N = 300000 };
  tl_loop *loop = tls_connect(&(tls_plan){0});
  uint64_t received = 0;
  ASSERT_OK(tl_set_callback(loop, tls_b.handle, stop_after_first, &received));
  tls_send(loop, &tls_a, 0, N);
  for (int i = 0; i < 10000 && received < N; i++) {
    ASSERT_OK(tl_stream_read_start(loop, tls_b.handle));
    ASSERT_OK(tl_loop_step(loop, 10 * T_MS));
  }
  ASSERT_EQ(received, N);
  tls_end_pair(loop);
}

/* Ends */

TEST(one_side_may_end_and_go_on_reading) {
  TLS_EACH_VERSION(v) {
    tl_loop *loop = tls_connect(&(tls_plan){.version = v});
    tls_send(loop, &tls_a, 0, 10);
    ASSERT_OK(tl_stream_shutdown(loop, tls_a.handle));
    ASSERT_OK(tl_stream_shutdown(loop, tls_a.handle));
    ASSERT_EQ(tl_stream_write(loop, tls_a.handle, "x", 1), -EPIPE);
    tls_wait(loop, &tls_b.eof);
    ASSERT_EQ(tls_b.received, 10);
    tls_send(loop, &tls_b, 0, 500000);
    tls_wait_bytes(loop, &tls_a, 500000);
    ASSERT_OK(tl_stream_close(loop, tls_b.handle));
    tls_wait(loop, &tls_a.eof);
    ASSERT_OK(tl_stream_close(loop, tls_a.handle));
    tls_wait(loop, &tls_b.closed);
    ASSERT_EQ(tls_b.close_result, 0);
    tls_end_pair(loop);
  }
}

TEST(a_cut_is_an_error) {
  TLS_EACH_VERSION(v) {
    tl_loop *loop = tls_connect(&(tls_plan){.version = v});
    tls_send(loop, &tls_a, 0, 10);
    tls_wait_bytes(loop, &tls_b, 10);
    ASSERT_OK(tl_close(loop, tls_a.handle));
    tls_wait(loop, &tls_b.failed);
    ASSERT_EQ(tls_b.error, TL_ETLS_TRUNCATED);
    ASSERT_TRUE(!tls_b.eof);
    ASSERT_EQ(tls_info(loop, &tls_b).error, TL_ETLS_TRUNCATED);
    ASSERT_EQ(tls_info(loop, &tls_b).refused_by, TL_TLS_BY_NOBODY);
    ASSERT_EQ(tl_stream_write(loop, tls_b.handle, "x", 1), TL_ETLS_TRUNCATED);
    tls_end_pair(loop);
  }
}

TEST(a_cut_shows_when_reading_by_hand) {
  char byte;
  tl_loop *loop = tls_connect(&(tls_plan){0});
  ASSERT_OK(tl_stream_read_notify(loop, tls_b.handle));
  tls_quiet(loop); /* a has read its ticket: closing with bytes unread would be a reset */
  ASSERT_OK(tl_close(loop, tls_a.handle));
  tls_wait(loop, &tls_b.ready);
  int64_t n;
  while ((n = tl_stream_recv(loop, tls_b.handle, &byte, 1)) == -EAGAIN) tls_tick(loop, T_MS);
  ASSERT_EQ(n, TL_ETLS_TRUNCATED);
  tls_end_pair(loop);
}

TEST(a_graceful_close_sends_what_is_queued) {
  enum { N = 4000000 };
  for (int kind = 0; kind < 2; kind++) {
    tl_loop *loop = tls_connect(&(tls_plan){.unix_socket = kind});
    ASSERT_OK(tl_stream_read_stop(loop, tls_b.handle));
    tls_send(loop, &tls_a, 0, N);
    ASSERT_OK(tl_stream_close(loop, tls_a.handle));
    ASSERT_EQ(tl_stream_write(loop, tls_a.handle, "x", 1), TL_EBADH);
    for (int i = 0; i < 5; i++) tls_tick(loop, T_MS);
    ASSERT_OK(tl_stream_read_start(loop, tls_b.handle));
    tls_wait(loop, &tls_b.eof);
    ASSERT_EQ(tls_b.received, N);
    ASSERT_OK(tl_stream_close(loop, tls_b.handle));
    tls_wait(loop, &tls_a.closed);
    ASSERT_EQ(tls_a.close_result, 0);
    tls_end_pair(loop);
  }
}

/* What the peer still sends is thrown away, however much it is. */
TEST(closing_while_the_peer_sends) {
  tl_loop *loop = tls_connect(&(tls_plan){0});
  tls_send(loop, &tls_b, 0, 5000000);
  ASSERT_OK(tl_stream_close(loop, tls_a.handle));
  tls_wait(loop, &tls_b.eof);
  ASSERT_OK(tl_stream_close(loop, tls_b.handle));
  tls_wait(loop, &tls_a.closed);
  ASSERT_EQ(tls_a.received, 0);
  ASSERT_EQ(tls_a.close_result, 0);
  tls_end_pair(loop);
}

static tl_loop *short_close(const tls_plan *plan, int64_t timeout_ns) {
  tl_tls_desc desc = {.role = TL_TLS_CLIENT, .close_timeout_ns = timeout_ns};
  tls_plan hasty = *plan;
  hasty.client = tls_make(&desc);
  ASSERT_OK(tl_tls_add_ca_file(hasty.client, tls_path("authority")));
  tl_loop *loop = tls_connect(&hasty);
  tl_tls_release(hasty.client);
  return loop;
}

TEST(a_peer_that_never_ends_is_not_waited_for) {
  tl_loop *loop = short_close(&(tls_plan){0}, 20 * T_MS);
  int64_t began = t_clock();
  ASSERT_OK(tl_stream_read_stop(loop, tls_b.handle));
  ASSERT_OK(tl_stream_close(loop, tls_a.handle));
  tls_wait(loop, &tls_a.closed);
  ASSERT_EQ(tls_a.close_result, -ETIMEDOUT);
  ASSERT_GE(t_clock() - began, 20 * T_MS);
  tls_end_pair(loop);
}

TEST_ON(a_slow_peer_is_waited_for_as_long_as_it_takes_something, ON_REAL | SLOW) {
  enum { N = 30000000 };
  tl_loop *loop = short_close(&(tls_plan){0}, 100 * T_MS);
  tls_send(loop, &tls_a, 0, N);
  ASSERT_OK(tl_stream_close(loop, tls_a.handle));
  for (int64_t until = t_clock() + 250 * T_MS; t_clock() < until;) { /* two time-outs and a half */
    ASSERT_OK(tl_stream_read_start(loop, tls_b.handle));
    for (int i = 0; i < 4; i++) tls_tick(loop, 0);
    ASSERT_OK(tl_stream_read_stop(loop, tls_b.handle));
    for (int64_t pause = t_clock() + 8 * T_MS; t_clock() < pause;) tls_tick(loop, T_MS);
  }
  ASSERT_GT(tl_queued(loop, tls_a.handle), 0);
  ASSERT_OK(tl_stream_read_start(loop, tls_b.handle));
  tls_wait(loop, &tls_b.eof);
  ASSERT_EQ(tls_b.received, N);
  tls_end_pair(loop);
}

TEST(nothing_follows_what_was_discarded) {
  tl_loop *loop = tls_connect(&(tls_plan){0});
  ASSERT_OK(tl_stream_read_stop(loop, tls_b.handle));
  tls_send(loop, &tls_a, 0, 8000000);
  ASSERT_GT(tl_discard(loop, tls_a.handle), 0);
  ASSERT_EQ(tl_stream_write(loop, tls_a.handle, "x", 1), -EPIPE);
  ASSERT_OK(tl_stream_close(loop, tls_a.handle));
  ASSERT_OK(tl_stream_read_start(loop, tls_b.handle));
  tls_wait(loop, &tls_b.failed);
  ASSERT_EQ(tls_b.error, TL_ETLS_TRUNCATED);
  tls_end_pair(loop);
}

/* The handshake */

TEST(what_is_known_after_the_handshake) {
  TLS_EACH_VERSION(v) {
    tl_loop *loop = tls_connect(&(tls_plan){.version = v,
                                            .cert = "chain",
                                            .alpn_server = "h2,http/1.1",
                                            .alpn_client = "spdy,http/1.1"});
    size_t nbytes = 0;
    for (int i = 0; i < 2; i++) {
      tl_tls_info info = tls_info(loop, i ? &tls_b : &tls_a);
      ASSERT_EQ(info.version, v);
      ASSERT_STR(info.alpn, "http/1.1");
      ASSERT_EQ(info.resumed, 0);
      ASSERT_EQ(info.error, 0);
      ASSERT_EQ(info.alert, -1);
      ASSERT_EQ(info.verify_flags, 0);
      ASSERT_EQ(info.refused_by, TL_TLS_BY_NOBODY);
      ASSERT_EQ(info.peer_certs, i ? 0 : 2);
      ASSERT_EQ(info.cipher_bits, strstr(info.cipher_name, "_128_") ? 128 : 256);
      ASSERT_TRUE(strncmp(info.cipher_name, v == TL_TLS_1_3 ? "TLS_AES" : "TLS_ECDHE", 7) == 0);
    }
    const unsigned char *der = tl_tls_peer_cert(loop, tls_a.handle, 0, &nbytes);
    ASSERT_TRUE(der && nbytes > 300 && der[0] == 0x30);
    ASSERT_TRUE(tl_tls_peer_cert(loop, tls_a.handle, 1, &nbytes) != NULL);
    ASSERT_TRUE(tl_tls_peer_cert(loop, tls_a.handle, 2, &nbytes) == NULL);
    ASSERT_EQ(nbytes, 0);
    ASSERT_TRUE(tl_tls_peer_cert(loop, tls_a.handle, -1, &nbytes) == NULL);
    ASSERT_TRUE(tl_tls_peer_cert(loop, tls_b.handle, 0, &nbytes) == NULL);
    tls_end_pair(loop);
  }
}

/* Both sides of a handshake that fails: who refused, and why. */
static tl_loop *refused(const tls_plan *plan, int64_t by_client, int64_t by_server) {
  tl_loop *loop = tls_connect(plan);
  /* In TLS 1.3 a client is done before the server has looked at its certificate. */
  bool late = by_client < TL_ETLS && !tls_a.tls_result;
  if (late) tls_wait(loop, &tls_a.failed);
  ASSERT_EQ(late ? tls_a.error : tls_a.tls_result, by_client);
  ASSERT_EQ(tls_b.tls_result, by_server);
  for (int i = 0; i < 2; i++) {
    tl_tls_info info = tls_info(loop, i ? &tls_b : &tls_a);
    int64_t error = i ? by_server : by_client;
    ASSERT_EQ(info.error, error);
    bool by_peer = error < TL_EALERT && error > TL_EVERIFY;
    ASSERT_EQ(info.refused_by, by_peer ? TL_TLS_BY_PEER : TL_TLS_BY_US);
    ASSERT_EQ(info.alert, by_peer ? TL_EALERT - error : -1);
    if (error < TL_EVERIFY) ASSERT_EQ(info.verify_flags, TL_EVERIFY - error);
  }
  tls_quiet(loop);
  return loop;
}

static void refuses(const tls_plan *plan, int64_t by_client, int64_t by_server) {
  tls_end_pair(refused(plan, by_client, by_server));
}

typedef struct bad_cert {
  const char *name;
  int64_t flags, alert;
} bad_cert;

TEST_ON(a_client_refuses_bad_servers, ON_REAL | SLOW) {
  /* mbedTLS' server does not even offer one for another use: test_tls_openssl.c has that */
  static const bad_cert cases[] = {{"stranger", TL_TLS_BAD_UNTRUSTED, 48},
                                   {"expired", TL_TLS_BAD_EXPIRED, 45},
                                   {"future", TL_TLS_BAD_FUTURE, 46},
                                   {"other", TL_TLS_BAD_NAME, 42},
                                   {"weak", TL_TLS_BAD_KEY, 43}};
  TLS_EACH_VERSION(v)
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    refuses(&(tls_plan){.version = v, .cert = cases[i].name}, TL_EVERIFY - cases[i].flags,
            TL_EALERT - cases[i].alert);
}

TEST_ON(a_server_refuses_bad_clients, ON_REAL | SLOW) {
  static const bad_cert cases[] = {{"stranger", TL_TLS_BAD_UNTRUSTED, 48},
                                   {"expired", TL_TLS_BAD_EXPIRED, 45},
                                   {"future", TL_TLS_BAD_FUTURE, 46},
                                   {"server", TL_TLS_BAD_EXT_KEY_USAGE, 43},
                                   {"weak", TL_TLS_BAD_KEY, 43}};
  TLS_EACH_VERSION(v)
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    refuses(
        &(tls_plan){
            .version = v, .client_cert = cases[i].name, .server_verify = TL_TLS_VERIFY_REQUIRED},
        TL_EALERT - cases[i].alert, TL_EVERIFY - cases[i].flags);
}

TEST(a_server_may_ask_without_insisting) {
  TLS_EACH_VERSION(v) {
    tls_plan plan = {.version = v, .server_verify = TL_TLS_VERIFY_OPTIONAL};
    tl_loop *loop = tls_connect(&plan);
    ASSERT_EQ(tls_b.tls_result, 0);
    ASSERT_EQ(tls_info(loop, &tls_b).peer_certs, 0);
    tls_end_pair(loop);
    plan.client_cert = "client";
    loop = tls_connect(&plan);
    ASSERT_EQ(tls_b.tls_result, 0);
    ASSERT_EQ(tls_info(loop, &tls_b).peer_certs, 1);
    tls_end_pair(loop);
    plan.client_cert = "stranger";
    refuses(&plan, TL_EALERT - 48, TL_EVERIFY - TL_TLS_BAD_UNTRUSTED);
  }
}

TEST(a_server_may_insist) {
  tls_plan plan = {.version = TL_TLS_1_2, .server_verify = TL_TLS_VERIFY_REQUIRED};
  tl_loop *loop = tls_connect(&plan);
  ASSERT_EQ(tls_b.tls_result, TL_ETLS_NO_CERT);
  tls_end_pair(loop);
  plan.version = TL_TLS_1_3;
  refuses(&plan, TL_EALERT - 41, TL_ETLS_NO_CERT); /* mbedTLS' choice; RFC 8446 has 116 for it */
}

static void add_crl(tl_tls *tls) {
  static char crl[1000];
  FILE *file = fopen(tls_path("crl"), "rb");
  ASSERT_TRUE(file != NULL);
  size_t nbytes = fread(crl, 1, sizeof crl, file);
  fclose(file);
  ASSERT_EQ(tl_tls_add_crl(tls, crl, nbytes), 0);
}

static void accepts(const tls_plan *plan) {
  tl_loop *loop = tls_connect(plan);
  ASSERT_EQ(tls_a.tls_result, 0);
  ASSERT_EQ(tls_b.tls_result, 0);
  tls_end_pair(loop);
}

TEST(a_revocation_list_can_be_required) {
  const int32_t flags[] = {TL_TLS_CRL_LEAF, TL_TLS_CRL_CHAIN};
  for (int i = 0; i < 2; i++) {
    tls_plan plan = {.version = TL_TLS_1_3, .client_flags = flags[i]};
    refuses(&plan, TL_EVERIFY - TL_TLS_BAD_NO_CRL, TL_EALERT - 46);
    plan.client = tls_client(&plan);
    add_crl(plan.client);
    accepts(&plan);
    plan.cert = "chain"; /* what vouches for it has no list of its own */
    refuses(&plan, TL_EVERIFY - TL_TLS_BAD_NO_CRL, TL_EALERT - 46);
    tl_tls_release(plan.client);
  }
}

TEST(a_revoked_certificate_is_refused) {
  TLS_EACH_VERSION(v) {
    tls_plan plan = {.version = v, .cert = "revoked"};
    plan.client = tls_client(&plan);
    add_crl(plan.client);
    refuses(&plan, TL_EVERIFY - TL_TLS_BAD_REVOKED, TL_EALERT - 44);
    plan.cert = "server";
    accepts(&plan);
    tl_tls_release(plan.client);
  }
}

TEST(the_name_is_verified) {
  static const struct {
    const char *name;
    bool good;
  } names[] = {{"server.example", true},    {"SERVER.example", true},
               {"server.example.", true},   {"a.wild.example", true},
               {"127.0.0.1", true},         {"::1", true},
               {"a.b.wild.example", false}, {"wild.example", false},
               {"127.0.0.2", false},        {"::2", false},
               {"example", false}};
  TLS_EACH_VERSION(v)
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    tl_loop *loop = tls_connect(&(tls_plan){.version = v, .hostname = names[i].name});
    ASSERT_EQ(tls_a.tls_result, names[i].good ? 0 : TL_EVERIFY - TL_TLS_BAD_NAME);
    tls_end_pair(loop);
  }
}

TEST(verification_is_switched_off_only_by_its_loud_names) {
  TLS_EACH_VERSION(v) {
    tls_plan plan = {.version = v, .cert = "other", .client_flags = TL_TLS_INSECURE_NO_HOSTNAME};
    tl_loop *loop = tls_connect(&plan);
    ASSERT_EQ(tls_a.tls_result, 0);
    tls_end_pair(loop);
    plan.cert = "stranger"; /* only the name does not matter */
    refuses(&plan, TL_EVERIFY - TL_TLS_BAD_UNTRUSTED, TL_EALERT - 48);
    plan.client_flags = 0;
    plan.client_verify = TL_TLS_INSECURE_NO_VERIFICATION;
    loop = tls_connect(&plan);
    ASSERT_EQ(tls_a.tls_result, 0);
    tls_end_pair(loop);
    plan.client_verify = TL_TLS_VERIFY_OPTIONAL; /* of a client it is required all the same */
    refuses(&plan, TL_EVERIFY - TL_TLS_BAD_UNTRUSTED, TL_EALERT - 48);
  }
}

TEST(nothing_in_common) {
  tls_plan plan = {.alpn_server = "h2", .alpn_client = "http/1.1"};
  TLS_EACH_VERSION(v) {
    plan.version = v;
    refuses(&plan, TL_EALERT - 120, TL_ETLS_NO_ALPN);
  }
  tl_tls_desc desc = {.role = TL_TLS_CLIENT, .max_version = TL_TLS_1_2};
  plan = (tls_plan){.version = TL_TLS_1_3, .client = tls_make(&desc)};
  ASSERT_OK(tl_tls_add_ca_file(plan.client, tls_path("authority")));
  refuses(&plan, TL_EALERT - 70, TL_ETLS_VERSION);
  tl_tls_release(plan.client);
  TLS_EACH_VERSION(v) {
    desc = (tl_tls_desc){.role = TL_TLS_CLIENT, .min_version = v, .max_version = v};
    desc.ciphers =
        v == TL_TLS_1_3 ? "TLS_AES_128_CCM_SHA256" : "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
    plan =
        (tls_plan){.version = v, .client = tls_make(&desc)}; /* the server has ECDSA and no CCM */
    ASSERT_OK(tl_tls_add_ca_file(plan.client, tls_path("authority")));
    refuses(&plan, TL_EALERT - 40, TL_ETLS_HANDSHAKE);
    tl_tls_release(plan.client);
  }
}

TEST(a_cipher_is_chosen) {
  static const char *const names[] = {"TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_256_GCM_SHA384",
                                      "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
                                      "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"};
  for (int i = 0; i < 4; i++) {
    int32_t v = i < 2 ? TL_TLS_1_3 : TL_TLS_1_2;
    char text[80];
    tl_tls_desc desc = {
        .role = TL_TLS_CLIENT, .min_version = v, .max_version = v, .ciphers = names[i]};
    tls_plan plan = {.client = tls_make(&desc)};
    ASSERT_OK(tl_tls_add_ca_file(plan.client, tls_path("authority")));
    ASSERT_EQ(tl_tls_cipher(plan.client, 0, text, sizeof text), strlen(names[i]));
    ASSERT_STR(text, names[i]);
    ASSERT_EQ(tl_tls_cipher(plan.client, 0, text, strlen(names[i])), -ENOSPC);
    ASSERT_EQ(tl_tls_cipher(plan.client, 1, text, sizeof text), -ENOENT);
    ASSERT_EQ(tl_tls_cipher(plan.client, -1, text, sizeof text), -ENOENT);
    tl_loop *loop = tls_connect(&plan);
    ASSERT_STR(tls_info(loop, &tls_a).cipher_name, names[i]);
    tls_end_pair(loop);
    tl_tls_release(plan.client);
  }
}

TEST(a_silent_peer_is_given_up) {
  tl_loop *loop = t_loop();
  for (int kind = 0; kind < 2; kind++) {
    tls_sockets(loop, kind);
    tl_tls *tls = kind ? tls_client(&(tls_plan){0}) : tls_server(&(tls_plan){0});
    tl_tls_attach_desc to = {.hostname = "server.example", .handshake_timeout_ns = 10 * T_MS};
    int64_t began = t_clock();
    ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, tls, &to), 0);
    tl_tls_release(tls);
    tls_wait(loop, &tls_a.tls);
    ASSERT_EQ(tls_a.tls_result, -ETIMEDOUT);
    ASSERT_GE(t_clock() - began, 10 * T_MS);
    ASSERT_EQ(tl_stream_write(loop, tls_a.handle, "x", 1), -ETIMEDOUT);
    tls_quiet(loop);
    t_close(loop, tls_a.handle);
    t_close(loop, tls_b.handle);
  }
  t_end(loop);
}

TEST(something_else_than_tls_is_refused) {
  static const char *const junk[] = {"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
                                     "\x16\x03\x01\xff\xff",
                                     "\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff", "\x15\x03\x01"};
  for (int i = 0; i < 4; i++) {
    tl_loop *loop = t_loop();
    int peer;
    t_tcp_pair(loop, &tls_b.handle, &peer);
    tl_handle handle = tls_b.handle;
    tls_b = (tls_end){.handle = handle};
    tl_tls *tls = tls_server(&(tls_plan){0});
    ASSERT_EQ(tl_tls_attach(loop, handle, tls, NULL), 0);
    tl_tls_release(tls);
    t_send_all(peer, junk[i], i == 2 ? 10 : strlen(junk[i]));
    ASSERT_SYS(shutdown(peer, SHUT_WR));
    tls_wait(loop, &tls_b.tls);
    ASSERT_LT(tls_b.tls_result, TL_ETLS);
    tls_quiet(loop);
    close(peer);
    t_close(loop, handle);
    t_end(loop);
  }
}

TEST(closing_in_the_middle_of_a_handshake) {
  for (int graceful = 0; graceful < 2; graceful++)
    for (int ticks = 0; ticks < 4; ticks++) {
      tl_loop *loop = tls_connect(&(tls_plan){.quiet = true});
      for (int i = 0; i < ticks; i++) tls_tick(loop, 0);
      ASSERT_EQ(tl_stream_shutdown(loop, tls_a.handle), tls_a.tls ? 0 : -ENOTCONN);
      ASSERT_OK(graceful ? tl_stream_close(loop, tls_a.handle) : tl_close(loop, tls_a.handle));
      tls_wait(loop, &tls_b.tls);
      tls_end_pair(loop);
    }
}

TEST(before_the_handshake_nothing_can_be_written) {
  char byte;
  tl_loop *loop = tls_connect(&(tls_plan){.quiet = true});
  ASSERT_EQ(tl_stream_write(loop, tls_a.handle, "x", 1), -ENOTCONN);
  ASSERT_EQ(tl_stream_recv(loop, tls_a.handle, &byte, 1), -ENOTCONN);
  ASSERT_EQ(tl_stream_shutdown(loop, tls_a.handle), -ENOTCONN);
  ASSERT_OK(tl_stream_read_start(loop, tls_a.handle)); /* but reading may be asked for, */
  ASSERT_OK(tl_stream_read_stop(loop, tls_a.handle));  /* and taken back */
  tls_wait(loop, &tls_a.tls);
  tls_wait(loop, &tls_b.tls);
  tls_send(loop, &tls_b, 0, 100);
  for (int i = 0; i < 5; i++) tls_tick(loop, T_MS);
  ASSERT_EQ(tls_a.received, 0);
  tls_quiet(loop);
  ASSERT_OK(tl_stream_read_start(loop, tls_a.handle));
  tls_wait_bytes(loop, &tls_a, 100);
  tls_end_pair(loop);
}

/* A ClientHello, but for the two numbers that come straight from the kernel: what is left to differ
   is the key share, which PSA's generator has drawn. */
static ssize_t client_hello(tl_tls *client, unsigned char *out, size_t room) {
  int fds[2];
  tl_loop *loop = t_loop();
  t_socketpair(SOCK_STREAM, fds);
  tl_tls_attach_desc to = {.hostname = "server.example"};
  tl_handle stream = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
  ASSERT_EQ(tl_tls_attach(loop, stream, client, &to), 0);
  tls_tick(loop, 0);
  ssize_t n = ASSERT_SYS(read(fds[1], out, room));
  ASSERT_GT(n, 100);
  memset(out + 11, 0, 65);
  close(fds[1]);
  t_close(loop, stream);
  t_end(loop);
  return n;
}

TEST(the_child_of_a_fork_draws_other_numbers) {
  unsigned char ours[2000], theirs[2000];
  int fds[2];
  tl_tls *client = tls_client(&(tls_plan){.version = TL_TLS_1_3});
  client_hello(client, ours, sizeof ours); /* the generator has its seed */
  t_pipe(fds);
  pid_t pid = ASSERT_SYS(fork());
  ssize_t n = client_hello(client, ours, sizeof ours);
  if (pid == 0) {
    t_send_all(fds[1], ours, (size_t)n);
    _exit(0);
  }
  t_recv_all(fds[0], theirs, (size_t)n);
  ASSERT_TRUE(memcmp(ours, theirs, (size_t)n) != 0);
  ASSERT_SYS(waitpid(pid, NULL, 0));
  close(fds[0]);
  close(fds[1]);
  tl_tls_release(client);
}

/* Attaching */

TEST(a_connecting_stream_gets_tls) {
  tl_addr addr;
  tl_loop *loop = t_loop();
  tl_handle listener = t_listen(loop, &addr);
  tl_tls *server = tls_server(&(tls_plan){0}), *client = tls_client(&(tls_plan){0});
  tl_tls_attach_desc to = {.hostname = "server.example"};
  tls_a = tls_b = (tls_end){.handle = ASSERT_OK(tl_stream_connect(loop, &addr))};
  ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, client, &to), 0);
  tls_b = (tls_end){.handle = t_accept(loop, listener)};
  ASSERT_EQ(tl_tls_attach(loop, tls_b.handle, server, NULL), 0);
  ASSERT_OK(tl_stream_read_start(loop, tls_b.handle));
  tls_wait(loop, &tls_a.tls);
  tls_send(loop, &tls_a, 0, 1000);
  tls_wait_bytes(loop, &tls_b, 1000);
  tl_tls_release(server);
  tl_tls_release(client);
  t_close(loop, listener);
  tls_end_pair(loop);
}

TEST(a_connection_that_is_refused_has_no_handshake) {
  tl_addr addr;
  tl_loop *loop = t_loop();
  t_close(loop, t_listen(loop, &addr));
  tl_tls *client = tls_client(&(tls_plan){0});
  tl_tls_attach_desc to = {.hostname = "server.example"};
  tls_a = tls_b = (tls_end){.handle = ASSERT_OK(tl_stream_connect(loop, &addr))};
  ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, client, &to), 0);
  tl_tls_release(client);
  tls_wait(loop, &tls_a.connected);
  ASSERT_EQ(tls_a.error, -ECONNREFUSED);
  tls_quiet(loop);
  ASSERT_TRUE(!tls_a.tls);
  t_close(loop, tls_a.handle);
  t_end(loop);
}

/* A connection that was used before; what the server has received of the handshake already is given
   back to it. */
TEST(a_used_connection_gets_tls) {
  for (int kind = 0; kind < 2; kind++) {
    tl_event event;
    tl_loop *loop = t_loop();
    tl_tls *server = tls_server(&(tls_plan){0}), *client = tls_client(&(tls_plan){0});
    tls_sockets(loop, kind);
    ASSERT_OK(tl_stream_read_start(loop, tls_b.handle));
    ASSERT_EQ(tl_stream_write(loop, tls_a.handle, "STARTTLS\n", 9), 0);
    tl_tls_attach_desc to = {.hostname = "server.example"};
    ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, client, &to), 0);
    unsigned char bytes[2000];
    size_t nbytes = 0;
    while (nbytes < 20) { /* the command, and some of what follows */
      event = t_until(loop, tls_b.handle, TL_EV_DATA);
      memcpy(bytes + nbytes, tl_event_data(loop, &event), (size_t)event.result);
      nbytes += (size_t)event.result;
    }
    ASSERT_MEM(bytes, "STARTTLS\n", 9);
    to = (tl_tls_attach_desc){.received = bytes + 9, .received_nbytes = nbytes - 9};
    ASSERT_EQ(tl_tls_attach(loop, tls_b.handle, server, &to), 0);
    tls_wait(loop, &tls_a.tls);
    tls_wait(loop, &tls_b.tls);
    tls_send(loop, &tls_a, 0, 100000); /* reading goes on as before */
    tls_wait_bytes(loop, &tls_b, 100000);
    tl_tls_release(server);
    tl_tls_release(client);
    tls_end_pair(loop);
  }
}

TEST(attaching_wrongly) {
  tl_loop *loop = t_loop();
  tl_tls_info info;
  tl_tls *server = tls_server(&(tls_plan){0}), *client = tls_client(&(tls_plan){0});
  tl_tls_attach_desc to = {.hostname = "server.example"}, odd = {.hostname = ""};
  tls_sockets(loop, false);
  ASSERT_EQ(tl_tls_query(loop, tls_a.handle, &info), -ENOENT);
  ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, client, NULL), TL_ETLS_NO_NAME);
  ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, client, &odd), -EINVAL);
  ASSERT_EQ(tl_tls_use(loop, tls_a.handle, server), -EINVAL);
  ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, client, &to), 0);
  ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, client, &to), -EALREADY);
  ASSERT_EQ(tl_tls_use(loop, tls_a.handle, server), -EINVAL);
  ASSERT_OK(tl_stream_shutdown(loop, tls_b.handle));
  ASSERT_EQ(tl_tls_attach(loop, tls_b.handle, server, NULL), -EPIPE);
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_EQ(tl_tls_attach(loop, timer, server, NULL), TL_EKIND);
  ASSERT_EQ(tl_tls_query(loop, timer, &info), TL_EKIND);
  t_close(loop, timer);
  ASSERT_EQ(tl_tls_attach(loop, timer, server, NULL), TL_EBADH);
  ASSERT_EQ(tl_tls_query(loop, timer, &info), TL_EBADH);
  tl_tls_release(server);
  tl_tls_release(client);
  tls_end_pair(loop);
}

/* Names */

static tl_tls *other_context;
static int answer;
static char asked[64];

static int on_name(tl_loop *loop, int64_t stream, const char *name, void *user) {
  ASSERT_STR(user, "user");
  ASSERT_EQ(stream, tls_b.handle);
  (void)snprintf(asked, sizeof asked, "%s", name);
  if (answer == 2) ASSERT_OK(tl_tls_use(loop, stream, other_context));
  if (answer == 3) ASSERT_OK(tl_close(loop, stream));
  return answer == 1;
}

TEST(on_name_decides) {
  static char user[] = "user";
  TLS_EACH_VERSION(v) {
    tl_tls_desc desc = {.role = TL_TLS_SERVER, .on_name = on_name, .user = user};
    tls_plan plan = {.version = v, .server = tls_make(&desc)}, other = {.cert = "other"};
    other_context = tls_server(&other);
    ASSERT_OK(tl_tls_add_cert_file(plan.server, tls_path("server"), NULL, NULL, NULL));
    answer = 0;
    tl_loop *loop = tls_connect(&plan);
    ASSERT_EQ(tls_a.tls_result, 0);
    ASSERT_STR(asked, "server.example");
    tls_end_pair(loop);
    plan.hostname = "127.0.0.1"; /* an address is no name: none is asked for */
    loop = tls_connect(&plan);
    ASSERT_EQ(tls_a.tls_result, 0);
    ASSERT_STR(asked, "");
    tls_end_pair(loop);
    plan.hostname = "other.example";
    answer = 2;
    loop = tls_connect(&plan);
    ASSERT_EQ(tls_a.tls_result, 0);
    tls_end_pair(loop);
    answer = 1;
    loop = tls_connect(&plan);
    ASSERT_EQ(tls_a.tls_result, TL_EALERT - 112);
    ASSERT_LT(tls_b.tls_result, TL_ETLS);
    tls_end_pair(loop);
    answer = 3;
    plan.quiet = true;
    loop = tls_connect(&plan);
    tls_wait(loop, &tls_b.closed);
    tls_wait(loop, &tls_a.tls);
    ASSERT_TRUE(!tls_b.tls);
    ASSERT_LT(tls_a.tls_result, 0);
    tls_end_pair(loop);
    tl_tls_release(plan.server);
    tl_tls_release(other_context);
  }
}

TEST(a_table_of_names_decides) {
  TLS_EACH_VERSION(v) {
    tl_tls_desc desc = {.role = TL_TLS_SERVER};
    tls_plan plan = {.version = v, .server = tls_make(&desc), .hostname = "other.example"};
    ASSERT_OK(tl_tls_add_cert_file(plan.server, tls_path("other"), NULL, NULL,
                                   "third.example,Other.example"));
    ASSERT_OK(tl_tls_add_cert_file(plan.server, tls_path("server"), NULL, NULL, "*.wild.example"));
    tl_loop *loop = tls_connect(&plan);
    ASSERT_EQ(tls_a.tls_result, 0);
    tls_end_pair(loop);
    plan.hostname = "x.wild.example";
    loop = tls_connect(&plan);
    ASSERT_EQ(tls_a.tls_result, 0);
    tls_end_pair(loop);
    plan.hostname = "wild.example"; /* nobody's name, and no certificate for everybody else */
    loop = tls_connect(&plan);
    ASSERT_EQ(tls_a.tls_result, TL_EALERT - 112);
    tls_end_pair(loop);
    tl_tls_release(plan.server);
  }
}

/* A client without RSA and one without ECDSA get what they can use. */
TEST(several_certificates) {
  static const char *const ciphers[] = {"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
                                        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"};
  tl_tls_desc desc = {.role = TL_TLS_SERVER};
  tls_plan plan = {.server = tls_make(&desc)};
  ASSERT_OK(tl_tls_add_cert_file(plan.server, tls_path("server"), NULL, NULL, NULL));
  ASSERT_OK(tl_tls_add_cert_file(plan.server, tls_path("rsa"), NULL, NULL, NULL));
  for (int i = 0; i < 2; i++) {
    desc = (tl_tls_desc){.role = TL_TLS_CLIENT, .max_version = TL_TLS_1_2, .ciphers = ciphers[i]};
    plan.client = tls_make(&desc);
    ASSERT_OK(tl_tls_add_ca_file(plan.client, tls_path("authority")));
    tl_loop *loop = tls_connect(&plan);
    ASSERT_EQ(tls_a.tls_result, 0);
    ASSERT_STR(tls_info(loop, &tls_b).cipher_name, ciphers[i]);
    tls_end_pair(loop);
    tl_tls_release(plan.client);
  }
  tl_tls_release(plan.server);
}

/* Sessions */

static tl_tls_session *session_of(tl_loop *loop) {
  int64_t error = 1;
  tls_send(loop, &tls_b, 0, 1); /* TLS 1.3: the ticket comes before it */
  tls_wait_bytes(loop, &tls_a, 1);
  tl_tls_session *session = tl_tls_session_get(loop, tls_a.handle, &error);
  ASSERT_TRUE(session != NULL);
  ASSERT_EQ(error, 0);
  ASSERT_TRUE(tl_tls_session_get(loop, tls_a.handle, &error) == NULL);
  ASSERT_EQ(error, -ENOENT);
  return session;
}

/* Through bytes and back. */
static tl_tls_session *passed_on(tl_tls_session *session) {
  int64_t error = 1, nbytes = ASSERT_OK(tl_tls_session_save(session, NULL, 0));
  unsigned char *bytes = t_guarded((size_t)nbytes);
  ASSERT_EQ(tl_tls_session_save(session, bytes, (size_t)nbytes - 1), -ENOSPC);
  ASSERT_EQ(tl_tls_session_save(session, bytes, (size_t)nbytes), nbytes);
  tl_tls_session_release(session);
  for (int64_t cut = 0; cut < nbytes; cut += 1 + cut / 8) {
    ASSERT_TRUE(tl_tls_session_load(bytes, (size_t)cut, &error) == NULL);
    ASSERT_EQ(error, -EINVAL);
  }
  session = tl_tls_session_load(bytes, (size_t)nbytes, &error);
  ASSERT_TRUE(session != NULL);
  return session;
}

static void check_resumed(const tls_plan *plan, int resumed) {
  size_t nbytes;
  tl_loop *loop = tls_connect(plan);
  ASSERT_EQ(tls_a.tls_result, 0);
  ASSERT_EQ(tls_b.tls_result, 0);
  ASSERT_EQ(tls_info(loop, &tls_a).resumed, resumed);
  ASSERT_EQ(tls_info(loop, &tls_b).resumed, resumed);
  ASSERT_EQ(tls_info(loop, &tls_a).peer_certs, 1); /* remembered, if none was sent */
  ASSERT_TRUE(tl_tls_peer_cert(loop, tls_a.handle, 0, &nbytes) != NULL);
  tls_send(loop, &tls_a, 0, 20000);
  tls_wait_bytes(loop, &tls_b, 20000);
  tls_end_pair(loop);
}

TEST(a_session_is_resumed) {
  TLS_EACH_VERSION(v) {
    tls_plan plan = {.version = v};
    plan.server = tls_server(&plan);
    plan.client = tls_client(&plan);
    tl_loop *loop = tls_connect(&plan);
    plan.session = passed_on(session_of(loop));
    tls_end_pair(loop);
    check_resumed(&plan, 1);
    check_resumed(&plan, 1);
    loop = tls_connect(&plan); /* a resumed connection gives sessions, too */
    tl_tls_session *second = session_of(loop);
    tls_end_pair(loop);
    tl_tls_session_release(plan.session);
    plan.session = second;
    check_resumed(&plan, 1);
    tl_tls_release(plan.server); /* another server does not know it */
    plan.server = tls_server(&plan);
    check_resumed(&plan, 0);
    tl_tls_session_release(plan.session);
    tl_tls_release(plan.server);
    tl_tls_release(plan.client);
  }
}

/* Tickets of TLS 1.3 may be all that a client reads before it writes. */
TEST(tickets_do_not_hinder_who_writes_first) {
  TLS_EACH_VERSION(v) {
    tl_loop *loop = tls_connect(&(tls_plan){.version = v});
    for (int i = 0; i < 20; i++) tls_tick(loop, T_MS);
    tls_send(loop, &tls_a, 0, 100);
    tls_wait_bytes(loop, &tls_b, 100);
    tl_tls_session_release(session_of(loop));
    tls_end_pair(loop);
  }
}

TEST(servers_that_share_a_key_share_sessions) {
  TLS_EACH_VERSION(v) {
    char key[36] = "name and thirty-two secret bytes...";
    tls_plan plan = {.version = v}, quiet = {.version = v};
    plan.server = tls_server(&plan);
    plan.client = tls_client(&plan);
    ASSERT_EQ(tl_tls_ticket_key(plan.server, key, 35), -EINVAL);
    ASSERT_EQ(tl_tls_ticket_key(plan.client, key, 36), -EINVAL);
    ASSERT_EQ(tl_tls_ticket_key(plan.server, key, 36), 0);
    tl_loop *loop = tls_connect(&plan);
    plan.session = session_of(loop);
    tls_end_pair(loop);
    tl_tls_release(plan.server);
    plan.server = tls_server(&quiet);
    ASSERT_EQ(tl_tls_ticket_key(plan.server, key, 36), 0);
    check_resumed(&plan, 1);
    key[0]++; /* rotated: the former key still opens its tickets, */
    ASSERT_EQ(tl_tls_ticket_key(plan.server, key, 36), 0);
    check_resumed(&plan, 1);
    key[0]++; /* but not for ever */
    ASSERT_EQ(tl_tls_ticket_key(plan.server, key, 36), 0);
    check_resumed(&plan, 0);
    tl_tls_session_release(plan.session);
    tl_tls_release(plan.server);
    tl_tls_release(plan.client);
  }
}

TEST(a_session_is_for_one_host_and_one_strictness) {
  TLS_EACH_VERSION(v) {
    tls_plan plan = {.version = v, .client_flags = TL_TLS_INSECURE_NO_HOSTNAME};
    tl_loop *loop = tls_connect(&plan);
    tl_tls_session *session = session_of(loop);
    tls_end_pair(loop);
    plan.client_flags = 0;
    loop = t_loop();
    tls_sockets(loop, false);
    tl_tls *strict = tls_client(&plan);
    tl_tls_attach_desc to = {.hostname = "server.example", .session = session};
    ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, strict, &to), -EINVAL);
    to.hostname = "other.example";
    ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, strict, &to), -EINVAL);
    tl_tls_release(strict);
    tl_tls_session_release(session);
    tls_end_pair(loop);
  }
}

TEST(resumption_can_be_switched_off) {
  TLS_EACH_VERSION(v)
  for (int side = 0; side < 2; side++) {
    int64_t error = 0;
    tl_tls_desc desc = {.role = TL_TLS_SERVER, .flags = TL_TLS_NO_RESUMPTION};
    tls_plan plan = {.version = v};
    if (side)
      plan.client_flags = TL_TLS_NO_RESUMPTION;
    else
      plan.server = tls_make(&desc);
    if (plan.server)
      ASSERT_OK(tl_tls_add_cert_file(plan.server, tls_path("server"), NULL, NULL, NULL));
    tl_loop *loop = tls_connect(&plan);
    tls_send(loop, &tls_b, 0, 1);
    tls_wait_bytes(loop, &tls_a, 1);
    tl_tls_session *session = tl_tls_session_get(loop, tls_a.handle, &error);
    tls_end_pair(loop);
    plan.session = session; /* TLS 1.2: a session id, which nobody remembers */
    if (session && side == 0) check_resumed(&plan, 0);
    if (!session) ASSERT_EQ(error, -ENOENT);
    tl_tls_session_release(session);
    tl_tls_release(plan.server);
  }
}

/* A server that asks for certificates looks at each one anew. */
TEST(a_server_that_verifies_does_not_resume) {
  TLS_EACH_VERSION(v) {
    int64_t error;
    tls_plan plan = {
        .version = v, .client_cert = "client", .server_verify = TL_TLS_VERIFY_REQUIRED};
    plan.server = tls_server(&plan);
    plan.client = tls_client(&plan);
    tl_loop *loop = tls_connect(&plan);
    tls_send(loop, &tls_b, 0, 1);
    tls_wait_bytes(loop, &tls_a, 1);
    plan.session = tl_tls_session_get(loop, tls_a.handle, &error);
    tls_end_pair(loop);
    loop = tls_connect(&plan);
    ASSERT_EQ(tls_info(loop, &tls_b).resumed, 0);
    ASSERT_EQ(tls_info(loop, &tls_b).peer_certs, 1);
    tls_end_pair(loop);
    tl_tls_session_release(plan.session);
    tl_tls_release(plan.server);
    tl_tls_release(plan.client);
  }
}

/* Contexts */

static int64_t refusal(tl_tls_desc desc) {
  int64_t error = 0;
  ASSERT_TRUE(tl_tls_create(&desc, &error) == NULL);
  ASSERT_TRUE(tl_tls_create(&desc, NULL) == NULL);
  return error;
}

TEST(a_context_that_makes_no_sense) {
  char path[600];
  const int32_t c = TL_TLS_CLIENT, s = TL_TLS_SERVER;
  ASSERT_EQ(refusal((tl_tls_desc){0}), -EINVAL);
  ASSERT_EQ(refusal((tl_tls_desc){.role = c, .min_version = 770}), -EINVAL);
  ASSERT_EQ(refusal((tl_tls_desc){.role = c, .max_version = 773}), -EINVAL);
  ASSERT_EQ(refusal((tl_tls_desc){.role = c, .min_version = 772, .max_version = 771}), -EINVAL);
  ASSERT_EQ(refusal((tl_tls_desc){.role = c, .ciphers = "TLS_NO_SUCH"}), -EINVAL);
  ASSERT_EQ(refusal((tl_tls_desc){.role = c, .ciphers = "TLS_AES_128_GCM_SHA256"}), -EINVAL);
  ASSERT_EQ(refusal((tl_tls_desc){.role = c, .alpn = "h2,,x"}), -EINVAL);
  ASSERT_EQ(refusal((tl_tls_desc){.role = s, .verify = TL_TLS_INSECURE_NO_VERIFICATION}), -EINVAL);
  ASSERT_EQ(refusal((tl_tls_desc){.role = s, .verify = 9}), -EINVAL);
  ASSERT_EQ(refusal((tl_tls_desc){.role = s, .ticket_lifetime_s = 604801}), -EINVAL);
  ASSERT_EQ(refusal((tl_tls_desc){.role = c, .ca_file = "/no/such/file"}), -ENOENT);
  ASSERT_EQ(refusal((tl_tls_desc){.role = s, .cert_file = "/no/such/file"}), -ENOENT);
  ASSERT_LT(refusal((tl_tls_desc){.role = c, .ca_file = "/dev/null"}), TL_ETLS);
  ASSERT_EQ(refusal((tl_tls_desc){.role = s, .cert_file = tls_path("mismatch")}),
            TL_ETLS_WRONG_KEY);
  ASSERT_EQ(refusal((tl_tls_desc){.role = s, .cert_file = tls_path("locked")}), TL_ETLS_PASSWORD);
  ASSERT_EQ(
      refusal((tl_tls_desc){.role = s, .cert_file = tls_path("locked"), .key_password = "wrong"}),
      TL_ETLS_PASSWORD);
  (void)snprintf(path, sizeof path, "%s", tls_path("locked"));
  tl_tls_desc good = {.role = s, .cert_file = path, .key_file = path, .key_password = "secret"};
  tl_tls_release(tls_make(&good));
}

TEST(what_is_missing_shows_when_it_is_attached) {
  tl_loop *loop = t_loop();
  tls_sockets(loop, false);
  tl_tls_desc desc = {.role = TL_TLS_SERVER};
  tl_tls_attach_desc to = {.hostname = "server.example"};
  tl_tls *tls = tls_make(&desc);
  ASSERT_EQ(tl_tls_attach(loop, tls_b.handle, tls, NULL), TL_ETLS_NO_OWN_CERT);
  ASSERT_OK(tl_tls_add_cert_file(tls, tls_path("server"), NULL, NULL, NULL));
  ASSERT_EQ(tl_tls_attach(loop, tls_b.handle, tls, NULL), 0);
  ASSERT_EQ(tl_tls_add_cert_file(tls, tls_path("server"), NULL, NULL, NULL), -EBUSY);
  ASSERT_EQ(tl_tls_add_ca_file(tls, tls_path("authority")), -EBUSY);
  ASSERT_EQ(tl_tls_add_crl(tls, "", 0), -EBUSY);
  tl_tls_release(tls);
  desc = (tl_tls_desc){.role = TL_TLS_CLIENT, .flags = TL_TLS_NO_SYSTEM_CA};
  tls = tls_make(&desc);
  ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, tls, &to), TL_ETLS_NO_CA);
  tl_tls_release(tls);
  desc = (tl_tls_desc){.role = TL_TLS_SERVER, .verify = TL_TLS_VERIFY_OPTIONAL};
  tls = tls_make(&desc);
  ASSERT_OK(tl_tls_add_cert_file(tls, tls_path("server"), NULL, NULL, NULL));
  ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, tls, NULL), TL_ETLS_NO_CA);
  tl_tls_release(tls);
  tls_end_pair(loop);
}

TEST(the_systems_authorities) {
  tl_tls_desc desc = {.role = TL_TLS_CLIENT};
  tls_plan plan = {.client = tls_make(&desc)};
  ASSERT_SYS(setenv("SSL_CERT_FILE", tls_path("authority"), 1));
  tl_loop *loop = tls_connect(&plan); /* they are read when the context is used */
  ASSERT_EQ(tls_a.tls_result, 0);
  tls_end_pair(loop);
  tl_tls_release(plan.client);
  plan.client = tls_make(&desc);
  ASSERT_SYS(setenv("SSL_CERT_FILE", "/no/such/file", 1));
  ASSERT_EQ(tl_tls_add_system_ca(plan.client), -ENOENT);
  ASSERT_SYS(unsetenv("SSL_CERT_FILE"));
  char folder[600];
  (void)snprintf(folder, sizeof folder, "%s", tls_path("authority"));
  *strrchr(folder, '/') = 0;
  ASSERT_SYS(setenv("SSL_CERT_DIR", folder, 1));
  ASSERT_GE(tl_tls_add_system_ca(plan.client), 0);
  loop = tls_connect(&plan);
  ASSERT_EQ(tls_a.tls_result, 0);
  tls_end_pair(loop);
  tl_tls_release(plan.client);
}

TEST(certificates_from_memory) {
  static char text[4096], key[4096];
  FILE *file = fopen(tls_path("server"), "rb");
  ASSERT_TRUE(file != NULL);
  size_t nbytes = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  const char *cert = strstr(text, "-----BEGIN CERTIFICATE");
  ASSERT_TRUE(cert != NULL);
  size_t key_nbytes = (size_t)(cert - text);
  memcpy(key, text, key_nbytes);
  tl_tls_desc desc = {.role = TL_TLS_SERVER};
  tls_plan plan = {.server = tls_make(&desc)};
  /* exactly as long as it is, without a final zero */
  char *pem = t_guarded(nbytes - key_nbytes), *own = t_guarded(key_nbytes);
  memcpy(pem, cert, nbytes - key_nbytes);
  memcpy(own, key, key_nbytes);
  tl_tls_cert given = {.chain = pem, .chain_nbytes = nbytes - key_nbytes};
  ASSERT_LT(tl_tls_add_cert(plan.server, &given), TL_ETLS); /* no key in it */
  given.key = own;
  given.key_nbytes = key_nbytes;
  ASSERT_EQ(tl_tls_add_cert(plan.server, &given), 0);
  tl_loop *loop = tls_connect(&plan);
  ASSERT_EQ(tls_a.tls_result, 0);
  tls_end_pair(loop);
  tl_tls_release(plan.server);
}

static int lines;

static void on_keylog(const char *line, void *user) {
  ASSERT_STR(user, "log");
  ASSERT_TRUE(strchr(line, '\n') == NULL);
  const char *first = strchr(line, ' '), *second = first ? strchr(first + 1, ' ') : NULL;
  ASSERT_TRUE(second != NULL);
  ASSERT_EQ(second - first, 65);
  ASSERT_EQ(strspn(first + 1, "0123456789abcdef"), 64);
  ASSERT_EQ(strspn(second + 1, "0123456789abcdef"), strlen(second + 1));
  ASSERT_GE(strlen(second + 1), 64);
  lines++;
}

TEST(keys_can_be_logged) {
  static char log[] = "log";
  TLS_EACH_VERSION(v) {
    tl_tls_desc desc = {.role = TL_TLS_CLIENT, .on_keylog = on_keylog, .user = log};
    tls_plan plan = {.version = v, .client = tls_make(&desc)};
    ASSERT_OK(tl_tls_add_ca_file(plan.client, tls_path("authority")));
    lines = 0;
    tls_end_pair(tls_connect(&plan));
    ASSERT_EQ(lines, v == TL_TLS_1_3 ? 4 : 1);
    tl_tls_release(plan.client);
  }
}

TEST_ON(errors_have_texts, ON_ONCE) {
  char text[300];
  ASSERT_STR(tl_strerror(TL_EVERIFY - TL_TLS_BAD_EXPIRED), "certificate refused: it has expired");
  ASSERT_STR(tl_strerror(TL_EALERT - 48), "refused by the peer: unknown certificate authority");
  ASSERT_STR(tl_strerror(TL_EALERT - 255), "refused by the peer");
  ASSERT_STR(tl_strerror(TL_ETLS_TRUNCATED), "TLS connection cut off: no close_notify came");
  ASSERT_TRUE(strstr(tl_strerror(TL_ETLS - 0x7200), "record") != NULL); /* mbedTLS' own */
  ASSERT_STR(tl_strerror(TL_EBADH), "handle is closed or was never open");
  ASSERT_STR(tl_strerror(-5000), "unknown error");
  int n = tl_tls_verify_text(TL_TLS_BAD_EXPIRED | TL_TLS_BAD_NAME, text, sizeof text);
  ASSERT_EQ(n, strlen(text));
  ASSERT_STR(text,
             "certificate refused: it has expired\n"
             "certificate refused: it is for another name");
  ASSERT_EQ(tl_tls_verify_text(TL_TLS_BAD_EXPIRED, text, 10), -ENOSPC);
  ASSERT_EQ(tl_tls_verify_text(0, text, 10), 0);
  ASSERT_TRUE(strstr(tl_tls_library(), "TLS") != NULL);
}
