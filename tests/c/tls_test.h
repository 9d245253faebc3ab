/* Helpers of the TLS tests: two ends of a connection in one loop, and what happened to each. */
#ifndef TLS_TEST_H
#define TLS_TEST_H

#include "tl_test.h"
#include "tloop_tls.h"

/* One end. Its events are recorded; received bytes must be t_pattern from offset 0. */
typedef struct tls_end {
  tl_handle handle;
  bool connected, tls, eof, failed, closed, ready;
  int64_t tls_result, error, close_result;
  uint64_t received;
  int drains;
} tls_end;

/* How a pair is made; all zero: TLS as it comes, over TCP, with good certificates. */
typedef struct tls_plan {
  tl_tls *server, *client; /* NULL: made by the plan and given back */
  const char *cert, *client_cert, *alpn_server, *alpn_client, *hostname;
  int32_t version, server_verify, client_verify, client_flags;
  tl_tls_session *session;
  bool unix_socket, quiet; /* quiet: the test attaches and reads for itself */
} tls_plan;

const char *tls_path(const char *name); /* of tests/tls/cases/NAME.pem; valid until the next call */
tl_tls *tls_server(const tls_plan *plan);
tl_tls *tls_client(const tls_plan *plan);
tl_tls *tls_make(const tl_tls_desc *desc);

/* The two ends; connect makes them, waits for both TL_EV_TLS and lets both read. */
extern _Thread_local tls_end tls_a, tls_b; /* a is the client, b the server */
tl_loop *tls_connect(const tls_plan *plan);
void tls_sockets(tl_loop *loop, bool unix_socket); /* tls_a and tls_b, without TLS */
void tls_tick(tl_loop *loop, int64_t timeout_ns);
void tls_wait(tl_loop *loop, const bool *flag);
void tls_wait_bytes(tl_loop *loop, const tls_end *end, uint64_t nbytes);
void tls_send(tl_loop *loop, const tls_end *end, uint64_t from, size_t nbytes); /* the pattern */
void tls_quiet(tl_loop *loop);    /* nothing happens, and the loop does not spin */
void tls_end_pair(tl_loop *loop); /* closes what is open, and the loop */
tl_tls_info tls_info(tl_loop *loop, const tls_end *end);

#define TLS_EACH_VERSION(v) for (int32_t v = TL_TLS_1_2; v <= TL_TLS_1_3; v++)

#endif /* TLS_TEST_H */
