// Closed-loop load generator: N connections, each with one request in flight, in one epoll thread.
//
//   load [options] HOST:PORT | unix:PATH | fifo:PREFIX
//
//   -m MODE  echo (default); http: GET; flood: datagrams without end to a server that counts them
//   -T       within TLS 1.3, of any certificate (needs -DLOAD_TLS -lssl -lcrypto to build)
//   -u       datagrams instead of a stream
//   -n       a new connection for each request: connect, ask, close, wait for the server's close
//   -r       with -T and -n: resume the session of the connection before
//   -c N     connections; -i N: as many more, which ask once and then stay idle
//   -s N     bytes of a message; -g PATH: what http gets; -b FILE: what the reply's body has to be
//   -t, -w   seconds to measure, and to warm up before
//   -W       warm up again and again, until the server's cost of a request falls no longer, but no
//            more than so many seconds: for a server that compiles while it runs (needs -p)
//   -p PID   of the server: its CPU time is read at both ends of the measured window, the cost of
//            a request as the kernel counted it, however fast this client happens to be
//   -k       warm up and measure for each line of the standard input, until it ends; connections
//            are kept, idle meanwhile
//
// Prints one line of JSON for each window. Every byte of a reply during the warm-up is compared.
// The connection of fifo:PREFIX writes to PREFIX.in and reads from PREFIX.out.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
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
  SHIFTS = 4096,     // distinct starting points of a message in the random pool
  STALL_SECONDS = 5, // a request without its reply by then is an error
  SUB_BITS = 6,      // histogram: 64 steps per power of two, so within 1.6 %
  BUCKETS = 64 << SUB_BITS,
};

typedef struct conn {
  int fd, out; // out: where to write, the same but for FIFOs
#ifdef LOAD_TLS
  SSL *ssl;
  SSL_SESSION *session; // of the last ticket
#endif
  bool leaving;    // we have closed our side, and wait for the server's
  const char *msg; // the request in flight
  size_t sent, got;
  size_t want; // length of the reply; 0 while an HTTP head is incomplete
  size_t head_len;
  uint64_t start_ns;
  uint64_t requests;
  char *head; // HTTP mode only
} conn;

typedef struct options {
  const char *mode;
  bool http, tls, udp, fresh, resume, keep;
  size_t connections, idle, size;
  double seconds, warmup, patience;
  pid_t pid;
  const char *path, *body, *target;
} options;

static options opt = {
    .mode = "echo",
    .connections = 50,
    .size = 1024,
    .seconds = 2,
    .warmup = 0.3,
    .path = "/",
};
static int epoll_fd;
static conn *conns;
static char *pool;       // echo: random bytes; http: the request
static const char *body; // http: what is expected, if that is known
static size_t body_size;
static char inbox[RECV_MAX];
static bool verifying, running;
static size_t in_flight; // requests
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

static int tls_ticket(SSL *ssl, SSL_SESSION *session) {
  conn *c = SSL_get_app_data(ssl);
  SSL_SESSION_free(c->session);
  c->session = session;
  return 1; // keeps the reference
}

