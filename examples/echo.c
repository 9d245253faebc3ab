/* TCP echo server: echo PORT (0: any free one). Ends on SIGINT or SIGTERM. */
#define TLOOP_IMPLEMENTATION
#include "tloop.h"

static void on_connection(tl_loop *loop, const tl_event *ev, void *user) {
  (void)user;
  if (ev->kind == TL_EV_DATA) {
    int64_t queued = tl_stream_write(loop, ev->handle, tl_event_data(loop, ev), (size_t)ev->result);
    if (queued < 0) tl_close(loop, ev->handle);
    if (queued > 65536) tl_stream_read_stop(loop, ev->handle); /* a slow reader must not fill us */
  } else if (ev->kind == TL_EV_DRAIN) {
    tl_stream_read_start(loop, ev->handle);
  } else if (ev->kind == TL_EV_EOF) {
    tl_stream_close(loop, ev->handle); /* sends what is still queued */
  } else if (ev->kind == TL_EV_ERROR) {
    tl_close(loop, ev->handle);
  }
}

static void on_accept(tl_loop *loop, const tl_event *ev, void *user) {
  if (ev->kind != TL_EV_ACCEPT || ev->result < 0) return;
  tl_set_callback(loop, ev->result, on_connection, user);
  tl_stream_read_start(loop, ev->result);
}

static void on_signal(tl_loop *loop, const tl_event *ev, void *user) {
  (void)ev, (void)user;
  tl_loop_stop(loop);
}

static int64_t listen_on(tl_loop *loop, int port) {
  tl_addr addr;
  char text[64];
  int64_t rc = tl_addr_ip(&addr, "127.0.0.1", port);
  tl_handle server = rc < 0 ? rc : tl_listener_bind(loop, &addr, 128, 0);
  if (server < 0) return server;
  if (tl_sockname(loop, server, &addr) == 0 && tl_addr_text(&addr, text, sizeof text) > 0)
    printf("listening on %s\n", text), fflush(stdout);
  return tl_set_callback(loop, server, on_accept, NULL);
}

int main(int argc, char **argv) {
  const int ends[] = {SIGINT, SIGTERM};
  tl_loop *loop = tl_loop_create(NULL, NULL);
  int64_t rc = loop ? 0 : -ENOMEM;
  for (int i = 0; i < 2 && rc >= 0; i++) {
    tl_handle signal = tl_signal_create(loop, ends[i]);
    rc = signal < 0 ? signal : tl_set_callback(loop, signal, on_signal, NULL);
  }
  if (rc >= 0) rc = listen_on(loop, argc > 1 ? atoi(argv[1]) : 7000);
  if (rc >= 0) rc = tl_loop_run(loop);
  if (rc < 0) fprintf(stderr, "echo: %s\n", tl_strerror(rc));
  tl_loop_close(loop);
  return rc < 0;
}
