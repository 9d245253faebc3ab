// libuv's echo server, as its guide writes it: what uvloop stands on, without Python.

#define _GNU_SOURCE
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <uv.h>

enum { BACKLOG = 1024 };

typedef struct reply {
  uv_write_t request;
  char *data;
} reply;

static _Noreturn void die(const char *what, int rc) {
  fprintf(stderr, "%s: %s\n", what, uv_strerror(rc));
  exit(1);
}

static void release(uv_handle_t *handle) { free(handle); }

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
  (void)handle;
  buffer->base = malloc(suggested);
  buffer->len = buffer->base ? suggested : 0;
}

static void on_written(uv_write_t *request, int rc) {
  reply *r = (reply *)request;
  if (rc < 0 && !uv_is_closing((uv_handle_t *)request->handle))
    uv_close((uv_handle_t *)request->handle, release);
  free(r->data);
  free(r);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer) {
  if (n <= 0) {
    free(buffer->base);
    if (n < 0) uv_close((uv_handle_t *)stream, release);
    return;
  }
  reply *r = malloc(sizeof *r);
  uv_buf_t part = uv_buf_init(buffer->base, (unsigned)n);
  if (!r) die("malloc", UV_ENOMEM);
  r->data = buffer->base;
  if (uv_write(&r->request, stream, &part, 1, on_written) < 0) on_written(&r->request, UV_EPIPE);
}

static void on_connection(uv_stream_t *server, int rc) {
  uv_tcp_t *peer = rc < 0 ? NULL : malloc(sizeof *peer);
  if (!peer) return;
  uv_tcp_init(server->loop, peer);
  if (uv_accept(server, (uv_stream_t *)peer) < 0) {
    uv_close((uv_handle_t *)peer, release);
    return;
  }
  uv_tcp_nodelay(peer, 1);
  uv_read_start((uv_stream_t *)peer, on_alloc, on_read);
}

int main(void) {
  uv_loop_t *loop = uv_default_loop();
  uv_tcp_t server;
  struct sockaddr_in address;
  int length = sizeof address, rc;
  alarm(120); // never outlive a parent that was killed
  uv_tcp_init(loop, &server);
  uv_ip4_addr("127.0.0.1", 0, &address);
  if ((rc = uv_tcp_bind(&server, (const struct sockaddr *)&address, 0)) < 0) die("bind", rc);
  if ((rc = uv_listen((uv_stream_t *)&server, BACKLOG, on_connection)) < 0) die("listen", rc);
  uv_tcp_getsockname(&server, (struct sockaddr *)&address, &length);
  printf("ready 127.0.0.1:%d\n", ntohs(address.sin_port)), fflush(stdout);
  return uv_run(loop, UV_RUN_DEFAULT);
}
