/* TLS echo server: tls_echo PORT CERTIFICATE [KEY] (PEM files; port 0: any free one). Try it with
   openssl s_client -connect 127.0.0.1:PORT. Needs mbedTLS. Ends on SIGINT or SIGTERM. */
#define TLOOP_IMPLEMENTATION
#include "tloop_tls.h"

static void report(tl_loop *loop, tl_handle stream) {
  tl_tls_info info;
  if (tl_tls_query(loop, stream, &info) == 0)
    printf("%s %s\n", info.version == TL_TLS_1_3 ? "TLS 1.3" : "TLS 1.2", info.cipher_name);
  fflush(stdout);
}

static void on_connection(tl_loop *loop, const tl_event *ev, void *user) {
  (void)user;
  if (ev->kind == TL_EV_DATA) {
    int64_t queued = tl_stream_write(loop, ev->handle, tl_event_data(loop, ev), (size_t)ev->result);
    if (queued < 0) tl_close(loop, ev->handle);
    if (queued > 65536) tl_stream_read_stop(loop, ev->handle); /* a slow reader must not fill us */
  } else if (ev->kind == TL_EV_DRAIN) {
    tl_stream_read_start(loop, ev->handle);
  } else if (ev->kind == TL_EV_EOF) {
    tl_stream_close(loop, ev->handle); /* sends what is still queued, and close_notify */
  } else if (ev->kind == TL_EV_ERROR || (ev->kind == TL_EV_TLS && ev->result < 0)) {
    printf("failed: %s\n", tl_strerror(ev->result)), fflush(stdout);
    tl_close(loop, ev->handle);
  } else if (ev->kind == TL_EV_TLS) {
    report(loop, ev->handle);
  }
}

static void on_accept(tl_loop *loop, const tl_event *ev, void *user) {
  if (ev->kind != TL_EV_ACCEPT || ev->result < 0) return;
  tl_set_callback(loop, ev->result, on_connection, NULL);
  tl_stream_read_start(loop, ev->result);
  if (tl_tls_attach(loop, ev->result, user, NULL) < 0) tl_close(loop, ev->result);
}

static void on_signal(tl_loop *loop, const tl_event *ev, void *user) {
  (void)ev, (void)user;
  tl_loop_stop(loop);
}

static int64_t listen_on(tl_loop *loop, int port, tl_tls *tls) {
  tl_addr addr;
  char text[64];
  int64_t rc = tl_addr_ip(&addr, "127.0.0.1", port);
  tl_handle server = rc < 0 ? rc : tl_listener_bind(loop, &addr, 128, 0);
  if (server < 0) return server;
  if (tl_sockname(loop, server, &addr) == 0 && tl_addr_text(&addr, text, sizeof text) > 0)
    printf("listening on %s\n", text), fflush(stdout);
  return tl_set_callback(loop, server, on_accept, tls);
}

int main(int argc, char **argv) {
  tl_tls_desc desc = {.role = TL_TLS_SERVER};
  desc.cert_file = argc > 2 ? argv[2] : "server.pem";
  desc.key_file = argc > 3 ? argv[3] : NULL; /* NULL: in the same file */
  int64_t rc;
  tl_tls *tls = tl_tls_create(&desc, &rc);
  tl_loop *loop = tls ? tl_loop_create(NULL, NULL) : NULL;
  for (int i = 0; loop && i < 2; i++)
    tl_set_callback(loop, tl_signal_create(loop, i ? SIGTERM : SIGINT), on_signal, NULL);
  if (loop) rc = listen_on(loop, argc > 1 ? atoi(argv[1]) : 7443, tls);
  if (loop && rc >= 0) rc = tl_loop_run(loop);
  if (rc < 0) fprintf(stderr, "tls_echo: %s\n", tl_strerror(rc));
  tl_loop_close(loop);
  tl_tls_release(tls);
  return rc < 0;
}
