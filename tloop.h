/* SPDX-License-Identifier: MIT

   tloop.h - a completion-shaped event loop in one header: timers, readiness, signals, children,
   wake-ups, TCP, Unix sockets and UDP.

   DO THIS
     In one C file:      #define TLOOP_IMPLEMENTATION
                         #include "tloop.h"
     In all the others:  #include "tloop.h"
     Build:              cc -std=c11 -O2 program.c        (Linux; no library to link)

   A COMPLETE PROGRAM (TCP echo server on port 7000)

     #define TLOOP_IMPLEMENTATION
     #include "tloop.h"

     static void on_connection(tl_loop *loop, const tl_event *ev, void *user) {
       (void)user;
       if (ev->kind == TL_EV_DATA)
         tl_stream_write(loop, ev->handle, tl_event_data(loop, ev), (size_t)ev->result);
       else if (ev->kind == TL_EV_EOF)
         tl_stream_close(loop, ev->handle);
       else if (ev->kind == TL_EV_ERROR)
         tl_close(loop, ev->handle);
     }

     static void on_accept(tl_loop *loop, const tl_event *ev, void *user) {
       (void)user;
       if (ev->kind != TL_EV_ACCEPT || ev->result < 0) return;
       tl_set_callback(loop, ev->result, on_connection, NULL);
       tl_stream_read_start(loop, ev->result);
     }

     int main(void) {
       tl_addr addr;
       tl_loop *loop = tl_loop_create(NULL, NULL);
       if (!loop || tl_addr_ip(&addr, "127.0.0.1", 7000) < 0) return 1;
       tl_handle server = tl_listener_bind(loop, &addr, 128, 0);
       if (server < 0 || tl_set_callback(loop, server, on_accept, NULL) < 0) return 1;
       int rc = tl_loop_run(loop);
       tl_loop_close(loop);
       return rc < 0;
     }

   MACROS (define them before the include that has TLOOP_IMPLEMENTATION)
     TL_API             how functions are declared                          extern
     TL_STATIC          define it: every function is static (TL_API wins)   -
     TL_MALLOC(n)       default allocator: all three or none                malloc
     TL_REALLOC(p, n)                                                       realloc
     TL_FREE(p)                                                             free
     TL_ASSERT(x)       checks of internal invariants                       nothing
     TL_ARENA_BYTES     bytes received per tick and per receive             524288
     TL_CHUNK_BYTES     size of one block of a write queue                  16384
     TL_NO_EPOLL, TL_NO_IO_URING, TL_NO_POLL, TL_NO_DUMMY   leave a backend out (io_uring needs
                        epoll)                                              -

   GLOSSARY
     loop      owns handles, memory and one backend; belongs to one thread
     handle    an integer that names one timer, stream, socket...; slot number + generation
     event     one result: (handle, kind, result, offset)
     tick      one call of tl_loop_poll, or one turn of tl_loop_run
     arena     the loop's receive buffer; its content is valid until the next tick
     backend   how the loop waits for the kernel: epoll, io_uring, poll, or dummy (virtual time)
     deadline  absolute nanoseconds on the loop's clock (CLOCK_MONOTONIC)

   LIFECYCLE     create -> start -> close. tl_close may be called at any moment, also inside a
     callback; after it no event of that handle is delivered but TL_EV_CLOSED, once, in a later
     tick (unless the loop was made with quiet_close).
   TWO WAYS OUT  tl_loop_run hands each event to its handle's callback, right after it was made.
     tl_loop_poll fills an array and calls nothing: for bindings, where one call per tick is cheaper
     than one call per event. Do not use both at the same time.
   OWNERSHIP     a loop owns its handles. Handles own their file descriptor unless TL_KEEP_FD is
     given. Input is copied, nothing is borrowed beyond the call.
   ERRORS        functions return >= 0, or a negative code: -errno, or one of TL_E* below. A
     negative code means that nothing happened and no event will come. errno is not used.
     The library never prints, aborts or exits. Background failures arrive as events.
   THREADS       everything belongs to the loop's thread, but tl_loop_wake (any thread, signal
     handlers). Loops share nothing but the table of signals, which locks itself.
   FORK          call tl_loop_after_fork in the child before anything else on that loop; without it
     parent and child share one kernel poll set.
   MEMORY        tl_loop_desc.allocator, per loop; else TL_MALLOC and friends. Later on only a
     write that the kernel did not take at once, and growing tables, allocate.
   IO_URING      $TLOOP_URING, names with commas between, is what is left to the kernel's ring.
     Default: send (tl_stream_write_batch is one system call), also on the epoll backend. On the
     io_uring backend (Linux 6.1 or later), where it gains little or nothing: accept, and recv (TCP
     without TLS). These take from the kernel what nobody has asked for yet. So tl_stream_recv comes
     before handing a descriptor on, connections reset meanwhile are not told of, and a descriptor
     that its owner closes before the handle stays open. "none": nothing. What the kernel or a
     sandbox refuses is done without it.
   LIMITS        Linux. 2^31 handles; 256 events per tick from the kernel; 64 datagrams, 64
     accepts per socket and tick, so that no socket starves the others. SIGPIPE is never raised.
*/

/* Before any include: glibc shows accept4, recvmmsg, ppoll, pipe2 only to programs that ask. */
#if defined(TLOOP_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1
#endif

#ifndef TLOOP_H
#define TLOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TL_VERSION "0.1.0"

#ifndef TL_API
#ifdef TL_STATIC
#ifdef __GNUC__
#define TL_API static __attribute__((unused))
#else
#define TL_API static
#endif
#else
#define TL_API extern
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* @api begin types */

/* One loop. Opaque; made by tl_loop_create, ended by tl_loop_close. */
typedef struct tl_loop tl_loop;

/* Names one object of a loop: slot number and generation, always > 0; negative values are errors.
   A handle whose object is gone answers TL_EBADH; it never reaches another object. */
typedef int64_t tl_handle;

/* One result. Four 64-bit integers, so that a binding can read many at once.
   handle  whose event; 0: the loop's own (TL_EV_WAKE, TL_EV_SIGNAL from tl_loop_wake_fd)
   kind    TL_EV_*
   result  bytes, mask, number, new handle, or a negative error: see the kind
   offset  where in the arena the bytes begin (TL_EV_DATA, TL_EV_DATAGRAM, TL_EV_ACCEPT);
           TL_EV_ERROR: TL_READ or TL_WRITE, what failed; else 0 */
typedef struct tl_event {
  int64_t handle;
  int64_t kind;
  int64_t result;
  int64_t offset;
} tl_event;

enum {
  TL_EV_DATA = 1,     /* stream: result bytes lie at offset */
  TL_EV_READABLE = 2, /* stream in notify mode: call tl_stream_recv */
  TL_EV_EOF = 3,      /* stream: no more comes; result 0, or -EIO of a terminal that hung up */
  TL_EV_ERROR = 4,    /* result -errno. Stream: it is broken, close it. UDP: one operation failed */
  TL_EV_DRAIN = 5,    /* stream, UDP: result bytes are left in the queue, see watermarks */
  TL_EV_ACCEPT = 6,   /* listener: result is a new stream, peer: tl_event_addr; or -errno */
  TL_EV_CONNECT = 7,  /* stream: result 0 (connected) or -errno (close it) */
  TL_EV_DATAGRAM = 8, /* UDP: result bytes at offset, sender: tl_event_addr */
  TL_EV_POLL = 9,     /* readiness: result is a mask of TL_READ, TL_WRITE, TL_HUP, TL_ERR */
  TL_EV_TIMER = 10,   /* timer: result is the number of periods that have passed, 1 or more */
  TL_EV_SIGNAL = 11,  /* result is the signal number */
  TL_EV_CHILD = 12,   /* child ended: result is the status as waitpid gives it, or -errno */
  TL_EV_WAKE = 13,    /* handle 0: tl_loop_wake was called since the last tick, once or often */
  TL_EV_CLOSED = 14,  /* the handle is gone; result -errno if tl_stream_close could not send all */
  TL_EV_TLS = 15 /* stream (tloop_tls.h): the handshake has ended; result 0, or why it failed */
};

/* Library errors; every other negative code is -errno. */
enum {
  TL_EBADH = -4001,    /* the handle is stale, closed, or never was one */
  TL_EKIND = -4002,    /* the handle is of another kind than the function's */
  TL_EBACKEND = -4003, /* no such backend, see tl_backends */
  TL_ELIMIT = -4004,   /* more handles than fit */
  TL_ETLS = -65536     /* this and everything below: see tloop_tls.h */
};

/* Readiness masks of tl_poll_start and TL_EV_POLL. */
enum { TL_READ = 1, TL_WRITE = 2, TL_HUP = 4, TL_ERR = 8, TL_EDGE = 16 };

/* Flags of functions that take or make file descriptors. */
enum {
  TL_KEEP_FD = 1,   /* closing the handle leaves the descriptor open: it stays the caller's */
  TL_REUSEPORT = 2, /* bind with SO_REUSEPORT */
  TL_IPV6ONLY = 4,  /* bind with IPV6_V6ONLY */
  TL_BROADCAST = 8  /* UDP: SO_BROADCAST */
};

/* What a backend can do, see tl_loop_caps. */
enum {
  TL_CAP_EDGE = 1,    /* TL_EDGE needs no tl_poll_rearm */
  TL_CAP_FD = 2,      /* tl_loop_fd works */
  TL_CAP_VIRTUAL = 4, /* the clock is virtual */
  TL_CAP_RECEIVED = 8 /* tl_stream_received works: nothing is received before its event */
};

/* Size of the address that lies in front of each datagram in the arena: sizeof(tl_addr). */
#define TL_ADDR_BYTES 136

/* A socket address: nbytes of sockaddr in data; nbytes 0 means none. Unused bytes are zero, so
   equal addresses are equal bytes. */
typedef struct tl_addr {
  uint32_t nbytes;
  uint32_t unused;
  uint64_t data[16];
} tl_addr;

/* Bytes for a vectored write. */
typedef struct tl_buf {
  const void *data;
  size_t nbytes;
} tl_buf;

/* One datagram to send; addr NULL: the connected peer. */
typedef struct tl_datagram {
  const void *data;
  size_t nbytes;
  const tl_addr *addr;
} tl_datagram;

/* Memory of one loop. All three functions or none; realloc_fn(user, NULL, n) is never called. */
typedef struct tl_allocator {
  void *(*alloc_fn)(void *user, size_t nbytes);
  void *(*realloc_fn)(void *user, void *ptr, size_t nbytes);
  void (*free_fn)(void *user, void *ptr);
  void *user;
} tl_allocator;

/* How a loop is made. All zero means default. */
typedef struct tl_loop_desc {
  const char *backend;    /* NULL: $TLOOP_BACKEND, else the best there is */
  tl_allocator allocator; /* default: TL_MALLOC, TL_REALLOC, TL_FREE */
  bool quiet_close;       /* no TL_EV_CLOSED for what tl_close ends, and so no tick for it */
} tl_loop_desc;

/* Counters since the loop was made, and two present numbers. */
typedef struct tl_stats {
  int64_t ticks;     /* waits for the kernel, also with time-out 0 */
  int64_t events;    /* events delivered */
  int64_t syscalls;  /* system calls made by the loop */
  int64_t bytes_in;  /* received from streams and UDP */
  int64_t bytes_out; /* taken by the kernel */
  int64_t idle_ns;   /* time spent waiting */
  int64_t wakes;     /* wake-ups noticed; coalesced ones count once */
  int64_t handles;   /* handles made */
  int64_t live;      /* handles not yet closed, now */
  int64_t queued;    /* bytes in write queues, now */
} tl_stats;

/* What tl_loop_tick is asked, and answers. */
typedef struct tl_tick {
  tl_loop *loop;
  tl_event *events; /* room for capacity of them */
  int64_t timeout_ns;
  int capacity;
  int count; /* of events that are there */
} tl_tick;

/* Receives one event in tl_loop_run; event is valid during the call. Any tloop function may be
   called inside but tl_loop_poll, tl_loop_step, tl_loop_run and tl_loop_close. */
typedef void (*tl_event_cb)(tl_loop *loop, const tl_event *event, void *user);

/* @api end */

/* @api begin loop */

/* Version of the compiled library, as "1.2.3".
   Returns: a static string. Thread: any. */
TL_API const char *tl_version(void);

/* Text of an error code, for example "Connection refused"; unknown codes get a text too.
   Returns: a static string, or errno's text, which is valid until this thread's next call.
   Thread: any. */
TL_API const char *tl_strerror(int64_t code);

/* Names of the compiled backends, best first, separated by ", ".
   Returns: a static string. Thread: any. */
TL_API const char *tl_backends(void);

/* Make a loop. desc NULL: defaults. The backend named by desc, else by the environment variable
   TLOOP_BACKEND, else the first of tl_backends that works here.
   Returns: the loop, or NULL with the reason in *error (unless error is NULL): TL_EBACKEND for an
   unknown name, -EINVAL for an incomplete allocator, -ENOMEM, -EMFILE...
   Owns: the caller, until tl_loop_close. Thread: any; the calling thread becomes the loop's. */
TL_API tl_loop *tl_loop_create(const tl_loop_desc *desc, int *error);

/* Close every handle without events, then free the loop. NULL is allowed.
   Returns: the number of handles that were still open. Thread: loop, and no other thread may be
   inside tl_loop_wake. Callback: forbidden. */
TL_API int64_t tl_loop_close(tl_loop *loop);

/* Close every handle without events, and the loop's own descriptors, but keep the memory: for
   bindings whose garbage collector decides when nobody can name the loop any more. Afterwards every
   function answers with an error, and tl_loop_wake does nothing.
   Returns: the number of handles that were still open. Thread: loop. Callback: forbidden. */
TL_API int64_t tl_loop_shutdown(tl_loop *loop);

/* Wait until something happened, at most timeout_ns (< 0: no limit, 0: only look), and put up to
   capacity events into events; what does not fit comes with the next call. An interrupting signal
   (EINTR) ends the wait early with what there is, so that a host can run its handlers.
   Returns: the number of events, or -errno of a failed wait, -EINVAL for capacity < 1, -EBADF
   after tl_loop_shutdown.
   Owns: bytes that events point to stay valid until the next call. Thread: loop.
   Callback: forbidden. */
TL_API int tl_loop_poll(tl_loop *loop, tl_event *events, int capacity, int64_t timeout_ns);

/* tl_loop_poll with its arguments in memory, for bindings: passing four of them costs as much as
   the rest of the call. tick->count is the number of events before the function returns, for a host
   that is interrupted before it can take the return value; 0 while it waits and when it fails.
   Returns: as tl_loop_poll. Owns: tick stays the caller's. Thread: loop. Callback: forbidden. */
TL_API int tl_loop_tick(tl_tick *tick);

/* One tick with callbacks: wait as tl_loop_poll does, then call the callback of each event.
   Returns: the number of events, or -errno. Thread: loop. Callback: forbidden. */
TL_API int tl_loop_step(tl_loop *loop, int64_t timeout_ns);

/* Step until tl_loop_stop is called or no handle is left.
   Returns: 0, or -errno of a failed wait. Thread: loop. Callback: forbidden. */
TL_API int tl_loop_run(tl_loop *loop);

/* Let tl_loop_run return after the present event; if none runs, the next one returns at once.
   Returns: 0. Thread: loop. */
TL_API int tl_loop_stop(tl_loop *loop);

/* Wake the loop: its present or next wait ends and TL_EV_WAKE is delivered. Calls before that
   event are one. No system call is made when the loop is awake or already woken.
   Returns: 0, or -errno when the pipe fails. Thread: any, signal-safe. */
TL_API int tl_loop_wake(tl_loop *loop);

/* Callback of TL_EV_WAKE and of TL_EV_SIGNAL with handle 0, for tl_loop_run.
   Returns: 0. Thread: loop. */
TL_API int tl_loop_on_wake(tl_loop *loop, tl_event_cb callback, void *user);

/* The write end of the loop's wake pipe, non-blocking, for foreign signal handlers (Python's
   signal.set_wakeup_fd): each byte written wakes the loop; a byte that is not zero comes as
   TL_EV_SIGNAL with handle 0 and the byte as result.
   Returns: the descriptor. Owns: the loop; changes with tl_loop_after_fork. Thread: loop. */
TL_API int tl_loop_wake_fd(const tl_loop *loop);

/* In the child of a fork: drop the poll set and the wake pipe that are shared with the parent. A
   new poll set is made with the next wait, so this is cheap for loops that the child never uses.
   Returns: 0, or -errno when there is no new pipe (the next wait tries again). Thread: the forking
   one. Callback: allowed. */
TL_API int tl_loop_after_fork(tl_loop *loop);

/* The loop's clock in nanoseconds, as of the last wait; what timers are relative to.
   Returns: nanoseconds. Thread: loop. */
TL_API int64_t tl_loop_now(const tl_loop *loop);

/* Read the clock again, for callbacks that run long.
   Returns: nanoseconds. Thread: loop. */
TL_API int64_t tl_loop_update_now(tl_loop *loop);

/* For embedding: how long a foreign main loop may sleep, on tl_loop_fd, before it must step this
   one. Ask right before sleeping, or after each step: from now on tl_loop_wake makes tl_loop_fd
   readable, and so does reading that is resumed where bytes wait. Timers started meanwhile do not.
   Returns: nanoseconds; 0 something is due, -1 nothing is planned. Thread: loop. */
TL_API int64_t tl_loop_timeout(tl_loop *loop);

/* For embedding: a descriptor that is readable when the kernel has events for the loop.
   Returns: it, or -ENOSYS when the backend has none. Owns: the loop. Thread: loop. */
TL_API int tl_loop_fd(const tl_loop *loop);

/* Name of the backend in use.
   Returns: a static string. Thread: any. */
TL_API const char *tl_loop_backend(const tl_loop *loop);

/* What the backend in use can do.
   Returns: a mask of TL_CAP_*. Thread: any. */
TL_API int tl_loop_caps(const tl_loop *loop);

/* Begin of the arena that event offsets count from, a page's boundary; it never moves.
   Returns: the arena. Owns: the loop. Thread: loop. */
TL_API void *tl_loop_arena(const tl_loop *loop);

/* Returns: size of the arena in bytes. Thread: loop. */
TL_API int64_t tl_loop_arena_bytes(const tl_loop *loop);

/* Copy the counters to *stats.
   Returns: 0. Thread: loop. */
TL_API int tl_loop_stats(const tl_loop *loop, tl_stats *stats);

/* The received bytes of a TL_EV_DATA or TL_EV_DATAGRAM event.
   Returns: pointer into the arena. Owns: the loop, until the next tick. Thread: loop. */
TL_API const void *tl_event_data(const tl_loop *loop, const tl_event *event);

/* The sender of a TL_EV_DATAGRAM event, the peer of a TL_EV_ACCEPT event; nbytes 0 when it has no
   name. The address lies in the arena in front of event->offset.
   Returns: pointer into the arena. Owns: the loop, until the next tick. Thread: loop. */
TL_API const tl_addr *tl_event_addr(const tl_loop *loop, const tl_event *event);

/* Allocate and free one block of that many bytes. glibc answers by keeping blocks up to that size
   on its heap instead of mapping and unmapping each (its dynamic mmap threshold), which makes
   receiving into fresh buffers of 128 KiB and more several times cheaper. Process-wide effect.
   Returns: 0 or -ENOMEM. Thread: any. */
TL_API int tl_prime_malloc(size_t nbytes);

/* @api end */

/* @api begin handle */

/* Close any handle now: pending writes are dropped, the descriptor is closed unless TL_KEEP_FD.
   Closing again is harmless until TL_EV_CLOSED was delivered. For streams see tl_stream_close.
   Returns: 0 or TL_EBADH. Thread: loop. */
TL_API int tl_close(tl_loop *loop, tl_handle handle);

/* Set who receives the handle's events in tl_loop_run; NULL: nobody.
   Returns: 0 or TL_EBADH. Thread: loop. */
TL_API int tl_set_callback(tl_loop *loop, tl_handle handle, tl_event_cb callback, void *user);

/* The user pointer given to tl_set_callback.
   Returns: it, or NULL. Thread: loop. */
TL_API void *tl_user(const tl_loop *loop, tl_handle handle);

/* The handle's descriptor.
   Returns: it, TL_EBADH, or TL_EKIND for a handle without one. Owns: unchanged. Thread: loop. */
TL_API int tl_fd(const tl_loop *loop, tl_handle handle);

/* From now on closing the handle leaves its descriptor open, as if made with TL_KEEP_FD.
   Returns: the descriptor, TL_EBADH or TL_EKIND. Owns: the caller. Thread: loop. */
TL_API int tl_release_fd(tl_loop *loop, tl_handle handle);

/* @api end */

/* @api begin addr */

/* Set *addr from a numeric IPv4 or IPv6 address (also "fe80::1%eth0") and a port.
   Returns: 0, or -EINVAL when host is no numeric address or port is not 0..65535. Thread: any. */
TL_API int tl_addr_ip(tl_addr *addr, const char *host, int port);

/* Set *addr from the path of a Unix socket, nbytes long; a path that begins with a zero byte is
   a name in Linux' abstract namespace.
   Returns: 0, -EINVAL when empty, -ENAMETOOLONG over 107 bytes (108 abstract). Thread: any. */
TL_API int tl_addr_unix(tl_addr *addr, const char *path, size_t nbytes);

/* Set *addr from a struct sockaddr of nbytes.
   Returns: 0 or -EINVAL when it is too long. Thread: any. */
TL_API int tl_addr_raw(tl_addr *addr, const void *sockaddr, size_t nbytes);

/* Write addr as text: "127.0.0.1:80", "[::1]:80", "/path", "@abstract", "" for none.
   Returns: length without the final zero, or -ENOSPC. Thread: any. */
TL_API int tl_addr_text(const tl_addr *addr, char *out, size_t capacity);

/* The port of an IP address in host order.
   Returns: it, or -EAFNOSUPPORT. Thread: any. */
TL_API int tl_addr_port(const tl_addr *addr);

/* Local address of any socket handle.
   Returns: 0, TL_EBADH, TL_EKIND or -errno. Thread: loop. */
TL_API int tl_sockname(const tl_loop *loop, tl_handle handle, tl_addr *addr);

/* Address of a stream's or connected UDP socket's peer; known for accepted streams even after the
   peer has gone.
   Returns: 0, TL_EBADH, TL_EKIND or -errno. Thread: loop. */
TL_API int tl_peername(const tl_loop *loop, tl_handle handle, tl_addr *addr);

/* Both with one call, for bindings: names[0] as by tl_sockname if which has bit 1, names[1] as by
   tl_peername if it has bit 2; what is not asked for is left as it is.
   Returns: the bits of those that are, TL_EBADH or TL_EKIND. Thread: loop. */
TL_API int tl_names(const tl_loop *loop, tl_handle handle, int which, tl_addr names[2]);

/* @api end */

/* @api begin timer */

/* Make a timer. It does nothing before tl_timer_start.
   Returns: its handle, -ENOMEM or TL_ELIMIT. Thread: loop. */
TL_API tl_handle tl_timer_create(tl_loop *loop);

/* Fire after delay_ns, counted from tl_loop_now, then every repeat_ns (0: once). Never early. Equal
   deadlines fire in start order. A negative delay is due at once, before later deadlines; it still
   waits for the next tick. Periods do not drift; missed ones are one event. Starting again
   replaces.
   Returns: 0, TL_EBADH, TL_EKIND, -EINVAL for a negative repeat, -ENOMEM. Thread: loop. */
TL_API int tl_timer_start(tl_loop *loop, tl_handle timer, int64_t delay_ns, int64_t repeat_ns);

/* As tl_timer_start, but with a deadline on the clock of tl_loop_now.
   Returns: as tl_timer_start. Thread: loop. */
TL_API int tl_timer_start_at(tl_loop *loop, tl_handle timer, int64_t deadline_ns,
                             int64_t repeat_ns);

/* Do not fire, even if the event was already due. The timer can be started again.
   Returns: 1 if it was running, 0 if not, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_timer_stop(tl_loop *loop, tl_handle timer);

/* @api end */

/* @api begin poll */

/* Make a readiness handle for a descriptor that stays the caller's.
   Returns: its handle, -EBADF for a negative fd, -ENOMEM, TL_ELIMIT. Thread: loop. */
