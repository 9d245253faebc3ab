/* System calls that fail, are interrupted or do only a part: this file carries its own copy of the
   implementation, in which every such call goes through a wrapper that follows a script. */
#include "tl_test.h"

#include <arpa/inet.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

enum call {
  RECV,
  READ,
  SEND,
  SENDMSG,
  WRITEV,
  WRITE,
  ACCEPT,
  CONNECT,
  SOCKET,
  BIND,
  LISTEN,
  PIPE,
  CREATE,
  CTL,
  WAIT,
  PWAIT2,
  PPOLL,
  SENDTO,
  SENDMMSG,
  RECVMMSG,
  RECVMSG,
  GETSOCKOPT,
  SETSOCKOPT,
  FCNTL,
  CLOSE,
  PIDFD,
  RING_SETUP,
  RING_ENTER,
  RING_REGISTER,
  MMAP,
  CALLS
};

/* For one call: after `skip` more, fail `times` times with `error`; cut lengths to `cap`. */
static struct script {
  int skip, times, error;
  size_t cap;
  int made; /* how often it was called */
} scripts[CALLS];

/* Random mode: a chance in percent for each kind of trouble. */
static struct {
  bool on;
  uint32_t interrupt, again, part;
} weather;

static int64_t clock_offset; /* lets pauses of a second pass at once */
static int socket_error;     /* what SO_ERROR answers, unless 0 */

static void script(enum call call, int skip, int times, int error) {
  scripts[call] = (struct script){.skip = skip, .times = times, .error = error};
}

static bool chance(uint32_t percent) { return t_below(100) < percent; }

static bool can_be_empty(enum call call) {
  return call == RECV || call == SEND || call == SENDMSG || call == ACCEPT || call == RECVMMSG ||
         call == SENDMMSG || call == SENDTO || call == RECVMSG;
}

static bool can_be_interrupted(enum call call) {
  return can_be_empty(call) || call == READ || call == WRITEV || call == WRITE || call == WAIT ||
         call == PWAIT2 || call == PPOLL || call == RING_ENTER;
}

/* Must this call fail? Then errno says why. */
static bool fails(enum call call) {
  struct script *s = &scripts[call];
  s->made++;
  errno = 0;
  if (s->times && s->skip-- <= 0)
    s->times--, errno = s->error;
  else if (weather.on && can_be_interrupted(call) && chance(weather.interrupt))
    errno = EINTR;
  else if (weather.on && can_be_empty(call) && chance(weather.again))
    errno = EAGAIN;
  return errno != 0;
}

static size_t cut(enum call call, size_t nbytes) {
  if (scripts[call].cap && nbytes > scripts[call].cap) nbytes = scripts[call].cap;
  if (weather.on && nbytes > 1 && chance(weather.part)) nbytes = 1 + t_below((uint32_t)nbytes);
  return nbytes;
}

static ssize_t my_recv(int fd, void *data, size_t n, int flags) {
  return fails(RECV) ? -1 : recv(fd, data, cut(RECV, n), flags);
}
static ssize_t my_read(int fd, void *data, size_t n) {
  return fails(READ) ? -1 : read(fd, data, cut(READ, n));
}
static ssize_t my_send(int fd, const void *data, size_t n, int flags) {
  return fails(SEND) ? -1 : send(fd, data, cut(SEND, n), flags);
}
static ssize_t my_write(int fd, const void *data, size_t n) {
  return fails(WRITE) ? -1 : write(fd, data, n);
}

/* A copy of the buffers, cut to what this call may move. */
static int cut_iov(enum call call, struct iovec *out, const struct iovec *in, int count) {
  size_t total = 0, left;
  for (int i = 0; i < count; i++) total += in[i].iov_len;
  left = cut(call, total);
  for (int i = 0; i < count; i++) {
    out[i] = in[i];
    if (out[i].iov_len >= left) {
      out[i].iov_len = left;
      return i + 1;
    }
    left -= out[i].iov_len;
  }
  return count;
}

