/* What the TLS fuzzers share: one or two TLS streams whose clock, random numbers and wire belong to
   the fuzzer, so that the same input always does the same. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tloop_tls.h"

#define CHECK(x) ((x) ? (void)0 : fuzz_fail(__FILE__, __LINE__, #x))
_Noreturn void fuzz_fail(const char *file, int line, const char *what);

#define SECOND INT64_C(1000000000)

/* The bytes of an input, taken from the front; zeros behind the end. */
typedef struct fuzz_input {
  const uint8_t *at;
  size_t left;
} fuzz_input;

uint8_t fuzz_byte(fuzz_input *in);
uint16_t fuzz_short(fuzz_input *in);
const uint8_t *fuzz_bytes(fuzz_input *in, size_t *nbytes); /* shortens *nbytes to what there is */

/* How an end is made: the first two bytes of every input. */
enum {
  FUZZ_SERVER = 1,
  FUZZ_ONLY_12 = 2,
  FUZZ_ONLY_13 = 4, /* with ONLY_12: both versions again */
  FUZZ_MUTUAL = 8,  /* the client has a certificate, and the server insists on it */
  FUZZ_ALPN = 16,
  FUZZ_RSA = 32,
  FUZZ_RESUME = 64, /* the client offers a session */
  FUZZ_NAMED = 128, /* the server chooses its certificate by name; the client knows an address */
  FUZZ_CONTEXT = 0x60FF & ~FUZZ_RESUME, /* what makes another context */
  /* the second byte */
  FUZZ_SILENT = 0x100,    /* the peer does not end, so the time-out has to */
  FUZZ_GRACEFUL = 0x200,  /* closes with tl_stream_close instead of tl_close */
  FUZZ_NARROW = 0x400,    /* a socket that takes little at a time */
  FUZZ_PORTIONS = 0x800,  /* the next byte is how many bytes arrive at a time */
  FUZZ_RECEIVED = 0x1000, /* the first portion was received before TLS was attached */
  FUZZ_LAX = 0x2000,      /* the client verifies nothing */
  FUZZ_CIPHERS = 0xC000   /* four sets of them */
};

/* One end of a connection: a stream of a loop, and the other end of its socket. */
typedef struct fuzz_side {
  tl_loop *loop;
  tl_handle handle;
  int wire;
  uint64_t random; /* state of its random numbers */
  bool peer;       /* its handshake messages may be edited */
  bool tls, eof, failed, closing, closed, forged;
  int64_t result, error;
  uint64_t sent, received; /* of a pattern, from offset 0 */
} fuzz_side;

extern fuzz_side fuzz_a, fuzz_b;
extern fuzz_side *fuzz_acting; /* whose turn it is */

void fuzz_prepare(int config); /* before the ends of an input are made */
void fuzz_open(fuzz_side *side, int config);
void fuzz_attach(fuzz_side *side, int config, const void *received, size_t nbytes);
bool fuzz_turn(fuzz_side *side); /* until nothing happens; true if something did */
void fuzz_check_result(fuzz_side *side, int config);
void fuzz_close(fuzz_side *side, bool graceful);
void fuzz_end(fuzz_side *side); /* it must be closed by now, or be so by its time-out */
int fuzz_other(int config);     /* of the other end */

/* What is between two ends. */
typedef struct fuzz_relay {
  uint8_t *bytes;
  size_t used, room;
  bool ended, told;
} fuzz_relay;

void fuzz_collect(fuzz_side *from, fuzz_relay *relay);
bool fuzz_pass(fuzz_relay *relay, fuzz_side *to, size_t nbytes); /* that many, then the end */
void fuzz_pass_all(fuzz_relay up[1], fuzz_relay down[1]);        /* a to b, b to a, until quiet */
void fuzz_relay_free(fuzz_relay *relay);

void fuzz_send(fuzz_side *side, size_t nbytes);
void fuzz_note_data(fuzz_side *side, const uint8_t *data, size_t nbytes);
void fuzz_note_sent(fuzz_side *side, size_t nbytes, int64_t rc);
void fuzz_pattern(uint8_t *out, size_t nbytes, uint64_t from);

/* impl.c: behind the interface. */
void fuzz_advance(int64_t ns);
void fuzz_seed(uint64_t seed, uint64_t *state);
void fuzz_forget(tl_tls *tls);
int fuzz_forge(fuzz_side *side, uint8_t type, const void *data, size_t nbytes);
void fuzz_set_time(void);
bool fuzz_is_certificate(const char *path, const void *der, size_t nbytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes);

#endif /* FUZZ_H */