TL_API tl_handle tl_poll_create(tl_loop *loop, int fd);

/* Watch for TL_READ and/or TL_WRITE; 0 stops. Replaces what was watched before. Level-triggered:
   TL_EV_POLL comes with every tick while it holds. With TL_EDGE it comes when the state changes;
   read or write until EAGAIN, then call tl_poll_rearm unless the backend has TL_CAP_EDGE. TL_HUP
   and TL_ERR are reported unasked. May be called again after the descriptor was closed and its
   number reused.
   Returns: 0, TL_EBADH, TL_EKIND, -EINVAL, -EPERM (regular file), -EBADF (closed), -EEXIST
   (another handle of this loop watches the same descriptor). Thread: loop. */
TL_API int tl_poll_start(tl_loop *loop, tl_handle poll, int mask);

/* With TL_EDGE: the descriptor answered EAGAIN, report it again. Free on backends with
   TL_CAP_EDGE.
   Returns: 0, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_poll_rearm(tl_loop *loop, tl_handle poll, int mask);

/* @api end */

/* @api begin signal */

/* Deliver a signal as TL_EV_SIGNAL. Several loops, and several handles of one loop, may watch the
   same one. Signals that arrive together may be one event. The former disposition is restored when
   the last watcher closes.
   Returns: its handle, -EINVAL for a signal that cannot be caught, -ENOMEM, TL_ELIMIT.
   Thread: loop. */
TL_API tl_handle tl_signal_create(tl_loop *loop, int signo);

/* Watch a child process by pidfd and reap it: TL_EV_CHILD once.
   Returns: its handle, -ECHILD / -ESRCH when there is no such child, -ENOSYS on kernels before
   5.3, -ENOMEM, TL_ELIMIT. Thread: loop. */
TL_API tl_handle tl_child_watch(tl_loop *loop, int pid);

/* Send a signal to a watched child, and never to another process that got its number.
   Returns: 0 (also when it has ended and TL_EV_CHILD is still to come), -ESRCH when it was reaped,
   -EINVAL, -EPERM, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_child_signal(tl_loop *loop, tl_handle child, int signo);

/* What TL_EV_CHILD will tell or has told, without waiting for it: reaps the child if it has ended.
   Returns: the status as waitpid gives it, -EAGAIN while the child runs, -ECHILD when somebody else
   reaped it, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_child_status(tl_loop *loop, tl_handle child);

/* Block until a child has ended, and leave it to be reaped: for a thread, where tl_child_watch
   answers -ENOSYS or, in a sandbox, -EPERM.
   Returns: 0, -ECHILD when there is no such child. Thread: any. Callback: forbidden. */
TL_API int tl_child_wait(int pid);

/* @api end */

/* @api begin listener */

/* Bind, listen and accept. For Unix paths the file is not removed when the handle is closed.
   backlog <= 0: the system's maximum. flags: TL_REUSEPORT, TL_IPV6ONLY.
   TL_EV_ACCEPT delivers streams that do not read yet. When descriptors or memory run out,
   the event carries -EMFILE, -ENFILE, -ENOBUFS or -ENOMEM and accepting goes on after one second.
   Returns: its handle, -EADDRINUSE, -EACCES, other -errno, -ENOMEM, TL_ELIMIT. Thread: loop. */
TL_API tl_handle tl_listener_bind(tl_loop *loop, const tl_addr *addr, int backlog, int flags);

/* The same on a socket that listens already. flags: TL_KEEP_FD.
   Returns: its handle, -EBADF, -errno, -ENOMEM, TL_ELIMIT. On failure fd stays the caller's.
   Owns: the handle owns fd unless TL_KEEP_FD. Thread: loop. */
TL_API tl_handle tl_listener_open(tl_loop *loop, int fd, int flags);

/* @api end */

/* @api begin stream */

/* Adopt a connected stream: socket, pipe end or terminal. Makes it non-blocking. Reads nothing
   yet. flags: TL_KEEP_FD.
   Returns: its handle, -EBADF, -EINVAL for a regular file or directory, -ENOMEM, TL_ELIMIT. On
   failure fd stays the caller's. Owns: the handle owns fd unless TL_KEEP_FD. Thread: loop. */
TL_API tl_handle tl_stream_open(tl_loop *loop, int fd, int flags);

/* Connect to a TCP or Unix address; TL_EV_CONNECT tells the outcome. TCP_NODELAY is set.
   Returns: its handle, -errno for what fails at once, -ENOMEM, TL_ELIMIT. Thread: loop. */
TL_API tl_handle tl_stream_connect(tl_loop *loop, const tl_addr *addr);

/* Receive into the arena: TL_EV_DATA, then TL_EV_EOF or TL_EV_ERROR, once.
   Returns: 0, TL_EBADH, TL_EKIND, -ENOTCONN while connecting, -errno. Thread: loop. */
TL_API int tl_stream_read_start(tl_loop *loop, tl_handle stream);

/* As tl_stream_read_start for small receives, as tl_stream_read_notify for large ones: once large
   bytes or more came at a time, until tl_stream_recv gives less than a quarter of that, or
   tl_stream_received tells of less. For hosts that copy: large receives that lie in the arena
   together drive each other out of the cache.
   Returns: as tl_stream_read_start, -EINVAL for large < 1. Thread: loop. */
TL_API int tl_stream_read_mixed(tl_loop *loop, tl_handle stream, int64_t large);

/* Receive into the caller's memory: TL_EV_READABLE in every tick in which there is something, then
   call tl_stream_recv.
   Returns: as tl_stream_read_start. Thread: loop. */
TL_API int tl_stream_read_notify(tl_loop *loop, tl_handle stream);

/* Stop receiving; bytes stay in the kernel (but see IO_URING). After it tl_loop_run delivers no
   data of the stream.
   Returns: 0, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_stream_read_stop(tl_loop *loop, tl_handle stream);

/* Receive up to nbytes now into the caller's memory.
   Returns: bytes, 0 at end of file, -EAGAIN when there is nothing, other -errno when the stream
   is broken, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int64_t tl_stream_recv(tl_loop *loop, tl_handle stream, void *buffer, size_t nbytes);

/* Tell what the host has received by itself from the descriptor (tl_fd), after TL_EV_READABLE:
   nbytes of the asked, 0 at end of file, or -errno.
   Returns: 0, -EOPNOTSUPP with TLS or without TL_CAP_RECEIVED, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_stream_received(tl_loop *loop, tl_handle stream, int64_t nbytes, size_t asked);

/* Send: at once what the kernel takes, the rest is copied into a queue and sent when it can be.
   Returns: bytes now in the queue (0: all sent), -errno when the stream is broken (the first time
   also when queued bytes were lost), -EPIPE after tl_stream_shutdown, -ENOTCONN while connecting,
   -ENOMEM (then broken too: part may be sent), TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int64_t tl_stream_write(tl_loop *loop, tl_handle stream, const void *data, size_t nbytes);

/* Send count buffers in order, as one tl_stream_write of their concatenation.
   Returns: as tl_stream_write, -EINVAL for count < 0. Thread: loop. */
TL_API int64_t tl_stream_writev(tl_loop *loop, tl_handle stream, const tl_buf *bufs, int count);

/* Many writes with one call, for bindings where a call is dear: rows holds count handles, then
   count lengths; data holds the bytes of all, one behind the other. Rows of one handle that follow
   each other are one write. Each length is replaced by what tl_stream_write answers, 0 in such rows
   but the last.
   Returns: how many answers are not 0, -EINVAL for count < 0. Thread: loop. */
TL_API int tl_stream_write_batch(tl_loop *loop, int64_t *rows, int count, const void *data);

/* Bytes in the queue of a stream or UDP handle. A datagram counts TL_DATAGRAM_HEADER more than it
   has, so that empty ones are bounded, too.
   Returns: bytes, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int64_t tl_queued(const tl_loop *loop, tl_handle handle);

/* TL_EV_DRAIN comes when the queue, having been above high, has fallen to low or below, and each
   time it becomes empty after having held something. Default 64 KiB and 16 KiB.
   Returns: 0, -EINVAL unless 0 <= low <= high, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_watermarks(tl_loop *loop, tl_handle handle, int64_t high, int64_t low);

/* Drop what is in the queue of a stream or UDP handle; no TL_EV_DRAIN comes for it.
   Returns: what tl_queued would have said, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int64_t tl_discard(tl_loop *loop, tl_handle handle);

/* Half-close: after the queue is sent, tell the peer that no more comes. Reading goes on.
   Returns: 0, -errno, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_stream_shutdown(tl_loop *loop, tl_handle stream);

/* Close gracefully: stop reading, send the queue, then close; only TL_EV_CLOSED follows.
   Returns: 0, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_stream_close(tl_loop *loop, tl_handle stream);

/* @api end */

/* @api begin udp */

/* What a queued datagram counts besides its bytes; as asyncio's. */
enum { TL_DATAGRAM_HEADER = 8 };

/* Make a datagram socket bound to addr (IP or Unix). flags: TL_REUSEPORT, TL_IPV6ONLY,
   TL_BROADCAST.
   Returns: its handle, -errno, -ENOMEM, TL_ELIMIT. Thread: loop. */
TL_API tl_handle tl_udp_bind(tl_loop *loop, const tl_addr *addr, int flags);

/* Adopt a datagram socket of any family. flags: TL_KEEP_FD.
   Returns: its handle, -EBADF, -errno, -ENOMEM, TL_ELIMIT. On failure fd stays the caller's.
   Owns: the handle owns fd unless TL_KEEP_FD. Thread: loop. */
TL_API tl_handle tl_udp_open(tl_loop *loop, int fd, int flags);

/* Set the peer of sends without address; only its datagrams are received.
   Returns: 0, -errno, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_udp_connect(tl_loop *loop, tl_handle udp, const tl_addr *addr);

/* Receive datagrams, up to 64 per tick: TL_EV_DATAGRAM; failures (ICMP errors): TL_EV_ERROR,
   receiving goes on.
   Returns: 0, -errno, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_udp_read_start(tl_loop *loop, tl_handle udp);

/* Stop receiving. Datagrams of a batch that was already received are still delivered.
   Returns: 0, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_udp_read_stop(tl_loop *loop, tl_handle udp);

/* Send one datagram, empty ones too; addr NULL: the connected peer. When the kernel has no room it
   is copied and sent later, in order; a later failure comes as TL_EV_ERROR.
   Returns: bytes now in the queue (0: sent), -EMSGSIZE, -EDESTADDRREQ, other -errno (nothing was
   queued; an ICMP error of an earlier datagram may show here), TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int64_t tl_udp_send(tl_loop *loop, tl_handle udp, const void *data, size_t nbytes,
                           const tl_addr *addr);

/* Send many datagrams with few system calls, as tl_udp_send one after the other.
   Returns: how many were sent or queued; the first one's -errno when that is none.
   Thread: loop. */
TL_API int tl_udp_send_batch(tl_loop *loop, tl_handle udp, const tl_datagram *items, int count);

/* The same for bindings where a call is dear, and without an end at the first failure: rows holds
   count lengths, then count addresses of a tl_addr as numbers, 0 for the connected peer; data holds
   the bytes of all, one behind the other. Each length is replaced by 0, or by the error for which
   that datagram was not sent.
   Returns: how many were not sent, -EINVAL for count < 0. Thread: loop. */
TL_API int tl_udp_send_rows(tl_loop *loop, tl_handle udp, int64_t *rows, int count,
                            const void *data);

/* @api end */

/* @api begin dummy */

/* Dummy backend only: let a descriptor number be ready in the next tick. mask: TL_READ | TL_WRITE.
   Returns: 0, -ENOTSUP on other backends, -ENOMEM. Thread: loop. */
TL_API int tl_dummy_ready(tl_loop *loop, int fd, int mask);

/* @api end */

#ifdef __cplusplus
}
#endif

#endif /* TLOOP_H */

#ifdef TLOOP_IMPLEMENTATION
#ifndef TLOOP_IMPLEMENTATION_ONCE
#define TLOOP_IMPLEMENTATION_ONCE

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// >>config

#if defined(__GLIBC__) && !defined(__USE_GNU)
#error "tloop: include tloop.h before any system header, or define _GNU_SOURCE"
#endif

#if defined(__linux__)
#define TL__SUPPORT_EPOLL 1
#include <sys/prctl.h>
#endif
#if defined(TL__SUPPORT_EPOLL) && !defined(TL_NO_EPOLL)
#define TL__HAS_EPOLL 1
#include <sys/epoll.h>
#endif
/* Headers that know DEFER_TASKRUN (6.1) know all that is used here. */
#if defined(TL__HAS_EPOLL) && !defined(TL_NO_IO_URING) && defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <linux/time_types.h>
#if defined(IORING_SETUP_DEFER_TASKRUN) && defined(SYS_io_uring_setup)
#define TL__HAS_URING 1
#include <sys/mman.h>
#endif
#endif
#endif
#ifndef TL_NO_POLL
#define TL__HAS_POLL 1
#endif
#ifndef TL_NO_DUMMY
#define TL__HAS_DUMMY 1
#endif
#if !defined(TL__HAS_EPOLL) && !defined(TL__HAS_POLL) && !defined(TL__HAS_DUMMY)
#error "tloop: every backend is switched off; leave one of epoll, poll, dummy"
#endif

#if (defined(TL_MALLOC) + defined(TL_REALLOC) + defined(TL_FREE)) % 3
#error "tloop: define TL_MALLOC, TL_REALLOC and TL_FREE, or none of them"
#endif
#ifndef TL_MALLOC
#define TL_MALLOC(n) malloc(n)
#define TL_REALLOC(p, n) realloc(p, n)
#define TL_FREE(p) free(p)
#endif
#ifndef TL_ASSERT
#define TL_ASSERT(x) ((void)0)
#endif
#ifndef TL_ARENA_BYTES
#define TL_ARENA_BYTES 524288
#endif
#ifndef TL_CHUNK_BYTES
#define TL_CHUNK_BYTES 16384
#endif

enum {
  TL__READY_MAX = 256,   /* kernel events taken per tick */
  TL__ACCEPT_MAX = 64,   /* accepts per listener and tick */
  TL__DGRAM_MAX = 64,    /* datagrams received per tick and sent per system call */
  TL__IOV_MAX = 64,      /* blocks per vectored send */
  TL__SPARE_CHUNKS = 64, /* free write blocks kept per loop: 1 MiB */
  TL__SIGNALS = 65,      /* signal numbers are 1..64 on Linux */
  TL__WAKE_BYTES = 256,  /* wake pipe bytes read per tick */
  TL__ROWS_MAX = 64,     /* sends per io_uring_enter */
  TL__REQUESTS = 128,    /* room for requests to the ring */
  TL__TRIES = 100,       /* milliseconds that a request may take to end */
  TL__BUFFERS = 64,      /* blocks that the ring receives into: 1 MiB; a power of 2 */
  TL__PEER_BYTES = 28,   /* sizeof(struct sockaddr_in6) */
  TL__PAGE = 4096,       /* of memory, at least */
  TL__MIN_ROOM = 65536,  /* a stream with less arena than this waits for the next tick */
  /* 64 KiB payload is the IP limit. Not a multiple of 4096: at equal distances of a power of two
     the headers of all slots would fall into the same cache sets. */
  TL__DGRAM_BYTES = 65536,
  TL__DGRAM_STRIDE = TL_ADDR_BYTES + TL__DGRAM_BYTES + 56
};

#define TL__ACCEPT_PAUSE_NS INT64_C(1000000000) /* as asyncio's ACCEPT_RETRY_DELAY */
#define TL__POOL_BYTES (TL__BUFFERS * sizeof(struct io_uring_buf))
#define TL__RETRY_NS INT64_C(1000000)

// >>types

/* What the io_uring backend can do by completions. */
enum { TL__OP_ACCEPT = 1, TL__OP_RECV = 2, TL__OP_SEND = 4 };
enum { TL__NOT_SENT = INT_MIN }; /* in place of a result: the ring has not tried */

enum tl__kind { TL__TIMER = 1, TL__POLL, TL__SIGNAL, TL__CHILD, TL__LISTENER, TL__STREAM, TL__UDP };

/* Every handle's object begins with this. */
typedef struct tl__head {
  tl_handle id;
  tl_event_cb callback;
  void *user;
  struct tl__head *next_closing;
  int close_result;
  uint8_t kind;
  bool closing;
} tl__head;

/* An entry of the timer heap; the owner is a timer, a listener or UDP handle that pauses, or a
   stream with a layer. */
typedef struct tl__node {
  tl__head *owner;
  size_t heap_pos; /* 1 + index in the heap, 0: not there */
} tl__node;

typedef struct tl__heap_entry {
  int64_t deadline_ns;
  uint64_t seq; /* equal deadlines: start order */
  tl__node *node;
} tl__heap_entry;

typedef struct tl__timer {
  tl__head head;
  tl__node node;
  int64_t repeat_ns;
  int64_t due_ns;                        /* deadline of the expiry that waits for delivery */
  struct tl__timer *due_prev, *due_next; /* in loop->due; due_prev == self: not there */
} tl__timer;

typedef struct tl__link {
  struct tl__link *prev, *next; /* a ring; alone: itself */
} tl__link;

/* Every kind with a descriptor begins with this. */
typedef struct tl__io {
  tl__head head;
  int fd;
  uint8_t want;   /* TL_READ | TL_WRITE | TL_EDGE that the handle needs now */
  uint8_t flags;  /* TL_KEEP_FD */
  uint8_t ready;  /* what is known to be there: edges that EAGAIN has not taken back, completions */
  bool by_ring;   /* the backend receives or accepts by itself; TL_READ is not watched */
  bool asked;     /* by_ring: the kernel has the request, and holds the file */
  tl__link again; /* in loop->again or loop->rereads */
} tl__io;

/* Write queue accounting, shared by streams and UDP. */
typedef struct tl__flow {
  int64_t queued, high, low;
  bool above; /* has been over high, not yet back at low */
} tl__flow;

typedef struct tl__chunk {
  struct tl__chunk *next;
  uint32_t begin, end;
  unsigned char data[];
} tl__chunk;

enum { TL__CHUNK_ROOM = TL_CHUNK_BYTES - (int)sizeof(tl__chunk) };

typedef struct tl__layer tl__layer;

typedef struct tl__stream {
  tl__io io;
  tl__flow flow;
  tl__chunk *first, *last;
  tl__layer *layer;    /* what lies between the stream's bytes and the descriptor's, or NULL */
  int error;           /* why it is broken, or 0 */
  int end;             /* by_ring: what came behind received: 0 or -errno; 1: nothing yet */
  tl__chunk *received; /* by_ring: last of a ring of blocks with what has come, or NULL */
  int64_t large;       /* reading is mixed: see tl_stream_read_mixed; or INT64_MAX */
  bool edge, end_near; /* end_near: half-closed or urgent data, so a short read proves nothing */
  bool is_socket, connecting, notify, shut, finishing;
  bool reading;  /* what the user wants; want has it too, unless the layer reads for itself */
  bool internal; /* the layer talks to the peer for itself: events are its own */
  bool batched;  /* part of the batch that is being sent */
  bool graceful; /* tl_stream_close was called: its outcome is told */
  uint8_t peer_bytes;
  unsigned char peer[TL__PEER_BYTES]; /* kept: getpeername fails once the peer has reset */
} tl__stream;

/* The functions of a layer (TLS) take the place of the stream's own. Bytes for the descriptor go
   through the stream's write queue. A layer that holds bytes back sets TL_READ in ready, and input
   is called again in the next tick.
   begin    the descriptor is connected: 0, or a negative error
   input    the descriptor may be readable, or ready says so; may make one event
   recv, write, shutdown, close   as tl_stream_recv and so on
   emptied  the write queue is empty now
   cut      what was queued is dropped: nothing may follow it
   due      the deadline of a tl__node that the stream owns
   free     the stream closes */
typedef struct tl__layer_ops {
  int (*begin)(tl_loop *loop, tl__stream *s);
  bool (*input)(tl_loop *loop, tl__stream *s, tl_event *ev);
  int64_t (*recv)(tl_loop *loop, tl__stream *s, void *buffer, size_t nbytes);
  int64_t (*write)(tl_loop *loop, tl__stream *s, const tl_buf *bufs, int count);
  int (*shutdown)(tl_loop *loop, tl__stream *s);
  int (*close)(tl_loop *loop, tl__stream *s);
  void (*emptied)(tl_loop *loop, tl__stream *s);
  void (*cut)(tl__stream *s);
  void (*due)(tl_loop *loop, tl__stream *s);
  void (*free)(tl_loop *loop, tl__stream *s);
} tl__layer_ops;

struct tl__layer {
  const tl__layer_ops *ops;
};

typedef struct tl__packet {
  struct tl__packet *next;
  tl_addr addr;
  size_t nbytes;
  unsigned char data[];
} tl__packet;

typedef struct tl__udp {
  tl__io io;
  tl__flow flow;
  tl__packet *first, *last;
  int family;
  tl__node pause; /* Unix: waits for the receiver by time */
  int burst; /* datagrams to ask for next: as many as came, doubled; preparing slots costs time */
} tl__udp;

typedef struct tl__listener {
  tl__io io;
  tl__node pause;
  int accepted; /* in this tick */
  bool is_tcp;
  bool lost; /* by_ring: there was no memory to keep an accepted descriptor */
  int *fds;  /* by_ring: accepted descriptors and -errno, from fd_next to fd_count */
  size_t fd_next, fd_count, fd_capacity;
} tl__listener;

typedef struct tl__signal {
  tl__head head;
  tl_loop *loop;
  struct tl__signal *next_in_table; /* guarded by the table's lock */
  struct tl__signal *next_in_loop;
  int signo;
  bool pending;
} tl__signal;

typedef struct tl__child {
  tl__io io;
  pid_t pid;  /* 0: reaped, the number may be another process */
  int status; /* of a reaped child, or -errno */
} tl__child;

typedef struct tl__slot {
  tl__head *head; /* NULL: free */
  uint32_t generation;
  uint32_t next_free;
} tl__slot;

/* What the backend watches for one descriptor: the only record of it. */
typedef struct tl__reg {
  tl_handle owner;
  uint32_t index; /* poll backend: where in its array */
  uint8_t mask;   /* 0: nothing */
} tl__reg;

typedef struct tl__ready {
  tl_handle id;
  uint32_t mask;
} tl__ready;

/* One send of a batch. */
typedef struct tl__row {
  tl_handle id;
  tl__stream *stream; /* NULL: not to be sent by the ring */
  const unsigned char *data;
  size_t nbytes;
  int64_t *answer;
  int sent; /* bytes, -errno or TL__NOT_SENT */
} tl__row;

/* A way to wait for the kernel. All functions return 0 or -errno.
   open   make the poll set and watch loop->wake_rd (reported through tl__report with id 0)
   close  undo open; also after a failed open
   ctl    change what is watched for fd from old to mask (0: nothing); reports carry id. Must answer
          -EEXIST to old == 0 if the kernel watches fd already, -ENOENT to old != 0 if it does not
   wait   block for timeout_ns (< 0: for ever) and tl__report each ready descriptor; EINTR is 0
   fd     descriptor for embedding, or -ENOSYS
   flush  before a host sleeps on fd: let the kernel know everything. NULL: it does
   These belong to operations of the ring, and are NULL elsewhere:
   start  accept or receive for a handle that is by_ring
   stop   take that back; afterwards the kernel does not hold the file
   send   try to send what has a stream, and set sent: see tl_stream_write_batch */
typedef struct tl__backend {
  const char *name;
  int caps;
  int (*open)(tl_loop *loop);
  void (*close)(tl_loop *loop);
  int (*ctl)(tl_loop *loop, int fd, tl_handle id, int old, int mask);
  int (*wait)(tl_loop *loop, int64_t timeout_ns);
  int (*fd)(const tl_loop *loop);
  int (*flush)(tl_loop *loop);
  void (*start)(tl_loop *loop, tl__io *io);
  void (*stop)(tl_loop *loop, tl__io *io);
  void (*send)(tl_loop *loop, tl__row *rows, int count);
} tl__backend;

