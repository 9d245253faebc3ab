#define _GNU_SOURCE 1
#include "fuzz.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

fuzz_side fuzz_a, fuzz_b;
fuzz_side *fuzz_acting = &fuzz_a;

_Noreturn void fuzz_fail(const char *file, int line, const char *what) {
  fprintf(stderr, "%s:%d: not true: %s\n", file, line, what);
  abort();
}

/* -- input ------------------------------------------------------------------------------------- */

uint8_t fuzz_byte(fuzz_input *in) {
  if (!in->left) return 0;
  in->left--;
  return *in->at++;
}

uint16_t fuzz_short(fuzz_input *in) {
  unsigned high = fuzz_byte(in);
  return (uint16_t)(high << 8 | fuzz_byte(in));
}

const uint8_t *fuzz_bytes(fuzz_input *in, size_t *nbytes) {
  const uint8_t *at = in->at;
  if (*nbytes > in->left) *nbytes = in->left;
  in->at += *nbytes;
  in->left -= *nbytes;
  return at;
}

/* -- contexts ---------------------------------------------------------------------------------- */

typedef struct fuzz_context {
  struct fuzz_context *next;
  int config;
  tl_tls *tls, *named;
  tl_tls_session *session;
} fuzz_context;

static const char *fuzz_path(const char *name) {
  static char path[512];
  const char *root = getenv("TL_TEST_ROOT");
  (void)snprintf(path, sizeof path, "%s/tests/tls/cases/%s.pem", root ? root : ".", name);
  return path;
}

static int fuzz_on_name(tl_loop *loop, int64_t stream, const char *name, void *user) {
  const fuzz_context *context = user;
  CHECK(strlen(name) < 256);
  if (strcmp(name, "other.example") == 0) return 1;
  CHECK(tl_tls_use(loop, stream, context->named) == 0);
  return 0;
}

static void fuzz_on_keylog(const char *line, void *user) {
  (void)user;
  CHECK(strlen(line) > 100);
}

static const char *fuzz_certificate(int config) {
  if (!(config & FUZZ_SERVER)) return "client";
  return config & FUZZ_RSA ? "rsa" : "server";
}

static tl_tls *fuzz_tls(int config, bool with_name, fuzz_context *context) {
  static const char *const ciphers[] = {
      NULL,
      "TLS_CHACHA20_POLY1305_SHA256:TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:"
      "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
      "TLS_AES_256_GCM_SHA384:TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256:"
      "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
      "TLS_AES_128_CCM_SHA256:TLS_ECDHE_ECDSA_WITH_AES_128_CCM:TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA"};
  bool server = config & FUZZ_SERVER, both = !(config & FUZZ_ONLY_12) == !(config & FUZZ_ONLY_13);
  tl_tls_desc desc = {.role = server ? TL_TLS_SERVER : TL_TLS_CLIENT,
                      .alpn = config & FUZZ_ALPN ? "h2,http/1.1" : NULL,
                      .ciphers = ciphers[(config & FUZZ_CIPHERS) >> 14],
                      .handshake_timeout_ns = SECOND,
                      .close_timeout_ns = SECOND,
                      .on_keylog = fuzz_on_keylog,
                      .user = context};
  if (!both) desc.min_version = desc.max_version = config & FUZZ_ONLY_12 ? TL_TLS_1_2 : TL_TLS_1_3;
  if (server && config & FUZZ_MUTUAL) desc.verify = TL_TLS_VERIFY_REQUIRED;
  if (!server && config & FUZZ_LAX) desc.verify = TL_TLS_INSECURE_NO_VERIFICATION;
  if (server && with_name) desc.on_name = fuzz_on_name;
  int64_t error = 0;
  tl_tls *tls = tl_tls_create(&desc, &error);
  CHECK(tls && error == 0);
  if (server || config & FUZZ_MUTUAL)
    CHECK(tl_tls_add_cert_file(tls, fuzz_path(fuzz_certificate(config)), NULL, NULL, NULL) == 0);
  CHECK(tl_tls_add_ca_file(tls, fuzz_path("authority")) == 0);
  return tls;
}