static ssize_t my_sendmsg(int fd, const struct msghdr *msg, int flags) {
  struct iovec iov[64];
  struct msghdr part = *msg;
  if (fails(SENDMSG)) return -1;
  part.msg_iovlen = (size_t)cut_iov(SENDMSG, iov, msg->msg_iov, (int)msg->msg_iovlen);
  part.msg_iov = iov;
  return sendmsg(fd, &part, flags);
}
static ssize_t my_writev(int fd, const struct iovec *iov, int count) {
  struct iovec part[64];
  return fails(WRITEV) ? -1 : writev(fd, part, cut_iov(WRITEV, part, iov, count));
}
static int my_accept4(int fd, struct sockaddr *sa, socklen_t *n, int flags) {
  return fails(ACCEPT) ? -1 : accept4(fd, sa, n, flags);
}
/* An interrupted connect goes on in the kernel. */
static int my_connect(int fd, const struct sockaddr *sa, socklen_t n) {
  if (!fails(CONNECT)) return connect(fd, sa, n);
  if (errno == EINTR) (void)connect(fd, sa, n), errno = EINTR;
  return -1;
}
static int my_socket(int family, int type, int protocol) {
  return fails(SOCKET) ? -1 : socket(family, type, protocol);
}
static int my_bind(int fd, const struct sockaddr *sa, socklen_t n) {
  return fails(BIND) ? -1 : bind(fd, sa, n);
}
static int my_listen(int fd, int backlog) { return fails(LISTEN) ? -1 : listen(fd, backlog); }
static int my_pipe2(int *fds, int flags) { return fails(PIPE) ? -1 : pipe2(fds, flags); }
static int my_epoll_create1(int flags) { return fails(CREATE) ? -1 : epoll_create1(flags); }
static int my_epoll_ctl(int set, int op, int fd, struct epoll_event *event) {
  return fails(CTL) ? -1 : epoll_ctl(set, op, fd, event);
}
static int my_epoll_wait(int set, struct epoll_event *events, int count, int timeout) {
  return fails(WAIT) ? -1 : epoll_wait(set, events, (int)cut(WAIT, (size_t)count), timeout);
}
static int my_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *mask) {
  return fails(PPOLL) ? -1 : ppoll(fds, n, ts, mask);
}
static ssize_t my_sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *sa,
                         socklen_t sa_bytes) {
  return fails(SENDTO) ? -1 : sendto(fd, data, n, flags, sa, sa_bytes);
}
static int my_sendmmsg(int fd, struct mmsghdr *items, unsigned n, int flags) {
  return fails(SENDMMSG) ? -1 : sendmmsg(fd, items, (unsigned)cut(SENDMMSG, n), flags);
}
static int my_recvmmsg(int fd, struct mmsghdr *items, unsigned n, int flags, struct timespec *ts) {
  return fails(RECVMMSG) ? -1 : recvmmsg(fd, items, (unsigned)cut(RECVMMSG, n), flags, ts);
}
static ssize_t my_recvmsg(int fd, struct msghdr *msg, int flags) {
  return fails(RECVMSG) ? -1 : recvmsg(fd, msg, flags);
}
static int my_getsockopt(int fd, int level, int name, void *value, socklen_t *n) {
  if (fails(GETSOCKOPT)) return -1;
  int rc = getsockopt(fd, level, name, value, n);
  if (level == SOL_SOCKET && name == SO_ERROR && socket_error) *(int *)value = socket_error;
  return rc;
}
static int my_setsockopt(int fd, int level, int name, const void *value, socklen_t n) {
  return fails(SETSOCKOPT) ? -1 : setsockopt(fd, level, name, value, n);
}
static int my_fcntl(int fd, int command, ...) {
  va_list args;
  va_start(args, command);
  int value = command == F_SETFL ? va_arg(args, int) : 0;
  va_end(args);
  return fails(FCNTL) ? -1 : fcntl(fd, command, value);
}
/* A descriptor closed twice might be somebody else's by then. */
static int my_close(int fd) {
  int rc = close(fd);
  if (rc < 0) t_fail(__FILE__, __LINE__, "close(%d): %s", fd, strerror(errno));
  scripts[CLOSE].made++;
  return rc;
}
static int my_clock_gettime(clockid_t clock, struct timespec *ts) {
  int rc = clock_gettime(clock, ts);
  int64_t ns = (int64_t)ts->tv_sec * T_SECOND + ts->tv_nsec + clock_offset;
  *ts = (struct timespec){.tv_sec = (time_t)(ns / T_SECOND), .tv_nsec = (long)(ns % T_SECOND)};
  return rc;
}
static void *my_mmap(void *at, size_t n, int access, int flags, int fd, off_t offset) {
  return fails(MMAP) ? MAP_FAILED : mmap(at, n, access, flags, fd, offset);
}
static void (*spoil)(void); /* does something to the requests before the kernel sees them */
static long my_syscall(long number, ...) {
  long a[6];
  va_list args;
  va_start(args, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(args, long);
  va_end(args);
  if (number == SYS_epoll_pwait2) {
    if (fails(PWAIT2)) return -1;
    a[2] = (long)cut(PWAIT2, (size_t)a[2]);
  } else if (number == SYS_pwritev2) {
    struct iovec part[64];
    if (fails(WRITEV)) return -1;
    int count = cut_iov(WRITEV, part, (const struct iovec *)a[1], (int)a[2]);
    return syscall(number, a[0], part, count, a[3], a[4], a[5]);
  } else if (number == SYS_io_uring_setup) {
    if (fails(RING_SETUP)) return -1;
  } else if (number == SYS_io_uring_register) {
    if (fails(RING_REGISTER)) return -1;
  } else if (number == SYS_io_uring_enter) {
    if (fails(RING_ENTER)) return -1;
    if (spoil) spoil();
  } else if (fails(PIDFD)) {
    return -1;
  }
  return syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#define recv my_recv
#define read my_read
#define send my_send
#define write my_write
#define sendmsg my_sendmsg
#define writev my_writev
#define accept4 my_accept4
#define connect my_connect
#define socket my_socket
#define bind my_bind
#define listen my_listen
#define pipe2 my_pipe2
#define epoll_create1 my_epoll_create1
#define epoll_ctl my_epoll_ctl
#define epoll_wait my_epoll_wait
#define ppoll my_ppoll
#define sendto my_sendto
#define sendmmsg my_sendmmsg
#define recvmmsg my_recvmmsg
#define recvmsg my_recvmsg
#define getsockopt my_getsockopt
#define setsockopt my_setsockopt
#define fcntl my_fcntl
#define close my_close
#define clock_gettime my_clock_gettime
#define syscall my_syscall
#define mmap my_mmap
#define TLOOP_IMPLEMENTATION
#include "tloop.h"
#undef recv
#undef read
#undef send
#undef write
#undef sendmsg
#undef writev
#undef accept4
#undef connect
#undef socket
#undef bind
#undef listen
#undef pipe2
#undef epoll_create1
#undef epoll_ctl
#undef epoll_wait
#undef ppoll
#undef sendto
#undef sendmmsg
#undef recvmmsg
#undef recvmsg
#undef getsockopt
#undef setsockopt
#undef fcntl
#undef close
#undef clock_gettime
#undef syscall
#undef mmap

/* Are descriptors watched by an epoll set? */
static bool on_epoll(void) { return strcmp(t_backend(), "poll") != 0; }

/* The call that waits, whichever it is here. */
static void script_wait(int skip, int times, int error) {
  script(PPOLL, skip, times, error);
  script(PWAIT2, skip, times, error);
  script(RING_ENTER, skip, times, error);
  if (strcmp(t_backend(), "io_uring") != 0) script(WAIT, skip, times, error);
}

static tl_handle pair(tl_loop *loop, int *peer) {
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  *peer = fds[1];
  return ASSERT_OK(tl_stream_open(loop, fds[0], 0));
}

/* One that reads, and a byte for it. */
static tl_handle readable(tl_loop *loop, int *peer) {
  tl_handle stream = pair(loop, peer);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  t_send_all(*peer, "x", 1);
  return stream;
}

/* Interruptions */

TEST(interrupted_receives_and_sends_are_repeated) {
  tl_loop *loop = t_loop();
  int peer;
  char bytes[8];
  tl_handle stream = pair(loop, &peer);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  script(RECV, 0, 5, EINTR);
  t_send_all(peer, "hello", 5);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_DATA).result, 5);
  script(RECV, 0, 5, EINTR);
  t_send_all(peer, "again", 5);
  ASSERT_EQ(tl_stream_recv(loop, stream, bytes, sizeof bytes), 5);
  script(SEND, 0, 5, EINTR);
  ASSERT_EQ(tl_stream_write(loop, stream, "world", 5), 0);
  script(SENDMSG, 0, 5, EINTR);
  const tl_buf bufs[2] = {{"ab", 2}, {"c", 1}};
  ASSERT_EQ(tl_stream_writev(loop, stream, bufs, 2), 0);
  t_recv_all(peer, bytes, 8);
  ASSERT_MEM(bytes, "worldabc", 8);
  ASSERT_EQ(scripts[SEND].times + scripts[SENDMSG].times + scripts[RECV].times, 0);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(interrupted_pipe_operations_are_repeated) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_pipe(fds);
  tl_handle in = ASSERT_OK(tl_stream_open(loop, fds[0], 0));
  tl_handle out = ASSERT_OK(tl_stream_open(loop, fds[1], 0));
  ASSERT_OK(tl_stream_read_start(loop, in));
  script(WRITEV, 0, 3, EINTR);
  ASSERT_EQ(tl_stream_write(loop, out, "hello", 5), 0);
  script(READ, 0, 3, EINTR);
  ASSERT_EQ(t_expect(loop, in, TL_EV_DATA).result, 5);
  t_close(loop, in);
  t_close(loop, out);
  t_end(loop);
}

