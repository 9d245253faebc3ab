/* The runner behind tl_test.h, and the helpers that tests share. */
#include "tl_test.h"

#include <dirent.h>
#include <malloc.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

/* Assertions */

void t_fail(const char *file, int line, const char *format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  fprintf(stderr, "%s:%d: %s\n", file, line, text);
  fflush(NULL);
  _exit(1);
}

void t_skip(const char *reason) {
  fprintf(stderr, "%s\n", reason);
  fflush(NULL);
  _exit(77);
}

int64_t t_ok(const char *file, int line, const char *text, int64_t rc) {
  if (rc < 0) t_fail(file, line, "%s: %lld (%s)", text, (long long)rc, tl_strerror(rc));
  return rc;
}

int t_sys(const char *file, int line, const char *text, int64_t rc) {
  if (rc < 0) t_fail(file, line, "%s: %s", text, strerror(errno));
  return (int)rc;
}

void t_equal_text(const char *file, int line, const char *a, const char *b) {
  if (!a || !b || strcmp(a, b) != 0)
    t_fail(file, line, "texts differ: \"%s\" and \"%s\"", a ? a : "(null)", b ? b : "(null)");
}

void t_equal_bytes(const char *file, int line, const void *a, const void *b, size_t nbytes) {
  const unsigned char *x = a, *y = b;
  for (size_t i = 0; i < nbytes; i++)
    if (x[i] != y[i]) t_fail(file, line, "byte %zu of %zu: %02x and %02x", i, nbytes, x[i], y[i]);
}

/* Memory */

t_memory t_mem;

static bool fails_now(void) {
  long call = atomic_fetch_add(&t_mem.calls, 1) + 1, at = t_mem.fail_at;
  return at && (call == at || (t_mem.fail_on && call > at));
}

static void count(void *ptr, long sign) {
  atomic_fetch_add(&t_mem.bytes, sign * (long)malloc_usable_size(ptr));
  atomic_fetch_add(&t_mem.blocks, sign);
}

static void *count_alloc(void *user, size_t nbytes) {
  ASSERT_TRUE(user == &t_mem);
  if (fails_now()) return NULL;
  void *ptr = malloc(nbytes);
  ASSERT_TRUE(ptr != NULL);
  count(ptr, 1);
  return ptr;
}

static void *count_realloc(void *user, void *old, size_t nbytes) {
  ASSERT_TRUE(user == &t_mem && old != NULL);
  if (fails_now()) return NULL;
  count(old, -1);
  void *ptr = realloc(old, nbytes);
  ASSERT_TRUE(ptr != NULL);
  count(ptr, 1);
  return ptr;
}

static void count_free(void *user, void *ptr) {
  ASSERT_TRUE(user == &t_mem);
  if (ptr) count(ptr, -1);
  free(ptr);
}

tl_allocator t_allocator(void) {
  return (tl_allocator){count_alloc, count_realloc, count_free, &t_mem};
}

void *t_guarded(size_t nbytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (nbytes + page - 1) / page * page;
  char *base = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_TRUE(base != MAP_FAILED);
  ASSERT_SYS(mprotect(base + room, page, PROT_NONE));
  return base + room - nbytes;
}

/* Loops and events */

const char *t_backend(void) {
  const char *name = getenv("TLOOP_BACKEND");
  return name ? name : "";
}

tl_loop *t_loop(void) {
  tl_loop_desc desc = {.allocator = t_allocator()};
  int error = 0;
  tl_loop *loop = tl_loop_create(&desc, &error);
  if (!loop) t_fail(__FILE__, __LINE__, "tl_loop_create: %s", tl_strerror(error));
  if (*t_backend()) ASSERT_STR(tl_loop_backend(loop), t_backend());
  return loop;
}

tl_stats t_stats(const tl_loop *loop) {
  tl_stats stats;
  ASSERT_EQ(tl_loop_stats(loop, &stats), 0);
  return stats;
}

void t_end(tl_loop *loop) {
  tl_event event;
  for (int i = 0; i < 1000 && t_stats(loop).live; i++)
    ASSERT_OK(tl_loop_poll(loop, &event, 1, 5 * T_MS));
  ASSERT_EQ(t_stats(loop).live, 0);
  ASSERT_EQ(t_stats(loop).queued, 0);
  while (ASSERT_OK(tl_loop_poll(loop, &event, 1, 0))) continue; /* the last TL_EV_CLOSED */
  ASSERT_EQ(tl_loop_close(loop), 0);
}