static fuzz_context *fuzz_context_of(int config) {
  static fuzz_context *all;
  static const tl_tls_desc unused = {.role = TL_TLS_CLIENT};
  for (fuzz_context *at = all; at; at = at->next)
    if (at->config == (config & FUZZ_CONTEXT)) return at;
  if (!all) {
    fuzz_set_time();
    tl_tls_release(tl_tls_create(&unused, NULL)); /* what a process draws once */
  }
  fuzz_context *context = calloc(1, sizeof *context);
  CHECK(context);
  uint64_t before = fuzz_acting->random;
  fuzz_seed((uint64_t)config & FUZZ_CONTEXT, &fuzz_acting->random);
  *context = (fuzz_context){.next = all, .config = config & FUZZ_CONTEXT};
  context->tls = fuzz_tls(config, config & FUZZ_NAMED, context);
  if (config & FUZZ_SERVER) context->named = fuzz_tls(config, false, context);
  fuzz_acting->random = before;
  return all = context;
}

/* -- ends -------------------------------------------------------------------------------------- */

void fuzz_open(fuzz_side *side, int config) {
  int fds[2], little = 1;
  tl_loop *loop = side->loop ? side->loop : tl_loop_create(NULL, NULL);
  *side = (fuzz_side){.loop = loop};
  fuzz_seed(side == &fuzz_a ? 1 : 2, &side->random);
  CHECK(loop && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
  if (config & FUZZ_NARROW)
    CHECK(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &little, sizeof little) == 0);
  side->wire = fds[1];
  side->handle = tl_stream_open(loop, fds[0], 0);
  CHECK(side->handle > 0);
}

/* A real connection of the same kind makes the session that a client of this kind offers. */
void fuzz_prepare(int config) {
  config &= ~FUZZ_SERVER;
  fuzz_context *context = fuzz_context_of(config);
  fuzz_relay up = {0}, down = {0};
  (void)fuzz_context_of(fuzz_other(config));
  if (!(config & FUZZ_RESUME) || config & FUZZ_MUTUAL || context->session) return;
  fuzz_open(&fuzz_a, 0);
  fuzz_open(&fuzz_b, 0);
  fuzz_attach(&fuzz_a, config & FUZZ_CONTEXT, NULL, 0);
  fuzz_attach(&fuzz_b, fuzz_other(config) & FUZZ_CONTEXT, NULL, 0);
  fuzz_pass_all(&up, &down);
  CHECK(fuzz_a.tls && fuzz_a.result == 0 && fuzz_b.tls && fuzz_b.result == 0);
  context->session = tl_tls_session_get(fuzz_a.loop, fuzz_a.handle, NULL);
  CHECK(context->session);
  fuzz_close(&fuzz_a, false);
  fuzz_close(&fuzz_b, false);
  fuzz_end(&fuzz_a);
  fuzz_end(&fuzz_b);
  fuzz_relay_free(&up);
  fuzz_relay_free(&down);
}

void fuzz_attach(fuzz_side *side, int config, const void *received, size_t nbytes) {
  fuzz_context *context = fuzz_context_of(config);
  tl_tls_attach_desc to = {.received = received, .received_nbytes = nbytes};
  fuzz_acting = side;
  if (!(config & FUZZ_SERVER)) {
    to.hostname = config & FUZZ_NAMED ? "127.0.0.1" : "server.example";
    if (config & FUZZ_RESUME) to.session = context->session;
  }
  fuzz_forget(context->tls);
  CHECK(tl_tls_attach(side->loop, side->handle, context->tls, &to) == 0);
  CHECK(tl_stream_read_start(side->loop, side->handle) == 0);
}

