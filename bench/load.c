// Closed-loop load generator: N connections, each with one request in flight, in one epoll thread.
//
//   load [-m echo|http|tls] [-c connections] [-s bytes] [-t seconds] [-w warm-up seconds]
//        [-p server pid] [-g /path] HOST:PORT | unix:PATH
//
// Prints one line of JSON. Every byte echoed during the warm-up is compared with what was sent.
// With -p the server's CPU clock is read at both ends of the measured window: the cost of a request
// as the kernel counted it, which does not depend on how fast this client happens to be.
//
// Mode tls is an echo within TLS 1.3, of any certificate; it takes -DLOAD_TLS -lssl to build.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifdef LOAD_TLS
#include <openssl/ssl.h>
#endif

enum {
  EVENTS_MAX = 256,
  SIZE_LIMIT = 1 << 30, // of a message
  HEAD_MAX = 4096,      // longest HTTP response head that is accepted
  RECV_MAX = 256 * 1024,
  SHIFTS = 4096,      // distinct starting points of a message in the random pool
  STALL_SECONDS = 10, // a connection without its first reply by then is an error
  SUB_BITS = 6,       // histogram: 64 steps per power of two, so within 1.6 %
  BUCKETS = 64 << SUB_BITS,
};

typedef struct conn {
  int fd;
#ifdef LOAD_TLS
  SSL *ssl;
#endif
  const char *msg; // the request in flight
  size_t sent, got;
  size_t want; // length of the reply; 0 while an HTTP head is incomplete
  size_t head_len;
  uint64_t start_ns;
  uint64_t requests;
  char *head; // HTTP mode only
} conn;

typedef struct options {
  bool http, tls;
  size_t connections, size;
  double seconds, warmup;
  pid_t pid;
  const char *path, *target;
} options;

static options opt = {
    .connections = 50,
    .size = 1024,
    .seconds = 2,
    .warmup = 0.3,
    .path = "/",
};
static int epoll_fd;
static conn *conns;
static char *pool; // echo: random bytes; http: the request
static char inbox[RECV_MAX];
static bool verifying = true;
static size_t answered; // connections that have had a reply
static uint64_t requests, verified;
static uint64_t histogram[BUCKETS];

