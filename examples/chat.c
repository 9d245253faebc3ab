/* Line chat: chat PORT (0: any free one). What one guest writes, all others read. */
#define TLOOP_IMPLEMENTATION
#include "tloop.h"

typedef struct guest {
  tl_handle handle; /* 0: the seat is free */
  int nbytes;
  char line[512]; /* what came since the last newline */
} guest;

static guest seats[64], *const end = seats + 64;

static void tell(tl_loop *loop, const guest *from, const char *verb, int nbytes) {
  char text[600];
  int n = snprintf(text, sizeof text, "guest %d%s%.*s\n", (int)(from - seats) + 1, verb, nbytes,
                   from->line);
  for (guest *g = seats; g < end; g++)
    if (g->handle && g != from) tl_stream_write(loop, g->handle, text, (size_t)n);
}

static void on_guest(tl_loop *loop, const tl_event *ev, void *user) {
  guest *g = user;
  const char *data = ev->kind == TL_EV_DATA ? tl_event_data(loop, ev) : NULL;
  for (int64_t i = 0; data && i < ev->result; i++) {
    if (data[i] != '\n') g->line[g->nbytes++] = data[i];
    if (data[i] != '\n' && g->nbytes < (int)sizeof g->line) continue;
    tell(loop, g, ": ", g->nbytes);
    g->nbytes = 0;
  }
  if (ev->kind == TL_EV_EOF || ev->kind == TL_EV_ERROR) tl_close(loop, ev->handle);
  if (ev->kind != TL_EV_CLOSED) return; /* the last event: only now may the seat be given away */
  tell(loop, g, " left", 0);
  g->handle = 0;
}

static void on_accept(tl_loop *loop, const tl_event *ev, void *user) {
  guest *g = user;
  while (g < end && g->handle) g++;
  if (ev->result < 0 || g == end) {
    tl_close(loop, ev->result); /* of an error code: harmless */
    return;
  }
  *g = (guest){.handle = ev->result};
  tl_set_callback(loop, g->handle, on_guest, g);
  tl_stream_read_start(loop, g->handle);
  tell(loop, g, " joined", 0);
}

int main(int argc, char **argv) {
  tl_addr addr;
  char text[64];
  tl_loop *loop = tl_loop_create(NULL, NULL);
  if (!loop || tl_addr_ip(&addr, "127.0.0.1", argc > 1 ? atoi(argv[1]) : 7001) < 0) return 1;
  tl_handle server = tl_listener_bind(loop, &addr, 128, 0);
  if (tl_set_callback(loop, server, on_accept, seats) < 0) return 1;
  if (tl_sockname(loop, server, &addr) == 0 && tl_addr_text(&addr, text, sizeof text) > 0)
    printf("listening on %s\n", text), fflush(stdout);
  return tl_loop_run(loop) < 0; /* until Ctrl-C */
}
