/* One loop per thread, all at the same time: they share nothing. Also built with ThreadSanitizer. */
#include "tl_test.h"

#include <pthread.h>

enum { THREADS = 4, MESSAGES = 200 };

typedef struct session {
  pthread_t thread;
  tl_handle client, server;
  int echoed, ticks;
  uint64_t sent, received;
} session;

static void on_server(tl_loop *loop, const tl_event *event, void *user) {
  (void)user;
  if (event->kind == TL_EV_DATA)
    ASSERT_OK(
        tl_stream_write(loop, event->handle, tl_event_data(loop, event), (size_t)event->result));
  else if (event->kind == TL_EV_EOF)
    ASSERT_OK(tl_stream_close(loop, event->handle));
}

static void on_listener(tl_loop *loop, const tl_event *event, void *user) {
  if (event->kind != TL_EV_ACCEPT) return;
  tl_handle stream = ASSERT_OK(event->result);
  ASSERT_OK(tl_set_callback(loop, stream, on_server, user));
  ASSERT_OK(tl_stream_read_start(loop, stream));
  ASSERT_OK(tl_close(loop, event->handle));
}

static void send_next(tl_loop *loop, session *s) {
  char bytes[512];
  size_t n = 1 + t_below(sizeof bytes);
  t_pattern(bytes, n, s->sent);
  s->sent += n;
  ASSERT_OK(tl_stream_write(loop, s->client, bytes, n));
}

static void on_client(tl_loop *loop, const tl_event *event, void *user) {
  session *s = user;
  if (event->kind == TL_EV_CONNECT) {
    ASSERT_EQ(event->result, 0);
    ASSERT_OK(tl_stream_read_start(loop, event->handle));
    send_next(loop, s);
  } else if (event->kind == TL_EV_DATA) {
    t_check_pattern(tl_event_data(loop, event), (size_t)event->result, s->received);
    s->received += (uint64_t)event->result;
    if (s->received < s->sent) return;
    if (++s->echoed < MESSAGES)
      send_next(loop, s);
    else
      ASSERT_OK(tl_stream_close(loop, event->handle));
  }
}

static void on_tick(tl_loop *loop, const tl_event *event, void *user) {
  session *s = user;
  if (event->kind != TL_EV_TIMER) return;
  s->ticks++;
  if (s->echoed == MESSAGES) ASSERT_OK(tl_close(loop, event->handle));
}

static void *run_session(void *arg) {
  session *s = arg;
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr), timer = ASSERT_OK(tl_timer_create(loop));
  tl_handle signal = ASSERT_OK(tl_signal_create(loop, SIGUSR1));
  s->client = ASSERT_OK(tl_stream_connect(loop, &addr));
  ASSERT_OK(tl_set_callback(loop, listener, on_listener, s));
  ASSERT_OK(tl_set_callback(loop, s->client, on_client, s));
  ASSERT_OK(tl_set_callback(loop, timer, on_tick, s));
  ASSERT_OK(tl_timer_start(loop, timer, T_MS, T_MS));
  ASSERT_OK(tl_close(loop, signal));
  ASSERT_EQ(tl_loop_run(loop), 0);
  t_end(loop);
  return NULL;
}

TEST(loops_in_threads_do_not_meet) {
  static session sessions[THREADS];
  for (int i = 0; i < THREADS; i++)
    ASSERT_EQ(pthread_create(&sessions[i].thread, NULL, run_session, &sessions[i]), 0);
  for (int i = 0; i < THREADS; i++) {
    ASSERT_EQ(pthread_join(sessions[i].thread, NULL), 0);
    ASSERT_EQ(sessions[i].echoed, MESSAGES);
    ASSERT_EQ(sessions[i].received, sessions[i].sent);
  }
}

static void *open_and_close(void *arg) {
  (void)arg;
  for (int i = 0; i < 30; i++) {
    tl_loop *loop = t_loop();
    tl_handle signal = ASSERT_OK(tl_signal_create(loop, SIGUSR2));
    ASSERT_EQ(tl_loop_wake(loop), 0);
    t_expect(loop, 0, TL_EV_WAKE);
    t_close(loop, signal);
    t_end(loop);
  }
  return NULL;
}

TEST_ON(loops_come_and_go_in_threads, ON_ALL) {
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++)
    ASSERT_EQ(pthread_create(&threads[i], NULL, open_and_close, NULL), 0);
  for (int i = 0; i < THREADS; i++) ASSERT_EQ(pthread_join(threads[i], NULL), 0);
}

/* A loop may be made in one thread and then belong to another. */
static void *use_loop(void *arg) {
  tl_loop *loop = arg;
  tl_handle timer = ASSERT_OK(tl_timer_create(loop));
  ASSERT_OK(tl_timer_start(loop, timer, T_MS, 0));
  t_expect(loop, timer, TL_EV_TIMER);
  t_close(loop, timer);
  return NULL;
}

TEST_ON(a_loop_can_be_handed_to_another_thread, ON_ALL) {
  tl_loop *loop = t_loop();
  pthread_t thread;
  ASSERT_EQ(pthread_create(&thread, NULL, use_loop, loop), 0);
  ASSERT_EQ(pthread_join(thread, NULL), 0);
  t_end(loop);
}