static void tls_init(void) {
  tls_context = SSL_CTX_new(TLS_client_method());
  // The same cipher from every server: what is compared is not their taste.
  if (!tls_context || !SSL_CTX_set_min_proto_version(tls_context, TLS1_3_VERSION) ||
      !SSL_CTX_set_ciphersuites(tls_context, "TLS_AES_256_GCM_SHA384"))
    die("OpenSSL without TLS 1.3");
  SSL_CTX_set_mode(tls_context,
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  if (!opt.resume) return;
  SSL_CTX_set_session_cache_mode(tls_context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
  SSL_CTX_sess_set_new_cb(tls_context, tls_ticket);
}

static void tls_open(conn *c) {
  if (!tls_context) tls_init();
  c->ssl = SSL_new(tls_context);
  if (!c->ssl || !SSL_set_fd(c->ssl, c->fd)) die("OpenSSL is out of memory");
  SSL_set_app_data(c->ssl, c);
  if (c->session) SSL_set_session(c->ssl, c->session);
  SSL_set_connect_state(c->ssl); // the first write brings the handshake
}

static void tls_leave(conn *c) {
  if (opt.resume && !verifying && !SSL_session_reused(c->ssl)) die("a session was not resumed");
  SSL_shutdown(c->ssl);
  SSL_free(c->ssl);
  c->ssl = NULL;
}

static ssize_t tls_result(const conn *c, int n) {
  if (n > 0) return n;
  int error = SSL_get_error(c->ssl, n);
  if (error == SSL_ERROR_ZERO_RETURN) return 0;
  errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
  return -1;
}

static ssize_t bytes_out(const conn *c, const char *data, size_t n) {
  if (c->ssl) return tls_result(c, SSL_write(c->ssl, data, (int)n));
  return write(c->out, data, n);
}

static ssize_t bytes_in(const conn *c, char *data, size_t n) {
  if (c->ssl) return tls_result(c, SSL_read(c->ssl, data, (int)n));
  return read(c->fd, data, n);
}
#else
static void tls_open(conn *c) {
  (void)c;
  die("built without TLS");
}

static void tls_leave(conn *c) { (void)c; }

static ssize_t bytes_out(const conn *c, const char *data, size_t n) {
  return write(c->out, data, n);
}

static ssize_t bytes_in(const conn *c, char *data, size_t n) { return read(c->fd, data, n); }
#endif

// --- connections ---

// A connection in progress is none that fails: the first write waits for it.
static void connect_to(int fd, const struct sockaddr *address, socklen_t length) {
  if (fd < 0 || (connect(fd, address, length) < 0 && errno != EINPROGRESS))
    die("connect %s: %s", opt.target, strerror(errno));
}

static int connect_unix(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) die("path too long: %s", path);
  memcpy(address.sun_path, path, strlen(path));
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  connect_to(fd, (struct sockaddr *)&address, sizeof address);
  return fd;
}

static struct addrinfo *resolve(const char *target) {
  const char *colon = strrchr(target, ':');
  if (!colon) die("%s is not HOST:PORT", target);
  char host[256];
  snprintf(host, sizeof host, "%.*s", (int)(colon - target), target);
  struct addrinfo *found, hints = {.ai_socktype = opt.udp ? SOCK_DGRAM : SOCK_STREAM};
  int rc = getaddrinfo(host, colon + 1, &hints, &found);
  if (rc) die("%s: %s", target, gai_strerror(rc));
  return found;
}

static int connect_ip(const char *target) {
  static struct addrinfo *to;
  if (!to) to = resolve(target);
  int fd = socket(to->ai_family, to->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  connect_to(fd, to->ai_addr, to->ai_addrlen);
  if (!opt.udp) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
  return fd;
}

static int open_fifo(const char *prefix, const char *end, int flags) {
  char path[4096];
  snprintf(path, sizeof path, "%s%s", prefix, end);
  int fd = open(path, flags | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) die("open %s: %s", path, strerror(errno));
  return fd;
}

static void watch(conn *c, int fd, uint32_t events) {
  struct epoll_event event = {.events = events | EPOLLET, .data.ptr = c};
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) die("epoll_ctl: %s", strerror(errno));
}

static void conn_open(conn *c) {
  if (strncmp(opt.target, "fifo:", 5) == 0) {
    c->fd = open_fifo(opt.target + 5, ".out", O_RDONLY);
    c->out = open_fifo(opt.target + 5, ".in", O_WRONLY);
    watch(c, c->fd, EPOLLIN);
    watch(c, c->out, EPOLLOUT);
    return;
  }
  bool is_unix = strncmp(opt.target, "unix:", 5) == 0;
  c->fd = c->out = is_unix ? connect_unix(opt.target + 5) : connect_ip(opt.target);
  if (opt.tls) tls_open(c);
  watch(c, c->fd, EPOLLIN | EPOLLOUT);
}

static void conn_leave(conn *c) {
  c->leaving = true;
  if (opt.tls) tls_leave(c);
  shutdown(c->fd, SHUT_WR);
}

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
  c->msg = opt.http ? pool : pool + ((size_t)(c - conns) * 31 + c->requests * 17) % SHIFTS;
  c->sent = c->got = c->head_len = 0;
  c->want = opt.http ? 0 : opt.size;
  c->start_ns = now;
  c->leaving = false;
  in_flight++;
  if (opt.fresh) conn_open(c);
  send_more(c);
}