tl_event t_next(tl_loop *loop) {
  tl_event event;
  int64_t end = t_clock() + 4LL * T_SECOND;
  do
    if (ASSERT_OK(tl_loop_poll(loop, &event, 1, 10 * T_MS)) == 1) return event;
  while (t_clock() < end);
  t_fail(__FILE__, __LINE__, "no event came");
}

tl_event t_expect(tl_loop *loop, tl_handle handle, int kind) {
  tl_event event = t_next(loop);
  if (event.handle != handle || event.kind != kind)
    t_fail(__FILE__, __LINE__, "event: handle %lld kind %lld result %lld; wanted: %lld %d",
           (long long)event.handle, (long long)event.kind, (long long)event.result,
           (long long)handle, kind);
  return event;
}

tl_event t_until(tl_loop *loop, tl_handle handle, int kind) {
  for (int i = 0; i < 100000; i++) {
    tl_event event = t_next(loop);
    if (event.handle == handle && event.kind == kind) return event;
  }
  t_fail(__FILE__, __LINE__, "handle %lld never sent kind %d", (long long)handle, kind);
}

/* A spinning loop shows in two ways: the wait ends early, or it is made again and again. What was
   left of the last tick, or watched until its next report, may end one wait early. */
void t_quiet(tl_loop *loop) {
  tl_event event;
  ASSERT_EQ(ASSERT_OK(tl_loop_poll(loop, &event, 1, 0)), 0);
  int64_t before = t_stats(loop).ticks, start = t_clock();
  ASSERT_EQ(ASSERT_OK(tl_loop_poll(loop, &event, 1, 10 * T_MS)), 0);
  ASSERT_LE(t_stats(loop).ticks - before, 3);
  if (strcmp(tl_loop_backend(loop), "dummy") != 0) ASSERT_GE(t_clock() - start, 10 * T_MS);
}

void t_close(tl_loop *loop, tl_handle handle) {
  ASSERT_EQ(tl_close(loop, handle), 0);
  t_until(loop, handle, TL_EV_CLOSED);
}

void t_spin(tl_loop *loop, const bool *done) {
  for (int i = 0; i < 1000000 && !*done; i++) ASSERT_OK(tl_loop_step(loop, T_SECOND));
  ASSERT_TRUE(*done);
}

int64_t t_clock(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * T_SECOND + now.tv_nsec;
}

/* ThreadSanitizer defers handlers and keeps the former mask in one place per thread: a signal that
   comes while it runs another's handler leaves all signals blocked for good. */
void t_unblock_signals(void) {
#ifdef __SANITIZE_THREAD__
  sigset_t none;
  sigemptyset(&none);
  ASSERT_SYS(sigprocmask(SIG_SETMASK, &none, NULL));
#endif
}

/* Sockets and descriptors */

int t_open_fds(void) {
  DIR *dir = opendir("/proc/self/fd");
  ASSERT_TRUE(dir != NULL);
  int found = -3; /* ".", ".." and the directory itself */
  while (readdir(dir)) found++;
  closedir(dir);
  return found;
}

void t_pipe(int fds[2]) { ASSERT_SYS(pipe2(fds, O_CLOEXEC)); }

void t_socketpair(int type, int fds[2]) {
  ASSERT_SYS(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds));
}

tl_addr t_ip4(int port) {
  tl_addr addr;
  ASSERT_EQ(tl_addr_ip(&addr, "127.0.0.1", port), 0);
  return addr;
}

int t_bound(tl_loop *loop, tl_handle socket, tl_addr *addr) {
  ASSERT_EQ(tl_sockname(loop, socket, addr), 0);
  return tl_addr_port(addr);
}

tl_handle t_listen(tl_loop *loop, tl_addr *addr) {
  *addr = t_ip4(0);
  tl_handle listener = ASSERT_OK(tl_listener_bind(loop, addr, 0, 0));
  ASSERT_GT(t_bound(loop, listener, addr), 0);
  return listener;
}

