/* TLS streams against the command-line program of OpenSSL. */
#include "tls_test.h"

typedef struct program {
  pid_t pid;
  int in, out; /* its standard input and output */
} program;

static program start(const char *const *words) {
  int in[2], out[2];
  t_pipe(in);
  t_pipe(out);
  program p = {.pid = ASSERT_SYS(fork()), .in = in[1], .out = out[0]};
  if (p.pid == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    dup2(out[1], 2);
    execvp("openssl", (char *const *)(uintptr_t)words);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  return p;
}

static int end(program *p) {
  int status = 0;
  close(p->in);
  close(p->out);
  kill(p->pid, SIGTERM);
  ASSERT_SYS(waitpid(p->pid, &status, 0));
  return status;
}

static void need_openssl(void) {
  if (system("openssl version >/dev/null 2>&1") != 0) SKIP("no openssl on this machine");
}

/* Its port stands behind the last colon of the line that begins with ACCEPT. */
static int port_of(const program *p) {
  char text[4096];
  size_t used = 0;
  for (;;) {
    ssize_t n = ASSERT_SYS(read(p->out, text + used, sizeof text - 1 - used));
    used += (size_t)n;
    text[used] = 0;
    const char *line = strstr(text, "ACCEPT"), *stop = line ? strchr(line, '\n') : NULL;
    if (!n) t_fail(__FILE__, __LINE__, "openssl s_server: %s", text);
    if (!stop) continue;
    while (*stop != ':') stop--;
    return atoi(stop + 1);
  }
}

/* What -rev answers: the line, backwards. */
static void check_reversed(tl_loop *loop, tl_handle stream) {
  char text[16];
  size_t used = 0;
  ASSERT_OK(tl_stream_write(loop, stream, "hello\n", 6));
  ASSERT_OK(tl_stream_read_start(loop, stream));
  while (used < 6) {
    tl_event event = t_until(loop, stream, TL_EV_DATA);
    memcpy(text + used, tl_event_data(loop, &event), (size_t)event.result);
    used += (size_t)event.result;
  }
  ASSERT_MEM(text, "olleh\n", 6);
}

static int64_t connect_to(int port, tl_tls *client, bool talk) {
  tl_loop *loop = t_loop();
  tl_addr addr = t_ip4(port);
  tl_tls_attach_desc to = {.hostname = "server.example"};
  tl_handle stream = ASSERT_OK(tl_stream_connect(loop, &addr));
  ASSERT_EQ(tl_tls_attach(loop, stream, client, &to), 0);
  int64_t result = t_until(loop, stream, TL_EV_TLS).result;
  if (result == 0 && talk) {
    check_reversed(loop, stream);
    ASSERT_OK(tl_stream_close(loop, stream));
    ASSERT_EQ(t_until(loop, stream, TL_EV_CLOSED).result, 0);
  } else {
    t_close(loop, stream);
  }
  t_end(loop);
  return result;
}

/* One of ours to an s_server with that certificate. */
static int64_t to_server(const char *cert, const char *version, const char *option,
                         const char *client_cert) {
  char path[600], authority[600];
  (void)snprintf(path, sizeof path, "%s", tls_path(cert));
  (void)snprintf(authority, sizeof authority, "%s", tls_path("authority"));
  const char *const words[] = {"openssl", "s_server", "-accept", "127.0.0.1:0", "-cert",
                               path,      "-key",     path,      "-CAfile",     authority,
                               "-rev",    version,    option,    "1",           NULL};
  const char *const plain[] = {"openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", path,
                               "-key",    path,       "-rev",    version,       NULL};
  program p = start(option ? words : plain);
  tls_plan plan = {.client_cert = client_cert};
  tl_tls *client = tls_client(&plan);
  int64_t result = connect_to(port_of(&p), client, true);
  tl_tls_release(client);
  end(&p);
  return result;
}

static const char *const versions[] = {"-tls1_2", "-tls1_3"};

TEST_ON(an_openssl_server, ON_REAL | SLOW) {
  need_openssl();
  for (int i = 0; i < 2; i++) {
    ASSERT_EQ(to_server("server", versions[i], NULL, NULL), 0);
    ASSERT_EQ(to_server("rsa", versions[i], NULL, NULL), 0);
    ASSERT_EQ(to_server("server", versions[i], "-Verify", "client"), 0);
    ASSERT_EQ(to_server("other", versions[i], NULL, NULL), TL_EVERIFY - TL_TLS_BAD_NAME);
    ASSERT_EQ(to_server("client", versions[i], NULL, NULL), TL_EVERIFY - TL_TLS_BAD_EXT_KEY_USAGE);
  }
}

/* s_client sends a line; we send it back and end. Returns its exit status. */
static int from_client(const char *cert, const char *version, const char *own) {
  char address[32], authority[600], path[600];
  tl_addr addr;
  tl_loop *loop = t_loop();
  tl_handle listener = t_listen(loop, &addr);
  tls_plan plan = {.cert = cert, .server_verify = own ? TL_TLS_VERIFY_REQUIRED : 0};
  tl_tls *server = tls_server(&plan);
  ASSERT_GT(tl_addr_text(&addr, address, sizeof address), 0);
  (void)snprintf(authority, sizeof authority, "%s", tls_path("authority"));
  (void)snprintf(path, sizeof path, "%s", tls_path(own ? own : "client"));
  const char *const words[] = {"openssl",
                               "s_client",
                               "-connect",
                               address,
                               "-CAfile",
                               authority,
                               "-verify_hostname",
                               "server.example",
                               "-verify_return_error",
                               version,
                               "-quiet",
                               "-servername",
                               "server.example",
                               "-cert",
                               path,
                               "-key",
                               path,
                               NULL};
  program p = start(words);
  t_send_all(p.in, "hello\n", 6);
  tl_handle stream = t_accept(loop, listener);
  ASSERT_EQ(tl_tls_attach(loop, stream, server, NULL), 0);
  tl_tls_release(server);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  int64_t result = t_until(loop, stream, TL_EV_TLS).result;
  if (result == 0) {
    tl_event event = t_until(loop, stream, TL_EV_DATA);
    ASSERT_EQ(event.result, 6);
    ASSERT_OK(tl_stream_write(loop, stream, tl_event_data(loop, &event), 6));
    ASSERT_OK(tl_stream_close(loop, stream));
    t_until(loop, stream, TL_EV_CLOSED);
  } else {
    t_close(loop, stream);
  }
  t_close(loop, listener);
  t_end(loop);
  end(&p);
  return (int)result;
}

TEST_ON(an_openssl_client, ON_REAL | SLOW) {
  need_openssl();
  for (int i = 0; i < 2; i++) {
    ASSERT_EQ(from_client("server", versions[i], NULL), 0);
    ASSERT_EQ(from_client("rsa", versions[i], NULL), 0);
    ASSERT_EQ(from_client("server", versions[i], "client"), 0);
    ASSERT_EQ(from_client("server", versions[i], "stranger"), TL_EVERIFY - TL_TLS_BAD_UNTRUSTED);
    ASSERT_EQ(from_client("stranger", versions[i], NULL), TL_EALERT - 48);
    ASSERT_EQ(from_client("expired", versions[i], NULL), TL_EALERT - 45);
  }
}

/* Whoever asks for a renegotiation is told no, and that was it. */
TEST_ON(a_renegotiation_ends_the_connection, ON_REAL | SLOW) {
  char address[32];
  tl_addr addr;
  need_openssl();
  tl_loop *loop = t_loop();
  tl_handle listener = t_listen(loop, &addr);
  tl_tls *server = tls_server(&(tls_plan){0});
  ASSERT_GT(tl_addr_text(&addr, address, sizeof address), 0);
  const char *const words[] = {
      "openssl", "s_client", "-connect", address, "-tls1_2", "-legacy_server_connect", NULL};
  program p = start(words);
  tl_handle stream = t_accept(loop, listener);
  ASSERT_EQ(tl_tls_attach(loop, stream, server, NULL), 0);
  tl_tls_release(server);
  ASSERT_OK(tl_stream_read_start(loop, stream));
  ASSERT_EQ(t_until(loop, stream, TL_EV_TLS).result, 0);
  t_send_all(p.in, "R\n", 2);
  ASSERT_EQ(t_until(loop, stream, TL_EV_ERROR).result, TL_ETLS - 0x7700);
  t_close(loop, stream);
  t_close(loop, listener);
  t_end(loop);
  end(&p);
}
