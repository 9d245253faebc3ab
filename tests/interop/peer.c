/* One end of a TLS connection for the interoperation tests, made of the headers alone:
     peer server|client OPTION=VALUE...
   port=N            client: where to connect; server: prints the one it got
   cert=FILE ca=FILE crl=FILE  in PEM; several cert= are several certificates
   verify=optional|required|none, name=HOST (client: a name or an address; default server.example)
   version=1.2|1.3, alpn=LIST, ciphers=LIST
   session=FILE      client: offer the session in it, if there is one, and keep the new one there
   send=FILE         what to send; without it what was received is sent back
   expect=N          close after so many bytes were received and all is sent; else at the peer's end
   sink=1            receive only
   backend=N         server: pass everything on to that port without TLS, and back
   One line of JSON on standard output for each thing that happens. A server ends when its standard
   input does, a client with its connection: status 0 if nothing failed. */
#define TLOOP_IMPLEMENTATION
#include "tloop_tls.h"

#include <mbedtls/sha256.h>
#include <stdarg.h>

enum { HIGH = 256 << 10 };

static struct {
  bool server, sink;
  int port, backend;
  int32_t verify, version;
  int64_t expect;
  const char *name, *alpn, *ciphers, *ca, *crl, *session, *certs[4];
  int cert_count;
  unsigned char *data;
  size_t data_nbytes;
} options = {.expect = -1, .name = "server.example"};

typedef struct conn {
  tl_handle handle, other; /* other: the backend */
  mbedtls_sha256_context hash;
  int64_t received;
  size_t sent;
  int ready; /* with a backend: how many of the two streams are */
  bool ended, done;
} conn;

static tl_tls *context;
static bool failed;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...) {
  va_list list;
  va_start(list, format);
  vprintf(format, list);
  va_end(list);
  putchar('\n');
  fflush(stdout);
}

static void fail(const char *what, int64_t code) {
  failed = true;
  say("{\"event\": \"failed\", \"what\": \"%s\", \"code\": %lld, \"text\": \"%s\"}", what,
      (long long)code, tl_strerror(code));
}

static void *read_file(const char *path, size_t *nbytes) {
  FILE *file = fopen(path, "rb");
  *nbytes = 0;
  if (!file) return NULL;
  fseek(file, 0, SEEK_END);
  size_t size = (size_t)ftell(file);
  rewind(file);
  unsigned char *data = malloc(size + 1);
  if (data) *nbytes = fread(data, 1, size, file);
  fclose(file);
  return data;
}

/* -- options ------------------------------------------------------------------------------------- */

static void set_verify(const char *value) {
  if (!strcmp(value, "optional")) options.verify = TL_TLS_VERIFY_OPTIONAL;
  if (!strcmp(value, "required")) options.verify = TL_TLS_VERIFY_REQUIRED;
  if (!strcmp(value, "none")) options.verify = TL_TLS_INSECURE_NO_VERIFICATION;
}

static bool set(const char *option) {
  const char *value = strchr(option, '=');
  if (!value) return false;
  size_t n = (size_t)(value++ - option);
#define IS(name) (n == sizeof name - 1 && !memcmp(option, name, n))
  if (IS("port"))
    options.port = atoi(value);
  else if (IS("backend"))
    options.backend = atoi(value);
  else if (IS("cert") && options.cert_count < 4)
    options.certs[options.cert_count++] = value;
  else if (IS("ca"))
    options.ca = value;
  else if (IS("crl"))
    options.crl = value;
  else if (IS("verify"))
    set_verify(value);
  else if (IS("version"))
    options.version = !strcmp(value, "1.3") ? TL_TLS_1_3 : TL_TLS_1_2;
  else if (IS("name"))
    options.name = value;
  else if (IS("alpn"))
    options.alpn = value;
  else if (IS("ciphers"))
    options.ciphers = value;
  else if (IS("session"))
    options.session = value;
  else if (IS("send"))
    options.data = read_file(value, &options.data_nbytes);
  else if (IS("expect"))
    options.expect = atoll(value);
  else if (IS("sink"))
    options.sink = true;
  else
    return false;
#undef IS
  return true;
}