#ifdef TL__HAS_URING
/* A ring, and where its parts are mapped. The kernel moves sq_head and cq_tail, we the others. */
typedef struct tl__uring {
  int fd;          /* -1: there is none */
  bool set_polled; /* a request to poll the epoll set is under way */
  bool ending;     /* nothing may be started any more */
  uint8_t ops;     /* TL__OP_*: what is not left to readiness */
  uint32_t sq_mask, cq_mask;
  atomic_uint *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail;
  struct io_uring_sqe *sqes;
  struct io_uring_cqe *cqes;
  void *rings;
  size_t rings_nbytes, sqes_nbytes;
  struct io_uring_buf_ring *pool; /* buffers to receive into; blocks[i] is NULL when i is used up */
  tl__chunk *blocks[TL__BUFFERS];
  uint16_t pool_tail;
  int used_up;
  tl__row *rows; /* the batch that is being sent; rows_left are to be answered */
  int rows_left;
} tl__uring;
#endif

/* Received datagrams that are not delivered yet. */
typedef struct tl__batch {
  tl_handle id;
  int first, next, end; /* slots */
} tl__batch;

struct tl_loop {
  const tl__backend *backend;
  tl_allocator memory;
  int64_t now_ns;
  int64_t slack_ns; /* of waits by epoll and poll; see tl__wait_time */
  int64_t wait_until_ns;

  tl__slot *slots;
  uint32_t slot_count, slot_capacity, free_slot;
  tl__reg *regs;
  int reg_capacity;

  tl__ready ready[TL__READY_MAX];
  int ready_count, ready_next;
  tl__link again;    /* edge streams with something left to do, in the next tick */
  tl__link rereads;  /* the same, in this tick */
  tl__head *closing; /* closed since the last tick began */
  tl__head *closed;  /* to be reported in this tick */
  tl__head *reap;    /* reported; freed with the next event */
  tl__head *buried;  /* closed since the last tick began, and not to be reported */

  tl__heap_entry *heap;
  size_t heap_count, heap_capacity, due_count;
  uint64_t timer_seq;
  tl__timer *due_first, *due_last;

  unsigned char *arena;
  void *arena_block; /* the allocation that it lies in */
  size_t arena_used;
  int dgram_used;
  tl__batch batch;
  struct mmsghdr *headers; /* TL__DGRAM_MAX, made with the first UDP handle */
  struct iovec *vectors;
  tl__chunk *spare;
  int spare_count;
  void *layer_memory; /* shared by the layers of all streams; made by the first */

  int wake_rd, wake_wr;
  atomic_int wake_pending; /* tl_loop_wake since the last TL_EV_WAKE */
  atomic_int sleeping;     /* the loop is in, or about to enter, a wait that must be interrupted */
  atomic_ullong signals_pending;
  tl__signal *signals;
  unsigned char wake_bytes[TL__WAKE_BYTES];
  int wake_count, wake_next;
  bool wake_event;
  tl_event_cb wake_callback;
  void *wake_user;

  bool stopping, rebuild, forked, no_pwait2, no_nosignal, ended, quiet_close;
  int epoll_fd;
#ifdef TL__HAS_URING
  tl__uring uring;
#endif
  struct pollfd *pollfds; /* poll backend; [0] is the wake pipe */
  tl_handle *poll_ids;
  size_t poll_count, poll_capacity, poll_start;
  tl__ready *script; /* dummy backend: id is a descriptor */
  size_t script_count, script_capacity;
  tl_stats stats;
};

_Static_assert(sizeof(tl_event) == 32, "bindings read events as four 64-bit integers");
_Static_assert(sizeof(tl_addr) == TL_ADDR_BYTES, "TL_ADDR_BYTES");
_Static_assert(TL_ARENA_BYTES >= TL__MIN_ROOM, "TL_ARENA_BYTES must be at least 65536");
_Static_assert(TL_ARENA_BYTES % 64 == 0, "TL_ARENA_BYTES must be a multiple of 64");
_Static_assert(TL_CHUNK_BYTES >= 1024, "TL_CHUNK_BYTES must be at least 1024");

// >>memory

static void *tl__default_alloc(void *user, size_t nbytes) {
  (void)user;
  return TL_MALLOC(nbytes);
}

static void *tl__default_realloc(void *user, void *ptr, size_t nbytes) {
  (void)user;
  return TL_REALLOC(ptr, nbytes);
}

static void tl__default_free(void *user, void *ptr) {
  (void)user;
  TL_FREE(ptr);
}

static void *tl__alloc(tl_loop *loop, size_t nbytes) {
  return loop->memory.alloc_fn(loop->memory.user, nbytes);
}

static void tl__free(tl_loop *loop, void *ptr) {
  if (ptr) loop->memory.free_fn(loop->memory.user, ptr);
}

/* Grow a table to at least needed items, doubling. False, table untouched, without memory. */
static bool tl__grow(tl_loop *loop, void **table, size_t *capacity, size_t needed, size_t item) {
  if (needed <= *capacity) return true;
  size_t n = *capacity ? *capacity : 16;
  while (n < needed) n *= 2;
  void *p = *table ? loop->memory.realloc_fn(loop->memory.user, *table, n * item)
                   : tl__alloc(loop, n * item);
  if (!p) return false;
  *table = p;
  *capacity = n;
  return true;
}

/* Blocks of write queues and of what the ring receives, from a small pool: a steady stream
   allocates nothing. */
static tl__chunk *tl__chunk_new(tl_loop *loop) {
  tl__chunk *chunk = loop->spare;
  if (chunk) {
    loop->spare = chunk->next;
    loop->spare_count--;
  } else {
    chunk = tl__alloc(loop, TL_CHUNK_BYTES);
  }
  if (chunk) *chunk = (tl__chunk){NULL, 0, 0};
  return chunk;
}

static void tl__chunk_free(tl_loop *loop, tl__chunk *chunk) {
  if (loop->spare_count >= TL__SPARE_CHUNKS) {
    tl__free(loop, chunk);
    return;
  }
  chunk->next = loop->spare;
  loop->spare = chunk;
  loop->spare_count++;
}

TL_API int tl_prime_malloc(size_t nbytes) {
  volatile unsigned char *block = (volatile unsigned char *)malloc(nbytes ? nbytes : 1);
  if (!block) return -ENOMEM;
  block[0] = 1; /* an unused malloc/free pair would be optimised away */
  free((void *)(uintptr_t)block);
  return 0;
}

// >>errors

TL_API const char *tl_version(void) { return TL_VERSION; }

#ifdef TL__HAS_TLS
static const char *tl__tls_strerror(int64_t code);
#endif

TL_API const char *tl_strerror(int64_t code) {
  switch (code) {
    case TL_EBADH: return "handle is closed or was never open";
    case TL_EKIND: return "handle is of another kind";
    case TL_EBACKEND: return "no such backend";
    case TL_ELIMIT: return "too many handles";
    default: break;
  }
  if (code >= 0) return "success";
#ifdef TL__HAS_TLS
  if (code <= TL_ETLS) return tl__tls_strerror(code);
#endif
  return code < -4095 ? "unknown error" : strerror((int)-code);
}

// >>slots

/* 16 bits of the slot's number, 31 of its generation, and the other 15 of the number: as long as
   there are few slots and they were not used often, handles are small integers, which Python makes,
   passes and looks up with fewer instructions: 440 of 17,900 per echo. */
static tl_handle tl__name(uint32_t index, uint32_t generation) {
  uint64_t high = index >> 16;
  return (tl_handle)(high << 47 | (uint64_t)generation << 16 | (index & 0xffff));
}

static uint32_t tl__index(tl_handle id) {
  uint64_t bits = (uint64_t)id;
  return (uint32_t)(bits >> 47 << 16 | (bits & 0xffff));
}

static tl__head *tl__get(const tl_loop *loop, tl_handle id) {
  uint32_t index = tl__index(id);
  if (id <= 0 || index >= loop->slot_count) return NULL;
  tl__head *head = loop->slots[index].head;
  return head && head->id == id ? head : NULL;
}

/* The open handle of that kind, or NULL with the reason in *error. */
static void *tl__open(const tl_loop *loop, tl_handle id, int kind, int *error) {
  tl__head *head = tl__get(loop, id);
  if (!head || head->closing) {
    *error = TL_EBADH;
    return NULL;
  }
  if (head->kind != kind) {
    *error = TL_EKIND;
    return NULL;
  }
  return head;
}

static tl__io *tl__open_io(const tl_loop *loop, tl_handle id, int *error) {
  tl__head *head = tl__get(loop, id);
  *error = TL_EBADH;
  if (!head || head->closing) return NULL;
  *error = TL_EKIND;
  return head->kind == TL__TIMER || head->kind == TL__SIGNAL ? NULL : (tl__io *)head;
}

/* The accounting of a handle with a write queue. */
static tl__flow *tl__open_flow(const tl_loop *loop, tl_handle id, int *error) {
  tl__io *io = tl__open_io(loop, id, error);
  if (io && io->head.kind == TL__STREAM) return &((tl__stream *)io)->flow;
  if (io && io->head.kind == TL__UDP) return &((tl__udp *)io)->flow;
  return NULL;
}

static bool tl__take_slot(tl_loop *loop, uint32_t *index) {
  if (loop->free_slot != UINT32_MAX) {
    *index = loop->free_slot;
    loop->free_slot = loop->slots[*index].next_free;
    return true;
  }
  size_t capacity = loop->slot_capacity;
  if (!tl__grow(loop, (void **)&loop->slots, &capacity, (size_t)loop->slot_count + 1,
                sizeof(tl__slot)))
    return false;
  loop->slot_capacity = (uint32_t)capacity;
  *index = loop->slot_count++;
  loop->slots[*index] = (tl__slot){NULL, 0, UINT32_MAX};
  return true;
}

/* A zeroed object with a handle, or NULL with the reason in *error. */
static void *tl__new(tl_loop *loop, size_t nbytes, int kind, int64_t *error) {
  uint32_t index;
  *error = -EBADF;
  if (loop->ended) return NULL;
  *error = TL_ELIMIT;
  if (loop->stats.live >= INT32_MAX) return NULL;
  *error = -ENOMEM;
  tl__head *head = tl__alloc(loop, nbytes);
  if (!head) return NULL;
  if (!tl__take_slot(loop, &index)) {
    tl__free(loop, head);
    return NULL;
  }
  tl__slot *slot = &loop->slots[index];
  slot->generation = slot->generation >= INT32_MAX ? 1 : slot->generation + 1;
  memset(head, 0, nbytes);
  head->id = tl__name(index, slot->generation);
  head->kind = (uint8_t)kind;
  slot->head = head;
  loop->stats.handles++;
  loop->stats.live++;
  return head;
}

static void tl__delete(tl_loop *loop, tl__head *head) {
  uint32_t index = tl__index(head->id);
  loop->slots[index].head = NULL;
  loop->slots[index].next_free = loop->free_slot;
  loop->free_slot = index;
  tl__free(loop, head);
}

/* For a constructor that fails after tl__new. */
static void tl__undo_new(tl_loop *loop, tl__head *head) {
  loop->stats.live--;
  tl__delete(loop, head);
}

// >>list

static void tl__unlink(tl__link *link) {
  link->prev->next = link->next;
  link->next->prev = link->prev;
  link->prev = link->next = link;
}

static bool tl__linked(const tl__link *link) { return link->next != link; }

static void tl__link_last(tl__link *ring, tl__link *link) {
  link->prev = ring->prev;
  link->next = ring;
  ring->prev->next = link;
  ring->prev = link;
}

static tl__io *tl__io_of(tl__link *link) {
  return (tl__io *)(void *)((char *)link - offsetof(tl__io, again));
}

// >>clock

static int64_t tl__clock(const tl_loop *loop) {
  struct timespec ts;
  if (loop->backend->caps & TL_CAP_VIRTUAL) return loop->now_ns;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int64_t tl__add_clamped(int64_t a, int64_t b) {
  if (b > 0 && a > INT64_MAX - b) return INT64_MAX;
  if (b < 0 && a < INT64_MIN - b) return INT64_MIN;
  return a + b;
}

TL_API int64_t tl_loop_now(const tl_loop *loop) { return loop->now_ns; }

TL_API int64_t tl_loop_update_now(tl_loop *loop) { return loop->now_ns = tl__clock(loop); }

#if defined(TL__HAS_EPOLL) || defined(TL__HAS_POLL)
/* The kernel lets a wait last longer by the thread's timer slack, 50 us as a rule, so that wake-ups
   coincide; and next to nothing else ends it sooner. So that much less is asked for (lateness of a
   timer, p50: 82 -> 32 us), and when the wait ends too soon, another one for the rest. */
static struct timespec tl__wait_time(const tl_loop *loop, int64_t ns) {
  if (ns > 0) ns = ns > loop->slack_ns ? ns - loop->slack_ns : 1;
  return (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
}

/* What is left of a wait that was begun with timeout_ns. */
static int64_t tl__wait_rest(const tl_loop *loop, int64_t timeout_ns) {
  return timeout_ns > 0 ? loop->wait_until_ns - tl__clock(loop) : 0;
}

static int64_t tl__timer_slack(void) {
#ifdef __linux__
  int slack_ns = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
  if (slack_ns > 0) return slack_ns;
#endif
  return 0;
}
#endif

#ifdef TL__HAS_EPOLL
/* The kernel's milliseconds, rounded up: a timer must never be early. */
static int tl__milliseconds(int64_t ns) {
  if (ns < 0) return -1;
  return ns > INT64_C(1000000) * (INT_MAX - 1) ? INT_MAX : (int)((ns + 999999) / 1000000);
}
#endif

// >>heap

/* A 4-ary heap: half the levels of a binary one, and four children share cache lines. */

static bool tl__before(const tl__heap_entry *a, const tl__heap_entry *b) {
  return a->deadline_ns != b->deadline_ns ? a->deadline_ns < b->deadline_ns : a->seq < b->seq;
}

static void tl__heap_put(tl_loop *loop, size_t i, tl__heap_entry entry) {
  loop->heap[i] = entry;
  entry.node->heap_pos = i + 1;
}

static void tl__heap_up(tl_loop *loop, size_t i, tl__heap_entry entry) {
  while (i > 0 && tl__before(&entry, &loop->heap[(i - 1) / 4])) {
    tl__heap_put(loop, i, loop->heap[(i - 1) / 4]);
    i = (i - 1) / 4;
  }
  tl__heap_put(loop, i, entry);
}

static void tl__heap_down(tl_loop *loop, size_t i, tl__heap_entry entry) {
  for (;;) {
    size_t child = 4 * i + 1, end = child + 4, least = child;
    if (child >= loop->heap_count) break;
    if (end > loop->heap_count) end = loop->heap_count;
    while (++child < end)
      if (tl__before(&loop->heap[child], &loop->heap[least])) least = child;
    if (!tl__before(&loop->heap[least], &entry)) break;
    tl__heap_put(loop, i, loop->heap[least]);
    i = least;
  }
  tl__heap_put(loop, i, entry);
}

static void tl__heap_remove(tl_loop *loop, tl__node *node) {
  if (!node->heap_pos) return;
  size_t i = node->heap_pos - 1;
  TL_ASSERT(loop->heap[i].node == node);
  node->heap_pos = 0;
  tl__heap_entry last = loop->heap[--loop->heap_count];
  if (i == loop->heap_count) return;
  if (i > 0 && tl__before(&last, &loop->heap[(i - 1) / 4]))
    tl__heap_up(loop, i, last);
  else
    tl__heap_down(loop, i, last);
}

/* Room is kept for every due timer too, so that a repeating one can always go back. */
static bool tl__heap_reserve(tl_loop *loop) {
  return tl__grow(loop, (void **)&loop->heap, &loop->heap_capacity,
                  loop->heap_count + loop->due_count + 1, sizeof(tl__heap_entry));
}

static int tl__heap_insert(tl_loop *loop, tl__node *node, int64_t deadline_ns) {
  if (!tl__heap_reserve(loop)) return -ENOMEM;
  tl__heap_up(loop, loop->heap_count++, (tl__heap_entry){deadline_ns, ++loop->timer_seq, node});
  return 0;
}

// >>registration

static void tl__report(tl_loop *loop, tl_handle id, uint32_t mask) {
  loop->ready[loop->ready_count++] = (tl__ready){id, mask};
}

static tl__reg *tl__reg_at(const tl_loop *loop, int fd) {
  if (fd < 0 || fd >= loop->reg_capacity) return NULL;
  return &loop->regs[fd]; /* NOLINT(*-security.ArrayBound): just checked */
}

/* Open descriptors are small numbers; any other must not grow the table. */
static int tl__reg_grow(tl_loop *loop, int fd) {
  if (fd < loop->reg_capacity) return 0;
  if (!(loop->backend->caps & TL_CAP_VIRTUAL) && fcntl(fd, F_GETFD) < 0) return -errno;
  size_t capacity = (size_t)loop->reg_capacity, old = capacity;
  if (!tl__grow(loop, (void **)&loop->regs, &capacity, (size_t)fd + 1, sizeof(tl__reg)))
    return -ENOMEM;
  memset(&loop->regs[old], 0, (capacity - old) * sizeof(tl__reg));
  loop->reg_capacity = (int)capacity;
  return 0;
}

static int tl__ctl(tl_loop *loop, int fd, tl_handle id, int old, int mask) {
  if (loop->forked) return 0; /* the rebuild before the next wait registers everything */
  loop->stats.syscalls++;
  return loop->backend->ctl(loop, fd, id, old, mask);
}

/* Watch exactly mask for io. The kernel forgets a descriptor that is closed behind our back, and
   its number may be in use again: the record is then wrong, and the kernel's answer tells. */
static int tl__arm(tl_loop *loop, tl__io *io, int mask) {
  int rc = mask ? tl__reg_grow(loop, io->fd) : 0;
  tl__reg *reg = tl__reg_at(loop, io->fd);
  if (rc < 0 || !reg) return rc;
  int old = reg->mask;
  bool foreign = old && reg->owner != io->head.id;
  bool rival = foreign && tl__get(loop, reg->owner) && !tl__get(loop, reg->owner)->closing;
  if (foreign && !mask) return 0;
  if (rival) old = 0;
  if (!old && !mask) return 0;
  rc = tl__ctl(loop, io->fd, io->head.id, old, mask);
  if (rc == -ENOENT && mask) {
    loop->rebuild = true; /* a duplicate of the old file may live on and be reported as this one */
    rc = tl__ctl(loop, io->fd, io->head.id, 0, mask);
  }
  if (rc == -EEXIST && !rival) rc = tl__ctl(loop, io->fd, io->head.id, mask, mask);
  if (!mask) rc = 0; /* a descriptor that is gone is not watched either */
  if (rc < 0) return rc;
  reg->owner = io->head.id;
  reg->mask = (uint8_t)mask;
  return 0;
}

static int tl__armed(const tl_loop *loop, const tl__io *io) {
  const tl__reg *reg = tl__reg_at(loop, io->fd);
  return reg && reg->owner == io->head.id ? reg->mask : 0;
}

/* TCP is watched for edges, registered once: the kernel need not look again at each connection that
   it has reported, and a full send buffer costs no registration. Other streams are not: a
   Unix socket that passes descriptors, or a terminal, gives less than is there, and only the amount
   tells without another system call that nothing is left. */
static bool tl__is_edge(const tl__io *io) {
  return io->head.kind == TL__STREAM && ((const tl__stream *)io)->edge;
}

static int tl__watched(const tl__io *io) {
  if (io->by_ring) return io->want & ~TL_READ;
  return tl__is_edge(io) ? TL_READ | TL_WRITE | TL_EDGE : io->want;
}

static int tl__interrupt(tl_loop *loop);

/* No edge will tell of what is ready already, nor the kernel of what a layer or the ring holds:
   come back in the next tick. Else the ring has to go on. */
static void tl__come_back(tl_loop *loop, tl__io *io) {
  if (io->head.closing) return;
  if (!(io->ready & io->want)) {
    if (io->by_ring && !io->asked && io->want & TL_READ) loop->backend->start(loop, io);
    return;
  }
  if (tl__linked(&io->again)) return;
  tl__link_last(&loop->again, &io->again);
  if (atomic_load_explicit(&loop->sleeping, memory_order_relaxed)) (void)tl__interrupt(loop);
}

/* Ask for more. Bits that are no longer wanted stay armed until they are reported, so that
   pausing and resuming costs no system call. */
static int tl__want(tl_loop *loop, tl__io *io, int bits) {
  int before = io->want;
  io->want = (uint8_t)(io->want | bits);
  int mask = tl__watched(io);
  int rc = (tl__armed(loop, io) & mask) == mask ? 0 : tl__arm(loop, io, mask);
  if (rc < 0)
    io->want = (uint8_t)before;
  else
    tl__come_back(loop, io);
  return rc;
}

static void tl__unwant(tl__io *io, int bits) { io->want = (uint8_t)(io->want & ~bits); }

/* Watch no more than what is wanted. */
static void tl__trim(tl_loop *loop, tl__io *io) {
  int mask = tl__watched(io);
  if (tl__armed(loop, io) & ~mask) (void)tl__arm(loop, io, mask);
}

static int tl__open_wake(tl_loop *loop) {
  int fds[2];
  if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) < 0) return -errno;
  loop->wake_rd = fds[0];
  loop->wake_wr = fds[1];
  return 0;
}

static void tl__close_wake(tl_loop *loop) {
  if (loop->wake_rd >= 0) close(loop->wake_rd);
  if (loop->wake_wr >= 0) close(loop->wake_wr);
  loop->wake_rd = loop->wake_wr = -1;
}

/* Make the poll set anew: after a fork, and when the kernel reports a descriptor that was closed
   but lives on under another number or in another process: nothing can remove that. */
static int tl__rebuild(tl_loop *loop) {
  loop->backend->close(loop);
  if (loop->wake_rd < 0) {
    int rc = tl__open_wake(loop);
    if (rc < 0) return rc;
  }
  int rc = loop->backend->open(loop);
  if (rc < 0) return rc;
  loop->rebuild = loop->forked = false;
  for (int fd = 0; fd < loop->reg_capacity; fd++) {
    tl__reg *reg = &loop->regs[fd];
    int mask = reg->mask;
    reg->mask = 0;
    int added = mask ? tl__ctl(loop, fd, reg->owner, 0, mask) : -ENOENT;
    if (added == -ENOMEM || added == -ENOSPC) loop->rebuild = true; /* try again in the next tick */
    if (added == 0 || loop->rebuild) reg->mask = (uint8_t)mask;
  }
  return 0;
}

// >>ring

static void tl__received_drop(tl_loop *loop, tl__stream *s) {
  tl__chunk *first = s->received->next;
  s->received->next = first->next;
  if (first == s->received) s->received = NULL;
  tl__chunk_free(loop, first);
}

#if defined(TL__HAS_URING) || defined(TL__HAS_TLS)
/* From now on by readiness; what the ring has received comes first. */
static int tl__leave_ring(tl_loop *loop, tl__io *io) {
  if (!io->by_ring) return 0;
  if (io->asked) loop->backend->stop(loop, io);
  io->by_ring = false;
  int rc = tl__want(loop, io, 0);
  if (rc < 0) io->by_ring = true;
  return rc;
}
#endif

/* Is that operation (TL__OP_*) of new handles the ring's? */
static bool tl__ring_does(const tl_loop *loop, int op) {
#ifdef TL__HAS_URING
  return loop->uring.ops & op;
#else
  (void)loop, (void)op;
  return false;
#endif
}

// >>backend-epoll

/* What the kernel does: one registration per (descriptor, open file) pair, removed by the kernel
   when the last descriptor of that file is closed, in any process. So a closed descriptor that was
   duplicated or inherited goes on being reported, and its registration can no longer be named:
   the loop then makes a new set (tl__rebuild). EPOLLHUP and EPOLLERR are reported unasked, also
   with an empty mask; hence an empty mask is a removal. Regular files answer EPERM. epoll_wait
   counts in milliseconds; epoll_pwait2 (5.11) in nanoseconds. */

#ifdef TL__HAS_EPOLL

static uint32_t tl__epoll_events(int mask) {
  uint32_t events = 0;
  if (mask & TL_READ) events |= EPOLLIN;
  if (mask & TL_WRITE) events |= EPOLLOUT;
  /* Edges need to know of a half-close and of urgent data: a short read would hide what follows. */
  if (mask & TL_EDGE) events |= (uint32_t)EPOLLET | EPOLLRDHUP | EPOLLPRI;
  return events;
}