int t_connect(const tl_addr *addr) {
  const struct sockaddr *sa = (const void *)addr->data;
  int fd = ASSERT_SYS(socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_SYS(connect(fd, sa, addr->nbytes));
  return fd;
}

tl_handle t_accept(tl_loop *loop, tl_handle listener) {
  return ASSERT_OK(t_until(loop, listener, TL_EV_ACCEPT).result);
}

void t_tcp_pair(tl_loop *loop, tl_handle *stream, int *peer) {
  tl_addr addr;
  tl_handle listener = t_listen(loop, &addr);
  *peer = t_connect(&addr);
  *stream = t_accept(loop, listener);
  t_close(loop, listener);
}

void t_send_all(int fd, const void *data, size_t nbytes) {
  const char *at = data;
  while (nbytes) {
    ssize_t n = ASSERT_SYS(write(fd, at, nbytes));
    at += n, nbytes -= (size_t)n;
  }
}

void t_recv_all(int fd, void *data, size_t nbytes) {
  char *at = data;
  while (nbytes) {
    ssize_t n = ASSERT_SYS(read(fd, at, nbytes));
    if (n == 0) t_fail(__FILE__, __LINE__, "end of file, %zu bytes too early", nbytes);
    at += n, nbytes -= (size_t)n;
  }
}

void t_expect_eof(int fd) {
  char byte;
  ASSERT_EQ(ASSERT_SYS(read(fd, &byte, 1)), 0);
}

void t_nonblocking(int fd) {
  ASSERT_SYS(fcntl(fd, F_SETFL, ASSERT_SYS(fcntl(fd, F_GETFL)) | O_NONBLOCK));
}

void t_reset(int fd) {
  struct linger now = {1, 0};
  ASSERT_SYS(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now));
  ASSERT_SYS(close(fd));
}

void t_limit_fds(int more) {
  static struct rlimit usual;
  if (!usual.rlim_cur) ASSERT_SYS(getrlimit(RLIMIT_NOFILE, &usual));
  ASSERT_SYS(setrlimit(RLIMIT_NOFILE, &usual));
  if (more < 0) return;
  int lowest = ASSERT_SYS(dup(0)); /* all numbers below it are taken */
  close(lowest);
  struct rlimit tight = usual;
  tight.rlim_cur = (rlim_t)(lowest + more);
  ASSERT_SYS(setrlimit(RLIMIT_NOFILE, &tight));
}

/* Numbers and bytes */

uint32_t t_random(void) {
  static _Thread_local uint64_t state;
  if (!state) {
    const char *seed = getenv("TL_TEST_SEED");
    state = (seed ? strtoull(seed, NULL, 0) : 1) * 0x9E3779B97F4A7C15u | 1;
  }
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return (uint32_t)(state >> 32);
}

uint32_t t_below(uint32_t limit) { return t_random() % limit; }

static unsigned char pattern_byte(uint64_t at) {
  return (unsigned char)((at * 0x9E3779B97F4A7C15u) >> 56);
}

void t_pattern(void *data, size_t nbytes, uint64_t offset) {
  unsigned char *out = data;
  for (size_t i = 0; i < nbytes; i++) out[i] = pattern_byte(offset + i);
}

void t_check_pattern(const void *data, size_t nbytes, uint64_t offset) {
  const unsigned char *in = data;
  for (size_t i = 0; i < nbytes; i++)
    if (in[i] != pattern_byte(offset + i))
      t_fail(__FILE__, __LINE__, "byte %llu of the stream is wrong",
             (unsigned long long)(offset + i));
}

/* Runner */

static t_case *first, **last = &first;

void t_register(t_case *test) {
  *last = test;
  last = &test->next;
}

static const struct {
  const char *name;
  int bit;
} backends[] = {{"epoll", ON_EPOLL}, {"io_uring", ON_URING}, {"io_uring+", ON_RING},
                {"poll", ON_POLL},   {"dummy", ON_DUMMY},    {"", ON_ONCE}};

/* Where the kernel, a sandbox or old headers refuse io_uring, its tests cannot run. */
static bool have_uring(void) {
  static int answer = -1;
  if (answer < 0) {
    tl_loop_desc desc = {.backend = "io_uring"};
    int error = 0;
    tl_loop *loop = tl_loop_create(&desc, &error);
    answer = loop != NULL;
    if (!loop) printf("SKIP io_uring: %s\n", tl_strerror(error));
    tl_loop_close(loop);
  }
  return answer;
}

static struct {
  int passed, failed, skipped;
} totals;

static int64_t time_limit(const t_case *test) {
  const char *text = getenv("TL_TEST_TIMEOUT");
  int64_t seconds = text ? atoi(text) : 10;
  return seconds * T_SECOND * (test->backends & SLOW ? 6 : 1);
}

static sigset_t child_signal(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  return set;
}

/* Blocked in the runner only, which waits for it. */
static void mask_child_signal(int how) {
  sigset_t set = child_signal();
  sigprocmask(how, &set, NULL);
}