int fuzz_other(int config) { return config ^ FUZZ_SERVER; }

void fuzz_note_data(fuzz_side *side, const uint8_t *data, size_t nbytes) {
  static uint8_t expected[1 << 20];
  const fuzz_side *from = side == &fuzz_a ? &fuzz_b : &fuzz_a;
  CHECK(side->tls && side->result == 0 && !side->eof && !side->failed && nbytes > 0);
  CHECK(nbytes <= sizeof expected);
  fuzz_pattern(expected, nbytes, side->received);
  side->received += nbytes;
  if (from->forged || !from->handle) return;
  CHECK(side->received <= from->sent);
  CHECK(memcmp(data, expected, nbytes) == 0);
}

static void fuzz_note(fuzz_side *side, const tl_event *ev) {
  CHECK(ev->handle == side->handle && !side->closed);
  switch (ev->kind) {
    case TL_EV_TLS:
      CHECK(!side->tls && !side->failed && ev->result <= 0);
      side->tls = true, side->result = ev->result;
      break;
    case TL_EV_DATA: fuzz_note_data(side, tl_event_data(side->loop, ev), (size_t)ev->result); break;
    case TL_EV_EOF:
      CHECK(side->tls && side->result == 0 && !side->eof && !side->failed);
      side->eof = true;
      break;
    case TL_EV_ERROR:
      CHECK(side->tls && side->result == 0 && !side->failed && ev->result < 0);
      side->failed = true, side->error = ev->result;
      break;
    case TL_EV_CLOSED: side->closed = true; break;
    case TL_EV_READABLE: /* comes again and again, until somebody reads */
    case TL_EV_DRAIN: CHECK(side->tls && side->result == 0); break;
    default: fuzz_fail(__FILE__, __LINE__, "an event of a stream");
  }
}

/* A wait may do something that makes no event, so one without events says little. */
bool fuzz_turn(fuzz_side *side) {
  tl_event events[8];
  bool any = false;
  fuzz_acting = side;
  for (int quiet = 0; quiet < 3; quiet++) {
    int n = tl_loop_poll(side->loop, events, 8, 0);
    CHECK(n >= 0);
    for (int i = 0; i < n; i++) {
      fuzz_note(side, &events[i]);
      if (events[i].kind != TL_EV_READABLE) any = true, quiet = -1;
    }
  }
  return any;
}

/* The handshake is over: whom did it let in? */
void fuzz_check_result(fuzz_side *side, int config) {
  tl_tls_info info;
  char text[1024];
  size_t nbytes = 0;
  CHECK(side->tls);
  CHECK(tl_tls_query(side->loop, side->handle, &info) == 0);
  CHECK(tl_tls_verify_text((uint32_t)info.verify_flags, text, sizeof text) >= 0);
  for (int i = 0; i < info.peer_certs; i++)
    CHECK(tl_tls_peer_cert(side->loop, side->handle, i, &nbytes) && nbytes > 0);
  CHECK(!tl_tls_peer_cert(side->loop, side->handle, info.peer_certs, &nbytes));
  if (side->result < 0) {
    CHECK(strlen(tl_strerror(side->result)) > 5);
    CHECK(tl_stream_write(side->loop, side->handle, "x", 1) < 0);
    return;
  }
  CHECK(info.version == TL_TLS_1_2 || info.version == TL_TLS_1_3);
  bool asks = config & FUZZ_SERVER ? config & FUZZ_MUTUAL : !(config & FUZZ_LAX);
  const char *expected = fuzz_path(fuzz_certificate(fuzz_other(config)));
  const void *der = tl_tls_peer_cert(side->loop, side->handle, 0, &nbytes);
  if (asks) CHECK(der && fuzz_is_certificate(expected, der, nbytes));
}