__attribute__((format(printf, 1, 2))) static _Noreturn void die(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("load: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  exit(1);
}

static void *allocate(size_t count, size_t size) {
  void *block = calloc(count, size);
  if (!block) die("out of memory");
  return block;
}

static uint64_t clock_ns(clockid_t clock) {
  struct timespec t;
  if (clock_gettime(clock, &t) < 0) die("cannot read the clock: %s", strerror(errno));
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

// --- latency histogram: linear below 64 ns, then 64 buckets per power of two ---

static size_t bucket_of(uint64_t ns) {
  if (ns < 1u << SUB_BITS) return (size_t)ns;
  unsigned shift = 63u - SUB_BITS - (unsigned)__builtin_clzll(ns);
  return ((size_t)(shift + 1) << SUB_BITS) + (size_t)((ns >> shift) & ((1u << SUB_BITS) - 1));
}

static double bucket_us(size_t bucket) {
  size_t row = bucket >> SUB_BITS;
  if (row == 0) return (double)bucket / 1e3;
  uint64_t low = (uint64_t)((bucket & ((1u << SUB_BITS) - 1)) | 1u << SUB_BITS) << (row - 1);
  return (double)low / 1e3;
}

static double quantile_us(double q) {
  uint64_t rank = (uint64_t)(q * (double)requests), seen = 0;
  for (size_t i = 0; i < BUCKETS; i++) {
    seen += histogram[i];
    if (seen > rank) return bucket_us(i);
  }
  for (size_t i = BUCKETS; i-- > 0;)
    if (histogram[i]) return bucket_us(i);
  return 0;
}

// --- bytes out and in, as send() and recv() ---

#ifdef LOAD_TLS
static SSL_CTX *tls_context;

static void tls_open(conn *c) {
  if (!tls_context) tls_context = SSL_CTX_new(TLS_client_method());
  c->ssl = tls_context ? SSL_new(tls_context) : NULL;
  if (!c->ssl || !SSL_set_fd(c->ssl, c->fd) || SSL_connect(c->ssl) != 1)
    die("TLS handshake failed");
  SSL_set_mode(c->ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
}

static ssize_t tls_result(const conn *c, int n) {
  if (n > 0) return n;
  int error = SSL_get_error(c->ssl, n);
  if (error == SSL_ERROR_ZERO_RETURN) return 0;
  errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
  return -1;
}

static ssize_t bytes_out(const conn *c, const char *data, size_t n) {
  if (opt.tls) return tls_result(c, SSL_write(c->ssl, data, (int)n));
  return send(c->fd, data, n, MSG_NOSIGNAL);
}

static ssize_t bytes_in(const conn *c, char *data, size_t n) {
  if (opt.tls) return tls_result(c, SSL_read(c->ssl, data, (int)n));
  return recv(c->fd, data, n, 0);
}
#else
static void tls_open(conn *c) {
  (void)c;
  die("built without TLS");
}

static ssize_t bytes_out(const conn *c, const char *data, size_t n) {
  return send(c->fd, data, n, MSG_NOSIGNAL);
}

static ssize_t bytes_in(const conn *c, char *data, size_t n) { return recv(c->fd, data, n, 0); }
#endif

// --- one request ---

static void send_more(conn *c) {
  while (c->sent < opt.size) {
    ssize_t n = bytes_out(c, c->msg + c->sent, opt.size - c->sent);
    if (n > 0)
      c->sent += (size_t)n;
    else if (n < 0 && errno == EAGAIN)
      return; // edge-triggered: EPOLLOUT will come
    else if (n < 0 && errno != EINTR)
      die("send: %s", strerror(errno));
  }
}

static void request_start(conn *c, uint64_t now) {
  // Each message starts elsewhere in the pool, so a stale or foreign echo cannot pass as right.
  if (!opt.http) c->msg = pool + ((size_t)(c - conns) * 31 + c->requests * 17) % SHIFTS;
  c->sent = c->got = c->head_len = 0;
  c->want = opt.http ? 0 : opt.size;
  c->start_ns = now;
  send_more(c);
}

static void request_finish(conn *c) {
  uint64_t now = now_ns();
  if (c->requests++ == 0) answered++;
  requests++;
  histogram[bucket_of(now - c->start_ns)]++;
  request_start(c, now);
}

static void check_echo(const conn *c, size_t n) {
  if (c->got + n > c->want) die("more bytes echoed than were sent");
  if (!verifying) return;
  if (memcmp(inbox, c->msg + c->got, n) != 0) die("echoed bytes differ from those sent");
  verified += n;
}

static void parse_head(conn *c, size_t n) {
  size_t room = HEAD_MAX - 1 - c->head_len, part = n < room ? n : room;
  memcpy(c->head + c->head_len, inbox, part);
  c->head_len += part;
  c->head[c->head_len] = 0;
  const char *end = strstr(c->head, "\r\n\r\n");
  if (!end && part < n) die("response head longer than %d bytes", HEAD_MAX);
  if (!end) return;
  if (strncmp(c->head, "HTTP/1.1 200", 12) != 0) die("not a 200: %.40s", c->head);
  const char *length = strcasestr(c->head, "\r\nContent-Length:");
  if (!length || length > end) die("response without Content-Length");
  c->want = (size_t)(end + 4 - c->head) + strtoul(length + 17, NULL, 10);
}

static void received(conn *c, size_t n) {
  if (!opt.http)
    check_echo(c, n);
  else if (c->want == 0)
    parse_head(c, n);
  c->got += n;
  if (c->want && c->got > c->want) die("reply longer than announced");
  if (c->want && c->got == c->want) request_finish(c);
}

static void receive_more(conn *c) {
  for (;;) {
    ssize_t n = bytes_in(c, inbox, sizeof inbox);
    if (n == 0) die("server closed the connection");
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) die("recv: %s", strerror(errno));
    received(c, (size_t)n);
    // Drained: the next bytes raise a new edge. TLS hands over one record at a time.
    if (!opt.tls && (size_t)n < sizeof inbox) return;
  }
}

// --- connections ---

static int connect_unix(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) die("path too long: %s", path);
  memcpy(address.sun_path, path, strlen(path));
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
    die("connect %s: %s", path, strerror(errno));
  return fd;
}

static int connect_tcp(const char *target) {
  const char *colon = strrchr(target, ':');
  if (!colon) die("%s is not HOST:PORT", target);
  char host[256];
  snprintf(host, sizeof host, "%.*s", (int)(colon - target), target);
  struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM};
  int rc = getaddrinfo(host, colon + 1, &hints, &found);
  if (rc) die("%s: %s", target, gai_strerror(rc));
  int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) < 0)
    die("connect %s: %s", target, strerror(errno));
  freeaddrinfo(found);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
  return fd;
}

static void conn_open(conn *c) {
  c->fd = strncmp(opt.target, "unix:", 5) ? connect_tcp(opt.target) : connect_unix(opt.target + 5);
  c->msg = pool;
  if (opt.http) c->head = allocate(1, HEAD_MAX);
  if (opt.tls) tls_open(c);
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
  if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0) die("O_NONBLOCK: %s", strerror(errno));
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) die("epoll_ctl: %s", strerror(errno));
}