static void request_finish(conn *c) {
  uint64_t now = now_ns();
  c->requests++;
  in_flight--;
  requests++;
  histogram[bucket_of(now - c->start_ns)]++;
  if (running && c < conns + opt.connections) request_start(c, now);
}

static void left(conn *c) {
  close(c->fd);
  request_finish(c);
}

static void check_echo(const conn *c, size_t n) {
  if (c->got + n > c->want) die("more bytes echoed than were sent");
  if (!verifying) return;
  if (memcmp(inbox, c->msg + c->got, n) != 0) die("echoed bytes differ from those sent");
  verified += n;
}

static void check_body(const conn *c, size_t n) {
  if (!verifying || !body) return;
  if (c->want < body_size || c->got + n > c->want)
    die("a body longer or shorter than %s", opt.body);
  size_t start = c->want - body_size, skip = c->got < start ? start - c->got : 0;
  if (skip >= n) return;
  if (memcmp(inbox + skip, body + c->got + skip - start, n - skip) != 0)
    die("a body other than %s", opt.body);
  verified += n - skip;
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
  if (opt.http) {
    if (c->want == 0) parse_head(c, n);
    if (c->want) check_body(c, n);
  } else {
    check_echo(c, n);
  }
  c->got += n;
  if (c->want && c->got > c->want) die("reply longer than announced");
  if (!c->want || c->got < c->want) return;
  if (opt.fresh)
    conn_leave(c);
  else
    request_finish(c);
}

static void receive_more(conn *c) {
  for (;;) {
    ssize_t n = bytes_in(c, inbox, sizeof inbox);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (c->leaving && n > 0) continue;
    if (c->leaving) { // or reset, by a server that had more to say
      left(c);
      return;
    }
    if (n == 0) die("server closed the connection");
    if (n < 0) die("recv: %s", strerror(errno));
    received(c, (size_t)n);
    // Drained: the next bytes raise a new edge. TLS hands over one record at a time.
    if (!opt.tls && (size_t)n < sizeof inbox) return;
  }
}

// --- what is said ---