static int64_t add_crl(void) {
  size_t nbytes;
  unsigned char *data = options.crl ? read_file(options.crl, &nbytes) : NULL;
  int64_t rc = data ? tl_tls_add_crl(context, (const char *)data, nbytes) : 0;
  free(data);
  return rc;
}

static int64_t make_context(void) {
  tl_tls_desc desc = {.role = options.server ? TL_TLS_SERVER : TL_TLS_CLIENT,
                      .verify = options.verify,
                      .min_version = options.version,
                      .max_version = options.version,
                      .alpn = options.alpn,
                      .ciphers = options.ciphers,
                      .ca_file = options.ca,
                      .handshake_timeout_ns = INT64_C(10000000000),
                      .close_timeout_ns = INT64_C(10000000000)};
  int64_t rc = 0;
  context = tl_tls_create(&desc, &rc);
  for (int i = 0; context && rc == 0 && i < options.cert_count; i++)
    rc = tl_tls_add_cert_file(context, options.certs[i], NULL, NULL, NULL);
  if (context && rc == 0) rc = add_crl();
  return rc;
}

/* -- what is reported ---------------------------------------------------------------------------- */

static void hex_of(const unsigned char *data, size_t nbytes, char *out) {
  for (size_t i = 0; i < nbytes; i++) (void)snprintf(out + 2 * i, 3, "%02x", data[i]);
}

static void report_handshake(tl_loop *loop, const conn *c, int64_t result) {
  tl_tls_info info;
  unsigned char digest[32];
  char peer[65] = "";
  size_t nbytes;
  tl_tls_query(loop, c->handle, &info);
  const void *der = tl_tls_peer_cert(loop, c->handle, 0, &nbytes);
  if (der && mbedtls_sha256(der, nbytes, digest, 0) == 0) hex_of(digest, sizeof digest, peer);
  say("{\"event\": \"tls\", \"result\": %lld, \"text\": \"%s\", \"version\": \"%s\", \"cipher\": "
      "\"%s\", \"alpn\": \"%s\", \"resumed\": %d, \"peer\": \"%s\", \"verify\": %d, "
      "\"refused_by\": %d, \"alert\": %d}",
      (long long)result, result ? tl_strerror(result) : "",
      info.version == TL_TLS_1_3 ? "1.3" : "1.2", info.cipher_name, info.alpn, info.resumed, peer,
      info.verify_flags, info.refused_by, info.alert);
}

static void report_end(conn *c, int64_t result) {
  unsigned char digest[32];
  char text[65];
  (void)mbedtls_sha256_finish(&c->hash, digest);
  hex_of(digest, sizeof digest, text);
  say("{\"event\": \"closed\", \"result\": %lld, \"received\": %lld, \"sha256\": \"%s\", \"sent\": "
      "%zu}",
      (long long)result, (long long)c->received, text, c->sent);
}

/* -- sessions ------------------------------------------------------------------------------------ */

static tl_tls_session *load_session(void) {
  size_t nbytes;
  unsigned char *data = options.session ? read_file(options.session, &nbytes) : NULL;
  tl_tls_session *session = data ? tl_tls_session_load(data, nbytes, NULL) : NULL;
  free(data);
  return session;
}

static void keep_session(tl_loop *loop, const conn *c) {
  unsigned char bytes[16384];
  if (!options.session) return;
  tl_tls_session *session = tl_tls_session_get(loop, c->handle, NULL);
  int64_t n = session ? tl_tls_session_save(session, bytes, sizeof bytes) : -ENOENT;
  tl_tls_session_release(session);
  FILE *file = n > 0 ? fopen(options.session, "wb") : NULL;
  if (!file) return;
  (void)fwrite(bytes, 1, (size_t)n, file);
  fclose(file);
  say("{\"event\": \"session\"}");
}