/* Of Linux 6.18; where it is missing, the signal is blocked, and nothing is written twice. */
TEST(a_kernel_that_cannot_keep_sigpipe_back) {
  const int refusals[] = {EOPNOTSUPP, ENOSYS, EPERM};
  for (int i = 0; i < 3; i++) {
    tl_loop *loop = t_loop();
    char got[16];
    int fds[2];
    t_pipe(fds);
    tl_handle out = ASSERT_OK(tl_stream_open(loop, fds[1], 0));
    script(WRITEV, 0, 1, refusals[i]);
    ASSERT_EQ(tl_stream_write(loop, out, "hello", 5), 0);
    ASSERT_EQ(tl_stream_write(loop, out, "again", 5), 0);
    ASSERT_EQ(read(fds[0], got, sizeof got), 10);
    close(fds[0]);
    ASSERT_EQ(tl_stream_write(loop, out, "x", 1), -EPIPE); /* the default action ends a process */
    t_close(loop, out);
    t_end(loop);
  }
}

TEST(an_interrupted_wait_is_no_error) {
  const int64_t waits[] = {-1, T_SECOND, 0};
  tl_loop *loop = t_loop();
  tl_event event;
  for (int i = 0; i < 3; i++) {
    script_wait(0, 1, EINTR);
    ASSERT_EQ(tl_loop_poll(loop, &event, 1, waits[i]), 0);
  }
  script_wait(0, 0, 0);
  t_quiet(loop);
  t_end(loop);
}

TEST(an_interrupted_accept_goes_on) {
  const int errors[] = {EINTR, ECONNABORTED, EPROTO, ENETDOWN, EHOSTUNREACH};
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  for (int i = 0; i < 5; i++) {
    int client = t_connect(&addr);
    script(ACCEPT, 0, 1, errors[i]);
    t_close(loop, t_accept(loop, listener));
    close(client);
  }
  t_close(loop, listener);
  t_end(loop);
}

TEST(an_interrupted_connect_goes_on) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  script(CONNECT, 0, 1, EINTR);
  tl_handle stream = ASSERT_OK(tl_stream_connect(loop, &addr));
  ASSERT_EQ(t_until(loop, stream, TL_EV_CONNECT).result, 0);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), 0);
  tl_close(loop, stream), tl_close(loop, listener);
  tl_loop_close(loop);
}

TEST(an_interrupted_wake_is_repeated) {
  tl_loop *loop = t_loop();
  ASSERT_EQ(tl_loop_timeout(loop), -1); /* announces that the host sleeps */
  script(WRITE, 0, 3, EINTR);
  ASSERT_EQ(tl_loop_wake(loop), 0);
  ASSERT_EQ(scripts[WRITE].made, 4);
  t_expect(loop, 0, TL_EV_WAKE);
  for (int i = 0; i < 5; i++) ASSERT_EQ(tl_loop_wake(loop), 0); /* awake: nothing is written */
  ASSERT_EQ(scripts[WRITE].made, 4);
  t_expect(loop, 0, TL_EV_WAKE);
  tl_loop_timeout(loop);
  script(WRITE, 0, 1, EAGAIN); /* the pipe is full: it wakes anyway */
  ASSERT_EQ(tl_loop_wake(loop), 0);
  t_expect(loop, 0, TL_EV_WAKE);
  tl_loop_timeout(loop);
  script(WRITE, 0, 1, EBADF);
  ASSERT_EQ(tl_loop_wake(loop), -EBADF);
  t_expect(loop, 0, TL_EV_WAKE);
  t_end(loop);
}

TEST(interrupted_datagrams_are_repeated) {
  tl_loop *loop = t_loop();
  tl_addr addr = t_ip4(0);
  tl_handle udp = ASSERT_OK(tl_udp_bind(loop, &addr, 0));
  t_bound(loop, udp, &addr);
  ASSERT_OK(tl_udp_read_start(loop, udp));
  script(SENDTO, 0, 3, EINTR);
  script(RECVMMSG, 0, 3, EINTR);
  ASSERT_EQ(tl_udp_send(loop, udp, "hello", 5, &addr), 0);
  ASSERT_EQ(t_expect(loop, udp, TL_EV_DATAGRAM).result, 5);
  script(SENDMMSG, 0, 1, EINTR);
  const tl_datagram items[2] = {{"ab", 2, &addr}, {"c", 1, &addr}};
  ASSERT_EQ(tl_udp_send_batch(loop, udp, items, 2), 2);
  ASSERT_EQ(t_until(loop, udp, TL_EV_DATAGRAM).result, 2);
  ASSERT_EQ(t_until(loop, udp, TL_EV_DATAGRAM).result, 1);
  t_close(loop, udp);
  t_end(loop);
}

/* Less than asked */