static int tl__epoll_ctl(tl_loop *loop, int fd, tl_handle id, int old, int mask) {
  struct epoll_event ev = {.events = tl__epoll_events(mask), .data = {.u64 = (uint64_t)id}};
  int op = !mask ? EPOLL_CTL_DEL : old ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  return epoll_ctl(loop->epoll_fd, op, fd, &ev) < 0 ? -errno : 0;
}

static void tl__epoll_close(tl_loop *loop) {
  if (loop->epoll_fd >= 0) close(loop->epoll_fd);
  loop->epoll_fd = -1;
}

static int tl__epoll_open(tl_loop *loop) {
  loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (loop->epoll_fd < 0) return -errno;
  loop->slack_ns = tl__timer_slack();
  return tl__epoll_ctl(loop, loop->wake_rd, 0, 0, TL_READ);
}

static int tl__epoll_block(tl_loop *loop, struct epoll_event *events, int64_t timeout_ns) {
#ifdef SYS_epoll_pwait2
  if (timeout_ns > 0 && !loop->no_pwait2) {
    struct timespec ts = tl__wait_time(loop, timeout_ns);
    long n = syscall(SYS_epoll_pwait2, loop->epoll_fd, events, TL__READY_MAX, &ts, NULL, 0);
    if (n >= 0 || (errno != ENOSYS && errno != EPERM)) return (int)n;
    loop->no_pwait2 = true; /* old kernel, or a sandbox that does not know the call */
  }
#endif
  return epoll_wait(loop->epoll_fd, events, TL__READY_MAX, tl__milliseconds(timeout_ns));
}

static void tl__epoll_report(tl_loop *loop, const struct epoll_event *events, int n) {
  for (int i = 0; i < n; i++) {
    uint32_t e = events[i].events, mask = 0;
    if (e & EPOLLIN) mask |= TL_READ;
    if (e & EPOLLOUT) mask |= TL_WRITE;
    if (e & (EPOLLHUP | EPOLLRDHUP | EPOLLPRI)) mask |= TL_HUP;
    if (e & EPOLLERR) mask |= TL_ERR;
    tl__report(loop, (tl_handle)events[i].data.u64, mask);
  }
}

static int tl__epoll_wait(tl_loop *loop, int64_t timeout_ns) {
  struct epoll_event events[TL__READY_MAX];
  int n;
  do {
    n = tl__epoll_block(loop, events, timeout_ns);
  } while (n == 0 && (timeout_ns = tl__wait_rest(loop, timeout_ns)) > 0);
  if (n < 0) return errno == EINTR ? 0 : -errno;
  tl__epoll_report(loop, events, n);
  return 0;
}

static int tl__epoll_fd(const tl_loop *loop) { return loop->epoll_fd; }

#endif

// >>backend-uring

/* What the kernel does: a request holds its file. A descriptor that is closed while the ring polls
   it stays open for its peer, and a listener's port taken, until the request is cancelled: so
   readiness is left to an epoll set, which forgets what its owner closes, is level-triggered where
   that is promised, and knows when a number is in use again. The ring polls that set, once at a
   time: each request begins with a look, so no level is lost.
   Receiving and accepting by the ring is one request per handle, cancelled and waited for before
   its descriptor is closed. A cancelled request has taken nothing that it does not tell of; its
   bytes stay with the stream, in blocks that the kernel is given anew from the loop's memory. When
   these run out the request ends, and the stream receives once without the ring. Sends do not wait
   for anything, so they have ended when enter returns, and nothing has to outlive the call.
   DEFER_TASKRUN (6.1): requests complete inside of io_uring_enter only, and never interrupt
   whatever system call the loop's thread is in. It ties the ring to one thread: in another one
   enter answers EEXIST, and the loop makes a new ring. */

#ifdef TL__HAS_URING

static bool tl__uring_queued(const tl__uring *u) {
  return atomic_load_explicit(u->sq_tail, memory_order_relaxed) != atomic_load(u->sq_head);
}

/* Hand over what is queued, let the kernel do what it has put off, and wait; < 0: no limit. */
static int tl__uring_enter(tl_loop *loop, int64_t wait_ns) {
  tl__uring *u = &loop->uring;
  struct __kernel_timespec ts = {.tv_sec = wait_ns / 1000000000, .tv_nsec = wait_ns % 1000000000};
  struct io_uring_getevents_arg arg = {.ts = wait_ns > 0 ? (uint64_t)(uintptr_t)&ts : 0};
  unsigned queued = atomic_load(u->sq_tail) - atomic_load(u->sq_head);
  long n = syscall(SYS_io_uring_enter, u->fd, queued, wait_ns != 0,
                   IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof arg);
  return n >= 0 || errno == EINTR || errno == ETIME ? 0 : -errno;
}

/* Fails when the kernel takes nothing. */
static bool tl__uring_push(tl_loop *loop, const struct io_uring_sqe *sqe) {
  tl__uring *u = &loop->uring;
  unsigned tail = atomic_load_explicit(u->sq_tail, memory_order_relaxed);
  if (tail - atomic_load(u->sq_head) > u->sq_mask) (void)tl__uring_enter(loop, 0);
  if (tail - atomic_load(u->sq_head) > u->sq_mask) return false;
  u->sqes[tail & u->sq_mask] = *sqe;
  atomic_store_explicit(u->sq_tail, tail + 1, memory_order_release);
  return true;
}

static void tl__uring_poll_set(tl_loop *loop) {
  tl__uring *u = &loop->uring;
  const uint16_t low_half_first = 1; /* else the halves of the mask are exchanged */
  struct io_uring_sqe sqe = {.opcode = IORING_OP_POLL_ADD, .fd = loop->epoll_fd};
  if (u->set_polled) return;
  sqe.poll32_events = *(const unsigned char *)&low_half_first ? POLLIN : (uint32_t)POLLIN << 16;
  u->set_polled = tl__uring_push(loop, &sqe);
}

/* Give the kernel a block for each that it has filled. Without memory there are fewer. */
static void tl__uring_refill(tl_loop *loop) {
  tl__uring *u = &loop->uring;
  struct io_uring_buf *entries = (struct io_uring_buf *)u->pool;
  for (uint16_t i = 0; u->used_up && i < TL__BUFFERS; i++) {
    if (u->blocks[i]) continue;
    tl__chunk *block = u->blocks[i] = tl__chunk_new(loop);
    if (!block) break;
    struct io_uring_buf *entry = &entries[u->pool_tail++ % TL__BUFFERS];
    entry->addr = (uint64_t)(uintptr_t)block->data; /* not all of it: the first has the tail */
    entry->len = TL__CHUNK_ROOM;
    entry->bid = i;
    u->used_up--;
  }
  atomic_store_explicit((_Atomic uint16_t *)&entries[0].resv, u->pool_tail, memory_order_release);
}

/* A host that watches the ring is told only of what the kernel has been asked for. */
static int tl__uring_flush(tl_loop *loop) {
  if (!loop->uring.sqes) return -EBADF;
  if (loop->uring.used_up) tl__uring_refill(loop);
  tl__uring_poll_set(loop);
  return tl__uring_queued(&loop->uring) ? tl__uring_enter(loop, 0) : 0;
}

static void *tl__uring_map(const tl__uring *u, size_t nbytes, uint64_t offset) {
  int access = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
  void *at = mmap(NULL, nbytes, access, flags, u->fd, (off_t)offset);
  return at == MAP_FAILED ? NULL : at;
}

static int tl__uring_attach(tl__uring *u, const struct io_uring_params *p) {
  size_t sq_nbytes = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
  size_t cq_nbytes = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
  u->rings_nbytes = sq_nbytes > cq_nbytes ? sq_nbytes : cq_nbytes;
  u->sqes_nbytes = p->sq_entries * sizeof(struct io_uring_sqe);
  char *base = u->rings = tl__uring_map(u, u->rings_nbytes, IORING_OFF_SQ_RING);
  if (base) u->sqes = tl__uring_map(u, u->sqes_nbytes, IORING_OFF_SQES);
  if (!base || !u->sqes) return -ENOMEM;
  u->sq_head = (atomic_uint *)(void *)(base + p->sq_off.head);
  u->sq_tail = (atomic_uint *)(void *)(base + p->sq_off.tail);
  u->sq_flags = (atomic_uint *)(void *)(base + p->sq_off.flags);
  u->cq_head = (atomic_uint *)(void *)(base + p->cq_off.head);
  u->cq_tail = (atomic_uint *)(void *)(base + p->cq_off.tail);
  u->cqes = (struct io_uring_cqe *)(void *)(base + p->cq_off.cqes);
  u->sq_mask = p->sq_entries - 1;
  u->cq_mask = p->cq_entries - 1;
  uint32_t *array = (uint32_t *)(void *)(base + p->sq_off.array);
  for (uint32_t i = 0; i < p->sq_entries; i++) array[i] = i; /* request i lies at place i */
  return 0;
}

/* Names of requests: 0 polls the set, a handle receives, a handle and TL__ACCEPTS accepts, and
   TL__ROW is part of a batch. A handle has 62 bits. */
#define TL__ACCEPTS (UINT64_C(1) << 62)
#define TL__ROW (UINT64_C(1) << 63)

static uint64_t tl__uring_name(const tl__io *io) {
  return (uint64_t)io->head.id | (io->head.kind == TL__LISTENER ? TL__ACCEPTS : 0);
}

/* One request for all that comes, until it says otherwise. */
static void tl__uring_start(tl_loop *loop, tl__io *io) {
  struct io_uring_sqe sqe = {.fd = io->fd, .user_data = tl__uring_name(io)};
  if (!loop->uring.sqes || loop->uring.ending) return; /* the next ring will */
  if (io->head.kind == TL__LISTENER) {
    sqe.opcode = IORING_OP_ACCEPT;
    sqe.ioprio = IORING_ACCEPT_MULTISHOT;
    sqe.accept_flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
  } else {
    sqe.opcode = IORING_OP_RECV;
    sqe.ioprio = IORING_RECV_MULTISHOT;
    sqe.flags = IOSQE_BUFFER_SELECT;
  }
  io->asked = tl__uring_push(loop, &sqe);
  if (io->asked) return;
  io->ready |= TL_READ; /* by system calls meanwhile */
  tl__come_back(loop, io);
}

static bool tl__uring_cancel(tl_loop *loop, const tl__io *io) {
  struct io_uring_sqe sqe = {.opcode = IORING_OP_ASYNC_CANCEL, .fd = -1};
  sqe.addr = tl__uring_name(io);
  sqe.user_data = TL__ROW | TL__ROWS_MAX; /* nobody's */
  return tl__uring_push(loop, &sqe);
}

static void tl__uring_accepted(tl_loop *loop, tl__listener *l, int fd) {
  bool kept = l && tl__grow(loop, (void **)&l->fds, &l->fd_capacity, l->fd_count + 1, sizeof fd);
  if (!kept && fd >= 0) close(fd);
  if (!l || fd == -ECANCELED) return;
  if (kept)
    l->fds[l->fd_count++] = fd;
  else
    l->lost = true;
  l->io.ready |= TL_READ;
}

static void tl__received_add(tl__stream *s, tl__chunk *chunk) {
  chunk->next = s->received ? s->received->next : chunk;
  if (s->received) s->received->next = chunk;
  s->received = chunk;
}

static void tl__uring_received(tl_loop *loop, tl__stream *s, tl__chunk *block, int n) {
  if (s && block && n > 0)
    tl__received_add(s, block);
  else if (block)
    tl__chunk_free(loop, block);
  if (!s || n == -ECANCELED || n == -EINTR || n == -EAGAIN) return;
  if (n <= 0 && n != -ENOBUFS) { /* without a block, one receive without the ring, and on */
    s->end = n;
    s->end_near = true;
  }
  s->io.ready |= TL_READ;
  if (!(s->io.want & TL_READ) && s->io.asked) (void)tl__uring_cancel(loop, &s->io);
}

/* The block that a completion has filled, or NULL. */
static tl__chunk *tl__uring_block(tl__uring *u, int n, uint32_t flags) {
  if (!(flags & IORING_CQE_F_BUFFER)) return NULL;
  tl__chunk **at = &u->blocks[flags >> IORING_CQE_BUFFER_SHIFT];
  tl__chunk *block = *at;
  *at = NULL;
  u->used_up++;
  block->end = n > 0 ? (uint32_t)n : 0;
  return block;
}

static void tl__uring_complete(tl_loop *loop, uint64_t name, int n, uint32_t flags) {
  tl__uring *u = &loop->uring;
  tl__chunk *block = tl__uring_block(u, n, flags);
  bool unknown = !block && (n == -EINVAL || n == -EOPNOTSUPP); /* to this kernel */
  tl__head *head = tl__get(loop, (tl_handle)(name & ~TL__ACCEPTS));
  tl__io *io = head && !head->closing ? (tl__io *)head : NULL;
  if (io) io->asked = flags & IORING_CQE_F_MORE;
  if (io && unknown && tl__leave_ring(loop, io) == 0) return;
  if (name & TL__ACCEPTS)
    tl__uring_accepted(loop, (tl__listener *)io, n);
  else
    tl__uring_received(loop, (tl__stream *)io, block, n);
  if (io) tl__come_back(loop, io);
}

static void tl__uring_sent(tl__uring *u, uint64_t row, int n) {
  if (row == TL__ROWS_MAX || !u->rows) return;
  u->rows[row].sent = n == -EINVAL || n == -EOPNOTSUPP ? TL__NOT_SENT : n;
  u->rows_left--;
}

/* Take note of all that has completed. Returns whether the set has something to report. */
static bool tl__uring_drain(tl_loop *loop) {
  tl__uring *u = &loop->uring;
  bool reported = false;
  for (;;) {
    unsigned at = atomic_load_explicit(u->cq_head, memory_order_relaxed);
    if (at == atomic_load_explicit(u->cq_tail, memory_order_acquire)) return reported;
    const struct io_uring_cqe *cqe = &u->cqes[at & u->cq_mask];
    uint64_t name = cqe->user_data;
    int n = cqe->res;
    uint32_t flags = cqe->flags;
    atomic_store_explicit(u->cq_head, at + 1, memory_order_release);
    if (name & TL__ROW) {
      tl__uring_sent(u, name & ~TL__ROW, n);
    } else if (name) {
      tl__uring_complete(loop, name, n, flags);
    } else {
      u->set_polled = false;
      reported = true;
    }
  }
}

/* Between ticks: what the set reports will be asked again, by whoever sleeps, too. */
static int tl__uring_work(tl_loop *loop, int64_t wait_ns) {
  loop->stats.syscalls++;
  int rc = tl__uring_enter(loop, wait_ns);
  if (tl__uring_drain(loop)) (void)tl__interrupt(loop);
  return rc;
}

/* Until the request is gone the peer of a closed socket would not know. What it has received until
   then is kept. In another thread than the ring's only its end ends it. */
static void tl__uring_stop(tl_loop *loop, tl__io *io) {
  if (!loop->uring.sqes || !tl__uring_cancel(loop, io)) return;
  for (int tries = 0; io->asked && tries < TL__TRIES; tries++)
    if (tl__uring_work(loop, tries ? TL__RETRY_NS : 0) < 0) return;
}

/* Take back what the kernel has not seen of the requests after that place. */
static void tl__uring_retract(tl__uring *u, unsigned place) {
  unsigned head = atomic_load(u->sq_head);
  atomic_store(u->sq_tail, (int)(head - place) > 0 ? head : place);
}

/* None of these waits, so all have ended when enter returns, and borrow the caller's bytes. */
static void tl__uring_send(tl_loop *loop, tl__row *rows, int count) {
  tl__uring *u = &loop->uring;
  if (!u->sqes) return;
  unsigned place = atomic_load_explicit(u->sq_tail, memory_order_relaxed);
  u->rows = rows;
  for (int i = 0; i < count; i++) {
    if (!rows[i].stream) continue;
    struct io_uring_sqe sqe = {.opcode = IORING_OP_SEND, .fd = rows[i].stream->io.fd};
    sqe.addr = (uint64_t)(uintptr_t)rows[i].data;
    sqe.len = (uint32_t)rows[i].nbytes;
    sqe.msg_flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    sqe.user_data = TL__ROW | (unsigned)i;
    u->rows_left += tl__uring_push(loop, &sqe);
  }
  while (u->rows_left && tl__uring_work(loop, 0) == 0) {
  }
  if (u->rows_left) tl__uring_retract(u, place);
  u->rows = NULL;
  u->rows_left = 0;
}

/* Requests of a ring that is about to end; a child leaves those of its parent alone. */
static void tl__uring_stop_all(tl_loop *loop) {
  loop->uring.ending = true;
  for (uint32_t i = 0; i < loop->slot_count; i++) {
    tl__head *head = loop->slots[i].head;
    if (!head || (head->kind != TL__STREAM && head->kind != TL__LISTENER)) continue;
    tl__io *io = (tl__io *)head;
    if (io->asked && !loop->forked) tl__uring_stop(loop, io);
    io->asked = false;
  }
}

static void tl__uring_unmake(tl_loop *loop) {
  tl__uring *u = &loop->uring;
  if (u->rings) munmap(u->rings, u->rings_nbytes);
  if (u->sqes) munmap(u->sqes, u->sqes_nbytes);
  if (u->fd >= 0) close(u->fd);
  if (u->pool) munmap(u->pool, TL__POOL_BYTES);
  for (int i = 0; i < TL__BUFFERS; i++) tl__free(loop, u->blocks[i]);
  *u = (tl__uring){.fd = -1};
}

static void tl__uring_close(tl_loop *loop) {
  tl__uring_stop_all(loop);
  tl__uring_unmake(loop);
  tl__epoll_close(loop);
}

static uint8_t tl__uring_wanted(void) {
  static const char *const names[] = {"accept", "recv", "send"};
  const char *text = getenv("TLOOP_URING");
  uint8_t ops = 0;
  if (!text) text = "send";
  for (int i = 0; i < 3; i++)
    if (strstr(text, names[i])) ops |= (uint8_t)(1 << i);
  return ops;
}

