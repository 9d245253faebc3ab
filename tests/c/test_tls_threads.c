/* One context for many loops in many threads, all at the same time. Also with ThreadSanitizer. */
#include <pthread.h>

#include "tls_test.h"

enum { THREADS = 4, CONNECTIONS = 6 };

static tls_plan shared;
static atomic_int resumed;

static void one_connection(tl_tls_session **session) {
  int64_t error;
  tls_plan plan = shared;
  plan.session = *session;
  plan.unix_socket = t_below(2);
  tl_loop *loop = tls_connect(&plan);
  ASSERT_EQ(tls_a.tls_result, 0);
  ASSERT_EQ(tls_b.tls_result, 0);
  atomic_fetch_add(&resumed, tls_info(loop, &tls_a).resumed);
  tls_send(loop, &tls_a, 0, 50000);
  tls_send(loop, &tls_b, 0, 50000);
  tls_wait_bytes(loop, &tls_a, 50000);
  tls_wait_bytes(loop, &tls_b, 50000);
  tl_tls_session_release(*session);
  *session = tl_tls_session_get(loop, tls_a.handle, &error);
  tls_end_pair(loop);
}

static void *connect_again_and_again(void *unused) {
  tl_tls_session *session = NULL;
  for (int i = 0; i < CONNECTIONS; i++) one_connection(&session);
  tl_tls_session_release(session);
  return unused;
}

static void in_threads(int32_t version) {
  pthread_t threads[THREADS];
  shared = (tls_plan){.version = version};
  shared.server = tls_server(&shared);
  shared.client = tls_client(&shared);
  resumed = 0;
  for (int i = 0; i < THREADS; i++)
    ASSERT_EQ(pthread_create(&threads[i], NULL, connect_again_and_again, NULL), 0);
  for (int i = 0; i < THREADS; i++) ASSERT_EQ(pthread_join(threads[i], NULL), 0);
  tl_tls_release(shared.server);
  tl_tls_release(shared.client);
  ASSERT_EQ(resumed, THREADS * (CONNECTIONS - 1));
}

TEST_ON(threads_share_contexts, ON_REAL | SLOW) { TLS_EACH_VERSION(v) in_threads(v); }

/* Keys change while they are used. */
static void *rotate(void *arg) {
  char key[36] = "0123 and thirty-two secret bytes...";
  for (int i = 0; i < 200; i++) {
    key[0] = (char)i;
    ASSERT_EQ(tl_tls_ticket_key(arg, key, sizeof key), 0);
  }
  return NULL;
}

TEST_ON(ticket_keys_change_in_another_thread, ON_ONCE | SLOW) {
  pthread_t thread;
  tl_tls_session *session = NULL;
  shared = (tls_plan){0};
  shared.server = tls_server(&shared);
  shared.client = tls_client(&shared);
  ASSERT_EQ(pthread_create(&thread, NULL, rotate, shared.server), 0);
  for (int i = 0; i < CONNECTIONS; i++) one_connection(&session);
  ASSERT_EQ(pthread_join(thread, NULL), 0);
  tl_tls_session_release(session);
  tl_tls_release(shared.server);
  tl_tls_release(shared.client);
}