void fuzz_close(fuzz_side *side, bool graceful) {
  fuzz_acting = side;
  if (side->closed) return;
  int rc = (graceful ? tl_stream_close : tl_close)(side->loop, side->handle);
  CHECK(rc == 0 || (side->closing && rc == TL_EBADH));
  side->closing = true;
}

void fuzz_end(fuzz_side *side) {
  tl_stats stats;
  (void)fuzz_turn(side);
  for (int i = 0; i < 100 && !side->closed; i++) {
    fuzz_advance(SECOND + 1);
    (void)fuzz_turn(side);
  }
  CHECK(side->closed);
  CHECK(tl_loop_stats(side->loop, &stats) == 0);
  CHECK(stats.live == 0 && stats.queued == 0);
  close(side->wire);
  side->handle = 0;
}

/* -- between them ------------------------------------------------------------------------------ */

void fuzz_collect(fuzz_side *from, fuzz_relay *relay) {
  while (!relay->ended) {
    if (relay->room - relay->used < 65536) {
      relay->room += 65536;
      relay->bytes = realloc(relay->bytes, relay->room);
      CHECK(relay->bytes);
    }
    ssize_t n = read(from->wire, relay->bytes + relay->used, relay->room - relay->used);
    if (n < 0) CHECK(errno == EAGAIN || errno == ECONNRESET);
    if (n == 0 || (n < 0 && errno == ECONNRESET)) relay->ended = true;
    if (n <= 0) return;
    relay->used += (size_t)n;
  }
}

bool fuzz_pass(fuzz_relay *relay, fuzz_side *to, size_t nbytes) {
  if (nbytes > relay->used) nbytes = relay->used;
  ssize_t n = nbytes ? send(to->wire, relay->bytes, nbytes, MSG_NOSIGNAL) : 0;
  if (n < 0) CHECK(errno == EAGAIN || errno == EPIPE || errno == ECONNRESET);
  if (n < 0 && errno != EAGAIN) n = (ssize_t)nbytes; /* nobody listens any more */
  if (n > 0) {
    relay->used -= (size_t)n;
    memmove(relay->bytes, relay->bytes + n, relay->used);
  }
  if (relay->ended && !relay->used && !relay->told) {
    relay->told = true;
    (void)shutdown(to->wire, SHUT_WR);
    return true;
  }
  return n > 0;
}

void fuzz_pass_all(fuzz_relay up[1], fuzz_relay down[1]) {
  for (int i = 0; i < 10000; i++) {
    bool any = fuzz_turn(&fuzz_a);
    any |= fuzz_turn(&fuzz_b);
    fuzz_collect(&fuzz_a, up);
    fuzz_collect(&fuzz_b, down);
    any |= fuzz_pass(up, &fuzz_b, up->used);
    any |= fuzz_pass(down, &fuzz_a, down->used);
    if (!any) return;
  }
  fuzz_fail(__FILE__, __LINE__, "it becomes quiet");
}

void fuzz_relay_free(fuzz_relay *relay) {
  free(relay->bytes);
  *relay = (fuzz_relay){0};
}

/* -- data -------------------------------------------------------------------------------------- */

void fuzz_pattern(uint8_t *out, size_t nbytes, uint64_t from) {
  for (size_t i = 0; i < nbytes; i++) out[i] = (uint8_t)((uint32_t)(from + i) * 2654435761U >> 17);
}

/* A write that fails may have sent a part. */
void fuzz_note_sent(fuzz_side *side, size_t nbytes, int64_t rc) {
  if (rc != -ENOTCONN && rc != -EPIPE && rc != TL_EBADH) side->sent += nbytes;
}

void fuzz_send(fuzz_side *side, size_t nbytes) {
  static uint8_t data[65536];
  CHECK(nbytes <= sizeof data);
  fuzz_pattern(data, nbytes, side->sent);
  fuzz_acting = side;
  int64_t rc = tl_stream_write(side->loop, side->handle, data, nbytes);
  fuzz_note_sent(side, nbytes, rc);
}