TEST(short_sends_are_continued) {
  static char bytes[3000], got[9000];
  tl_loop *loop = t_loop();
  tl_handle stream;
  int peer;
  t_tcp_pair(loop, &stream, &peer);
  t_pattern(bytes, sizeof bytes, 0);
  const tl_buf bufs[3] = {{bytes, 1000}, {bytes + 1000, 1}, {bytes + 1001, 1999}};
  scripts[SEND].cap = scripts[SENDMSG].cap = 70;
  int64_t queued = ASSERT_OK(tl_stream_write(loop, stream, bytes, sizeof bytes));
  ASSERT_EQ(queued, 2930);
  ASSERT_EQ(tl_stream_writev(loop, stream, bufs, 3), 5930);
  t_expect(loop, stream, TL_EV_DRAIN);
  ASSERT_EQ(tl_stream_writev(loop, stream, bufs, 3), 2930);
  t_expect(loop, stream, TL_EV_DRAIN);
  t_recv_all(peer, got, sizeof got);
  for (int i = 0; i < 3; i++) t_check_pattern(got + i * 3000, 3000, 0);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(sends_that_find_no_room_are_continued) {
  tl_loop *loop = t_loop();
  int peer;
  char got[10];
  tl_handle stream = pair(loop, &peer);
  script(SEND, 0, 5, EAGAIN);
  ASSERT_EQ(tl_stream_write(loop, stream, "hello", 5), 5);
  ASSERT_EQ(tl_stream_write(loop, stream, "world", 5), 10);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_DRAIN).result, 0);
  t_recv_all(peer, got, 10);
  ASSERT_MEM(got, "helloworld", 10);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(a_receive_that_finds_nothing_is_no_event) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = pair(loop, &peer);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  script(RECV, 0, 3, EAGAIN);
  t_send_all(peer, "hello", 5);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_DATA).result, 5);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(batches_that_are_sent_in_parts) {
  enum { N = 20 };
  tl_loop *loop = t_loop();
  tl_addr addr = t_ip4(0);
  tl_datagram items[N];
  int numbers[N];
  tl_handle udp = ASSERT_OK(tl_udp_bind(loop, &addr, 0));
  t_bound(loop, udp, &addr);
  ASSERT_OK(tl_udp_read_start(loop, udp));
  for (int i = 0; i < N; i++) {
    numbers[i] = i;
    items[i] = (tl_datagram){&numbers[i], sizeof(int), &addr};
  }
  scripts[SENDMMSG].cap = 3;
  script(SENDTO, 0, 1, EAGAIN); /* the first one waits, so the others queue behind it */
  int minus = -1;
  ASSERT_EQ(tl_udp_send(loop, udp, &minus, sizeof minus, &addr), sizeof(int) + TL_DATAGRAM_HEADER);
  ASSERT_EQ(tl_udp_send_batch(loop, udp, items, N), N);
  for (int i = -1; i < N; i++) {
    tl_event event = t_until(loop, udp, TL_EV_DATAGRAM);
    ASSERT_MEM(tl_event_data(loop, &event), &i, sizeof i);
  }
  ASSERT_EQ(tl_udp_send_batch(loop, udp, items, N), N);
  for (int i = 0; i < N; i++) {
    tl_event event = t_until(loop, udp, TL_EV_DATAGRAM);
    ASSERT_MEM(tl_event_data(loop, &event), &i, sizeof i);
  }
  t_close(loop, udp);
  t_end(loop);
}

/* Broken connections */

static const int broken[] = {ECONNRESET, ETIMEDOUT, EHOSTUNREACH, EPIPE, EIO};

TEST(a_failed_receive_is_one_error_event) {
  for (int i = 0; i < 5; i++) {
    tl_loop *loop = t_loop();
    int peer;
    tl_handle stream = pair(loop, &peer);
    ASSERT_OK(tl_stream_read_start(loop, stream));
    script(RECV, 0, 1000, broken[i]);
    t_send_all(peer, "hello", 5);
    tl_event event = t_expect(loop, stream, TL_EV_ERROR);
    ASSERT_EQ(event.result, -broken[i]);
    ASSERT_EQ(event.offset, TL_READ);
    t_quiet(loop);
    ASSERT_LT(tl_stream_write(loop, stream, "x", 1), 0);
    ASSERT_LT(tl_stream_read_start(loop, stream), 0);
    close(peer);
    t_close(loop, stream);
    t_end(loop);
  }
}

TEST(a_failed_send_is_the_result_and_no_event) {
  for (int i = 0; i < 5; i++) {
    tl_loop *loop = t_loop();
    int peer;
    tl_handle stream = pair(loop, &peer);
    ASSERT_OK(tl_stream_read_start(loop, stream));
    script(SEND, 0, 1, broken[i]);
    ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), -broken[i]);
    ASSERT_LT(tl_stream_write(loop, stream, "x", 1), 0);
    t_quiet(loop);
    close(peer);
    t_close(loop, stream);
    t_end(loop);
  }
}

TEST(a_failed_send_of_the_queue_is_one_error_event) {
  for (int i = 0; i < 5; i++) {
    tl_loop *loop = t_loop();
    int peer;
    tl_handle stream = pair(loop, &peer);
    script(SEND, 0, 1, EAGAIN);
    ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), 1);
    script(SEND, 0, 1000, broken[i]);
    tl_event event = t_expect(loop, stream, TL_EV_ERROR);
    ASSERT_EQ(event.result, -broken[i]);
    ASSERT_EQ(event.offset, TL_WRITE);
    ASSERT_EQ(tl_queued(loop, stream), 0);
    t_quiet(loop);
    ASSERT_EQ(tl_stream_close(loop, stream), 0);
    t_expect(loop, stream, TL_EV_CLOSED);
    close(peer);
    t_end(loop);
  }
}

TEST(a_graceful_close_that_fails_tells_why) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = pair(loop, &peer);
  script(SEND, 0, 1, EAGAIN);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), 1);
  ASSERT_EQ(tl_stream_close(loop, stream), 0);
  script(SEND, 0, 1, ECONNRESET);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_CLOSED).result, -ECONNRESET);
  close(peer);
  t_end(loop);
}

TEST(a_failed_recv_breaks_the_stream) {
  tl_loop *loop = t_loop();
  int peer;
  char byte;
  tl_handle stream = pair(loop, &peer);
  script(RECV, 0, 1, ECONNRESET);
  ASSERT_EQ(tl_stream_recv(loop, stream, &byte, 1), -ECONNRESET);
  ASSERT_LT(tl_stream_write(loop, stream, "x", 1), 0);
  t_quiet(loop);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST(a_connection_that_times_out) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  socket_error = ETIMEDOUT;
  tl_handle stream = ASSERT_OK(tl_stream_connect(loop, &addr));
  ASSERT_EQ(t_until(loop, stream, TL_EV_CONNECT).result, -ETIMEDOUT);
  ASSERT_LT(tl_stream_write(loop, stream, "x", 1), 0);
  tl_close(loop, stream), tl_close(loop, listener);
  tl_loop_close(loop);
}

TEST(failing_datagrams) {
  tl_loop *loop = t_loop();
  tl_addr addr = t_ip4(0);
  tl_handle udp = ASSERT_OK(tl_udp_bind(loop, &addr, 0));
  t_bound(loop, udp, &addr);
  ASSERT_OK(tl_udp_read_start(loop, udp));
  script(SENDTO, 0, 1, ENOBUFS);
  ASSERT_LT(tl_udp_send(loop, udp, "x", 1, &addr), 0);
  ASSERT_EQ(tl_queued(loop, udp), 0);
  script(RECVMMSG, 0, 1, ECONNREFUSED);
  ASSERT_EQ(tl_udp_send(loop, udp, "x", 1, &addr), 0);
  ASSERT_EQ(t_expect(loop, udp, TL_EV_ERROR).result, -ECONNREFUSED);
  ASSERT_EQ(t_expect(loop, udp, TL_EV_DATAGRAM).result, 1); /* receiving goes on */
  script(SENDTO, 0, 1, EAGAIN);
  ASSERT_EQ(tl_udp_send(loop, udp, "a", 1, &addr), 1 + TL_DATAGRAM_HEADER);
  ASSERT_EQ(tl_udp_send(loop, udp, "b", 1, &addr), 2 + 2 * TL_DATAGRAM_HEADER);
  script(SENDMMSG, 0, 1, EHOSTUNREACH); /* costs one datagram, not the others */
  ASSERT_EQ(t_expect(loop, udp, TL_EV_ERROR).result, -EHOSTUNREACH);
  tl_event event = t_until(loop, udp, TL_EV_DATAGRAM);
  ASSERT_MEM(tl_event_data(loop, &event), "b", 1);
  t_close(loop, udp);
  t_end(loop);
}

