/* A tiny test framework: each TEST runs in a process of its own, once per backend, and ends with
   the proof that no byte and no descriptor was left behind. */
#ifndef TL_TEST_H
#define TL_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tloop.h"

/* Which backends a test runs on; ON_ONCE: whatever the library picks itself. SLOW: it works hard,
   so it has six times the usual time. */
enum { ON_EPOLL = 1, ON_POLL = 2, ON_DUMMY = 4, ON_ONCE = 8, ON_URING = 16, SLOW = 32 };
enum { ON_RING = 64 }; /* io_uring that accepts, receives and sends, too */
enum { ON_READY = ON_EPOLL | ON_POLL | ON_URING }; /* by readiness */
enum { ON_REAL = ON_READY | ON_RING, ON_ALL = ON_REAL | ON_DUMMY };

enum { T_MS = 1000000, T_SECOND = 1000000000 };

typedef struct t_case {
  const char *name;
  void (*run)(void);
  int backends;
  struct t_case *next;
} t_case;

void t_register(t_case *test);

#define TEST_ON(test, mask)                                     \
  static void test(void);                                       \
  __attribute__((constructor)) static void t_add_##test(void) { \
    static t_case entry = {#test, test, mask, NULL};            \
    t_register(&entry);                                         \
  }                                                             \
  static void test(void)

#define TEST(test) TEST_ON(test, ON_REAL)

/* Assertions. A failure prints both values and ends the test's process. */

__attribute__((noreturn, format(printf, 3, 4))) void t_fail(const char *file, int line,
                                                            const char *format, ...);
__attribute__((noreturn)) void t_skip(const char *reason);
int64_t t_ok(const char *file, int line, const char *text, int64_t rc);
int t_sys(const char *file, int line, const char *text, int64_t rc);
void t_equal_text(const char *file, int line, const char *a, const char *b);
void t_equal_bytes(const char *file, int line, const void *a, const void *b, size_t nbytes);

#define T_COMPARE(a, op, b, texts)                                                       \
  do {                                                                                   \
    long long t_a = (long long)(a), t_b = (long long)(b);                                \
    if (!(t_a op t_b)) t_fail(__FILE__, __LINE__, "%s: %lld and %lld", texts, t_a, t_b); \
  } while (0)

#define ASSERT_EQ(a, b) T_COMPARE(a, ==, b, #a " == " #b)
#define ASSERT_NE(a, b) T_COMPARE(a, !=, b, #a " != " #b)
#define ASSERT_GE(a, b) T_COMPARE(a, >=, b, #a " >= " #b)
#define ASSERT_GT(a, b) T_COMPARE(a, >, b, #a " > " #b)
#define ASSERT_LE(a, b) T_COMPARE(a, <=, b, #a " <= " #b)
#define ASSERT_LT(a, b) T_COMPARE(a, <, b, #a " < " #b)
#define ASSERT_TRUE(x)                                            \
  do {                                                            \
    if (!(x)) t_fail(__FILE__, __LINE__, "%s does not hold", #x); \
  } while (0)
#define ASSERT_STR(a, b) t_equal_text(__FILE__, __LINE__, a, b)
#define ASSERT_MEM(a, b, nbytes) t_equal_bytes(__FILE__, __LINE__, a, b, nbytes)
/* The value of a tloop call that must succeed, and of a system call that must. */
#define ASSERT_OK(call) t_ok(__FILE__, __LINE__, #call, (int64_t)(call))
#define ASSERT_SYS(call) t_sys(__FILE__, __LINE__, #call, (int64_t)(call))
#define SKIP(reason) t_skip(reason)

/* Memory: an allocator that counts, and that can be told to fail. */

typedef struct t_memory {
  atomic_long bytes, blocks, calls;
  atomic_long fail_at; /* this call fails, counted from 1; 0: none */
  bool fail_on;        /* and all calls after it */
} t_memory;

extern t_memory t_mem;
tl_allocator t_allocator(void);

/* nbytes that end where a forbidden page begins: reading one too far ends the process. */
void *t_guarded(size_t nbytes);

/* Loops and events. */

const char *t_backend(void);    /* the backend this test runs on */
tl_loop *t_loop(void);          /* a loop on it, with the counting allocator */
void t_end(tl_loop *loop);      /* wait until every handle is gone, then close the loop */
tl_event t_next(tl_loop *loop); /* one event, waiting for it */
tl_event t_expect(tl_loop *loop, tl_handle handle, int kind); /* the next event must be this one */
tl_event t_until(tl_loop *loop, tl_handle handle, int kind);  /* drop others until it comes */
void t_quiet(tl_loop *loop); /* nothing happens, and the loop does not spin either */
void t_close(tl_loop *loop, tl_handle handle); /* tl_close and its event */
void t_spin(tl_loop *loop, const bool *done);  /* step with callbacks until *done */
tl_stats t_stats(const tl_loop *loop);
int64_t t_clock(void);        /* CLOCK_MONOTONIC in nanoseconds */
void t_unblock_signals(void); /* under ThreadSanitizer only */

/* Sockets and descriptors. */

int t_open_fds(void);
void t_pipe(int fds[2]);
void t_socketpair(int type, int fds[2]);
tl_addr t_ip4(int port);
int t_bound(tl_loop *loop, tl_handle socket, tl_addr *addr); /* its address; returns the port */
tl_handle t_listen(tl_loop *loop, tl_addr *addr);            /* on a free IPv4 port */
int t_connect(const tl_addr *addr);                          /* a plain, blocking client socket */
tl_handle t_accept(tl_loop *loop, tl_handle listener);
void t_tcp_pair(tl_loop *loop, tl_handle *stream, int *peer); /* accepted stream, plain client */
void t_send_all(int fd, const void *data, size_t nbytes);
void t_recv_all(int fd, void *data, size_t nbytes); /* fails unless exactly nbytes come */
void t_expect_eof(int fd);
void t_nonblocking(int fd);
void t_reset(int fd);       /* close a TCP socket so that the peer sees a reset */
void t_limit_fds(int more); /* allow that many more descriptors than are open now; -1: undo */

/* A repeatable source of numbers and of bytes. */

uint32_t t_random(void);
uint32_t t_below(uint32_t limit);
void t_pattern(void *data, size_t nbytes, uint64_t offset); /* byte k is a function of offset + k */
void t_check_pattern(const void *data, size_t nbytes, uint64_t offset);

#endif /* TL_TEST_H */