static void body_map(void) {
  struct stat status;
  int fd = open(opt.body, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || fstat(fd, &status) < 0) die("%s: %s", opt.body, strerror(errno));
  body_size = (size_t)status.st_size;
  void *map = mmap(NULL, body_size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (map == MAP_FAILED) die("mmap %s: %s", opt.body, strerror(errno));
  body = map;
  close(fd);
}

static void pool_fill(void) {
  if (opt.body) body_map();
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

static uint64_t seconds_from_now(double seconds) { return now_ns() + (uint64_t)(seconds * 1e9); }

static void await_replies(void) {
  uint64_t limit = seconds_from_now(STALL_SECONDS);
  while (in_flight) {
    step(limit);
    if (now_ns() > limit) die("%zu requests without a reply", in_flight);
  }
}

// Resident set of the server in bytes. Not from statm, which is off by hundreds of pages.
static double resident(void) {
  char path[64], line[256];
  unsigned long kilobytes = 0;
  snprintf(path, sizeof path, "/proc/%d/smaps_rollup", (int)opt.pid);
  FILE *file = fopen(path, "r");
  if (!file) die("%s: %s", path, strerror(errno));
  while (fgets(line, sizeof line, file) && sscanf(line, "Rss: %lu", &kilobytes) != 1) {
  }
  fclose(file);
  return (double)kilobytes * 1024;
}

// Bytes of the server's memory per connection that has asked once and is idle since.
static double open_idle(void) {
  double before = resident();
  for (size_t i = opt.connections; i < opt.connections + opt.idle; i++) {
    conn_open(&conns[i]);
    request_start(&conns[i], now_ns());
    await_replies();
  }
  return (resident() - before) / (double)opt.idle;
}

typedef struct window {
  uint64_t wall, own, server;
} window;

static window window_now(void) {
  clockid_t server = CLOCK_PROCESS_CPUTIME_ID;
  if (opt.pid && clock_getcpuclockid(opt.pid, &server)) die("no process %d", (int)opt.pid);
  return (window){now_ns(), clock_ns(CLOCK_PROCESS_CPUTIME_ID), clock_ns(server)};
}

static void report(window from, window to) {
  double seconds = (double)(to.wall - from.wall) / 1e9, n = (double)requests;
  double own = (double)(to.own - from.own) / 1e9, server = (double)(to.server - from.server) / 1e9;
  if (!requests) die("no reply in %.1f s", opt.seconds);
  printf("{\"mode\": \"%s\", \"connections\": %zu, \"size\": %zu, \"requests\": %llu, ", opt.mode,
         opt.connections, opt.size, (unsigned long long)requests);
  printf("\"seconds\": %.3f, \"rps\": %.1f, \"load_busy\": %.3f, ", seconds, n / seconds,
         own / seconds);
  if (opt.pid)
    printf("\"cpu_us_per_request\": %.3f, \"server_busy\": %.3f, ", server * 1e6 / n,
           server / seconds);
}

// Ends when no request is left, so that a window holds whole requests, however long they take.
static void run(double seconds) {
  uint64_t end = seconds_from_now(seconds);
  running = true;
  for (size_t i = 0; i < opt.connections; i++) {
    if (!opt.fresh && !conns[i].fd) conn_open(&conns[i]);
    request_start(&conns[i], now_ns());
  }
  while (now_ns() < end) step(end);
  running = false;
  await_replies();
}

// Compilers warm up by steps: the cost has to stay the same for a while before it is believed.
static void run_until_steady(void) {
  enum { STEADY = 2 };
  double least = INFINITY;
  uint64_t end = seconds_from_now(opt.patience);
  for (int steady = 0; steady < STEADY && now_ns() < end; steady++) {
    requests = 0;
    uint64_t before = window_now().server;
    run(opt.warmup);
    double cost = (double)(window_now().server - before) / (double)requests;
    if (cost < 0.97 * least) steady = -1;
    if (cost < least) least = cost;
  }
}

static void measure_requests(void) {
  double rss = 0;
  verifying = true;
  run(opt.warmup);
  if (opt.patience > 0) run_until_steady(); // compiled code is no idle connection's memory
  if (opt.idle) rss = open_idle();
  verifying = false;
  requests = 0;
  memset(histogram, 0, sizeof histogram);
  window from = window_now();
  run(opt.seconds);
  report(from, window_now());
  if (opt.idle) printf("\"rss_per_idle\": %.0f, ", rss);
  printf("\"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, ", quantile_us(0.5),
         quantile_us(0.99), quantile_us(0.999));
  printf("\"verified_bytes\": %llu}\n", (unsigned long long)verified);
}

// --- flood: a server that counts datagrams, and tells the number to whoever sends one byte ---

static uint64_t flood_count(int fd) {
  char text[32];
  for (int tries = 0; tries < 100; tries++) {
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    if (send(fd, "?", 1, 0) < 0 && errno != EAGAIN) die("send: %s", strerror(errno));
    if (poll(&wait, 1, 100) <= 0) continue; // lost in the flood
    ssize_t n = recv(fd, text, sizeof text - 1, 0);
    if (n <= 0) continue;
    text[n] = 0;
    return strtoull(text, NULL, 10);
  }
  die("the server does not tell how many datagrams came");
}

static uint64_t flood_send(int fd, double seconds) {
  enum { BATCH = 64 };
  struct iovec part = {.iov_base = pool, .iov_len = opt.size};
  struct mmsghdr batch[BATCH] = {0};
  for (int i = 0; i < BATCH; i++)
    batch[i].msg_hdr = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
  uint64_t sent = 0, deadline = seconds_from_now(seconds);
  while (now_ns() < deadline) {
    int n = sendmmsg(fd, batch, BATCH, 0);
    if (n > 0) sent += (uint64_t)n;
  }
  return sent;
}

static void measure_flood(void) {
  int fd = connect_ip(opt.target);
  flood_send(fd, opt.warmup + opt.patience);
  uint64_t before = flood_count(fd);
  window from = window_now();
  uint64_t sent = flood_send(fd, opt.seconds);
  requests = flood_count(fd) - before;
  report(from, window_now());
  printf("\"lost\": %.3f}\n", 1 - (double)requests / (double)sent);
  close(fd);
}

static _Noreturn void usage(void) {
  fputs(
      "usage: load [-m echo|http|flood] [-T] [-u] [-n] [-r] [-c connections] [-i idle] [-s bytes]\n"
      "            [-g /path] [-b body] [-t seconds] [-w warm-up] [-W patience]\n"
      "            [-p server-pid] [-k] HOST:PORT | unix:PATH | fifo:PREFIX\n",
      stderr);
  exit(2);
}

static void parse_options(int argc, char **argv) {
  for (int o; (o = getopt(argc, argv, "m:Tunrkc:i:s:g:b:t:w:W:p:")) != -1;) {
    switch (o) {
      case 'm': opt.mode = optarg; break;
      case 'T': opt.tls = true; break;
      case 'u': opt.udp = true; break;
      case 'n': opt.fresh = true; break;
      case 'r': opt.resume = true; break;
      case 'k': opt.keep = true; break;
      case 'c': opt.connections = strtoul(optarg, NULL, 10); break;
      case 'i': opt.idle = strtoul(optarg, NULL, 10); break;
      case 's': opt.size = strtoul(optarg, NULL, 10); break;
      case 'g': opt.path = optarg; break;
      case 'b': opt.body = optarg; break;
      case 't': opt.seconds = strtod(optarg, NULL); break;
      case 'w': opt.warmup = strtod(optarg, NULL); break;
      case 'W': opt.patience = strtod(optarg, NULL); break;
      case 'p': opt.pid = (pid_t)strtol(optarg, NULL, 10); break;
      default: usage();
    }
  }
  opt.http = strcmp(opt.mode, "http") == 0;
  bool flood = strcmp(opt.mode, "flood") == 0;
  if (!opt.http && !flood && strcmp(opt.mode, "echo") != 0) usage();
  if (optind + 1 != argc || !opt.connections || !(opt.seconds > 0)) usage();
  if (!opt.size || opt.size > SIZE_LIMIT || ((opt.idle || opt.patience > 0) && !opt.pid)) usage();
  opt.udp |= flood;
  opt.target = argv[optind];
}

// Is another window asked for?
static bool asked(void) {
  int c;
  do c = getchar();
  while (c != '\n' && c != EOF);
  return c == '\n';
}

// As many descriptors as we may have.
static void raise_limit(void) {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) < 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

int main(int argc, char **argv) {
  parse_options(argc, argv);
  signal(SIGPIPE, SIG_IGN); // writing tells
  raise_limit();
  pool_fill();
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0) die("epoll_create1: %s", strerror(errno));
  conns = allocate(opt.connections + opt.idle, sizeof *conns);
  if (opt.http)
    for (size_t i = 0; i < opt.connections + opt.idle; i++) conns[i].head = allocate(1, HEAD_MAX);
  void (*measure)(void) = strcmp(opt.mode, "flood") == 0 ? measure_flood : measure_requests;
  if (!opt.keep) measure();
  while (opt.keep && asked()) {
    measure();
    fflush(stdout);
  }
  return 0;
}