/* Nothing left */

TEST_ON(accepting_pauses_for_a_second, ON_READY) {
  const int errors[] = {EMFILE, ENFILE, ENOBUFS, ENOMEM};
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  for (int i = 0; i < 4; i++) {
    int client = t_connect(&addr);
    script(ACCEPT, 0, 1, errors[i]);
    ASSERT_EQ(t_expect(loop, listener, TL_EV_ACCEPT).result, -errors[i]);
    t_quiet(loop);
    int64_t left = tl_loop_timeout(loop);
    ASSERT_GT(left, 0);
    ASSERT_LE(left, T_SECOND);
    clock_offset += T_SECOND - 100 * T_MS;
    t_quiet(loop);
    clock_offset += 100 * T_MS;
    t_close(loop, t_accept(loop, listener));
    close(client);
  }
  t_close(loop, listener);
  t_end(loop);
}

TEST_ON(a_pause_whose_end_fails_pauses_again, ON_EPOLL | ON_URING) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  int client = t_connect(&addr);
  script(ACCEPT, 0, 1, EMFILE);
  ASSERT_EQ(t_expect(loop, listener, TL_EV_ACCEPT).result, -EMFILE);
  script(CTL, 0, 1, ENOMEM);
  tl_event event;
  for (int i = 0; i < 20 && ASSERT_OK(tl_loop_poll(loop, &event, 1, 0)) == 0; i++)
    clock_offset += 100 * T_MS;
  clock_offset += 2LL * T_SECOND;
  t_close(loop, t_accept(loop, listener));
  close(client);
  t_close(loop, listener);
  t_end(loop);
}

TEST_ON(constructors_that_fail_leave_nothing, ON_READY) {
  tl_loop *loop = t_loop();
  tl_addr addr, any = t_ip4(0);
  tl_handle listener = t_listen(loop, &addr);
  int before = t_open_fds();
  script(SOCKET, 0, 3, EMFILE);
  ASSERT_EQ(tl_stream_connect(loop, &addr), -EMFILE);
  ASSERT_EQ(tl_listener_bind(loop, &any, 0, 0), -EMFILE);
  ASSERT_EQ(tl_udp_bind(loop, &any, 0), -EMFILE);
  script(CONNECT, 0, 1, ENETUNREACH);
  ASSERT_EQ(tl_stream_connect(loop, &addr), -ENETUNREACH);
  script(BIND, 0, 2, EACCES);
  ASSERT_EQ(tl_listener_bind(loop, &any, 0, 0), -EACCES);
  ASSERT_EQ(tl_udp_bind(loop, &any, 0), -EACCES);
  script(LISTEN, 0, 1, EADDRINUSE);
  ASSERT_EQ(tl_listener_bind(loop, &any, 0, 0), -EADDRINUSE);
  script(SETSOCKOPT, 0, 1, EACCES);
  ASSERT_EQ(tl_udp_bind(loop, &any, TL_BROADCAST), -EACCES);
  if (on_epoll()) {
    script(CTL, 0, 2, ENOSPC);
    ASSERT_EQ(tl_stream_connect(loop, &addr), -ENOSPC);
    ASSERT_EQ(tl_listener_bind(loop, &any, 0, 0), -ENOSPC);
  }
  ASSERT_EQ(t_stats(loop).live, 1);
  ASSERT_EQ(t_open_fds(), before);
  tl_close(loop, listener);
  tl_event event; /* maybe the client that gave up */
  for (int i = 0; i < 5; i++) tl_loop_poll(loop, &event, 1, 0);
  tl_loop_close(loop);
}

TEST_ON(adoptions_that_fail_leave_the_descriptor, ON_READY) {
  tl_loop *loop = t_loop();
  int fds[2];
  t_socketpair(SOCK_STREAM, fds);
  script(FCNTL, 0, 3, EPERM);
  ASSERT_LT(tl_stream_open(loop, fds[0], 0), 0);
  ASSERT_LT(tl_udp_open(loop, fds[0], 0), 0);
  ASSERT_LT(tl_listener_open(loop, fds[0], 0), 0);
  script(FCNTL, 0, 0, 0);
  if (on_epoll()) {
    script(CTL, 0, 1, ENOMEM);
    ASSERT_EQ(tl_listener_open(loop, fds[0], 0), -ENOMEM);
  }
  ASSERT_GE(fcntl(fds[0], F_GETFD), 0);
  ASSERT_EQ(t_stats(loop).live, 0);
  close(fds[0]);
  close(fds[1]);
  t_end(loop);
}

TEST(a_child_without_pidfd) {
  tl_loop *loop = t_loop();
  pid_t pid = ASSERT_SYS(fork());
  if (pid == 0) _exit(0);
  script(PIDFD, 0, 1, ENOSYS);
  ASSERT_EQ(tl_child_watch(loop, pid), -ENOSYS);
  script(PIDFD, 0, 1, EMFILE);
  ASSERT_EQ(tl_child_watch(loop, pid), -EMFILE);
  ASSERT_EQ(waitpid(pid, NULL, 0), pid); /* it was not reaped */
  t_end(loop);
}

/* A sandbox may know pidfd_open but not pidfd_send_signal. */
TEST(signals_reach_a_child_also_without_pidfd_send_signal) {
  tl_loop *loop = t_loop();
  pid_t pid = ASSERT_SYS(fork());
  if (pid == 0)
    for (;;) pause();
  tl_handle handle = ASSERT_OK(tl_child_watch(loop, pid));
  script(PIDFD, 0, 1, EPERM);
  ASSERT_EQ(tl_child_signal(loop, handle, 1000), -EINVAL);
  script(PIDFD, 0, 1, ENOSYS);
  ASSERT_EQ(tl_child_signal(loop, handle, SIGKILL), 0);
  ASSERT_EQ(WTERMSIG((int)t_expect(loop, handle, TL_EV_CHILD).result), SIGKILL);
  script(PIDFD, 0, 1, ENOSYS);
  ASSERT_EQ(tl_child_signal(loop, handle, 0), -ESRCH);
  t_close(loop, handle);
  t_end(loop);
}