/* -- a connection -------------------------------------------------------------------------------- */

static void finish(tl_loop *loop, conn *c) {
  if (c->done) return;
  c->done = true;
  keep_session(loop, c);
  (void)tl_stream_close(loop, c->handle);
}

static bool is_complete(const conn *c) {
  return options.expect >= 0 && c->received >= options.expect && c->sent == options.data_nbytes;
}

static void send_more(tl_loop *loop, conn *c) {
  while (c->sent < options.data_nbytes && tl_queued(loop, c->handle) < HIGH) {
    size_t n = options.data_nbytes - c->sent;
    if (n > 100000) n = 100000;
    if (tl_stream_write(loop, c->handle, options.data + c->sent, n) < 0) return;
    c->sent += n;
  }
  if (c->sent < options.data_nbytes || options.expect >= 0) return;
  if (!c->ended && options.data && !options.server) (void)tl_stream_shutdown(loop, c->handle);
  if (options.server && options.data) finish(loop, c);
}

static void pass(tl_loop *loop, tl_handle from, tl_handle to, const tl_event *ev) {
  int64_t queued = tl_stream_write(loop, to, tl_event_data(loop, ev), (size_t)ev->result);
  if (queued > HIGH) tl_stream_read_stop(loop, from);
}

static void on_data(tl_loop *loop, conn *c, const tl_event *ev) {
  const unsigned char *data = tl_event_data(loop, ev);
  (void)mbedtls_sha256_update(&c->hash, data, (size_t)ev->result);
  c->received += ev->result;
  if (options.backend)
    pass(loop, c->handle, c->other, ev);
  else if (!options.data && !options.sink)
    pass(loop, c->handle, c->handle, ev);
  if (is_complete(c)) finish(loop, c);
}

/* What one stream brings can be written to the other only when both are open. */
static void join(tl_loop *loop, conn *c) {
  if (++c->ready < 2) return;
  tl_stream_read_start(loop, c->handle);
  tl_stream_read_start(loop, c->other);
}

static void on_open(tl_loop *loop, conn *c) {
  if (options.backend)
    join(loop, c);
  else
    tl_stream_read_start(loop, c->handle);
  send_more(loop, c);
  if (is_complete(c)) finish(loop, c);
}

static void on_drain(tl_loop *loop, conn *c) {
  if (c->done) return;
  if (options.backend) tl_stream_read_start(loop, c->other);
  tl_stream_read_start(loop, c->handle);
  send_more(loop, c);
  if (is_complete(c)) finish(loop, c);
}

static void on_end(tl_loop *loop, conn *c) {
  c->ended = true;
  if (options.backend) (void)tl_stream_shutdown(loop, c->other);
  if (!options.backend && c->sent == options.data_nbytes) finish(loop, c);
}

static void on_closed(tl_loop *loop, conn *c, int64_t result) {
  report_end(c, result);
  mbedtls_sha256_free(&c->hash);
  if (options.backend) (void)tl_close(loop, c->other);
  if (!options.backend) free(c);
  if (!options.server) tl_loop_stop(loop);
}

static void on_tls_stream(tl_loop *loop, const tl_event *ev, void *user) {
  conn *c = user;
  switch (ev->kind) {
    case TL_EV_CONNECT:
      if (ev->result < 0) fail("connect", ev->result), tl_close(loop, ev->handle);
      break;
    case TL_EV_TLS:
      report_handshake(loop, c, ev->result);
      if (ev->result == 0)
        on_open(loop, c);
      else
        failed = true, tl_close(loop, ev->handle);
      break;
    case TL_EV_DATA: on_data(loop, c, ev); break;
    case TL_EV_DRAIN: on_drain(loop, c); break;
    case TL_EV_EOF: on_end(loop, c); break;
    case TL_EV_ERROR:
      fail("read", ev->result);
      tl_close(loop, ev->handle);
      break;
    case TL_EV_CLOSED: on_closed(loop, c, ev->result); break;
    default: break;
  }
}