/* Where receiving into blocks of ours is not to be had it is left to readiness. */
static void tl__uring_open_pool(tl__uring *u) {
  int access = PROT_READ | PROT_WRITE;
  if (!(u->ops & TL__OP_RECV)) return;
  void *at = mmap(NULL, TL__POOL_BYTES, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct io_uring_buf_reg reg = {.ring_addr = (uint64_t)(uintptr_t)at, .ring_entries = TL__BUFFERS};
  if (at != MAP_FAILED) u->pool = at;
  if (u->pool && syscall(SYS_io_uring_register, u->fd, IORING_REGISTER_PBUF_RING, &reg, 1) == 0)
    u->used_up = TL__BUFFERS;
  else
    u->ops &= (uint8_t)~TL__OP_RECV;
}

/* Handles of the ring before this one. */
static void tl__uring_start_all(tl_loop *loop) {
  for (uint32_t i = 0; i < loop->slot_count; i++) {
    tl__head *head = loop->slots[i].head;
    if (!head || (head->kind != TL__STREAM && head->kind != TL__LISTENER)) continue;
    tl__come_back(loop, (tl__io *)head);
  }
}

static int tl__uring_make(tl__uring *u, uint32_t flags) {
  struct io_uring_params p = {.flags = flags | IORING_SETUP_SUBMIT_ALL};
  u->fd = (int)syscall(SYS_io_uring_setup, TL__REQUESTS, &p);
  if (u->fd < 0) return errno == EINVAL ? -ENOSYS : -errno; /* a kernel without these flags */
  return tl__uring_attach(u, &p);
}

static int tl__uring_open(tl_loop *loop) {
  const uint32_t flags =
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
  int rc = tl__epoll_open(loop);
  if (rc == 0) rc = tl__uring_make(&loop->uring, flags);
  if (rc < 0) return rc;
  loop->uring.ops = tl__uring_wanted();
  tl__uring_open_pool(&loop->uring);
  rc = tl__uring_flush(loop); /* sandboxes may forbid this call only */
  if (rc == 0) tl__uring_start_all(loop);
  return rc;
}

/* The set has something to report. */
static void tl__uring_take_set(tl_loop *loop) {
  struct epoll_event events[TL__READY_MAX];
  loop->stats.syscalls++;
  int n = epoll_wait(loop->epoll_fd, events, TL__READY_MAX, 0);
  tl__epoll_report(loop, events, n);
}

/* Looking costs no system call while the kernel has put nothing off. */
static int tl__uring_ask(tl_loop *loop, int64_t timeout_ns) {
  tl__uring *u = &loop->uring;
  const unsigned put_off = IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW;
  if (!u->sqes) return -EBADF;
  if (u->used_up) tl__uring_refill(loop);
  tl__uring_poll_set(loop);
  if (atomic_load(u->cq_head) != atomic_load(u->cq_tail)) timeout_ns = 0;
  if (timeout_ns || tl__uring_queued(u) || atomic_load(u->sq_flags) & put_off)
    return tl__uring_enter(loop, timeout_ns);
  return 0;
}

static int tl__uring_wait(tl_loop *loop, int64_t timeout_ns) {
  int rc = tl__uring_ask(loop, timeout_ns);
  if (rc == -EEXIST) { /* another thread runs the loop than before */
    loop->rebuild = true;
    rc = tl__rebuild(loop);
    if (rc == 0) rc = tl__uring_ask(loop, timeout_ns);
  }
  atomic_store_explicit(&loop->sleeping, 0, memory_order_relaxed); /* what comes needs no wake-up */
  if (rc == 0 && tl__uring_drain(loop)) tl__uring_take_set(loop);
  return rc;
}

static int tl__uring_fd(const tl_loop *loop) { return loop->uring.fd; }

static const tl__backend tl__backend_uring = {.name = "io_uring",
                                              .caps = TL_CAP_EDGE | TL_CAP_FD,
                                              .open = tl__uring_open,
                                              .close = tl__uring_close,
                                              .ctl = tl__epoll_ctl,
                                              .wait = tl__uring_wait,
                                              .fd = tl__uring_fd,
                                              .flush = tl__uring_flush,
                                              .start = tl__uring_start,
                                              .stop = tl__uring_stop,
                                              .send = tl__uring_send};

/* The epoll backend sends batches, too. Its ring is made for the first one, for any thread, and if
   it cannot be had nobody notices. */

static int tl__epoll_ring_open(tl_loop *loop) {
  loop->uring.ops = tl__uring_wanted() & TL__OP_SEND;
  return tl__epoll_open(loop);
}

static void tl__epoll_ring_close(tl_loop *loop) {
  tl__uring_unmake(loop);
  tl__epoll_close(loop);
}

static void tl__epoll_ring_send(tl_loop *loop, tl__row *rows, int count) {
  if (!loop->uring.sqes && tl__uring_make(&loop->uring, 0) < 0)
    tl__uring_unmake(loop); /* and its ops */
  tl__uring_send(loop, rows, count);
}

#endif

#ifdef TL__HAS_EPOLL
static const tl__backend tl__backend_epoll = {.name = "epoll",
                                              .caps = TL_CAP_EDGE | TL_CAP_FD,
#ifdef TL__HAS_URING
                                              .open = tl__epoll_ring_open,
                                              .close = tl__epoll_ring_close,
                                              .send = tl__epoll_ring_send,
#else
                                              .open = tl__epoll_open,
                                              .close = tl__epoll_close,
#endif
                                              .ctl = tl__epoll_ctl,
                                              .wait = tl__epoll_wait,
                                              .fd = tl__epoll_fd};
#endif

// >>backend-none

#if defined(TL__HAS_POLL) || defined(TL__HAS_DUMMY)
static int tl__no_fd(const tl_loop *loop) {
  (void)loop;
  return -ENOSYS;
}
#endif

// >>backend-poll

/* What the kernel does: the whole array is copied and scanned by each call, so a call costs
   O(descriptors); there is no state in between, and nothing to go stale. POLLHUP and POLLERR are
   reported unasked; a negative fd is skipped. A closed descriptor answers POLLNVAL: it is muted.
   Edges are imitated by muting what was reported until tl_poll_rearm. */

#ifdef TL__HAS_POLL

static void tl__poll_mute(struct pollfd *p, int events) {
  p->events = (short)(p->events & ~events);
  if (!p->events && p->fd >= 0) p->fd = -1 - p->fd;
}

static int tl__poll_remove(tl_loop *loop, int fd) {
  uint32_t i = loop->regs[fd].index;
  size_t last = --loop->poll_count;
  loop->pollfds[i] = loop->pollfds[last];
  loop->poll_ids[i] = loop->poll_ids[last];
  int moved = loop->pollfds[i].fd;
  if (i != last) loop->regs[moved < 0 ? -1 - moved : moved].index = i;
  return 0;
}

static int tl__poll_append(tl_loop *loop, int fd) {
  size_t capacity = loop->poll_capacity;
  if (!tl__grow(loop, (void **)&loop->poll_ids, &capacity, loop->poll_count + 1,
                sizeof(tl_handle)) ||
      !tl__grow(loop, (void **)&loop->pollfds, &loop->poll_capacity, loop->poll_count + 1,
                sizeof(struct pollfd)))
    return -ENOMEM;
  if (fd != loop->wake_rd) loop->regs[fd].index = (uint32_t)loop->poll_count;
  return (int)loop->poll_count++;
}

static int tl__poll_ctl(tl_loop *loop, int fd, tl_handle id, int old, int mask) {
  if (!mask) return tl__poll_remove(loop, fd);
  if (fcntl(fd, F_GETFD) < 0) return -errno;
  /* A rival's entry is taken over: here nobody can tell a reused number from a shared one. */
  int i = old || (fd != loop->wake_rd && loop->regs[fd].mask) ? (int)loop->regs[fd].index
                                                              : tl__poll_append(loop, fd);
  if (i < 0) return i;
  int events = (mask & TL_READ ? POLLIN : 0) | (mask & TL_WRITE ? POLLOUT : 0);
  loop->pollfds[i] = (struct pollfd){fd, (short)events, 0};
  loop->poll_ids[i] = id;
  return 0;
}

static void tl__poll_close(tl_loop *loop) {
  tl__free(loop, loop->pollfds);
  tl__free(loop, loop->poll_ids);
  loop->pollfds = NULL;
  loop->poll_ids = NULL;
  loop->poll_count = loop->poll_capacity = 0;
  for (int fd = 0; fd < loop->reg_capacity; fd++) loop->regs[fd].index = 0;
}

static int tl__poll_open(tl_loop *loop) {
  loop->slack_ns = tl__timer_slack();
  return tl__poll_ctl(loop, loop->wake_rd, 0, 0, TL_READ);
}

static void tl__poll_one(tl_loop *loop, size_t i) {
  struct pollfd *p = &loop->pollfds[i];
  uint32_t mask = 0;
  if (p->revents & POLLIN) mask |= TL_READ;
  if (p->revents & POLLOUT) mask |= TL_WRITE;
  if (p->revents & POLLHUP) mask |= TL_HUP;
  if (p->revents & (POLLERR | POLLNVAL)) mask |= TL_ERR;
  tl__report(loop, loop->poll_ids[i], mask);
  if (p->revents & POLLNVAL)
    tl__poll_mute(p, POLLIN | POLLOUT);
  else if (i > 0 && (loop->regs[p->fd].mask & TL_EDGE))
    tl__poll_mute(p, p->revents & (POLLHUP | POLLERR) ? POLLIN | POLLOUT : p->revents);
}

static int tl__poll_wait(tl_loop *loop, int64_t timeout_ns) {
  int n;
  do {
    struct timespec ts = tl__wait_time(loop, timeout_ns);
    n = ppoll(loop->pollfds, loop->poll_count, timeout_ns < 0 ? NULL : &ts, NULL);
  } while (n == 0 && (timeout_ns = tl__wait_rest(loop, timeout_ns)) > 0);
  if (n < 0) return errno == EINTR ? 0 : -errno;
  /* Start behind where the last tick ended, else the first descriptors would starve the others. */
  size_t i = loop->poll_start;
  for (size_t k = 0; n > 0 && k < loop->poll_count && loop->ready_count < TL__READY_MAX; k++, i++) {
    if (i >= loop->poll_count) i = 0;
    if (!loop->pollfds[i].revents) continue;
    tl__poll_one(loop, i);
    n--;
  }
  loop->poll_start = i;
  return 0;
}

static const tl__backend tl__backend_poll = {.name = "poll",
                                             .open = tl__poll_open,
                                             .close = tl__poll_close,
                                             .ctl = tl__poll_ctl,
                                             .wait = tl__poll_wait,
                                             .fd = tl__no_fd};

#endif

// >>backend-dummy

/* Virtual time: a wait with a limit moves the clock to its end at once. Readiness is scripted by
   tl_dummy_ready. A wait without limit blocks on the wake pipe for real, so that threads
   can hand work to the loop. */

#ifdef TL__HAS_DUMMY

static int tl__dummy_open(tl_loop *loop) {
  (void)loop;
  return 0;
}

static void tl__dummy_close(tl_loop *loop) {
  tl__free(loop, loop->script);
  loop->script = NULL;
  loop->script_count = loop->script_capacity = 0;
}

static int tl__dummy_ctl(tl_loop *loop, int fd, tl_handle id, int old, int mask) {
  (void)loop, (void)fd, (void)id, (void)old, (void)mask;
  return 0;
}

static int tl__dummy_wait(tl_loop *loop, int64_t timeout_ns) {
  size_t n = loop->script_count, kept = 0;
  for (size_t i = 0; i < n; i++) {
    const tl__reg *reg = tl__reg_at(loop, (int)loop->script[i].id);
    uint32_t mask = reg ? loop->script[i].mask & reg->mask : 0;
    if (mask && loop->ready_count < TL__READY_MAX - 1)
      tl__report(loop, reg->owner, mask);
    else
      loop->script[kept++] = loop->script[i];
  }
  loop->script_count = kept;
  struct pollfd wake = {loop->wake_rd, POLLIN, 0};
  int block = timeout_ns < 0 && !loop->ready_count;
  if (poll(&wake, 1, block ? -1 : 0) > 0) tl__report(loop, 0, TL_READ);
  if (timeout_ns > 0 && !loop->ready_count)
    loop->now_ns = tl__add_clamped(loop->now_ns, timeout_ns);
  return 0;
}

static const tl__backend tl__backend_dummy = {.name = "dummy",
                                              .caps = TL_CAP_EDGE | TL_CAP_VIRTUAL,
                                              .open = tl__dummy_open,
                                              .close = tl__dummy_close,
                                              .ctl = tl__dummy_ctl,
                                              .wait = tl__dummy_wait,
                                              .fd = tl__no_fd};

#endif

TL_API int tl_dummy_ready(tl_loop *loop, int fd, int mask) {
  if (!(loop->backend->caps & TL_CAP_VIRTUAL)) return -ENOTSUP;
  if (!tl__grow(loop, (void **)&loop->script, &loop->script_capacity, loop->script_count + 1,
                sizeof(tl__ready)))
    return -ENOMEM;
  loop->script[loop->script_count++] = (tl__ready){fd, (uint32_t)mask};
  return 0;
}

// >>backends

/* Best first. */
static const tl__backend *const tl__backend_list[] = {
#ifdef TL__HAS_EPOLL
    &tl__backend_epoll,
#endif
#ifdef TL__HAS_URING
    &tl__backend_uring,
#endif
#ifdef TL__HAS_POLL
    &tl__backend_poll,
#endif
#ifdef TL__HAS_DUMMY
    &tl__backend_dummy,
#endif
    NULL};

TL_API const char *tl_backends(void) {
  return ""
#ifdef TL__HAS_EPOLL
         "epoll"
#ifdef TL__HAS_URING
         ", io_uring"
#endif
#if defined(TL__HAS_POLL) || defined(TL__HAS_DUMMY)
         ", "
#endif
#endif
#ifdef TL__HAS_POLL
         "poll"
#ifdef TL__HAS_DUMMY
         ", "
#endif
#endif
#ifdef TL__HAS_DUMMY
         "dummy"
#endif
      ;
}

static int tl__open_backend(tl_loop *loop, const char *name) {
  int rc = TL_EBACKEND;
  for (int i = 0; tl__backend_list[i]; i++) {
    loop->backend = tl__backend_list[i];
    if (name && strcmp(name, loop->backend->name) != 0) continue;
    rc = loop->backend->open(loop);
    if (rc == 0) return 0;
    loop->backend->close(loop);
    if (name) return rc;
  }
  return rc;
}

// >>signal

/* The only process-wide state. The handler takes the same spin lock as those who change the
   lists; that cannot deadlock, because they hold it with all signals blocked, and the
   handler itself runs with all signals blocked. */
static struct {
  atomic_flag lock;
  tl__signal *first[TL__SIGNALS];
  struct sigaction former[TL__SIGNALS];
} tl__signal_table = {.lock = ATOMIC_FLAG_INIT};

static void tl__signal_lock(sigset_t *former) {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, former); /* glibc, musl: of this thread */
  while (atomic_flag_test_and_set_explicit(&tl__signal_table.lock, memory_order_acquire)) {
  }
}

static void tl__signal_unlock(const sigset_t *former) {
  atomic_flag_clear_explicit(&tl__signal_table.lock, memory_order_release);
  sigprocmask(SIG_SETMASK, former, NULL);
}

/* Interrupt the wait, if there is one: whoever clears the flag writes the byte. */
static int tl__interrupt(tl_loop *loop) {
  if (!atomic_exchange(&loop->sleeping, 0)) return 0;
  for (;;) {
    if (write(loop->wake_wr, "", 1) == 1 || errno == EAGAIN) return 0; /* full: it wakes anyway */
    if (errno != EINTR) return -errno;
  }
}

static void tl__on_signal(int signo) {
  int saved = errno;
  while (atomic_flag_test_and_set_explicit(&tl__signal_table.lock, memory_order_acquire)) {
  }
  for (tl__signal *s = tl__signal_table.first[signo]; s; s = s->next_in_table) {
    atomic_fetch_or(&s->loop->signals_pending, 1ULL << (signo - 1));
    (void)tl__interrupt(s->loop);
  }
  atomic_flag_clear_explicit(&tl__signal_table.lock, memory_order_release);
  errno = saved;
}

static int tl__signal_subscribe(tl__signal *s) {
  struct sigaction action;
  sigset_t former;
  int rc = 0;
  memset(&action, 0, sizeof action);
  action.sa_handler = tl__on_signal;
  action.sa_flags = SA_RESTART;
  sigfillset(&action.sa_mask);
  tl__signal_lock(&former);
  if (!tl__signal_table.first[s->signo] &&
      sigaction(s->signo, &action, &tl__signal_table.former[s->signo]) < 0)
    rc = -errno;
  if (rc == 0) {
    s->next_in_table = tl__signal_table.first[s->signo];
    tl__signal_table.first[s->signo] = s;
  }
  tl__signal_unlock(&former);
  return rc;
}

static void tl__signal_unsubscribe(tl__signal *s) {
  sigset_t former;
  tl__signal_lock(&former);
  tl__signal **at = &tl__signal_table.first[s->signo];
  while (*at && *at != s) at = &(*at)->next_in_table;
  if (*at) *at = s->next_in_table;
  if (!tl__signal_table.first[s->signo])
    (void)sigaction(s->signo, &tl__signal_table.former[s->signo], NULL);
  tl__signal_unlock(&former);
}

static void tl__signal_teardown(tl_loop *loop, tl__signal *s) {
  tl__signal_unsubscribe(s);
  tl__signal **at = &loop->signals;
  while (*at && *at != s) at = &(*at)->next_in_loop;
  if (*at) *at = s->next_in_loop;
}

TL_API tl_handle tl_signal_create(tl_loop *loop, int signo) {
  int64_t error;
  if (signo < 1 || signo >= TL__SIGNALS) return -EINVAL;
  tl__signal *s = tl__new(loop, sizeof *s, TL__SIGNAL, &error);
  if (!s) return error;
  s->loop = loop;
  s->signo = signo;
  int rc = tl__signal_subscribe(s);
  if (rc < 0) {
    tl__undo_new(loop, &s->head);
    return rc;
  }
  s->next_in_loop = loop->signals;
  loop->signals = s;
  return s->head.id;
}

static void tl__mark_signals(tl_loop *loop) {
  if (!atomic_load_explicit(&loop->signals_pending, memory_order_relaxed)) return;
  unsigned long long bits = atomic_exchange(&loop->signals_pending, 0);
  for (tl__signal *s = loop->signals; s; s = s->next_in_loop)
    if (bits & 1ULL << (s->signo - 1)) s->pending = true;
}

static bool tl__next_signal(tl_loop *loop, tl_event *ev) {
  for (tl__signal *s = loop->signals; s; s = s->next_in_loop) {
    if (!s->pending) continue;
    s->pending = false;
    *ev = (tl_event){s->head.id, TL_EV_SIGNAL, s->signo, 0};
    return true;
  }
  return false;
}

// >>wakeup

TL_API int tl_loop_wake(tl_loop *loop) {
  if (atomic_exchange(&loop->wake_pending, 1)) return 0;
  return tl__interrupt(loop);
}

TL_API int tl_loop_on_wake(tl_loop *loop, tl_event_cb callback, void *user) {
  loop->wake_callback = callback;
  loop->wake_user = user;
  return 0;
}

TL_API int tl_loop_wake_fd(const tl_loop *loop) { return loop->wake_wr; }

static void tl__drain_wake(tl_loop *loop) {
  ssize_t n = read(loop->wake_rd, loop->wake_bytes, sizeof loop->wake_bytes);
  loop->stats.syscalls++;
  loop->wake_next = 0;
  loop->wake_count = n > 0 ? (int)n : 0;
}

static bool tl__next_wake(tl_loop *loop, tl_event *ev) {
  while (loop->wake_next < loop->wake_count) {
    int byte = loop->wake_bytes[loop->wake_next++];
    if (!byte) continue;
    *ev = (tl_event){0, TL_EV_SIGNAL, byte, 0};
    return true;
  }
  if (!loop->wake_event) return false;
  loop->wake_event = false;
  loop->stats.wakes++;
  *ev = (tl_event){0, TL_EV_WAKE, 0, 0};
  return true;
}

// >>timer

static void tl__due_remove(tl_loop *loop, tl__timer *t) {
  if (t->due_prev == t) return;
  if (t->due_prev)
    t->due_prev->due_next = t->due_next;
  else
    loop->due_first = t->due_next;
  if (t->due_next)
    t->due_next->due_prev = t->due_prev;
  else
    loop->due_last = t->due_prev;
  t->due_prev = t;
  loop->due_count--;
}

static void tl__due_append(tl_loop *loop, tl__timer *t, int64_t deadline_ns) {
  t->due_ns = deadline_ns;
  t->due_prev = loop->due_last;
  t->due_next = NULL;
  if (loop->due_last)
    loop->due_last->due_next = t;
  else
    loop->due_first = t;
  loop->due_last = t;
  loop->due_count++;
}

static void tl__resume(tl_loop *loop, tl__node *node);

/* Take everything that is due out of the heap before anything runs: what callbacks start now, even
   with delay 0, belongs to the next tick and cannot starve I/O. */
static void tl__collect_due(tl_loop *loop) {
  while (loop->heap_count && loop->heap[0].deadline_ns <= loop->now_ns) {
    tl__heap_entry top = loop->heap[0];
    tl__heap_remove(loop, top.node);
    if (top.node->owner->kind == TL__TIMER)
      tl__due_append(loop, (tl__timer *)top.node->owner, top.deadline_ns);
    else
      tl__resume(loop, top.node);
  }
}

static bool tl__next_timer(tl_loop *loop, tl_event *ev) {
  tl__timer *t = loop->due_first;
  if (!t) return false;
  int64_t periods = 1;
  tl__due_remove(loop, t);
  if (t->repeat_ns > 0) {
    uint64_t repeat = (uint64_t)t->repeat_ns;
    uint64_t late = (uint64_t)loop->now_ns - (uint64_t)t->due_ns; /* due <= now */
    uint64_t missed = late / repeat;
    int64_t next_ns = tl__add_clamped(loop->now_ns, (int64_t)(repeat - late % repeat));
    periods = missed < INT64_MAX ? (int64_t)missed + 1 : INT64_MAX;
    (void)tl__heap_insert(loop, &t->node, next_ns); /* room is reserved */
  }
  *ev = (tl_event){t->head.id, TL_EV_TIMER, periods, 0};
  return true;
}

static int64_t tl__timer_timeout(const tl_loop *loop, int64_t now_ns) {
  if (!loop->heap_count) return -1;
  int64_t deadline_ns = loop->heap[0].deadline_ns;
  return deadline_ns <= now_ns ? 0 : deadline_ns - now_ns;
}

TL_API tl_handle tl_timer_create(tl_loop *loop) {
  int64_t error;
  tl__timer *t = tl__new(loop, sizeof *t, TL__TIMER, &error);
  if (!t) return error;
  t->node.owner = &t->head;
  t->due_prev = t;
  return t->head.id;
}

TL_API int tl_timer_start_at(tl_loop *loop, tl_handle timer, int64_t deadline_ns,
                             int64_t repeat_ns) {
  int error;
  tl__timer *t = tl__open(loop, timer, TL__TIMER, &error);
  if (!t) return error;
  if (repeat_ns < 0) return -EINVAL;
  /* With room for one more nothing below can fail, so an error leaves the timer as it was. */
  if (!tl__heap_reserve(loop)) return -ENOMEM;
  tl__heap_remove(loop, &t->node);
  tl__due_remove(loop, t);
  t->repeat_ns = repeat_ns;
  return tl__heap_insert(loop, &t->node, deadline_ns);
}

TL_API int tl_timer_start(tl_loop *loop, tl_handle timer, int64_t delay_ns, int64_t repeat_ns) {
  return tl_timer_start_at(loop, timer, tl__add_clamped(loop->now_ns, delay_ns), repeat_ns);
}

TL_API int tl_timer_stop(tl_loop *loop, tl_handle timer) {
  int error;
  tl__timer *t = tl__open(loop, timer, TL__TIMER, &error);
  if (!t) return error;
  bool running = t->node.heap_pos || t->due_prev != t;
  tl__heap_remove(loop, &t->node);
  tl__due_remove(loop, t);
  return running;
}

// >>io

/* An object with a descriptor; it owns fd only once it is returned. */
static void *tl__new_io(tl_loop *loop, size_t nbytes, int kind, int fd, int flags, int64_t *error) {
  tl__io *io = tl__new(loop, nbytes, kind, error);
  if (!io) return NULL;
  io->fd = fd;
  io->flags = (uint8_t)(flags & TL_KEEP_FD);
  io->again.prev = io->again.next = &io->again;
  return io;
}

static int tl__set_nonblocking(int fd) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  if (flags & O_NONBLOCK) return 0;
  return fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

/* A socket option that only tunes: failing is no reason to refuse the socket. */
static void tl__tune(int fd, int level, int name) {
  int one = 1;
  (void)setsockopt(fd, level, name, &one, sizeof one);
}

static bool tl__is_ip(int family) { return family == AF_INET || family == AF_INET6; }

static int tl__addr_family(const tl_addr *addr) {
  struct sockaddr sa;
  memcpy(&sa, addr->data, sizeof sa);
  return addr->nbytes ? sa.sa_family : AF_UNSPEC;
}

static const struct sockaddr *tl__sockaddr(const tl_addr *addr) {
  return (const struct sockaddr *)(const void *)addr->data;
}

static int tl__set_option(int fd, int level, int name, bool wanted) {
  int one = 1;
  if (!wanted) return 0;
  return setsockopt(fd, level, name, &one, sizeof one) < 0 ? -errno : 0;
}

/* A non-blocking socket bound to addr, or -errno. */
static int tl__bound_socket(const tl_addr *addr, int type, int flags) {
  int family = tl__addr_family(addr), rc = 0;
  int fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  if (type == SOCK_STREAM && tl__is_ip(family))
    rc = tl__set_option(fd, SOL_SOCKET, SO_REUSEADDR, true);
  if (rc == 0) rc = tl__set_option(fd, SOL_SOCKET, SO_REUSEPORT, flags & TL_REUSEPORT);
  if (rc == 0) rc = tl__set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, flags & TL_IPV6ONLY);
  if (rc == 0) rc = tl__set_option(fd, SOL_SOCKET, SO_BROADCAST, flags & TL_BROADCAST);
  if (rc == 0 && bind(fd, tl__sockaddr(addr), addr->nbytes) < 0) rc = -errno;
  if (rc == 0) return fd;
  close(fd);
  return rc;
}

/* Where the kernel keeps the poll set (TL_CAP_FD) it forgets a descriptor that we close. */
static void tl__io_teardown(tl_loop *loop, tl__io *io) {
  bool keep = io->flags & TL_KEEP_FD;
  io->want = 0;
  if (io->asked) loop->backend->stop(loop, io);
  tl__unlink(&io->again);
  if (keep || !(loop->backend->caps & TL_CAP_FD)) (void)tl__arm(loop, io, 0);
  tl__reg *reg = tl__reg_at(loop, io->fd);
  if (reg && reg->owner == io->head.id) reg->mask = 0;
  if (!keep && io->fd >= 0) {
    loop->stats.syscalls++;
    close(io->fd);
  }
}

/* Undo tl__new_io for a constructor that fails; the caller keeps the descriptor. */
static int64_t tl__abandon(tl_loop *loop, tl__io *io, int64_t error) {
  io->flags |= TL_KEEP_FD;
  tl__io_teardown(loop, io);
  tl__undo_new(loop, &io->head);
  return error;
}

// >>addr

TL_API int tl_addr_raw(tl_addr *addr, const void *sockaddr, size_t nbytes) {
  if (nbytes > sizeof addr->data) return -EINVAL;
  memset(addr, 0, sizeof *addr);
  addr->nbytes = (uint32_t)nbytes;
  if (nbytes) memcpy(addr->data, sockaddr, nbytes);
  return 0;
}

static int tl__addr_ip6(tl_addr *addr, const char *host, int port) {
  char text[INET6_ADDRSTRLEN];
  struct sockaddr_in6 in6;
  const char *zone = strchr(host, '%');
  size_t n = zone ? (size_t)(zone - host) : strlen(host);
  if (n >= sizeof text) return -EINVAL;
  memcpy(text, host, n);
  text[n] = 0;
  memset(&in6, 0, sizeof in6);
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons((uint16_t)port);
  if (inet_pton(AF_INET6, text, &in6.sin6_addr) != 1) return -EINVAL;
  if (zone) in6.sin6_scope_id = if_nametoindex(zone + 1);
  if (zone && !in6.sin6_scope_id) return -EINVAL;
  return tl_addr_raw(addr, &in6, sizeof in6);
}

TL_API int tl_addr_ip(tl_addr *addr, const char *host, int port) {
  struct sockaddr_in in;
  if (port < 0 || port > 65535) return -EINVAL;
  memset(&in, 0, sizeof in);
  in.sin_family = AF_INET;
  in.sin_port = htons((uint16_t)port);
  if (inet_pton(AF_INET, host, &in.sin_addr) == 1) return tl_addr_raw(addr, &in, sizeof in);
  return tl__addr_ip6(addr, host, port);
}

TL_API int tl_addr_unix(tl_addr *addr, const char *path, size_t nbytes) {
  struct sockaddr_un un;
  if (!nbytes) return -EINVAL;
  /* A path needs its final zero, an abstract name is counted. */
  size_t room = sizeof un.sun_path - (path[0] ? 1 : 0);
  if (nbytes > room) return -ENAMETOOLONG;
  memset(&un, 0, sizeof un);
  un.sun_family = AF_UNIX;
  memcpy(un.sun_path, path, nbytes);
  return tl_addr_raw(addr, &un,
                     offsetof(struct sockaddr_un, sun_path) + nbytes + (path[0] ? 1 : 0));
}

static int tl__addr_text_unix(const tl_addr *addr, char *out, size_t capacity) {
  const char *path = (const char *)addr->data + offsetof(struct sockaddr_un, sun_path);
  size_t head = offsetof(struct sockaddr_un, sun_path);
  size_t n = addr->nbytes > head ? addr->nbytes - head : 0;
  bool abstract = n && !path[0];
  if (!abstract) n = strnlen(path, n);
  if (n >= capacity) return -ENOSPC;
  memcpy(out, path, n);
  if (abstract) out[0] = '@';
  out[n] = 0;
  return (int)n;
}