TEST(tuning_that_fails_is_no_error) {
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  script(SETSOCKOPT, 0, 1, ENOPROTOOPT); /* TCP_NODELAY */
  tl_handle stream = ASSERT_OK(tl_stream_connect(loop, &addr));
  ASSERT_EQ(t_until(loop, stream, TL_EV_CONNECT).result, 0);
  tl_close(loop, stream), tl_close(loop, listener);
  tl_loop_close(loop);
}

/* The backend itself */

static void refuse(enum call call, int skip, int error, int wanted) {
  tl_loop_desc desc = {.backend = t_backend(), .allocator = t_allocator()};
  int got, fds = t_open_fds();
  script(call, skip, 1, error);
  ASSERT_TRUE(tl_loop_create(&desc, &got) == NULL);
  ASSERT_EQ(got, wanted);
  ASSERT_EQ(scripts[call].times, 0);
  ASSERT_EQ(t_mem.blocks, 0);
  ASSERT_EQ(t_open_fds(), fds);
}

TEST_ON(creation_that_fails_leaves_nothing, ON_EPOLL | ON_URING) {
  refuse(PIPE, 0, EMFILE, -EMFILE);
  refuse(CREATE, 0, EMFILE, -EMFILE);
  refuse(CTL, 0, EMFILE, -EMFILE);
}

/* Containers forbid it, old kernels have none or not all, and a sandbox may know one call only. */
TEST_ON(io_uring_that_is_not_there_is_refused_by_name, ON_URING) {
  refuse(RING_SETUP, 0, EPERM, -EPERM);
  refuse(RING_SETUP, 0, ENOSYS, -ENOSYS);
  refuse(RING_SETUP, 0, EINVAL, -ENOSYS);
  refuse(RING_SETUP, 0, EMFILE, -EMFILE);
  refuse(MMAP, 0, EAGAIN, -ENOMEM);
  refuse(MMAP, 1, EAGAIN, -ENOMEM);
  refuse(RING_ENTER, 0, EPERM, -EPERM);
}

/* The ring says that the set has something, but the set is not asked in time. */
TEST_ON(a_set_that_does_not_answer_is_asked_again, ON_URING) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = readable(loop, &peer);
  script(WAIT, 0, 2, EINTR);
  t_expect(loop, stream, TL_EV_DATA);
  ASSERT_EQ(scripts[WAIT].times, 0);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

/* The loop was made in another thread, and now there is no new ring for this one. */
TEST_ON(a_ring_that_cannot_be_made_anew_is_reported_and_tried_again, ON_URING) {
  tl_loop *loop = t_loop();
  tl_event event;
  int peer;
  tl_handle stream = readable(loop, &peer);
  script(RING_SETUP, 0, 2, EMFILE);
  script(RING_ENTER, 0, 1, EEXIST);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), -EMFILE);
  ASSERT_EQ(tl_loop_fd(loop), -1);
  tl_loop_timeout(loop);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, -1), -EMFILE);
  t_expect(loop, stream, TL_EV_DATA);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

#ifdef TL__HAS_URING

static tl_loop *spoiled;

static void make_requests_unknown(void) {
  const tl__uring *u = &spoiled->uring;
  for (unsigned i = atomic_load(u->sq_head); i != atomic_load(u->sq_tail); i++)
    if (u->sqes[i & u->sq_mask].opcode != IORING_OP_POLL_ADD) u->sqes[i & u->sq_mask].opcode = 255;
}

/* A connection, bytes in both directions, and the end. */
static void check_round_trip(tl_loop *loop) {
  tl_addr addr;
  char bytes[5];
  tl_handle listener = t_listen(loop, &addr);
  int client = t_connect(&addr);
  tl_handle stream = t_accept(loop, listener);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  t_send_all(client, "hello", 5);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_DATA).result, 5);
  tl_handle other;
  int far;
  t_tcp_pair(loop, &other, &far);
  int64_t rows[4] = {stream, other, 5, 1};
  ASSERT_EQ(tl_stream_write_batch(loop, rows, 2, "hello!"), 0);
  t_recv_all(client, bytes, 5);
  ASSERT_MEM(bytes, "hello", 5);
  t_recv_all(far, bytes, 1);
  ASSERT_EQ(bytes[0], '!');
  close(far);
  t_close(loop, other);
  close(client);
  t_expect(loop, stream, TL_EV_EOF);
  t_close(loop, stream);
  t_close(loop, listener);
}

TEST_ON(operations_that_the_kernel_does_not_know_are_done_without_the_ring, ON_RING) {
  spoiled = t_loop();
  spoil = make_requests_unknown;
  check_round_trip(spoiled);
  spoil = NULL;
  t_quiet(spoiled);
  t_end(spoiled);
}

TEST_ON(a_sandbox_may_allow_the_ring_but_not_its_blocks, ON_RING) {
  for (int i = 0; i < 2; i++) {
    script(i ? MMAP : RING_REGISTER, i ? 2 : 0, 1, EPERM);
    tl_loop *loop = t_loop();
    ASSERT_EQ(loop->uring.ops, TL__OP_ACCEPT | TL__OP_SEND);
    check_round_trip(loop);
    t_end(loop);
  }
}

TEST_ON(a_batch_that_the_ring_refuses_is_sent_all_the_same, ON_RING) {
  tl_loop *loop = t_loop();
  tl_handle streams[2];
  int peers[2];
  char bytes[2];
  for (int i = 0; i < 2; i++) t_tcp_pair(loop, &streams[i], &peers[i]);
  script(RING_ENTER, 0, 1, EBUSY);
  int64_t rows[4] = {streams[0], streams[1], 2, 2};
  ASSERT_EQ(tl_stream_write_batch(loop, rows, 2, "abcd"), 0);
  t_quiet(loop);
  for (int i = 0; i < 2; i++) {
    t_recv_all(peers[i], bytes, 2);
    ASSERT_MEM(bytes, i ? "cd" : "ab", 2);
    t_close(loop, streams[i]);
    t_expect_eof(peers[i]); /* it came once */
    close(peers[i]);
  }
  t_end(loop);
}

