/* Fuzzer: an end of ours in its handshake, and the input as all that its peer sends. Random numbers
   are the fuzzer's, so a recorded handshake (seeds.c) is one that succeeds. */
#define _GNU_SOURCE 1
#include <errno.h>
#include <sys/socket.h>

#include "fuzz.h"

static bool feed(fuzz_side *side, const uint8_t *bytes, size_t nbytes) {
  static fuzz_relay answers;
  ssize_t n = send(side->wire, bytes, nbytes, MSG_NOSIGNAL);
  (void)fuzz_turn(side);
  fuzz_collect(side, &answers);
  answers.used = 0;
  (void)fuzz_turn(side);
  return n == (ssize_t)nbytes; /* else it has stopped reading */
}

static void use(fuzz_side *side) {
  int64_t error = 0;
  tl_tls_session *session = tl_tls_session_get(side->loop, side->handle, &error);
  CHECK(session || error < 0);
  tl_tls_session_release(session);
  fuzz_send(side, 1000);
}

static void end(fuzz_side *side, int config) {
  if (!(config & FUZZ_SILENT)) (void)shutdown(side->wire, SHUT_WR);
  (void)fuzz_turn(side);
  if (!side->tls) {
    CHECK(config & FUZZ_SILENT);
    fuzz_advance(SECOND + 1);
    (void)fuzz_turn(side);
    CHECK(side->tls && side->result == -ETIMEDOUT);
  }
  fuzz_check_result(side, config);
  if (side->result == 0) use(side);
  fuzz_close(side, config & FUZZ_GRACEFUL);
  fuzz_end(side);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes) {
  fuzz_input in = {data, nbytes};
  int config = fuzz_byte(&in);
  config |= fuzz_byte(&in) << 8;
  size_t portion = config & FUZZ_PORTIONS ? 1U + fuzz_byte(&in) : SIZE_MAX, first = portion;
  fuzz_side *side = config & FUZZ_SERVER ? &fuzz_b : &fuzz_a;
  fuzz_prepare(config);
  fuzz_open(side, config);
  const uint8_t *received = config & FUZZ_RECEIVED ? fuzz_bytes(&in, &first) : NULL;
  fuzz_attach(side, config, received, received ? first : 0);
  bool reads = feed(side, NULL, 0);
  for (size_t n = portion; reads && in.left; n = portion) {
    const uint8_t *bytes = fuzz_bytes(&in, &n);
    reads = feed(side, bytes, n);
  }
  end(side, config);
  return 0;
}