TL_API int tl_addr_text(const tl_addr *addr, char *out, size_t capacity) {
  char host[INET6_ADDRSTRLEN];
  int family = tl__addr_family(addr);
  if (family == AF_UNIX || family == AF_UNSPEC) return tl__addr_text_unix(addr, out, capacity);
  size_t at = family == AF_INET ? offsetof(struct sockaddr_in, sin_addr)
                                : offsetof(struct sockaddr_in6, sin6_addr);
  const void *ip = (const char *)addr->data + at;
  if (!tl__is_ip(family) || !inet_ntop(family, ip, host, sizeof host))
    return capacity > 1 ? snprintf(out, capacity, "%s", "?") : -ENOSPC;
  const char *format = family == AF_INET ? "%s:%d" : "[%s]:%d";
  int n = snprintf(out, capacity, format, host, tl_addr_port(addr));
  return n < 0 || (size_t)n >= capacity ? -ENOSPC : n;
}

TL_API int tl_addr_port(const tl_addr *addr) {
  struct sockaddr_in in; /* sockaddr_in6 has its port at the same place */
  if (!tl__is_ip(tl__addr_family(addr))) return -EAFNOSUPPORT;
  memcpy(&in, addr->data, sizeof in);
  return ntohs(in.sin_port);
}

typedef int (*tl__name_fn)(int fd, struct sockaddr *sa, socklen_t *nbytes);

static int tl__ask_name(int fd, tl__name_fn ask, tl_addr *addr) {
  socklen_t n = sizeof addr->data;
  memset(addr, 0, sizeof *addr);
  if (ask(fd, (struct sockaddr *)(void *)addr->data, &n) < 0) return -errno;
  addr->nbytes = n;
  return 0;
}

TL_API int tl_sockname(const tl_loop *loop, tl_handle handle, tl_addr *addr) {
  int error;
  tl__io *io = tl__open_io(loop, handle, &error);
  return io ? tl__ask_name(io->fd, getsockname, addr) : error;
}

static int tl__ask_peer(const tl__io *io, tl_addr *addr) {
  const tl__stream *s = (const tl__stream *)io;
  if (io->head.kind == TL__STREAM && s->peer_bytes)
    return tl_addr_raw(addr, s->peer, s->peer_bytes);
  return tl__ask_name(io->fd, getpeername, addr);
}

TL_API int tl_peername(const tl_loop *loop, tl_handle handle, tl_addr *addr) {
  int error;
  tl__io *io = tl__open_io(loop, handle, &error);
  return io ? tl__ask_peer(io, addr) : error;
}

TL_API int tl_names(const tl_loop *loop, tl_handle handle, int which, tl_addr names[2]) {
  int error, known = 0;
  tl__io *io = tl__open_io(loop, handle, &error);
  if (!io) return error;
  if (which & 1 && tl__ask_name(io->fd, getsockname, &names[0]) == 0) known |= 1;
  if (which & 2 && tl__ask_peer(io, &names[1]) == 0) known |= 2;
  return known;
}

/* Arena offsets are kept on cache line boundaries, which also aligns addresses. */
static size_t tl__arena_round(size_t nbytes) { return (nbytes + 63) & ~(size_t)63; }

// >>flow

static void tl__flow_init(tl__flow *flow) {
  flow->high = 65536;
  flow->low = 16384;
}

static void tl__flow_add(tl_loop *loop, tl__flow *flow, size_t nbytes) {
  flow->queued += (int64_t)nbytes;
  loop->stats.queued += (int64_t)nbytes;
  if (flow->queued > flow->high) flow->above = true;
}

static void tl__flow_sub(tl_loop *loop, tl__flow *flow, size_t nbytes) {
  TL_ASSERT(flow->queued >= (int64_t)nbytes);
  flow->queued -= (int64_t)nbytes;
  loop->stats.queued -= (int64_t)nbytes;
}

/* After sending: is TL_EV_DRAIN due? */
static bool tl__flow_drained(tl__flow *flow) {
  if (flow->queued == 0) {
    flow->above = false;
    return true;
  }
  if (!flow->above || flow->queued > flow->low) return false;
  flow->above = false;
  return true;
}

TL_API int64_t tl_queued(const tl_loop *loop, tl_handle handle) {
  int error;
  const tl__flow *flow = tl__open_flow(loop, handle, &error);
  return flow ? flow->queued : error;
}

TL_API int tl_watermarks(tl_loop *loop, tl_handle handle, int64_t high, int64_t low) {
  int error;
  tl__flow *flow = tl__open_flow(loop, handle, &error);
  if (!flow) return error;
  if (low < 0 || low > high) return -EINVAL;
  flow->high = high;
  flow->low = low;
  flow->above = flow->above || flow->queued > high;
  return 0;
}

// >>queue

/* The write queue of a stream: equal blocks, so that a large write is no large allocation. */

static void tl__queue_clear(tl_loop *loop, tl__stream *s) {
  while (s->first) {
    tl__chunk *next = s->first->next;
    tl__chunk_free(loop, s->first);
    s->first = next;
  }
  s->last = NULL;
  tl__flow_sub(loop, &s->flow, (size_t)s->flow.queued);
}

static bool tl__queue_add(tl_loop *loop, tl__stream *s, const unsigned char *data, size_t nbytes) {
  while (nbytes) {
    if (!s->last || s->last->end == TL__CHUNK_ROOM) {
      tl__chunk *chunk = tl__chunk_new(loop);
      if (!chunk) return false;
      if (s->last)
        s->last->next = chunk;
      else
        s->first = chunk;
      s->last = chunk;
    }
    size_t n = (size_t)TL__CHUNK_ROOM - s->last->end;
    if (n > nbytes) n = nbytes;
    memcpy(s->last->data + s->last->end, data, n);
    s->last->end += (uint32_t)n;
    tl__flow_add(loop, &s->flow, n);
    data += n;
    nbytes -= n;
  }
  return true;
}

static void tl__queue_consume(tl_loop *loop, tl__stream *s, size_t nbytes) {
  tl__flow_sub(loop, &s->flow, nbytes);
  for (tl__chunk *chunk = s->first; chunk && nbytes; chunk = s->first) {
    size_t n = chunk->end - chunk->begin;
    if (n > nbytes) {
      chunk->begin += (uint32_t)nbytes;
      return;
    }
    nbytes -= n;
    s->first = chunk->next;
    if (!s->first) s->last = NULL;
    tl__chunk_free(loop, chunk);
  }
}

// >>stream

static bool tl__is_tcp(int fd) {
  int protocol = 0;
  socklen_t n = sizeof protocol;
  return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &n) == 0 && protocol == IPPROTO_TCP;
}

static tl_handle tl__stream_new(tl_loop *loop, int fd, int flags, bool is_socket, bool is_tcp) {
  int64_t error;
  tl__stream *s = tl__new_io(loop, sizeof *s, TL__STREAM, fd, flags, &error);
  if (!s) return error;
  tl__flow_init(&s->flow);
  s->is_socket = is_socket;
  s->end = 1;
  s->io.by_ring = is_tcp && tl__ring_does(loop, TL__OP_RECV);
  s->edge = is_tcp && !s->io.by_ring && (loop->backend->caps & TL_CAP_EDGE);
  return s->io.head.id;
}

TL_API tl_handle tl_stream_open(tl_loop *loop, int fd, int flags) {
  struct stat st;
  if (fd < 0 || fstat(fd, &st) < 0) return -EBADF;
  if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) return -EINVAL;
  int rc = tl__set_nonblocking(fd);
  bool is_socket = S_ISSOCK(st.st_mode);
  return rc < 0 ? rc : tl__stream_new(loop, fd, flags, is_socket, is_socket && tl__is_tcp(fd));
}

TL_API tl_handle tl_stream_connect(tl_loop *loop, const tl_addr *addr) {
  int family = tl__addr_family(addr), error;
  int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  if (tl__is_ip(family)) tl__tune(fd, IPPROTO_TCP, TCP_NODELAY);
  int64_t rc = 0;
  if (connect(fd, tl__sockaddr(addr), addr->nbytes) < 0 && errno != EINPROGRESS && errno != EINTR)
    rc = -errno;
  tl_handle id = rc < 0 ? rc : tl__stream_new(loop, fd, 0, true, tl__is_ip(family));
  tl__stream *s = id < 0 ? NULL : tl__open(loop, id, TL__STREAM, &error);
  if (s) {
    s->connecting = true; /* writable when it is decided; also after an immediate success */
    rc = tl__want(loop, &s->io, TL_WRITE);
    if (rc < 0) id = tl__abandon(loop, &s->io, rc);
  }
  if (id < 0) close(fd);
  return id;
}

static void tl__stream_break(tl_loop *loop, tl__stream *s, int error) {
  s->error = error;
  tl__queue_clear(loop, s);
  tl__unlink(&s->io.again);
  s->io.want = 0;
  tl__trim(loop, &s->io);
}

/* What the ring has received. */
static ssize_t tl__take_received(tl_loop *loop, tl__stream *s, unsigned char *buffer,
                                 size_t nbytes) {
  size_t taken = 0;
  while (s->received && taken < nbytes) {
    tl__chunk *first = s->received->next;
    size_t n = first->end - first->begin;
    if (n > nbytes - taken) n = nbytes - taken;
    memcpy(buffer + taken, first->data + first->begin, n);
    first->begin += (uint32_t)n;
    taken += n;
    if (first->begin == first->end) tl__received_drop(loop, s);
  }
  loop->stats.bytes_in += (int64_t)taken;
  return (ssize_t)taken;
}

static ssize_t tl__recv(tl_loop *loop, tl__stream *s, void *buffer, size_t nbytes) {
  ssize_t n;
  if (s->received) return tl__take_received(loop, s, (unsigned char *)buffer, nbytes);
  if (s->end <= 0) return s->end;
  if (s->io.asked) return -EAGAIN; /* nothing may overtake what the ring is about to tell */
  do {
    loop->stats.syscalls++;
    n = s->is_socket ? recv(s->io.fd, buffer, nbytes, 0) : read(s->io.fd, buffer, nbytes);
  } while (n < 0 && errno == EINTR);
  if (n > 0) loop->stats.bytes_in += n;
  return n < 0 ? -errno : n;
}

#define TL__NOSIGNAL 0x100 /* RWF_NOSIGNAL of Linux 6.18; a header may be older than its kernel */

/* A pipe without reader raises SIGPIPE: block it, and take the one raised. Programs that ignore it,
   as Python does, pay one system call. */
static ssize_t tl__write_masked(int fd, const struct iovec *iov, int count) {
  struct sigaction action;
  struct timespec none = {0, 0};
  sigset_t broken, pending, former;
  if (sigaction(SIGPIPE, NULL, &action) == 0 && action.sa_handler == SIG_IGN)
    return writev(fd, iov, count);
  sigemptyset(&broken);
  sigaddset(&broken, SIGPIPE);
  sigpending(&pending);                     /* one that was there before is not ours to take */
  sigprocmask(SIG_BLOCK, &broken, &former); /* glibc, musl: of this thread */
  ssize_t n = writev(fd, iov, count);
  int error = errno;
  if (n < 0 && error == EPIPE && !sigismember(&pending, SIGPIPE))
    while (sigtimedwait(&broken, NULL, &none) < 0 && errno == EINTR) {
    }
  sigprocmask(SIG_SETMASK, &former, NULL);
  errno = error;
  return n;
}

static ssize_t tl__write_pipe(tl_loop *loop, int fd, const struct iovec *iov, int count) {
#ifdef SYS_pwritev2
  if (!loop->no_nosignal) {
    long n = syscall(SYS_pwritev2, fd, iov, count, -1L, -1L, TL__NOSIGNAL); /* -1: as writev */
    if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EPERM)) return n;
    loop->no_nosignal = true; /* older kernel, its driver for that file, or a sandbox */
  }
#endif
  return tl__write_masked(fd, iov, count);
}

static ssize_t tl__send(tl_loop *loop, tl__stream *s, struct iovec *iov, int count) {
  ssize_t n;
  do {
    loop->stats.syscalls++;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)count};
    if (!s->is_socket)
      n = tl__write_pipe(loop, s->io.fd, iov, count);
    else if (count == 1)
      n = send(s->io.fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL);
    else
      n = sendmsg(s->io.fd, &msg, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  if (n > 0) loop->stats.bytes_out += n;
  if (n < 0 && errno == EAGAIN) s->io.ready = (uint8_t)(s->io.ready & ~TL_WRITE);
  return n < 0 ? -errno : n;
}

/* A terminal whose other end closed answers EIO. */
static bool tl__is_eof(const tl__stream *s, ssize_t n) {
  return n == 0 || (n == -EIO && !s->is_socket);
}

/* Less than was asked for: nothing is left, and an edge will announce more. */
static void tl__note_received(tl__stream *s, ssize_t n, size_t asked) {
  if (n == -EAGAIN || (n > 0 && (size_t)n < asked && !s->end_near)) {
    s->io.ready = (uint8_t)(s->io.ready & ~TL_READ);
    if (!(s->io.ready & s->io.want)) tl__unlink(&s->io.again);
  }
}

static bool tl__stream_receive(tl_loop *loop, tl__stream *s, tl_event *ev) {
  if (s->notify) {
    *ev = (tl_event){s->io.head.id, TL_EV_READABLE, 0, 0};
    return true;
  }
  size_t offset = loop->arena_used, room = TL_ARENA_BYTES - offset;
  ssize_t n = tl__recv(loop, s, loop->arena + offset, room);
  tl__note_received(s, n, room);
  if (n == -EAGAIN) return false;
  if (n > 0) {
    loop->arena_used = offset + tl__arena_round((size_t)n);
    *ev = (tl_event){s->io.head.id, TL_EV_DATA, n, (int64_t)offset};
  } else if (tl__is_eof(s, n)) {
    tl__unwant(&s->io, TL_READ);
    *ev = (tl_event){s->io.head.id, TL_EV_EOF, n, 0};
  } else {
    tl__stream_break(loop, s, (int)n);
    *ev = (tl_event){s->io.head.id, TL_EV_ERROR, n, TL_READ};
  }
  return true;
}

static bool tl__stream_input(tl_loop *loop, tl__stream *s, tl_event *ev) {
  bool made = s->layer ? s->layer->ops->input(loop, s, ev) : tl__stream_receive(loop, s, ev);
  if (made && ev->kind == TL_EV_DATA && ev->result >= s->large) s->notify = true;
  return made;
}

static bool tl__stream_connected(tl_loop *loop, tl__stream *s, tl_event *ev) {
  int error = 0;
  socklen_t n = sizeof error;
  if (getsockopt(s->io.fd, SOL_SOCKET, SO_ERROR, &error, &n) < 0) error = errno;
  s->connecting = false;
  tl__unwant(&s->io, TL_WRITE);
  if (!error && s->layer) error = -s->layer->ops->begin(loop, s);
  if (error)
    tl__stream_break(loop, s, -error);
  else
    tl__trim(loop, &s->io);
  *ev = (tl_event){s->io.head.id, TL_EV_CONNECT, -error, 0};
  return true;
}

/* The queue is empty: stop watching, and do what waited for that. */
static void tl__stream_emptied(tl_loop *loop, tl__stream *s) {
  tl__unwant(&s->io, TL_WRITE);
  tl__trim(loop, &s->io);
  if (s->layer) {
    s->layer->ops->emptied(loop, s);
    return;
  }
  /* NOLINTNEXTLINE(clang-analyzer-unix.StdCLibraryFunctions): the descriptor is open */
  if (s->shut) shutdown(s->io.fd, SHUT_WR);
  if (s->finishing) (void)tl_close(loop, s->io.head.id);
}

/* A graceful close that fails reports it in TL_EV_CLOSED, everything else in TL_EV_ERROR. */
static bool tl__stream_output_failed(tl_loop *loop, tl__stream *s, int error, tl_event *ev) {
  bool finishing = s->finishing;
  tl__stream_break(loop, s, error);
  if (finishing) {
    s->io.head.close_result = error;
    (void)tl_close(loop, s->io.head.id);
    return false;
  }
  if (s->internal)
    *ev = (tl_event){s->io.head.id, TL_EV_TLS, error, 0};
  else
    *ev = (tl_event){s->io.head.id, TL_EV_ERROR, error, TL_WRITE};
  return true;
}

static bool tl__stream_output(tl_loop *loop, tl__stream *s, tl_event *ev) {
  struct iovec iov[TL__IOV_MAX];
  int count = 0;
  if (s->connecting) return tl__stream_connected(loop, s, ev);
  for (tl__chunk *c = s->first; c && count < TL__IOV_MAX; c = c->next)
    iov[count++] = (struct iovec){c->data + c->begin, c->end - c->begin};
  ssize_t n = count ? tl__send(loop, s, iov, count) : 0;
  if (n == -EAGAIN) return false;
  if (n < 0) return tl__stream_output_failed(loop, s, (int)n, ev);
  tl__queue_consume(loop, s, (size_t)n);
  bool drained = tl__flow_drained(&s->flow), silent = s->finishing || s->internal;
  if (s->flow.queued == 0) tl__stream_emptied(loop, s);
  if (!drained || silent) return false;
  *ev = (tl_event){s->io.head.id, TL_EV_DRAIN, s->flow.queued, 0};
  return true;
}

static int tl__stream_usable(const tl__stream *s) {
  if (s->error) return s->error;
  if (s->connecting) return -ENOTCONN;
  return s->finishing ? TL_EBADH : 0;
}

static int tl__read_start(tl_loop *loop, tl_handle stream, bool notify, int64_t large) {
  int error;
  tl__stream *s = tl__open(loop, stream, TL__STREAM, &error);
  if (!s) return error;
  int rc = tl__stream_usable(s);
  if (rc == 0) rc = tl__want(loop, &s->io, TL_READ);
  if (rc < 0) return rc;
  s->notify = notify;
  s->large = large;
  s->reading = true;
  return 0;
}

TL_API int tl_stream_read_start(tl_loop *loop, tl_handle stream) {
  return tl__read_start(loop, stream, false, INT64_MAX);
}

TL_API int tl_stream_read_mixed(tl_loop *loop, tl_handle stream, int64_t large) {
  return large < 1 ? -EINVAL : tl__read_start(loop, stream, false, large);
}

TL_API int tl_stream_read_notify(tl_loop *loop, tl_handle stream) {
  return tl__read_start(loop, stream, true, INT64_MAX);
}

TL_API int tl_stream_read_stop(tl_loop *loop, tl_handle stream) {
  int error;
  tl__stream *s = tl__open(loop, stream, TL__STREAM, &error);
  if (!s) return error;
  s->reading = false;
  if (!s->internal) tl__unwant(&s->io, TL_READ);
  return 0;
}

/* Small again? See tl_stream_read_mixed. */
static int64_t tl__note_size(tl__stream *s, int64_t n) {
  if (n > 0 && s->large < INT64_MAX && n < s->large / 4) s->notify = false;
  return n;
}

/* The host has received, by itself or by us. Returns n, 0 at end of file. */
static int64_t tl__host_received(tl_loop *loop, tl__stream *s, ssize_t n, size_t asked) {
  tl__note_received(s, n, asked);
  if (asked && tl__is_eof(s, n)) {
    tl__unwant(&s->io, TL_READ);
    return 0;
  }
  if (n < 0 && n != -EAGAIN) tl__stream_break(loop, s, (int)n);
  return tl__note_size(s, n);
}

TL_API int64_t tl_stream_recv(tl_loop *loop, tl_handle stream, void *buffer, size_t nbytes) {
  int error;
  tl__stream *s = tl__open(loop, stream, TL__STREAM, &error);
  if (!s) return error;
  int rc = tl__stream_usable(s);
  if (rc < 0) return rc;
  if (s->layer) return tl__note_size(s, s->layer->ops->recv(loop, s, buffer, nbytes));
  int64_t n = tl__host_received(loop, s, tl__recv(loop, s, buffer, nbytes), nbytes);
  if (s->io.by_ring) tl__come_back(loop, &s->io);
  return n;
}

TL_API int tl_stream_received(tl_loop *loop, tl_handle stream, int64_t nbytes, size_t asked) {
  int error;
  tl__stream *s = tl__open(loop, stream, TL__STREAM, &error);
  if (!s) return error;
  if (s->layer || s->io.by_ring) return -EOPNOTSUPP;
  if (s->error) return 0; /* found out by sending */
  loop->stats.syscalls++;
  if (nbytes > 0) loop->stats.bytes_in += nbytes;
  (void)tl__host_received(loop, s, (ssize_t)nbytes, asked);
  return 0;
}

/* Skip the first nbytes of the buffers and queue the rest. */
static bool tl__queue_rest(tl_loop *loop, tl__stream *s, const tl_buf *bufs, int count,
                           size_t nbytes) {
  for (int i = 0; i < count; i++) {
    size_t skip = nbytes < bufs[i].nbytes ? nbytes : bufs[i].nbytes;
    nbytes -= skip;
    if (!tl__queue_add(loop, s, (const unsigned char *)bufs[i].data + skip, bufs[i].nbytes - skip))
      return false;
  }
  return true;
}

/* Send what the kernel takes now. Returns bytes, 0 for EAGAIN, or -errno. */
static ssize_t tl__send_now(tl_loop *loop, tl__stream *s, const tl_buf *bufs, int count) {
  struct iovec iov[TL__IOV_MAX];
  ssize_t total = 0;
  for (int i = 0; i < count;) {
    int k = 0;
    size_t asked = 0;
    for (; i < count && k < TL__IOV_MAX; i++) {
      if (!bufs[i].nbytes) continue;
      asked += bufs[i].nbytes;
      iov[k++] = (struct iovec){(void *)(uintptr_t)bufs[i].data, bufs[i].nbytes};
    }
    ssize_t n = k ? tl__send(loop, s, iov, k) : 0;
    if (n == -EAGAIN) break;
    if (n < 0) return n;
    total += n;
    if ((size_t)n < asked) break;
  }
  return total;
}

static int tl__may_write(const tl__stream *s) {
  int rc = tl__stream_usable(s);
  return rc == 0 && s->shut ? -EPIPE : rc;
}

/* Queue what the kernel has not taken of the buffers; sent < 0: the send has failed. */
static int64_t tl__write_rest(tl_loop *loop, tl__stream *s, const tl_buf *bufs, int count,
                              ssize_t sent) {
  int rc = sent < 0 ? (int)sent : tl__want(loop, &s->io, TL_WRITE);
  if (rc == 0 && !tl__queue_rest(loop, s, bufs, count, (size_t)sent)) rc = -ENOMEM;
  if (rc == 0) return s->flow.queued;
  tl__stream_break(loop, s, rc);
  return rc;
}

static int64_t tl__write_one(tl_loop *loop, tl__stream *s, const tl_buf *buf) {
  struct iovec iov = {(void *)(uintptr_t)buf->data, buf->nbytes};
  ssize_t sent = s->first || !buf->nbytes ? 0 : tl__send(loop, s, &iov, 1);
  if (sent == -EAGAIN) sent = 0;
  if (sent >= 0 && (size_t)sent == buf->nbytes) return s->flow.queued;
  return tl__write_rest(loop, s, buf, 1, sent);
}

TL_API int64_t tl_stream_writev(tl_loop *loop, tl_handle stream, const tl_buf *bufs, int count) {
  int error;
  size_t total = 0;
  tl__stream *s = tl__open(loop, stream, TL__STREAM, &error);
  if (!s) return error;
  if (count < 0) return -EINVAL;
  int rc = tl__may_write(s);
  if (rc < 0) return rc;
  if (s->layer) return s->layer->ops->write(loop, s, bufs, count);
  for (int i = 0; i < count; i++) total += bufs[i].nbytes;
  ssize_t sent = s->first ? 0 : tl__send_now(loop, s, bufs, count);
  if (sent >= 0 && (size_t)sent == total) return s->flow.queued;
  return tl__write_rest(loop, s, bufs, count, sent);
}