/* In the test's process. exit(), not _exit(): the leak checker runs at exit. */
static void run_here(const t_case *test, const char *backend, FILE *out) {
  bool ring = strcmp(backend, "io_uring+") == 0;
  setpgid(0, 0);
  mask_child_signal(SIG_UNBLOCK);
  dup2(fileno(out), 1);
  dup2(fileno(out), 2);
  if (*backend)
    setenv("TLOOP_BACKEND", ring ? "io_uring" : backend, 1);
  else
    unsetenv("TLOOP_BACKEND");
  if (ring)
    setenv("TLOOP_URING", "accept,recv,send", 1);
  else
    unsetenv("TLOOP_URING");
  int fds = t_open_fds();
  test->run();
  ASSERT_EQ(t_mem.blocks, 0);
  ASSERT_EQ(t_mem.bytes, 0);
  ASSERT_EQ(t_open_fds(), fds);
  exit(0);
}

static void show(const char *verdict, const t_case *test, const char *backend, FILE *out) {
  printf("%s %s%s%s: ", verdict, test->name, *backend ? " on " : "", backend);
  rewind(out);
  char line[512];
  bool any = false;
  while (fgets(line, sizeof line, out)) any = fputs(line, stdout) >= 0;
  if (!any) puts("(no output)");
}

/* Wait for a test, whatever it does to its own signals. Returns its status, or -1: out of time. */
static int await(pid_t pid, int64_t limit) {
  sigset_t child = child_signal();
  for (int64_t end = t_clock() + limit, left; (left = end - t_clock()) > 0;) {
    int status = 0;
    if (waitpid(pid, &status, WNOHANG) == pid) return status;
    struct timespec wait = {.tv_sec = (time_t)(left / T_SECOND),
                            .tv_nsec = (long)(left % T_SECOND)};
    (void)sigtimedwait(&child, NULL, &wait);
  }
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  return -1;
}

static void judge(const t_case *test, const char *backend, int status, FILE *out) {
  char verdict[64] = "FAIL";
  if (status == 0) {
    totals.passed++;
    return;
  }
  if (status != -1 && WIFEXITED(status) && WEXITSTATUS(status) == 77) {
    totals.skipped++;
    show("SKIP", test, backend, out);
    return;
  }
  if (status == -1)
    strcpy(verdict, "FAIL (timed out)");
  else if (WIFSIGNALED(status))
    snprintf(verdict, sizeof verdict, "FAIL (%s)", strsignal(WTERMSIG(status)));
  totals.failed++;
  show(verdict, test, backend, out);
}

static void run_one(const t_case *test, const char *backend) {
  if (strncmp(backend, "io_uring", 8) == 0 && !have_uring()) {
    totals.skipped++;
    return;
  }
  FILE *out = tmpfile();
  if (!out) perror("tmpfile"), exit(2);
  fflush(NULL);
  mask_child_signal(SIG_BLOCK);
  pid_t pid = fork();
  if (pid < 0) perror("fork"), exit(2);
  if (pid == 0) run_here(test, backend, out);
  int status = await(pid, time_limit(test));
  kill(-pid, SIGKILL); /* children that the test left behind; mostly none */
  judge(test, backend, status, out);
  fclose(out);
}

static bool wanted(const char *name, char **names, int count) {
  for (int i = 0; i < count; i++)
    if (strcmp(name, names[i]) == 0) return true;
  return count == 0;
}

static int usage(const char *program) {
  fprintf(stderr, "usage: %s [--list] [--backend epoll|io_uring|io_uring+|poll|dummy] [TEST...]\n",
          program);
  return 2;
}

int main(int argc, char **argv) {
  const char *only = NULL;
  int at = 1;
  bool list = false;
  for (; at < argc && argv[at][0] == '-'; at++) {
    if (strcmp(argv[at], "--list") == 0)
      list = true;
    else if (strcmp(argv[at], "--backend") == 0 && at + 1 < argc)
      only = argv[++at];
    else
      return usage(argv[0]);
  }
  for (const t_case *test = first; test; test = test->next) {
    if (!wanted(test->name, argv + at, argc - at)) continue;
    if (list) puts(test->name);
    for (size_t i = 0; i < sizeof backends / sizeof *backends && !list; i++)
      if (test->backends & backends[i].bit && (!only || strcmp(only, backends[i].name) == 0))
        run_one(test, backends[i].name);
  }
  if (list) return 0;
  const char *slash = strrchr(argv[0], '/');
  printf("%s: %d passed, %d failed, %d skipped\n", slash ? slash + 1 : argv[0], totals.passed,
         totals.failed, totals.skipped);
  return totals.failed || !(totals.passed + totals.skipped);
}
