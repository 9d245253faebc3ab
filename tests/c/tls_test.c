#include "tls_test.h"

_Thread_local tls_end tls_a, tls_b;

const char *tls_path(const char *name) {
  static char path[512];
  const char *root = getenv("TL_TEST_ROOT");
  int n = snprintf(path, sizeof path, "%s/tests/tls/cases/%s.pem", root ? root : ".", name);
  ASSERT_TRUE(n > 0 && (size_t)n < sizeof path);
  return path;
}

tl_tls *tls_make(const tl_tls_desc *desc) {
  int64_t error = 1;
  tl_tls *tls = tl_tls_create(desc, &error);
  if (!tls) t_fail(__FILE__, __LINE__, "tl_tls_create: %s", tl_strerror(error));
  ASSERT_EQ(error, 0);
  return tls;
}

static tl_tls *make(tl_tls_desc desc, const tls_plan *plan, const char *cert) {
  desc.min_version = desc.max_version = plan->version;
  tl_tls *tls = tls_make(&desc);
  if (cert) ASSERT_OK(tl_tls_add_cert_file(tls, tls_path(cert), NULL, NULL, NULL));
  ASSERT_EQ(tl_tls_add_ca_file(tls, tls_path("authority")), 0);
  return tls;
}

tl_tls *tls_server(const tls_plan *plan) {
  return make((tl_tls_desc){.role = TL_TLS_SERVER,
                            .verify = plan->server_verify,
                            .alpn = plan->alpn_server,
                            .close_timeout_ns = T_SECOND},
              plan, plan->cert ? plan->cert : "server");
}

tl_tls *tls_client(const tls_plan *plan) {
  return make((tl_tls_desc){.role = TL_TLS_CLIENT,
                            .verify = plan->client_verify,
                            .flags = plan->client_flags,
                            .alpn = plan->alpn_client,
                            .close_timeout_ns = T_SECOND},
              plan, plan->client_cert);
}

void tls_sockets(tl_loop *loop, bool unix_socket) {
  int fds[2];
  tls_a = tls_b = (tls_end){0};
  if (unix_socket) {
    t_socketpair(SOCK_STREAM, fds);
    tls_b.handle = ASSERT_OK(tl_stream_open(loop, fds[1], 0));
  } else {
    t_tcp_pair(loop, &tls_b.handle, &fds[0]);
  }
  tls_a.handle = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
  for (int i = 0; i < 2; i++) { /* small, so that megabytes do not fit into the kernel */
    int fd = (int)ASSERT_OK(tl_fd(loop, i ? tls_b.handle : tls_a.handle)), nbytes = 100000;
    ASSERT_SYS(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &nbytes, sizeof nbytes));
    ASSERT_SYS(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &nbytes, sizeof nbytes));
  }
}

static void note(tl_loop *loop, const tl_event *event) {
  tls_end *end = event->handle == tls_a.handle ? &tls_a : &tls_b;
  if (event->handle != end->handle) return;
  switch (event->kind) {
    case TL_EV_CONNECT: end->connected = true, end->error = event->result; break;
    case TL_EV_TLS:
      ASSERT_TRUE(!end->tls);
      end->tls = true, end->tls_result = event->result;
      break;
    case TL_EV_DATA:
      ASSERT_TRUE(end->tls && !end->tls_result && !end->eof);
      t_check_pattern(tl_event_data(loop, event), (size_t)event->result, end->received);
      end->received += (uint64_t)event->result;
      break;
    case TL_EV_EOF: end->eof = true; break;
    case TL_EV_ERROR: end->failed = true, end->error = event->result; break;
    case TL_EV_DRAIN: end->drains++; break;
    case TL_EV_READABLE: end->ready = true; break;
    case TL_EV_CLOSED: end->closed = true, end->close_result = event->result; break;
    default: t_fail(__FILE__, __LINE__, "event of kind %lld", (long long)event->kind);
  }
}

void tls_tick(tl_loop *loop, int64_t timeout_ns) {
  tl_event events[8];
  int n = (int)ASSERT_OK(tl_loop_poll(loop, events, 8, timeout_ns));
  for (int i = 0; i < n; i++) note(loop, &events[i]);
}

void tls_wait(tl_loop *loop, const bool *flag) {
  int64_t end = t_clock() + 8LL * T_SECOND;
  while (!*flag && t_clock() < end) tls_tick(loop, 10 * T_MS);
  ASSERT_TRUE(*flag);
}

void tls_wait_bytes(tl_loop *loop, const tls_end *end, uint64_t nbytes) {
  int64_t limit = t_clock() + 8LL * T_SECOND;
  while (end->received < nbytes && t_clock() < limit) tls_tick(loop, 10 * T_MS);
  ASSERT_EQ(end->received, nbytes);
}

void tls_send(tl_loop *loop, const tls_end *end, uint64_t from, size_t nbytes) {
  unsigned char *data = t_guarded(nbytes ? nbytes : 1);
  t_pattern(data, nbytes, from);
  ASSERT_OK(tl_stream_write(loop, end->handle, data, nbytes));
}

tl_loop *tls_connect(const tls_plan *plan) {
  tl_loop *loop = t_loop();
  tls_sockets(loop, plan->unix_socket);
  tl_tls *server = plan->server ? tl_tls_retain(plan->server) : tls_server(plan);
  tl_tls *client = plan->client ? tl_tls_retain(plan->client) : tls_client(plan);
  tl_tls_attach_desc to = {.hostname = plan->hostname ? plan->hostname : "server.example",
                           .session = plan->session};
  ASSERT_EQ(tl_tls_attach(loop, tls_b.handle, server, NULL), 0);
  ASSERT_EQ(tl_tls_attach(loop, tls_a.handle, client, &to), 0);
  tl_tls_release(server);
  tl_tls_release(client);
  if (plan->quiet) return loop;
  tls_wait(loop, &tls_a.tls);
  tls_wait(loop, &tls_b.tls);
  if (!tls_a.tls_result) ASSERT_OK(tl_stream_read_start(loop, tls_a.handle));
  if (!tls_b.tls_result) ASSERT_OK(tl_stream_read_start(loop, tls_b.handle));
  return loop;
}

/* A wait may end early, without an event, when the kernel acknowledges and room to send shows as an
   edge; a loop that spins ends all of them early. */
void tls_quiet(tl_loop *loop) {
  tl_event event;
  int early = 0;
  tls_tick(loop, 10 * T_MS);
  for (int i = 0; i < 5; i++) {
    int64_t start = t_clock();
    ASSERT_EQ(ASSERT_OK(tl_loop_poll(loop, &event, 1, 10 * T_MS)), 0);
    early += t_clock() - start < 10 * T_MS;
  }
  ASSERT_LE(early, 2);
}

void tls_end_pair(tl_loop *loop) {
  if (!tls_a.closed) (void)tl_close(loop, tls_a.handle);
  if (!tls_b.closed) (void)tl_close(loop, tls_b.handle);
  t_end(loop);
}

tl_tls_info tls_info(tl_loop *loop, const tls_end *end) {
  tl_tls_info info;
  ASSERT_EQ(tl_tls_query(loop, end->handle, &info), 0);
  return info;
}