TL_API int64_t tl_stream_write(tl_loop *loop, tl_handle stream, const void *data, size_t nbytes) {
  int error;
  tl__stream *s = tl__open(loop, stream, TL__STREAM, &error);
  if (!s) return error;
  int rc = tl__may_write(s);
  if (rc < 0) return rc;
  tl_buf buf = {data, nbytes};
  if (s->layer) return s->layer->ops->write(loop, s, &buf, 1);
  return tl__write_one(loop, s, &buf);
}

/* The stream if its next bytes can be part of a batch: once in each. */
static tl__stream *tl__batchable(const tl_loop *loop, tl_handle stream, size_t nbytes) {
  int error;
  tl__stream *s = tl__open(loop, stream, TL__STREAM, &error);
  if (!s || tl__may_write(s) < 0 || s->layer || !s->is_socket) return NULL;
  return s->first || s->batched || !nbytes || nbytes > INT_MAX ? NULL : s;
}

static void tl__send_rows(tl_loop *loop, tl__row *rows, int count) {
  for (int i = 0; i < count; i++) {
    tl__stream *s = rows[i].stream = tl__batchable(loop, rows[i].id, rows[i].nbytes);
    if (s) s->batched = true;
  }
  loop->backend->send(loop, rows, count);
  for (int i = 0; i < count; i++)
    if (rows[i].stream) rows[i].stream->batched = false;
}

/* As tl_stream_write, of which the send has been tried. */
static int64_t tl__write_sent(tl_loop *loop, const tl__row *row) {
  tl_buf buf = {row->data, row->nbytes};
  tl__stream *s = row->stream;
  int sent = row->sent;
  if (sent > 0) loop->stats.bytes_out += sent;
  if (sent == -EAGAIN) s->io.ready = (uint8_t)(s->io.ready & ~TL_WRITE);
  if (sent == -EAGAIN || sent == -EINTR) sent = 0;
  if (sent >= 0 && (size_t)sent == row->nbytes) return s->flow.queued;
  return tl__write_rest(loop, s, &buf, 1, sent);
}

/* Returns how many answers are not 0. */
static int tl__write_rows(tl_loop *loop, tl__row *rows, int count) {
  int answers = 0;
  if (count > 1) tl__send_rows(loop, rows, count);
  for (int i = 0; i < count; i++) {
    const tl__row *row = &rows[i];
    *row->answer = row->stream && row->sent != TL__NOT_SENT
                       ? tl__write_sent(loop, row)
                       : tl_stream_write(loop, row->id, row->data, row->nbytes);
    answers += *row->answer != 0;
  }
  return answers;
}

TL_API int tl_stream_write_batch(tl_loop *loop, int64_t *rows, int count, const void *data) {
  tl__row batch[TL__ROWS_MAX];
  tl__row row = {.data = (const unsigned char *)data, .sent = TL__NOT_SENT};
  int answers = 0, n = 0, most = tl__ring_does(loop, TL__OP_SEND) ? TL__ROWS_MAX : 1;
  if (count < 0) return -EINVAL;
  for (int i = 0; i < count; i++) {
    row.nbytes += (size_t)rows[count + i];
    rows[count + i] = 0;
    if (i + 1 < count && rows[i + 1] == rows[i]) continue;
    row.id = rows[i];
    row.answer = &rows[count + i];
    batch[n++] = row;
    row.data += row.nbytes;
    row.nbytes = 0;
    if (n < most && i + 1 < count) continue;
    answers += tl__write_rows(loop, batch, n);
    n = 0;
  }
  return answers;
}

TL_API int tl_stream_shutdown(tl_loop *loop, tl_handle stream) {
  int error;
  tl__stream *s = tl__open(loop, stream, TL__STREAM, &error);
  if (!s) return error;
  int rc = tl__stream_usable(s);
  if (rc < 0 || s->shut) return rc;
  if (s->layer) return s->layer->ops->shutdown(loop, s);
  if (!s->first && shutdown(s->io.fd, SHUT_WR) < 0) return -errno;
  s->shut = true;
  return 0;
}

TL_API int tl_stream_close(tl_loop *loop, tl_handle stream) {
  int error;
  tl__stream *s = tl__open(loop, stream, TL__STREAM, &error);
  if (!s) return error;
  s->graceful = true;
  if (s->layer && !s->finishing) return s->layer->ops->close(loop, s);
  if (!s->first) return tl_close(loop, stream);
  tl__unwant(&s->io, TL_READ);
  s->finishing = true;
  return 0;
}

// >>listener

static tl_handle tl__listener_new(tl_loop *loop, int fd, int flags) {
  int64_t error;
  tl__listener *l = tl__new_io(loop, sizeof *l, TL__LISTENER, fd, flags, &error);
  if (!l) return error;
  l->pause.owner = &l->io.head;
  l->is_tcp = tl__is_tcp(fd);
  l->io.by_ring = tl__ring_does(loop, TL__OP_ACCEPT);
  tl__tune(fd, IPPROTO_TCP, TCP_NODELAY); /* Linux: accepted sockets inherit it */
  int rc = tl__want(loop, &l->io, TL_READ);
  return rc < 0 ? tl__abandon(loop, &l->io, rc) : l->io.head.id;
}

TL_API tl_handle tl_listener_open(tl_loop *loop, int fd, int flags) {
  if (fd < 0) return -EBADF;
  int rc = tl__set_nonblocking(fd);
  return rc < 0 ? rc : tl__listener_new(loop, fd, flags);
}

TL_API tl_handle tl_listener_bind(tl_loop *loop, const tl_addr *addr, int backlog, int flags) {
  int fd = tl__bound_socket(addr, SOCK_STREAM, flags);
  if (fd < 0) return fd;
  tl_handle id;
  if (listen(fd, backlog > 0 ? backlog : SOMAXCONN) < 0)
    id = -errno;
  else
    id = tl__listener_new(loop, fd, 0);
  if (id < 0) close(fd);
  return id;
}

/* Nothing more can be accepted now, and the kernel would report that for ever: pause. */
static void tl__listener_pause(tl_loop *loop, tl__listener *l) {
  tl__unwant(&l->io, TL_READ);
  tl__trim(loop, &l->io);
  if (tl__heap_insert(loop, &l->pause, tl__add_clamped(loop->now_ns, TL__ACCEPT_PAUSE_NS)) < 0)
    (void)tl__want(loop, &l->io, TL_READ); /* no memory for the timer: try again at once */
}

/* End of a pause of a listener or a UDP handle, or a deadline of a layer. When the kernel has no
   memory for the first: pause on. */
static void tl__resume(tl_loop *loop, tl__node *node) {
  if (node->owner->kind == TL__STREAM) {
    tl__stream *s = (tl__stream *)node->owner;
    s->layer->ops->due(loop, s);
    return;
  }
  int bit = node->owner->kind == TL__LISTENER ? TL_READ : TL_WRITE;
  if (tl__want(loop, (tl__io *)node->owner, bit) == 0) return;
  int64_t again_ns = tl__add_clamped(loop->now_ns, TL__ACCEPT_PAUSE_NS);
  (void)tl__heap_insert(loop, node, again_ns); /* it has just left the heap: there is room */
}

static bool tl__accept_lost(int error) {
  /* Errors of the one connection that was to be accepted, not of the listener. */
  return error == EINTR || error == ECONNABORTED || error == EPROTO || error == ENETDOWN ||
         error == EHOSTDOWN || error == EHOSTUNREACH || error == ENETUNREACH ||
         error == ENOPROTOOPT || error == ENONET || error == EPERM;
}

static tl_handle tl__adopt_accepted(tl_loop *loop, int fd, const tl_addr *peer, bool is_tcp) {
  int error;
  tl_handle id = tl__stream_new(loop, fd, 0, true, is_tcp);
  tl__stream *s = id < 0 ? NULL : tl__open(loop, id, TL__STREAM, &error);
  if (!s) {
    close(fd);
    return id;
  }
  if (peer->nbytes <= TL__PEER_BYTES) {
    memcpy(s->peer, peer->data, peer->nbytes);
    s->peer_bytes = (uint8_t)peer->nbytes;
  }
  return id;
}

/* What the ring has accepted, for which it had no place for an address. */
static int tl__take_accepted(tl_loop *loop, tl__listener *l, tl_addr *peer) {
  int fd = l->fds[l->fd_next++];
  if (l->fd_next == l->fd_count) l->fd_next = l->fd_count = 0;
  if (fd < 0) return fd;
  loop->stats.syscalls++;
  if (tl__ask_name(fd, getpeername, peer) == 0) return fd;
  close(fd); /* reset meanwhile */
  return -ECONNABORTED;
}

/* A descriptor or -errno. */
static int tl__accept(tl_loop *loop, tl__listener *l, tl_addr *peer) {
  memset(peer, 0, sizeof *peer);
  socklen_t n = sizeof peer->data;
  if (l->fd_next < l->fd_count) return tl__take_accepted(loop, l, peer);
  if (l->lost) {
    l->lost = false;
    return -ENOMEM;
  }
  if (l->io.asked) return -EAGAIN;
  loop->stats.syscalls++;
  int fd =
      accept4(l->io.fd, (struct sockaddr *)(void *)peer->data, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
  peer->nbytes = n;
  return fd < 0 ? -errno : fd;
}

/* One accept. Returns false when there is nothing more in this tick. */
static bool tl__listener_input(tl_loop *loop, tl__listener *l, tl_event *ev) {
  while (l->accepted++ < TL__ACCEPT_MAX) {
    tl_addr *peer = (tl_addr *)(void *)(loop->arena + loop->arena_used);
    int fd = tl__accept(loop, l, peer);
    if (fd == -EAGAIN || fd == -EWOULDBLOCK) {
      l->io.ready = 0;
      return false;
    }
    if (fd < 0 && tl__accept_lost(-fd)) continue;
    tl_handle id = fd < 0 ? fd : tl__adopt_accepted(loop, fd, peer, l->is_tcp);
    if (id < 0) {
      tl__listener_pause(loop, l);
      l->accepted = TL__ACCEPT_MAX;
    }
    *ev = (tl_event){l->io.head.id, TL_EV_ACCEPT, id, (int64_t)loop->arena_used + TL_ADDR_BYTES};
    loop->arena_used += tl__arena_round(sizeof *peer);
    return true;
  }
  return false;
}

// >>udp

static bool tl__dgram_tables(tl_loop *loop) {
  if (loop->headers) return true;
  struct mmsghdr *headers = tl__alloc(loop, TL__DGRAM_MAX * sizeof *headers);
  struct iovec *vectors = tl__alloc(loop, TL__DGRAM_MAX * sizeof *vectors);
  if (!headers || !vectors) {
    tl__free(loop, headers);
    tl__free(loop, vectors);
    return false;
  }
  loop->headers = headers;
  loop->vectors = vectors;
  return true;
}

static tl_handle tl__udp_new(tl_loop *loop, int fd, int flags) {
  int64_t error;
  int family = 0;
  socklen_t n = sizeof family;
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &n) < 0) return -errno;
  if (!tl__dgram_tables(loop)) return -ENOMEM;
  tl__udp *u = tl__new_io(loop, sizeof *u, TL__UDP, fd, flags, &error);
  if (!u) return error;
  tl__flow_init(&u->flow);
  u->pause.owner = &u->io.head;
  u->family = family;
  u->burst = 4;
  return u->io.head.id;
}

TL_API tl_handle tl_udp_open(tl_loop *loop, int fd, int flags) {
  if (fd < 0) return -EBADF;
  int rc = tl__set_nonblocking(fd);
  return rc < 0 ? rc : tl__udp_new(loop, fd, flags);
}

TL_API tl_handle tl_udp_bind(tl_loop *loop, const tl_addr *addr, int flags) {
  int fd = tl__bound_socket(addr, SOCK_DGRAM, flags);
  if (fd < 0) return fd;
  tl_handle id = tl__udp_new(loop, fd, 0);
  if (id < 0) close(fd);
  return id;
}

TL_API int tl_udp_connect(tl_loop *loop, tl_handle udp, const tl_addr *addr) {
  int error;
  tl__udp *u = tl__open(loop, udp, TL__UDP, &error);
  if (!u) return error;
  return connect(u->io.fd, tl__sockaddr(addr), addr->nbytes) < 0 ? -errno : 0;
}

TL_API int tl_udp_read_start(tl_loop *loop, tl_handle udp) {
  int error;
  tl__udp *u = tl__open(loop, udp, TL__UDP, &error);
  return u ? tl__want(loop, &u->io, TL_READ) : error;
}

TL_API int tl_udp_read_stop(tl_loop *loop, tl_handle udp) {
  int error;
  tl__udp *u = tl__open(loop, udp, TL__UDP, &error);
  if (!u) return error;
  tl__unwant(&u->io, TL_READ);
  return 0;
}

/* Slots of the datagram area follow the stream arena: an address, then the bytes. */
static unsigned char *tl__dgram_slot(const tl_loop *loop, int slot) {
  return loop->arena + TL_ARENA_BYTES + TL_ADDR_BYTES + (size_t)slot * TL__DGRAM_STRIDE;
}

static void tl__dgram_prepare(tl_loop *loop, int slot) {
  unsigned char *at = tl__dgram_slot(loop, slot);
  memset(at, 0, TL_ADDR_BYTES);
  loop->vectors[slot] = (struct iovec){at + TL_ADDR_BYTES, TL__DGRAM_BYTES};
  loop->headers[slot].msg_hdr = (struct msghdr){.msg_name = at + offsetof(tl_addr, data),
                                                .msg_namelen = sizeof(((tl_addr *)0)->data),
                                                .msg_iov = &loop->vectors[slot],
                                                .msg_iovlen = 1};
}

static bool tl__udp_error(const tl__udp *u, int error, int direction, tl_event *ev) {
  if (error == EAGAIN || error == EINTR) return false;
  *ev = (tl_event){u->io.head.id, TL_EV_ERROR, -error, direction};
  return true;
}

/* Unix datagrams may be larger than a slot: one at a time, into the whole stream arena. */
static bool tl__udp_input_large(tl_loop *loop, tl__udp *u, tl_event *ev) {
  tl_addr *addr = (tl_addr *)(void *)loop->arena;
  memset(addr, 0, sizeof *addr);
  struct iovec iov = {loop->arena + TL_ADDR_BYTES, TL_ARENA_BYTES};
  struct msghdr msg = {
      .msg_name = addr->data, .msg_namelen = sizeof addr->data, .msg_iov = &iov, .msg_iovlen = 1};
  loop->stats.syscalls++;
  ssize_t n = recvmsg(u->io.fd, &msg, 0);
  if (n < 0) return tl__udp_error(u, errno, TL_READ, ev);
  loop->arena_used = TL_ARENA_BYTES; /* nobody else may receive there in this tick */
  loop->stats.bytes_in += n;
  addr->nbytes = msg.msg_namelen;
  *ev = (tl_event){u->io.head.id, TL_EV_DATAGRAM, n, TL_ADDR_BYTES};
  return true;
}

static bool tl__next_datagram(tl_loop *loop, tl_event *ev) {
  tl__batch *b = &loop->batch;
  const tl__head *head = b->next < b->end ? tl__get(loop, b->id) : NULL;
  if (!head || head->closing) {
    b->next = b->end;
    return false;
  }
  int slot = b->next++;
  unsigned char *at = tl__dgram_slot(loop, slot);
  ((tl_addr *)(void *)at)->nbytes = loop->headers[slot].msg_hdr.msg_namelen;
  int64_t offset = at + TL_ADDR_BYTES - loop->arena;
  *ev = (tl_event){b->id, TL_EV_DATAGRAM, loop->headers[slot].msg_len, offset};
  return true;
}

static bool tl__udp_input(tl_loop *loop, tl__udp *u, tl_event *ev) {
  if (!tl__is_ip(u->family)) return tl__udp_input_large(loop, u, ev);
  int first = loop->dgram_used, asked = TL__DGRAM_MAX - first;
  if (asked > u->burst) asked = u->burst;
  for (int slot = first; slot < first + asked; slot++) tl__dgram_prepare(loop, slot);
  loop->stats.syscalls++;
  int n = recvmmsg(u->io.fd, loop->headers + first, (unsigned)asked, 0, NULL);
  if (n < 0) return tl__udp_error(u, errno, TL_READ, ev);
  u->burst = n < 2 ? 4 : n > TL__DGRAM_MAX / 2 ? TL__DGRAM_MAX : 2 * n;
  for (int slot = first; slot < first + n; slot++)
    loop->stats.bytes_in += loop->headers[slot].msg_len;
  loop->dgram_used = first + n;
  loop->batch = (tl__batch){u->io.head.id, first, first, first + n};
  return tl__next_datagram(loop, ev);
}

static void tl__packet_drop(tl_loop *loop, tl__udp *u) {
  tl__packet *p = u->first;
  u->first = p->next;
  if (!u->first) u->last = NULL;
  tl__flow_sub(loop, &u->flow, p->nbytes + TL_DATAGRAM_HEADER);
  tl__free(loop, p);
}

static void tl__packets_clear(tl_loop *loop, tl__udp *u) {
  while (u->first) tl__packet_drop(loop, u);
  tl__heap_remove(loop, &u->pause);
}

static void tl__udp_teardown(tl_loop *loop, tl__udp *u) {
  tl__packets_clear(loop, u);
  tl__io_teardown(loop, &u->io);
}

static int64_t tl__packet_add(tl_loop *loop, tl__udp *u, const tl_datagram *d) {
  tl__packet *p = tl__alloc(loop, sizeof *p + d->nbytes);
  if (!p) return -ENOMEM;
  int rc = u->pause.heap_pos ? 0 : tl__want(loop, &u->io, TL_WRITE);
  if (rc < 0) {
    tl__free(loop, p);
    return rc;
  }
  p->next = NULL;
  p->nbytes = d->nbytes;
  memset(&p->addr, 0, sizeof p->addr);
  if (d->addr) p->addr = *d->addr;
  if (d->nbytes) memcpy(p->data, d->data, d->nbytes);
  if (u->last)
    u->last->next = p;
  else
    u->first = p;
  u->last = p;
  tl__flow_add(loop, &u->flow, d->nbytes + TL_DATAGRAM_HEADER);
  return u->flow.queued;
}

static void tl__sendv_prepare(struct mmsghdr *header, struct iovec *iov, const void *data,
                              size_t nbytes, const tl_addr *addr) {
  *iov = (struct iovec){(void *)(uintptr_t)data, nbytes};
  header->msg_hdr = (struct msghdr){.msg_iov = iov, .msg_iovlen = 1};
  if (!addr || !addr->nbytes) return;
  header->msg_hdr.msg_name = (void *)(uintptr_t)addr->data;
  header->msg_hdr.msg_namelen = addr->nbytes;
}

/* Returns how many were sent, 0 for "no room now", or -errno of the first. */
static int tl__sendv(tl_loop *loop, const tl__udp *u, struct mmsghdr *headers, int count) {
  loop->stats.syscalls++;
  int n = sendmmsg(u->io.fd, headers, (unsigned)count, MSG_NOSIGNAL);
  if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -errno;
  for (int i = 0; i < n; i++) loop->stats.bytes_out += headers[i].msg_len;
  return n;
}

/* The receiver of a Unix datagram has no room, but our own socket stays writable for ever. */
static void tl__udp_pause(tl_loop *loop, tl__udp *u) {
  if (tl__heap_insert(loop, &u->pause, tl__add_clamped(loop->now_ns, TL__RETRY_NS)) < 0) return;
  tl__unwant(&u->io, TL_WRITE);
  tl__trim(loop, &u->io);
}

static bool tl__udp_output(tl_loop *loop, tl__udp *u, tl_event *ev) {
  struct mmsghdr headers[TL__DGRAM_MAX];
  struct iovec iov[TL__DGRAM_MAX];
  int count = 0;
  for (tl__packet *p = u->first; p && count < TL__DGRAM_MAX; p = p->next, count++)
    tl__sendv_prepare(&headers[count], &iov[count], p->data, p->nbytes, &p->addr);
  int n = count ? tl__sendv(loop, u, headers, count) : 0;
  for (int i = n < 0 ? 1 : n; i > 0; i--) tl__packet_drop(loop, u);
  if (n < 0)
    return tl__udp_error(u, -n, TL_WRITE, ev); /* still watched: the next tick tells of the drain */
  if (n == 0 && count) {
    if (u->family == AF_UNIX) tl__udp_pause(loop, u);
    return false;
  }
  if (!u->first) {
    tl__unwant(&u->io, TL_WRITE);
    tl__trim(loop, &u->io);
  }
  if (!tl__flow_drained(&u->flow)) return false;
  *ev = (tl_event){u->io.head.id, TL_EV_DRAIN, u->flow.queued, 0};
  return true;
}

TL_API int64_t tl_udp_send(tl_loop *loop, tl_handle udp, const void *data, size_t nbytes,
                           const tl_addr *addr) {
  int error;
  tl__udp *u = tl__open(loop, udp, TL__UDP, &error);
  if (!u) return error;
  tl_datagram item = {data, nbytes, addr};
  if (u->first) return tl__packet_add(loop, u, &item);
  const struct sockaddr *to = addr && addr->nbytes ? tl__sockaddr(addr) : NULL;
  ssize_t n;
  do {
    loop->stats.syscalls++;
    n = sendto(u->io.fd, data, nbytes, MSG_NOSIGNAL, to, to ? addr->nbytes : 0);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return errno == EAGAIN ? tl__packet_add(loop, u, &item) : -errno;
  loop->stats.bytes_out += n;
  return 0;
}

TL_API int tl_udp_send_batch(tl_loop *loop, tl_handle udp, const tl_datagram *items, int count) {
  struct mmsghdr headers[TL__DGRAM_MAX];
  struct iovec iov[TL__DGRAM_MAX];
  int error, done = 0;
  tl__udp *u = tl__open(loop, udp, TL__UDP, &error);
  if (!u) return error;
  while (done < count && !u->first) {
    int k = 0;
    for (; k < TL__DGRAM_MAX && done + k < count; k++)
      tl__sendv_prepare(&headers[k], &iov[k], items[done + k].data, items[done + k].nbytes,
                        items[done + k].addr);
    int n = tl__sendv(loop, u, headers, k);
    if (n < 0) return done ? done : n;
    done += n;
    if (n == 0) break;
  }
  for (; done < count; done++) {
    int64_t rc = tl__packet_add(loop, u, &items[done]);
    if (rc < 0) return done ? done : (int)rc;
  }
  return done;
}

TL_API int tl_udp_send_rows(tl_loop *loop, tl_handle udp, int64_t *rows, int count,
                            const void *data) {
  const unsigned char *at = (const unsigned char *)data;
  int failures = 0, done = 0;
  if (count < 0) return -EINVAL;
  while (done < count) {
    tl_datagram items[TL__DGRAM_MAX];
    const unsigned char *next = at;
    int n = 0;
    for (; n < TL__DGRAM_MAX && done + n < count; n++) {
      size_t nbytes = (size_t)rows[done + n];
      items[n] = (tl_datagram){next, nbytes, (const tl_addr *)(uintptr_t)rows[count + done + n]};
      next += nbytes;
    }
    int sent = tl_udp_send_batch(loop, udp, items, n);
    failures += sent < 0;
    for (int i = 0; i < (sent < 0 ? 1 : sent); i++) {
      at += items[i].nbytes;
      rows[done++] = sent < 0 ? sent : 0;
    }
  }
  return failures;
}

// >>child

TL_API tl_handle tl_child_watch(tl_loop *loop, int pid) {
  int64_t error;
  siginfo_t info;
  if (pid <= 0) return -ESRCH;
  if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0) return -errno;
#ifdef SYS_pidfd_open
  int fd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (fd < 0) return -errno;
#else
  int fd = -1;
  return -ENOSYS;
#endif
  tl__child *c = tl__new_io(loop, sizeof *c, TL__CHILD, fd, 0, &error);
  if (c) {
    c->pid = pid;
    int rc = tl__want(loop, &c->io, TL_READ);
    if (rc == 0) return c->io.head.id;
    error = tl__abandon(loop, &c->io, rc);
  }
  close(fd);
  return error;
}

static int tl__child_reap(tl_loop *loop, tl__child *c) {
  if (!c->pid) return c->status;
  loop->stats.syscalls++;
  pid_t pid = waitpid(c->pid, &c->status, WNOHANG);
  if (pid == 0) return -EAGAIN;
  if (pid < 0) c->status = -errno;
  c->pid = 0;
  return c->status;
}

