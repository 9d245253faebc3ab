/* Line chat: chat PORT (0: any free one). What one guest writes, all others read. */
#define TLOOP_IMPLEMENTATION
#include "tloop.h"

typedef struct guest {
  struct guest *next;
  tl_handle handle;
  int number, nbytes;
  char line[512]; /* what came since the last newline */
} guest;

static guest *guests;

static void tell(tl_loop *loop, const guest *from, const char *verb, int nbytes) {
  char text[600];
  int n = snprintf(text, sizeof text, "guest %d%s%.*s\n", from->number, verb, nbytes, from->line);
  for (guest *g = guests; g; g = g->next)
    if (g != from) tl_stream_write(loop, g->handle, text, (size_t)n);
}

static void hear(tl_loop *loop, guest *g, const char *data, int64_t nbytes) {
  for (int64_t i = 0; i < nbytes; i++) {
    if (data[i] != '\n') g->line[g->nbytes++] = data[i];
    if (data[i] != '\n' && g->nbytes < (int)sizeof g->line) continue;
    tell(loop, g, ": ", g->nbytes);
    g->nbytes = 0;
  }
}

static void on_guest(tl_loop *loop, const tl_event *ev, void *user) {
  guest *g = user, **at = &guests;
  if (ev->kind == TL_EV_DATA) hear(loop, g, tl_event_data(loop, ev), ev->result);
  if (ev->kind == TL_EV_EOF || ev->kind == TL_EV_ERROR) tl_close(loop, g->handle);
  if (ev->kind != TL_EV_CLOSED) return; /* the last event: only now may the memory go */
  while (*at != g) at = &(*at)->next;
  *at = g->next;
  tell(loop, g, " left", 0);
  free(g);
}

static void on_accept(tl_loop *loop, const tl_event *ev, void *user) {
  guest *g = ev->result > 0 ? calloc(1, sizeof *g) : NULL;
  if (!g) return;
  *g = (guest){.next = guests, .handle = ev->result, .number = ++*(int *)user};
  guests = g;
  tl_set_callback(loop, g->handle, on_guest, g);
  tl_stream_read_start(loop, g->handle);
  tell(loop, g, " joined", 0);
}

static void on_signal(tl_loop *loop, const tl_event *ev, void *user) {
  (void)ev, (void)user;
  tl_loop_stop(loop);
}

int main(int argc, char **argv) {
  tl_addr addr;
  char text[64];
  int visitors = 0;
  tl_loop *loop = tl_loop_create(NULL, NULL);
  if (!loop || tl_addr_ip(&addr, "127.0.0.1", argc > 1 ? atoi(argv[1]) : 7001) < 0) return 1;
  tl_handle server = tl_listener_bind(loop, &addr, 128, 0);
  if (server < 0) return fprintf(stderr, "chat: %s\n", tl_strerror(server)), 1;
  tl_set_callback(loop, server, on_accept, &visitors);
  tl_set_callback(loop, tl_signal_create(loop, SIGINT), on_signal, NULL);
  tl_set_callback(loop, tl_signal_create(loop, SIGTERM), on_signal, NULL);
  tl_sockname(loop, server, &addr);
  tl_addr_text(&addr, text, sizeof text);
  printf("listening on %s\n", text), fflush(stdout);
  int rc = tl_loop_run(loop);
  tl_loop_close(loop);
  return rc < 0;
}