static void pool_fill(void) {
  if (opt.http) {
    if (asprintf(&pool, "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", opt.path) < 0)
      die("out of memory");
    opt.size = strlen(pool);
    return;
  }
  pool = allocate(opt.size + SHIFTS, 1);
  uint64_t x = 88172645463325252u; // xorshift64
  for (size_t i = 0; i < opt.size + SHIFTS; i++) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    pool[i] = (char)x;
  }
}

// --- phases ---

static void step(uint64_t deadline) {
  struct epoll_event events[EVENTS_MAX];
  uint64_t now = now_ns();
  int timeout_ms = now < deadline ? (int)((deadline - now) / 1000000u) + 1 : 0;
  int n = epoll_wait(epoll_fd, events, EVENTS_MAX, timeout_ms);
  if (n < 0 && errno != EINTR) die("epoll_wait: %s", strerror(errno));
  for (int i = 0; i < n; i++) {
    conn *c = events[i].data.ptr;
    send_more(c);
    receive_more(c);
  }
}

static void warm_up(void) {
  uint64_t start = now_ns(), limit = start + STALL_SECONDS * 1000000000ull;
  uint64_t end = start + (uint64_t)(opt.warmup * 1e9);
  for (size_t i = 0; i < opt.connections; i++) request_start(&conns[i], now_ns());
  while (now_ns() < end || answered < opt.connections) {
    step(answered < opt.connections ? limit : end);
    if (now_ns() > limit && answered < opt.connections)
      die("%zu of %zu connections without an answer", opt.connections - answered, opt.connections);
  }
}

static void measure(void) {
  clockid_t server = CLOCK_PROCESS_CPUTIME_ID;
  if (opt.pid && clock_getcpuclockid(opt.pid, &server)) die("no process %d", (int)opt.pid);
  verifying = false;
  requests = 0;
  memset(histogram, 0, sizeof histogram);
  uint64_t own = clock_ns(CLOCK_PROCESS_CPUTIME_ID), cpu = clock_ns(server), start = now_ns();
  uint64_t deadline = start + (uint64_t)(opt.seconds * 1e9), end;
  while ((end = now_ns()) < deadline) step(deadline);
  cpu = clock_ns(server) - cpu;
  own = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - own;
  if (!requests) die("no reply in %.1f s", opt.seconds);

  double seconds = (double)(end - start) / 1e9, n = (double)requests;
  printf("{\"mode\": \"%s\", \"connections\": %zu, \"size\": %zu, \"requests\": %llu, ",
         opt.http  ? "http"
         : opt.tls ? "tls"
                   : "echo",
         opt.connections, opt.size, (unsigned long long)requests);
  printf("\"seconds\": %.3f, \"rps\": %.1f, ", seconds, n / seconds);
  if (opt.pid)
    printf("\"cpu_us_per_request\": %.3f, \"server_busy\": %.3f, ", (double)cpu / 1e3 / n,
           (double)cpu / 1e9 / seconds);
  printf("\"load_busy\": %.3f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, ",
         (double)own / 1e9 / seconds, quantile_us(0.5), quantile_us(0.99), quantile_us(0.999));
  printf("\"verified_bytes\": %llu}\n", (unsigned long long)verified);
}

static _Noreturn void usage(void) {
  fputs(
      "usage: load [-m echo|http|tls] [-c connections] [-s bytes] [-t seconds] [-w warm-up]\n"
      "            [-p server-pid] [-g /path] HOST:PORT | unix:PATH\n",
      stderr);
  exit(2);
}

static void parse_options(int argc, char **argv) {
  for (int o; (o = getopt(argc, argv, "m:c:s:t:w:p:g:")) != -1;) {
    switch (o) {
      case 'm':
        opt.http = strcmp(optarg, "http") == 0;
        opt.tls = strcmp(optarg, "tls") == 0;
        if (!opt.http && !opt.tls && strcmp(optarg, "echo") != 0) usage();
        break;
      case 'c': opt.connections = strtoul(optarg, NULL, 10); break;
      case 's': opt.size = strtoul(optarg, NULL, 10); break;
      case 't': opt.seconds = strtod(optarg, NULL); break;
      case 'w': opt.warmup = strtod(optarg, NULL); break;
      case 'p': opt.pid = (pid_t)strtol(optarg, NULL, 10); break;
      case 'g': opt.path = optarg; break;
      default: usage();
    }
  }
  if (optind + 1 != argc || !opt.connections || !(opt.seconds > 0)) usage();
  if (!opt.size || opt.size > SIZE_LIMIT) usage();
  opt.target = argv[optind];
}

int main(int argc, char **argv) {
  parse_options(argc, argv);
  pool_fill();
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0) die("epoll_create1: %s", strerror(errno));
  conns = allocate(opt.connections, sizeof *conns);
  for (size_t i = 0; i < opt.connections; i++) conn_open(&conns[i]);
  warm_up();
  measure();
  return 0;
}