static bool tl__child_input(tl_loop *loop, tl__child *c, tl_event *ev) {
  int status = tl__child_reap(loop, c);
  if (status == -EAGAIN) return false;
  tl__unwant(&c->io, TL_READ);
  tl__trim(loop, &c->io);
  *ev = (tl_event){c->io.head.id, TL_EV_CHILD, status, 0};
  return true;
}

TL_API int tl_child_status(tl_loop *loop, tl_handle child) {
  int error;
  tl__child *c = tl__open(loop, child, TL__CHILD, &error);
  return c ? tl__child_reap(loop, c) : error;
}

TL_API int tl_child_signal(tl_loop *loop, tl_handle child, int signo) {
  int error;
  tl__child *c = tl__open(loop, child, TL__CHILD, &error);
  if (!c) return error;
  if (!c->pid) return -ESRCH;
#ifdef SYS_pidfd_send_signal
  if (syscall(SYS_pidfd_send_signal, c->io.fd, signo, NULL, 0) == 0) return 0;
  if (errno != ENOSYS && errno != EPERM) return -errno;
#endif
  /* A sandbox that lets pidfd_open pass but not this; or really not permitted: kill tells. */
  return kill(c->pid, signo) < 0 ? -errno : 0;
}

TL_API int tl_child_wait(int pid) {
  siginfo_t info;
  int rc;
  if (pid <= 0) return -ECHILD; /* waitid would take them for a group, or for any child */
  do rc = waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
  while (rc < 0 && errno == EINTR);
  return rc < 0 ? -errno : 0;
}

// >>poll

TL_API tl_handle tl_poll_create(tl_loop *loop, int fd) {
  int64_t error;
  if (fd < 0) return -EBADF;
  tl__io *io = tl__new_io(loop, sizeof *io, TL__POLL, fd, TL_KEEP_FD, &error);
  return io ? io->head.id : error;
}

TL_API int tl_poll_start(tl_loop *loop, tl_handle poll, int mask) {
  int error;
  tl__io *io = tl__open(loop, poll, TL__POLL, &error);
  if (!io) return error;
  if (mask & ~(TL_READ | TL_WRITE | TL_EDGE)) return -EINVAL;
  if (!(mask & (TL_READ | TL_WRITE))) mask = 0;
  int rc = tl__arm(loop, io, mask);
  if (rc == 0) io->want = (uint8_t)mask;
  return rc;
}

TL_API int tl_poll_rearm(tl_loop *loop, tl_handle poll, int mask) {
  int error;
  tl__io *io = tl__open(loop, poll, TL__POLL, &error);
  if (!io) return error;
  if ((loop->backend->caps & TL_CAP_EDGE) || !(io->want & mask)) return 0;
  return tl__arm(loop, io, io->want);
}

static bool tl__poll_input(const tl__io *io, uint32_t mask, tl_event *ev) {
  mask &= (uint32_t)(io->want | TL_HUP | TL_ERR);
  if (!mask || !io->want) return false;
  *ev = (tl_event){io->head.id, TL_EV_POLL, (int64_t)mask, 0};
  return true;
}

// >>handle

static void tl__stream_teardown(tl_loop *loop, tl__stream *s) {
  if (s->layer) s->layer->ops->free(loop, s);
  tl__queue_clear(loop, s);
  tl__io_teardown(loop, &s->io);
  while (s->received) tl__received_drop(loop, s);
}

static void tl__listener_teardown(tl_loop *loop, tl__listener *l) {
  tl__heap_remove(loop, &l->pause);
  tl__io_teardown(loop, &l->io);
  for (; l->fd_next < l->fd_count; l->fd_next++)
    if (l->fds[l->fd_next] >= 0) close(l->fds[l->fd_next]);
  tl__free(loop, l->fds);
}

static void tl__teardown(tl_loop *loop, tl__head *head) {
  switch (head->kind) {
    case TL__TIMER:
      tl__heap_remove(loop, &((tl__timer *)head)->node);
      tl__due_remove(loop, (tl__timer *)head);
      break;
    case TL__SIGNAL: tl__signal_teardown(loop, (tl__signal *)head); break;
    case TL__UDP: tl__udp_teardown(loop, (tl__udp *)head); break;
    case TL__STREAM: tl__stream_teardown(loop, (tl__stream *)head); break;
    case TL__LISTENER: tl__listener_teardown(loop, (tl__listener *)head); break;
    default: tl__io_teardown(loop, (tl__io *)head); break;
  }
}

static bool tl__close_is_told(const tl_loop *loop, const tl__head *head) {
  return !loop->quiet_close || (head->kind == TL__STREAM && ((const tl__stream *)head)->graceful);
}

TL_API int tl_close(tl_loop *loop, tl_handle handle) {
  tl__head *head = tl__get(loop, handle);
  if (!head) return TL_EBADH;
  if (head->closing) return 0;
  tl__teardown(loop, head);
  loop->stats.live--;
  head->closing = true;
  tl__head **list = tl__close_is_told(loop, head) ? &loop->closing : &loop->buried;
  head->next_closing = *list;
  *list = head;
  return 0;
}

TL_API int64_t tl_discard(tl_loop *loop, tl_handle handle) {
  int error;
  tl__flow *flow = tl__open_flow(loop, handle, &error);
  if (!flow) return error;
  tl__io *io = tl__open_io(loop, handle, &error);
  int64_t nbytes = flow->queued;
  flow->above = false;
  if (io->head.kind == TL__UDP) {
    tl__packets_clear(loop, (tl__udp *)io);
    tl__unwant(io, TL_WRITE);
    tl__trim(loop, io);
  } else if (nbytes) {
    tl__stream *s = (tl__stream *)io;
    if (s->layer) s->layer->ops->cut(s);
    tl__queue_clear(loop, s);
    tl__stream_emptied(loop, s);
  }
  return nbytes;
}

TL_API int tl_set_callback(tl_loop *loop, tl_handle handle, tl_event_cb callback, void *user) {
  tl__head *head = tl__get(loop, handle);
  if (!head) return TL_EBADH;
  head->callback = callback;
  head->user = user;
  return 0;
}

TL_API void *tl_user(const tl_loop *loop, tl_handle handle) {
  const tl__head *head = tl__get(loop, handle);
  return head ? head->user : NULL;
}

TL_API int tl_fd(const tl_loop *loop, tl_handle handle) {
  int error;
  const tl__io *io = tl__open_io(loop, handle, &error);
  return io ? io->fd : error;
}

TL_API int tl_release_fd(tl_loop *loop, tl_handle handle) {
  int error;
  tl__io *io = tl__open_io(loop, handle, &error);
  if (!io) return error;
  io->flags |= TL_KEEP_FD;
  return io->fd;
}

// >>dispatch

/* Events are made one at a time, on demand: in tl_loop_run each is delivered before the next is
   made, so a callback that closes or pauses another handle leaves no stale event behind, and
   received bytes are still in the cache. tl_loop_poll collects until its array is full. */

static bool tl__next_closed(tl_loop *loop, tl_event *ev) {
  if (loop->reap) {
    tl__delete(loop, loop->reap);
    loop->reap = NULL;
  }
  tl__head *head = loop->closed;
  if (!head) return false;
  loop->closed = head->next_closing;
  loop->reap = head; /* its callback is still to be called */
  *ev = (tl_event){head->id, TL_EV_CLOSED, head->close_result, 0};
  return true;
}

/* Is there no room to receive for this handle in this tick? */
static bool tl__must_wait(const tl_loop *loop, const tl__head *head) {
  if (head->kind == TL__STREAM || head->kind == TL__LISTENER)
    return loop->arena_used && TL_ARENA_BYTES - loop->arena_used < TL__MIN_ROOM;
  if (head->kind != TL__UDP) return false;
  return tl__is_ip(((const tl__udp *)head)->family) ? loop->dgram_used == TL__DGRAM_MAX
                                                    : loop->arena_used != 0;
}

static bool tl__readable(tl_loop *loop, tl__head *head, tl_event *ev) {
  switch (head->kind) {
    case TL__STREAM: return tl__stream_input(loop, (tl__stream *)head, ev);
    case TL__UDP: return tl__udp_input(loop, (tl__udp *)head, ev);
    case TL__LISTENER: return tl__listener_input(loop, (tl__listener *)head, ev);
    default: return tl__child_input(loop, (tl__child *)head, ev);
  }
}

static bool tl__writable(tl_loop *loop, tl__head *head, tl_event *ev) {
  if (head->kind == TL__STREAM) return tl__stream_output(loop, (tl__stream *)head, ev);
  return head->kind == TL__UDP && tl__udp_output(loop, (tl__udp *)head, ev);
}

/* A hang-up or error counts as whatever the handle waits for. An edge is remembered until EAGAIN; a
   level that nobody waits for is watched no longer. */
static void tl__merge_ready(tl_loop *loop, tl__ready *r, tl__io *io) {
  bool ended = r->mask & (TL_HUP | TL_ERR);
  if (tl__is_edge(io)) {
    tl__stream *s = (tl__stream *)io;
    s->end_near |= ended;
    s->io.ready |= (uint8_t)(ended ? TL_READ | TL_WRITE : r->mask);
    r->mask = s->io.ready;
  } else {
    if (ended) r->mask = io->want & (TL_READ | TL_WRITE);
    if (!(r->mask & io->want)) tl__trim(loop, io);
    r->mask |= io->ready; /* what a layer or the ring holds */
  }
}

/* One ready descriptor; output first, for it makes room. Sets *done when nothing is left. */
static bool tl__next_of(tl_loop *loop, tl__ready *r, tl__io *io, tl_event *ev, bool *done) {
  if (io->head.kind == TL__POLL) {
    *done = true;
    return tl__poll_input(io, r->mask, ev);
  }
  tl__merge_ready(loop, r, io);
  if (r->mask & io->want & TL_WRITE) {
    r->mask &= ~(uint32_t)TL_WRITE;
    if (tl__writable(loop, &io->head, ev)) return true;
  }
  if (r->mask & io->want & TL_READ && !io->head.closing) {
    bool made = tl__readable(loop, &io->head, ev);
    if (made && io->head.kind == TL__LISTENER) return true; /* there may be more to accept */
    *done = true;
    return made;
  }
  *done = true;
  return false;
}

/* Returns false when the ready list is finished or must wait for the next tick (*full). */
static bool tl__next_io(tl_loop *loop, tl_event *ev, bool *full) {
  while (loop->ready_next < loop->ready_count) {
    tl__ready *r = &loop->ready[loop->ready_next];
    tl__head *head = tl__get(loop, r->id);
    bool done = true, made = false;
    if (head && !head->closing) {
      *full = tl__must_wait(loop, head);
      if (*full) return false;
      done = false;
      made = tl__next_of(loop, r, (tl__io *)head, ev, &done);
    }
    if (done) loop->ready_next++;
    if (done && head) tl__come_back(loop, (tl__io *)head);
    if (made) return true;
  }
  return false;
}

/* May a listener accept more in this tick? */
static bool tl__accepts_on(const tl__io *io) {
  return io->head.kind == TL__LISTENER && io->ready & io->want &&
         ((const tl__listener *)io)->accepted < TL__ACCEPT_MAX;
}

/* One more receive or send for each stream whose last one did not exhaust it, and what the ring has
   accepted. */
static bool tl__next_again(tl_loop *loop, tl_event *ev, bool *full) {
  while (tl__linked(&loop->rereads)) {
    tl__io *io = tl__io_of(loop->rereads.next);
    *full = tl__must_wait(loop, &io->head);
    if (*full) return false;
    tl__unlink(&io->again);
    tl__ready r = {io->head.id, 0};
    bool done = false, made = tl__next_of(loop, &r, io, ev, &done);
    if (made && tl__accepts_on(io))
      tl__link_last(&loop->rereads, &io->again);
    else
      tl__come_back(loop, io);
    if (made) return true;
  }
  return false;
}

/* Whoever comes first may fill the arena, so they take turns. */
static bool tl__next_stream(tl_loop *loop, tl_event *ev, bool *full) {
  if (loop->stats.ticks & 1)
    return tl__next_again(loop, ev, full) || (!*full && tl__next_io(loop, ev, full));
  return tl__next_io(loop, ev, full) || (!*full && tl__next_again(loop, ev, full));
}

static bool tl__next(tl_loop *loop, tl_event *ev) {
  bool full = false;
  bool made = tl__next_closed(loop, ev) || tl__next_wake(loop, ev) || tl__next_signal(loop, ev) ||
              tl__next_datagram(loop, ev) || tl__next_stream(loop, ev, &full) ||
              (!full && tl__next_timer(loop, ev));
  loop->stats.events += made;
  return made;
}

// >>loop

TL_API const char *tl_loop_backend(const tl_loop *loop) { return loop->backend->name; }

TL_API int tl_loop_caps(const tl_loop *loop) {
  return loop->backend->caps | (tl__ring_does(loop, TL__OP_RECV) ? 0 : TL_CAP_RECEIVED);
}

TL_API int tl_loop_fd(const tl_loop *loop) { return loop->backend->fd(loop); }

TL_API void *tl_loop_arena(const tl_loop *loop) { return loop->arena; }

TL_API int64_t tl_loop_arena_bytes(const tl_loop *loop) {
  (void)loop;
  return TL_ARENA_BYTES + TL_ADDR_BYTES + (int64_t)TL__DGRAM_MAX * TL__DGRAM_STRIDE;
}

TL_API const void *tl_event_data(const tl_loop *loop, const tl_event *event) {
  return loop->arena + event->offset;
}

TL_API const tl_addr *tl_event_addr(const tl_loop *loop, const tl_event *event) {
  return (const tl_addr *)(const void *)(loop->arena + event->offset - TL_ADDR_BYTES);
}

TL_API int tl_loop_stats(const tl_loop *loop, tl_stats *stats) {
  *stats = loop->stats;
  return 0;
}

static bool tl__complete_allocator(tl_allocator *a) {
  if (a->alloc_fn && a->realloc_fn && a->free_fn) return true;
  if (a->alloc_fn || a->realloc_fn || a->free_fn) return false;
  a->alloc_fn = tl__default_alloc;
  a->realloc_fn = tl__default_realloc;
  a->free_fn = tl__default_free;
  return true;
}

/* On the boundary of a page. In blocks that malloc maps it would begin 16 bytes into one, and
   an echo of 100 KiB took 100 instead of 45 us on AMD's Zen 3; 128 bytes are like 0. */
static int tl__open_arena(tl_loop *loop) {
  loop->arena_block = tl__alloc(loop, (size_t)tl_loop_arena_bytes(loop) + TL__PAGE);
  if (!loop->arena_block) return -ENOMEM;
  loop->arena = (unsigned char *)loop->arena_block + TL__PAGE;
  loop->arena -= (uintptr_t)loop->arena % TL__PAGE;
  return 0;
}

static int tl__loop_open(tl_loop *loop, const char *name) {
  if (!name) name = getenv("TLOOP_BACKEND");
  if (name && !*name) name = NULL;
  int rc = tl__open_arena(loop);
  if (rc == 0) rc = tl__open_wake(loop);
  if (rc == 0) rc = tl__open_backend(loop, name);
  if (rc < 0) tl__close_wake(loop);
  return rc;
}

TL_API tl_loop *tl_loop_create(const tl_loop_desc *desc, int *error) {
  tl_loop_desc config = desc ? *desc : (tl_loop_desc){0};
  int unused;
  if (!error) error = &unused;
  *error = -EINVAL;
  if (!tl__complete_allocator(&config.allocator)) return NULL;
  *error = -ENOMEM;
  tl_loop *loop = config.allocator.alloc_fn(config.allocator.user, sizeof *loop);
  if (!loop) return NULL;
  memset(loop, 0, sizeof *loop);
  loop->memory = config.allocator;
  loop->quiet_close = config.quiet_close;
  loop->free_slot = UINT32_MAX;
  loop->epoll_fd = loop->wake_rd = loop->wake_wr = -1;
#ifdef TL__HAS_URING
  loop->uring.fd = -1;
#endif
  loop->again.prev = loop->again.next = &loop->again;
  loop->rereads.prev = loop->rereads.next = &loop->rereads;
  *error = tl__loop_open(loop, config.backend);
  if (*error == 0) {
    loop->now_ns = tl__clock(loop);
    return loop;
  }
  tl__free(loop, loop->arena_block);
  config.allocator.free_fn(config.allocator.user, loop);
  return NULL;
}

TL_API int64_t tl_loop_shutdown(tl_loop *loop) {
  int64_t open = 0;
  for (uint32_t i = 0; i < loop->slot_count; i++) {
    tl__head *head = loop->slots[i].head;
    if (!head) continue;
    open += !head->closing;
    if (!head->closing) tl__teardown(loop, head);
    tl__delete(loop, head);
  }
  loop->closing = loop->closed = loop->reap = loop->buried = NULL;
  loop->stats.live = 0;
  loop->ended = true;
  loop->backend->close(loop);
  tl__close_wake(loop);
  return open;
}

TL_API int64_t tl_loop_close(tl_loop *loop) {
  if (!loop) return 0;
  int64_t open = tl_loop_shutdown(loop);
  while (loop->spare) {
    tl__chunk *next = loop->spare->next;
    tl__free(loop, loop->spare);
    loop->spare = next;
  }
  tl__free(loop, loop->slots);
  tl__free(loop, loop->regs);
  tl__free(loop, loop->heap);
  tl__free(loop, loop->headers);
  tl__free(loop, loop->vectors);
  tl__free(loop, loop->arena_block);
  tl__free(loop, loop->layer_memory);
  loop->memory.free_fn(loop->memory.user, loop);
  return open;
}

TL_API int tl_loop_after_fork(tl_loop *loop) {
  if (loop->ended) return 0;
  loop->forked = true; /* what is shared with the parent stays as it is */
  loop->backend->close(loop);
  tl__close_wake(loop);
  atomic_store(&loop->sleeping, 0);
  return tl__open_wake(loop);
}

static bool tl__pending(const tl_loop *loop) {
  return loop->ready_next < loop->ready_count || loop->closed || loop->due_first ||
         tl__linked(&loop->rereads) || loop->batch.next < loop->batch.end || loop->wake_event ||
         loop->wake_next < loop->wake_count;
}

TL_API int64_t tl_loop_timeout(tl_loop *loop) {
  if (loop->backend->flush && !loop->forked && !loop->ended) (void)loop->backend->flush(loop);
  atomic_store(&loop->sleeping, 1); /* as tl__block does; the next wait ends it */
  if (tl__pending(loop) || loop->closing || tl__linked(&loop->again) ||
      atomic_load(&loop->wake_pending) || atomic_load(&loop->signals_pending))
    return 0;
  return tl__timer_timeout(loop, tl__clock(loop));
}

/* Sleeping is announced before the flags are looked at, and others set a flag before they look
   whether we sleep: whatever the order, somebody sees it. */
static int tl__block(tl_loop *loop, int64_t timeout_ns) {
  int64_t began_ns = tl__clock(loop);
  int64_t timer_ns = tl__timer_timeout(loop, began_ns);
  if (timer_ns >= 0 && (timeout_ns < 0 || timer_ns < timeout_ns)) timeout_ns = timer_ns;
  loop->wait_until_ns = tl__add_clamped(began_ns, timeout_ns);
  atomic_store(&loop->sleeping, 1);
  if (atomic_load(&loop->wake_pending) || atomic_load(&loop->signals_pending)) timeout_ns = 0;
  int rc = loop->backend->wait(loop, timeout_ns);
  atomic_store(&loop->sleeping, 0);
  loop->now_ns = tl__clock(loop);
  if (timeout_ns != 0) loop->stats.idle_ns += loop->now_ns - began_ns;
  return rc;
}

/* A report for a handle that does not exist: see tl__rebuild. */
static void tl__check_ready(tl_loop *loop) {
  for (int i = 0; i < loop->ready_count; i++) {
    const tl__ready *r = &loop->ready[i];
    if (r->id == 0) {
      tl__drain_wake(loop);
      continue;
    }
    tl__head *head = tl__get(loop, r->id);
    if (!head)
      loop->rebuild = true;
    else if (head->kind == TL__LISTENER)
      ((tl__listener *)head)->accepted = 0;
  }
}

/* Nothing of the last tick refers any more to what was closed in it. */
static void tl__forget_buried(tl_loop *loop) {
  while (loop->buried) {
    tl__head *head = loop->buried;
    loop->buried = head->next_closing;
    tl__delete(loop, head);
  }
}

/* Ask the kernel, and everything else that can have something to tell. */
static int tl__wait(tl_loop *loop, int64_t timeout_ns) {
  int rc = loop->rebuild || loop->forked ? tl__rebuild(loop) : 0;
  if (rc < 0) return rc;
  loop->closed = loop->closing;
  loop->closing = NULL;
  tl__forget_buried(loop);
  loop->ready_next = loop->ready_count = 0;
  loop->stats.ticks++;
  loop->stats.syscalls++;
  if (loop->closed || tl__linked(&loop->again)) timeout_ns = 0;
  if (timeout_ns) {
    rc = tl__block(loop, timeout_ns);
  } else {
    atomic_store_explicit(&loop->sleeping, 0, memory_order_relaxed);
    rc = loop->backend->wait(loop, 0);
    loop->now_ns = tl__clock(loop);
  }
  while (tl__linked(&loop->again)) {
    tl__link *link = loop->again.next;
    tl__unlink(link);
    tl__link_last(&loop->rereads, link);
    if (tl__io_of(link)->head.kind == TL__LISTENER) ((tl__listener *)tl__io_of(link))->accepted = 0;
  }
  tl__check_ready(loop);
  if (atomic_load_explicit(&loop->wake_pending, memory_order_relaxed))
    loop->wake_event = atomic_exchange(&loop->wake_pending, 0);
  tl__mark_signals(loop);
  tl__collect_due(loop);
  return rc;
}

/* Begin a tick: bytes of the one before are given up, unless a batch is not delivered yet. */
static int tl__begin(tl_loop *loop, int64_t timeout_ns) {
  if (loop->ended) return -EBADF;
  loop->arena_used = 0;
  if (loop->batch.next == loop->batch.end) loop->dgram_used = 0;
  return tl__pending(loop) ? 0 : tl__wait(loop, timeout_ns);
}

TL_API int tl_loop_tick(tl_tick *tick) {
  tick->count = 0;
  if (tick->capacity < 1) return -EINVAL;
  int count = 0, rc = tl__begin(tick->loop, tick->timeout_ns);
  if (rc < 0) return rc;
  while (count < tick->capacity && tl__next(tick->loop, &tick->events[count])) count++;
  return tick->count = count;
}

TL_API int tl_loop_poll(tl_loop *loop, tl_event *events, int capacity, int64_t timeout_ns) {
  tl_tick tick = {loop, events, timeout_ns, capacity, 0};
  return tl_loop_tick(&tick);
}

static void tl__deliver(tl_loop *loop, const tl_event *ev) {
  const tl__head *head = tl__get(loop, ev->handle);
  tl_event_cb callback = head ? head->callback : loop->wake_callback;
  if (callback) callback(loop, ev, head ? head->user : loop->wake_user);
}

TL_API int tl_loop_step(tl_loop *loop, int64_t timeout_ns) {
  tl_event ev;
  int count = 0;
  int rc = tl__begin(loop, timeout_ns);
  if (rc < 0) return rc;
  while (!loop->stopping && tl__next(loop, &ev)) {
    tl__deliver(loop, &ev);
    loop->arena_used = 0; /* the event is used up: the next receive takes the same, warm, bytes */
    count++;
  }
  return count;
}

TL_API int tl_loop_run(tl_loop *loop) {
  int rc = 0;
  while (!loop->stopping && (loop->stats.live > 0 || loop->closing || tl__pending(loop))) {
    rc = tl_loop_step(loop, -1);
    if (rc < 0) break;
  }
  loop->stopping = false;
  return rc < 0 ? rc : 0;
}

TL_API int tl_loop_stop(tl_loop *loop) {
  loop->stopping = true;
  return 0;
}

#endif /* TLOOP_IMPLEMENTATION_ONCE */
#endif /* TLOOP_IMPLEMENTATION */

/* MIT licence; its text is in the file LICENSE. */
