/* Signals: kill -USR1, -USR2, -HUP this program; INT (Ctrl-C) or TERM ends it. */
#define TLOOP_IMPLEMENTATION
#include "tloop.h"

static const struct {
  int number;
  const char *name;
  bool ends;
} watched[] = {{SIGUSR1, "SIGUSR1", false},
               {SIGUSR2, "SIGUSR2", false},
               {SIGHUP, "SIGHUP", false},
               {SIGINT, "SIGINT", true},
               {SIGTERM, "SIGTERM", true}};

enum { COUNT = sizeof watched / sizeof *watched };

/* An ordinary callback, not a signal handler: everything is allowed here. */
static void on_signal(tl_loop *loop, const tl_event *ev, void *user) {
  (void)user;
  for (int i = 0; i < COUNT; i++) {
    if (ev->kind != TL_EV_SIGNAL || watched[i].number != ev->result) continue;
    printf("got %s\n", watched[i].name);
    if (watched[i].ends) tl_loop_stop(loop);
  }
  fflush(stdout);
}

int main(void) {
  tl_loop *loop = tl_loop_create(NULL, NULL);
  if (!loop) return 1;
  for (int i = 0; i < COUNT; i++) {
    tl_handle signal = tl_signal_create(loop, watched[i].number);
    if (signal < 0) return fprintf(stderr, "signals: %s\n", tl_strerror(signal)), 1;
    tl_set_callback(loop, signal, on_signal, NULL);
  }
  printf("pid %d\n", (int)getpid());
  fflush(stdout);
  int rc = tl_loop_run(loop);
  tl_loop_close(loop);
  puts("bye");
  return rc < 0;
}