/* The stream to the backend lives until the TLS stream has gone. */
static void on_backend(tl_loop *loop, const tl_event *ev, void *user) {
  conn *c = user;
  switch (ev->kind) {
    case TL_EV_CONNECT:
      if (ev->result < 0)
        fail("backend", ev->result);
      else
        join(loop, c);
      break;
    case TL_EV_DATA: pass(loop, c->other, c->handle, ev); break;
    case TL_EV_DRAIN: tl_stream_read_start(loop, c->handle); break;
    case TL_EV_EOF:
    case TL_EV_ERROR: finish(loop, c); break;
    case TL_EV_CLOSED: free(c); break;
    default: break;
  }
}

static conn *begin(tl_loop *loop, tl_handle handle, const tl_tls_attach_desc *how) {
  conn *c = calloc(1, sizeof *c);
  c->handle = handle;
  mbedtls_sha256_init(&c->hash);
  (void)mbedtls_sha256_starts(&c->hash, 0);
  tl_set_callback(loop, handle, on_tls_stream, c);
  int64_t rc = tl_tls_attach(loop, handle, context, how);
  if (rc < 0) fail("attach", rc), tl_close(loop, handle);
  return c;
}

/* -- both roles ---------------------------------------------------------------------------------- */

static void on_accept(tl_loop *loop, const tl_event *ev, void *user) {
  (void)user;
  if (ev->kind != TL_EV_ACCEPT || ev->result < 0) return;
  conn *c = begin(loop, ev->result, NULL);
  tl_addr addr;
  if (!options.backend || tl_addr_ip(&addr, "127.0.0.1", options.backend) < 0) return;
  c->other = tl_stream_connect(loop, &addr);
  tl_set_callback(loop, c->other, on_backend, c);
}

static void on_input(tl_loop *loop, const tl_event *ev, void *user) {
  (void)user;
  if (ev->kind == TL_EV_EOF || ev->kind == TL_EV_ERROR) tl_loop_stop(loop);
}

static int64_t serve(tl_loop *loop) {
  tl_addr addr;
  tl_handle input = tl_stream_open(loop, 0, TL_KEEP_FD);
  int64_t rc = tl_addr_ip(&addr, "127.0.0.1", 0);
  tl_handle listener = rc < 0 ? rc : tl_listener_bind(loop, &addr, 128, 0);
  if (listener < 0) return listener;
  if (input < 0) return input;
  tl_set_callback(loop, input, on_input, NULL);
  tl_set_callback(loop, listener, on_accept, NULL);
  tl_stream_read_start(loop, input);
  tl_sockname(loop, listener, &addr);
  say("{\"event\": \"listening\", \"port\": %d}", tl_addr_port(&addr));
  return 0;
}

static int64_t dial(tl_loop *loop) {
  tl_addr addr;
  int64_t rc = tl_addr_ip(&addr, "127.0.0.1", options.port);
  tl_handle stream = rc < 0 ? rc : tl_stream_connect(loop, &addr);
  if (stream < 0) return stream;
  tl_tls_session *session = load_session();
  tl_tls_attach_desc how = {.hostname = options.name, .session = session};
  (void)begin(loop, stream, &how);
  tl_tls_session_release(session);
  return 0;
}

int main(int argc, char **argv) {
  options.server = argc > 1 && !strcmp(argv[1], "server");
  bool good = argc > 1 && (options.server || !strcmp(argv[1], "client"));
  for (int i = 2; good && i < argc; i++) good = set(argv[i]);
  if (!good) return fprintf(stderr, "usage: see the top of peer.c\n"), 2;
  int64_t rc = make_context();
  tl_loop *loop = rc == 0 ? tl_loop_create(NULL, NULL) : NULL;
  if (loop) rc = options.server ? serve(loop) : dial(loop);
  if (loop && rc >= 0) rc = tl_loop_run(loop);
  if (rc < 0) fail("start", rc);
  (void)tl_loop_close(loop);
  tl_tls_release(context);
  free(options.data);
  return failed;
}