/* A sandbox is asked once. */
TEST_ON(a_batch_without_a_ring_is_sent_all_the_same, ON_EPOLL) {
  tl_loop *loop = t_loop();
  tl_handle streams[2];
  int peers[2], before = t_open_fds();
  char bytes[2];
  for (int i = 0; i < 2; i++) t_tcp_pair(loop, &streams[i], &peers[i]);
  script(RING_SETUP, 0, 1, EPERM);
  for (int round = 0; round < 3; round++) {
    int64_t rows[4] = {streams[0], streams[1], 2, 2};
    ASSERT_EQ(tl_stream_write_batch(loop, rows, 2, "abcd"), 0);
    for (int i = 0; i < 2; i++) {
      t_recv_all(peers[i], bytes, 2);
      ASSERT_MEM(bytes, i ? "cd" : "ab", 2);
    }
  }
  ASSERT_EQ(scripts[RING_SETUP].times, 0);
  for (int i = 0; i < 2; i++) {
    close(peers[i]);
    t_close(loop, streams[i]);
  }
  ASSERT_EQ(t_open_fds(), before);
  t_end(loop);
}

TEST_ON(requests_for_which_there_is_no_room_are_made_later, ON_RING) {
  enum { N = TL__REQUESTS + 10 };
  tl_loop *loop = t_loop();
  tl_handle streams[N];
  int peers[N];
  for (int i = 0; i < N; i++) t_tcp_pair(loop, &streams[i], &peers[i]);
  script(RING_ENTER, 0, 10, EBUSY);
  for (int i = 0; i < N; i++) ASSERT_OK(tl_stream_read_start(loop, streams[i]));
  script(RING_ENTER, 0, 0, 0);
  for (int i = 0; i < N; i++) {
    t_send_all(peers[i], "x", 1);
    ASSERT_EQ(t_expect(loop, streams[i], TL_EV_DATA).result, 1);
  }
  for (int i = 0; i < N; i++) {
    close(peers[i]);
    t_close(loop, streams[i]);
  }
  t_end(loop);
}

TEST_ON(a_ring_that_cannot_be_asked_lets_go_when_it_ends, ON_RING) {
  tl_loop *loop = t_loop();
  tl_handle stream;
  int peer;
  t_tcp_pair(loop, &stream, &peer);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  t_quiet(loop);
  script(RING_ENTER, 0, 1, EEXIST); /* as in another thread than the ring's */
  tl_loop_close(loop);
  t_expect_eof(peer);
  close(peer);
}

#endif

TEST_ON(the_next_backend_is_taken_when_the_best_does_not_work, ON_ONCE) {
  script(CREATE, 0, 2, ENOSYS); /* io_uring needs an epoll set, too */
  tl_loop *loop = t_loop();
  ASSERT_STR(tl_loop_backend(loop), "poll");
  t_quiet(loop);
  t_end(loop);
}

TEST_ON(old_kernels_without_epoll_pwait2, ON_EPOLL) {
  const int errors[] = {ENOSYS, EPERM};
  for (int i = 0; i < 2; i++) {
    tl_loop *loop = t_loop();
    script(PWAIT2, 0, 1, errors[i]);
    tl_handle timer = ASSERT_OK(tl_timer_create(loop));
    for (int k = 1; k < 5; k++) {
      int64_t due = tl_loop_now(loop) + k * 300000;
      ASSERT_OK(tl_timer_start_at(loop, timer, due, 0));
      t_expect(loop, timer, TL_EV_TIMER);
      ASSERT_GE(tl_loop_now(loop), due);
    }
    ASSERT_EQ(scripts[PWAIT2].made, 1); /* asked once, not for every wait */
    t_close(loop, timer);
    t_end(loop);
  }
}

TEST(a_wait_that_fails_is_reported_and_can_be_repeated) {
  tl_loop *loop = t_loop();
  tl_event event;
  int peer;
  tl_handle stream = readable(loop, &peer);
  script_wait(0, 1, ENOMEM);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, 0), -ENOMEM);
  script_wait(0, 1, EINVAL);
  ASSERT_EQ(tl_loop_poll(loop, &event, 1, T_SECOND), -EINVAL);
  script_wait(0, 1, EINVAL);
  ASSERT_EQ(tl_loop_run(loop), -EINVAL);
  script_wait(0, 0, 0);
  ASSERT_EQ(t_expect(loop, stream, TL_EV_DATA).result, 1);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

TEST_ON(starts_that_fail_change_nothing, ON_EPOLL | ON_URING) {
  tl_loop *loop = t_loop();
  int peer, fds[2];
  t_pipe(fds);
  tl_handle stream = pair(loop, &peer), poll = ASSERT_OK(tl_poll_create(loop, fds[0]));
  t_send_all(peer, "x", 1);
  t_send_all(fds[1], "x", 1);
  script(CTL, 0, 3, ENOMEM);
  ASSERT_EQ(tl_stream_read_start(loop, stream), -ENOMEM);
  ASSERT_EQ(tl_stream_read_notify(loop, stream), -ENOMEM);
  ASSERT_EQ(tl_poll_start(loop, poll, TL_READ), -ENOMEM);
  t_quiet(loop);
  ASSERT_EQ(tl_stream_read_start(loop, stream), 0);
  t_expect(loop, stream, TL_EV_DATA);
  ASSERT_EQ(tl_poll_start(loop, poll, TL_READ), 0);
  t_expect(loop, poll, TL_EV_POLL);
  close(peer);
  close(fds[0]);
  close(fds[1]);
  t_close(loop, poll);
  t_close(loop, stream);
  t_end(loop);
}

TEST_ON(a_write_that_cannot_wait_breaks_the_stream, ON_EPOLL | ON_URING) {
  tl_loop *loop = t_loop();
  int peer;
  tl_handle stream = pair(loop, &peer);
  script(SEND, 0, 1, EAGAIN);
  script(CTL, 0, 1, ENOMEM);
  ASSERT_EQ(tl_stream_write(loop, stream, "x", 1), -ENOMEM);
  ASSERT_EQ(tl_queued(loop, stream), 0);
  ASSERT_LT(tl_stream_write(loop, stream, "x", 1), 0);
  t_quiet(loop);
  close(peer);
  t_close(loop, stream);
  t_end(loop);
}

/* Random weather: whatever the kernel does, the bytes arrive, in order, and then the end. */

typedef struct side {
  tl_handle stream;
  uint64_t sent, total, received;
  bool shut, eof, failed;
} side;

static void send_random(tl_loop *loop, side *s) {
  static char bytes[20000];
  tl_buf bufs[5];
  size_t at = 0;
  int count = 1 + (int)t_below(5);
  for (int i = 0; i < count; i++) {
    size_t n = t_below(sizeof bytes / 5);
    if (n > s->total - s->sent - at) n = (size_t)(s->total - s->sent - at);
    bufs[i] = (tl_buf){bytes + at, n};
    at += n;
  }
  t_pattern(bytes, at, s->sent);
  s->sent += at;
  if (tl_stream_writev(loop, s->stream, bufs, count) < 0) s->failed = true;
}

static void act(tl_loop *loop, side *s) {
  if (s->failed || s->shut) return;
  if (s->sent < s->total && tl_queued(loop, s->stream) < 60000) send_random(loop, s);
  if (s->sent < s->total || s->failed) return;
  ASSERT_OK(tl_stream_shutdown(loop, s->stream));
  s->shut = true;
}

static void random_pause(tl_loop *loop, side *s) {
  char bytes[3000];
  if (s->eof || s->failed) return;
  if (chance(20)) ASSERT_OK(tl_stream_read_stop(loop, s->stream));
  if (chance(50)) ASSERT_OK(tl_stream_read_start(loop, s->stream));
  if (!chance(20)) return;
  int64_t n = tl_stream_recv(loop, s->stream, bytes, 1 + t_below(sizeof bytes));
  if (n == -EAGAIN) return;
  if (n == 0) s->eof = true;
  if (n < 0) s->failed = true;
  if (n <= 0) return;
  t_check_pattern(bytes, (size_t)n, s->received);
  s->received += (uint64_t)n;
}

static void receive(tl_loop *loop, side *s, const tl_event *event) {
  ASSERT_TRUE(!s->failed);
  if (event->kind == TL_EV_DATA) {
    ASSERT_TRUE(!s->eof);
    t_check_pattern(tl_event_data(loop, event), (size_t)event->result, s->received);
    s->received += (uint64_t)event->result;
  } else if (event->kind == TL_EV_EOF) {
    ASSERT_TRUE(!s->eof);
    s->eof = true;
  } else if (event->kind == TL_EV_ERROR) {
    s->failed = true;
  }
}

static void storm(tl_loop *loop, side sides[2], bool resets) {
  weather.on = true;
  weather.interrupt = t_below(30), weather.again = t_below(40), weather.part = t_below(90);
  for (int i = 0; i < 200000; i++) {
    bool over = true;
    for (int k = 0; k < 2; k++) {
      act(loop, &sides[k]);
      random_pause(loop, &sides[k]);
      over &= sides[k].failed || (sides[k].eof && sides[k].shut);
    }
    if (over) break;
    if (resets && chance(1)) script(chance(50) ? RECV : SENDMSG, (int)t_below(10), 1, ECONNRESET);
    tl_event event;
    int n = tl_loop_poll(loop, &event, 1, T_MS);
    if (ASSERT_OK(n)) receive(loop, &sides[event.handle == sides[1].stream], &event);
    if (sides[0].failed || sides[1].failed) break;
  }
  weather.on = false;
}

static void check_storm(bool resets) {
  for (int round = 0; round < 25; round++) {
    tl_loop *loop = t_loop();
    int fds[2], room = round % 2 ? 4096 : 100000;
    t_socketpair(SOCK_STREAM, fds);
    side sides[2] = {{.total = t_below(200000)}, {.total = t_below(200000)}};
    for (int k = 0; k < 2; k++) {
      ASSERT_SYS(setsockopt(fds[k], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
      sides[k].stream = ASSERT_OK(tl_stream_open(loop, fds[k], 0));
      ASSERT_OK(tl_stream_read_start(loop, sides[k].stream));
    }
    storm(loop, sides, resets);
    for (int k = 0; k < 2; k++) {
      if (!resets) ASSERT_TRUE(!sides[k].failed && sides[k].eof);
      if (!resets) ASSERT_EQ(sides[k].received, sides[1 - k].total);
      ASSERT_LE(sides[k].received, sides[1 - k].sent);
      script(RECV, 0, 0, 0), script(SENDMSG, 0, 0, 0);
      ASSERT_OK(tl_close(loop, sides[k].stream));
    }
    t_end(loop);
  }
}

TEST(streams_survive_any_weather) { check_storm(false); }
TEST(broken_streams_deliver_a_prefix) { check_storm(true); }

/* The same for many connections through a listener, with callbacks. */

static struct {
  int accepted, done;
  uint64_t echoed;
} hall;

static void on_guest(tl_loop *loop, const tl_event *event, void *user) {
  (void)user;
  if (event->kind == TL_EV_DATA)
    ASSERT_OK(
        tl_stream_write(loop, event->handle, tl_event_data(loop, event), (size_t)event->result));
  else if (event->kind == TL_EV_EOF)
    ASSERT_OK(tl_stream_close(loop, event->handle));
}

static void on_door(tl_loop *loop, const tl_event *event, void *user) {
  if (event->kind != TL_EV_ACCEPT) return;
  hall.accepted++;
  ASSERT_OK(tl_set_callback(loop, ASSERT_OK(event->result), on_guest, user));
  ASSERT_OK(tl_stream_read_start(loop, event->result));
}

static void on_visitor(tl_loop *loop, const tl_event *event, void *user) {
  side *s = user;
  if (event->kind == TL_EV_CONNECT) {
    ASSERT_OK(event->result);
    ASSERT_OK(tl_stream_read_start(loop, event->handle));
    while (s->sent < s->total) send_random(loop, s);
    ASSERT_OK(tl_stream_shutdown(loop, event->handle));
  } else if (event->kind == TL_EV_DATA) {
    receive(loop, s, event);
  } else if (event->kind == TL_EV_EOF) {
    ASSERT_EQ(s->received, s->total);
    hall.done++;
    hall.echoed += s->received;
    ASSERT_OK(tl_stream_close(loop, event->handle));
  } else if (event->kind == TL_EV_ERROR) {
    t_fail(__FILE__, __LINE__, "error %s", tl_strerror(event->result));
  }
}

TEST(servers_survive_any_weather) {
  enum { N = 30 };
  static side visitors[N];
  tl_loop *loop = t_loop();
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  uint64_t total = 0;
  ASSERT_OK(tl_set_callback(loop, listener, on_door, NULL));
  weather.on = true;
  weather.interrupt = 15, weather.part = 50;
  /* TCP is edge-triggered where it can be: no edge would follow an EAGAIN the kernel did not mean. */
  weather.again = tl_loop_caps(loop) & TL_CAP_EDGE ? 0 : 20;
  for (int i = 0; i < N; i++) {
    visitors[i].total = t_below(50000);
    total += visitors[i].total;
    visitors[i].stream = ASSERT_OK(tl_stream_connect(loop, &addr));
    ASSERT_OK(tl_set_callback(loop, visitors[i].stream, on_visitor, &visitors[i]));
  }
  for (int i = 0; i < 200000 && hall.done < N; i++) ASSERT_OK(tl_loop_step(loop, T_SECOND));
  ASSERT_EQ(hall.done, N);
  ASSERT_EQ(hall.accepted, N);
  ASSERT_EQ(hall.echoed, total);
  t_close(loop, listener);
  weather.on = false;
  t_end(loop);
}
