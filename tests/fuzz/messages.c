/* Fuzzer: a handshake whose peer is real but edits its messages before they are encrypted, so that
   what lies behind the first flight is reached, too. The input is a list of edits. */
#define _GNU_SOURCE 1
#define MBEDTLS_ALLOW_PRIVATE_ACCESS
#include <mbedtls/ssl.h>

#include "fuzz.h"

enum {
  OVERWRITE,
  INSERT,
  DELETE,
  TRUNCATE,
  REPLACE,
  TYPE,
  RECORD_BEFORE,
  RECORD_AFTER,
  SPLIT,
  REPEAT,
  DROP,
  ADD,
  OPERATIONS
};

typedef struct edit {
  uint8_t message, operation, value;
  size_t at, nbytes;
  const uint8_t *bytes;
} edit;

enum { HEADER = 4, ROOM = 16384, EDITS = 16 };

static edit edits[EDITS];
static int count, message; /* message: the number of the one that the peer writes now */
static bool is_edited;     /* already, when it went into the transcript */
static size_t edited_nbytes;

static void read_edit(edit *e, fuzz_input *in) {
  e->message = fuzz_byte(in) % 16;
  e->operation = fuzz_byte(in) % OPERATIONS;
  e->at = fuzz_short(in);
  e->value = fuzz_byte(in);
  e->nbytes = 0;
  switch (e->operation) {
    case OVERWRITE:
    case INSERT: e->nbytes = fuzz_byte(in); break;
    case DELETE: e->nbytes = fuzz_byte(in); return;
    case REPEAT: e->nbytes = fuzz_short(in); return;
    case REPLACE:
    case RECORD_BEFORE:
    case RECORD_AFTER: e->nbytes = fuzz_short(in) % (ROOM - HEADER); break;
    default: return;
  }
  e->bytes = fuzz_bytes(in, &e->nbytes);
}

/* Change the body of a message; returns its new length. */
static size_t apply(const edit *e, uint8_t *body, size_t used) {
  size_t at = e->at % (used + 1), tail = used - at, n = e->nbytes, room = ROOM - HEADER;
  switch (e->operation) {
    case OVERWRITE:
      if (n > tail) n = tail;
      if (n) memcpy(body + at, e->bytes, n);
      return used;
    case INSERT:
    case REPEAT:
      if (n > room - used) n = room - used;
      memmove(body + at + n, body + at, tail);
      if (e->operation == REPEAT) memset(body + at, e->value, n);
      if (e->operation == INSERT && n) memcpy(body + at, e->bytes, n);
      return used + n;
    case DELETE:
      if (n > tail) n = tail;
      memmove(body + at, body + at + n, tail - n);
      return used - n;
    case TRUNCATE: return at;
    case REPLACE:
      if (n) memcpy(body, e->bytes, n);
      return n;
    case ADD:
      if (tail) body[at] = (uint8_t)(body[at] + e->value);
      return used;
    default: return used;
  }
}

static size_t apply_all(uint8_t *body, size_t used) {
  for (int i = 0; i < count; i++)
    if (edits[i].message == message) used = apply(&edits[i], body, used);
  return used;
}

static const edit *find(int operation) {
  for (int i = 0; i < count; i++)
    if (edits[i].message == message && edits[i].operation == operation) return &edits[i];
  return NULL;
}

/* -- in place of mbedTLS' functions, by the linker ----------------------------------------------- */

int mbedtls_ssl_write_record(mbedtls_ssl_context *ssl, int force_flush);
int __real_mbedtls_ssl_add_hs_msg_to_checksum(mbedtls_ssl_context *ssl, unsigned type,
                                              const unsigned char *body, size_t nbytes);
int __wrap_mbedtls_ssl_add_hs_msg_to_checksum(mbedtls_ssl_context *ssl, unsigned type,
                                              const unsigned char *body, size_t nbytes);
int __real_mbedtls_ssl_write_handshake_msg_ext(mbedtls_ssl_context *ssl, int adds, int flushes);
int __wrap_mbedtls_ssl_write_handshake_msg_ext(mbedtls_ssl_context *ssl, int adds, int flushes);
int __wrap_mbedtls_ssl_finish_handshake_msg(mbedtls_ssl_context *ssl, size_t room, size_t nbytes);

/* Data that is encrypted with the keys of the connection itself is received, and rightly. In TLS 1.3
   zeros are padding, and the byte before them is the type. */
static bool is_data(const mbedtls_ssl_context *ssl, const edit *e) {
  bool tls13 = mbedtls_ssl_get_version_number(ssl) == MBEDTLS_SSL_VERSION_TLS1_3;
  if (!ssl->transform_out || (tls13 && ssl->transform_out != ssl->transform_application))
    return false;
  return e->value == MBEDTLS_SSL_MSG_APPLICATION_DATA || (tls13 && e->value == 0);
}

static int send_record(mbedtls_ssl_context *ssl, const edit *e) {
  if (is_data(ssl, e)) fuzz_acting->forged = true;
  if (e->nbytes) memcpy(ssl->out_msg, e->bytes, e->nbytes);
  ssl->out_msgtype = e->value;
  ssl->out_msglen = e->nbytes;
  return mbedtls_ssl_write_record(ssl, 1);
}

/* The message that follows waits in the same memory. */
static int send_before(mbedtls_ssl_context *ssl, const edit *e) {
  static uint8_t saved[ROOM];
  size_t nbytes = ssl->out_msglen;
  int type = ssl->out_msgtype;
  memcpy(saved, ssl->out_msg, nbytes);
  int rc = send_record(ssl, e);
  ssl->out_msgtype = type;
  ssl->out_msglen = nbytes;
  memcpy(ssl->out_msg, saved, nbytes);
  return rc;
}

static int send_pieces(mbedtls_ssl_context *ssl, size_t most) {
  static uint8_t saved[ROOM];
  size_t left = ssl->out_msglen, done = 0;
  int rc = 0;
  memcpy(saved, ssl->out_msg, left);
  while (rc == 0 && left) {
    size_t n = most < left ? most : left;
    ssl->out_msgtype = MBEDTLS_SSL_MSG_HANDSHAKE;
    ssl->out_msglen = n;
    memcpy(ssl->out_msg, saved + done, n);
    rc = mbedtls_ssl_write_record(ssl, 1);
    done += n, left -= n;
  }
  return rc;
}

static int send_split(mbedtls_ssl_context *ssl, int adds, const edit *e) {
  size_t nbytes = ssl->out_msglen - HEADER;
  unsigned char *header = ssl->out_msg;
  header[1] = 0, header[2] = (unsigned char)(nbytes >> 8), header[3] = (unsigned char)nbytes;
  int rc =
      adds ? __real_mbedtls_ssl_add_hs_msg_to_checksum(ssl, header[0], header + HEADER, nbytes) : 0;
  return rc ? rc : send_pieces(ssl, 1U + e->value);
}

static int send_message(mbedtls_ssl_context *ssl, int adds, int flushes) {
  const edit *e = find(RECORD_BEFORE);
  bool shakes = ssl->out_msgtype == MBEDTLS_SSL_MSG_HANDSHAKE;
  int rc = e ? send_before(ssl, e) : 0;
  if (rc) return rc;
  if (shakes && (e = find(TYPE)) != NULL) ssl->out_msg[0] = e->value;
  e = shakes ? find(SPLIT) : NULL;
  if (e)
    rc = send_split(ssl, adds, e);
  else if (!find(DROP))
    rc = __real_mbedtls_ssl_write_handshake_msg_ext(ssl, adds, flushes);
  e = find(RECORD_AFTER);
  return rc == 0 && e ? send_record(ssl, e) : rc;
}

/* TLS 1.3 adds a message to the transcript before it is sent, and so must the edited one be. It also
   comes here with what was received. */
int __wrap_mbedtls_ssl_add_hs_msg_to_checksum(mbedtls_ssl_context *ssl, unsigned type,
                                              const unsigned char *body, size_t nbytes) {
  if (fuzz_acting->peer && body == ssl->out_msg + HEADER) {
    nbytes = edited_nbytes = apply_all(ssl->out_msg + HEADER, nbytes);
    is_edited = true;
  }
  return __real_mbedtls_ssl_add_hs_msg_to_checksum(ssl, type, body, nbytes);
}

static int write_edited(mbedtls_ssl_context *ssl, int adds, int flushes) {
  bool plain = ssl->out_msgtype == MBEDTLS_SSL_MSG_HANDSHAKE;
  size_t header = plain ? HEADER : 0;
  if (!is_edited) edited_nbytes = apply_all(ssl->out_msg + header, ssl->out_msglen - header);
  ssl->out_msglen = header + edited_nbytes;
  int rc = send_message(ssl, adds, flushes);
  is_edited = false;
  message++;
  return rc;
}

int __wrap_mbedtls_ssl_finish_handshake_msg(mbedtls_ssl_context *ssl, size_t room, size_t nbytes) {
  (void)room;
  ssl->out_msglen = HEADER + nbytes;
  if (fuzz_acting->peer) return write_edited(ssl, 0, 0);
  return __real_mbedtls_ssl_write_handshake_msg_ext(ssl, 0, 0);
}

int __wrap_mbedtls_ssl_write_handshake_msg_ext(mbedtls_ssl_context *ssl, int adds, int flushes) {
  if (fuzz_acting->peer) return write_edited(ssl, adds, flushes);
  return __real_mbedtls_ssl_write_handshake_msg_ext(ssl, adds, flushes);
}

/* -- the input ----------------------------------------------------------------------------------- */

static void talk(fuzz_relay *up, fuzz_relay *down) {
  fuzz_pass_all(up, down);
  if (fuzz_a.tls && fuzz_b.tls) return;
  fuzz_advance(SECOND + 1); /* somebody waits for a message that does not come */
  fuzz_pass_all(up, down);
  CHECK(fuzz_a.tls && fuzz_b.tls);
}

static void end(fuzz_side *ours, fuzz_side *peer, int config) {
  fuzz_relay up = {0}, down = {0};
  talk(&up, &down);
  fuzz_check_result(ours, config);
  if (ours->result == 0) fuzz_send(ours, 1000);
  if (peer->result == 0) fuzz_send(peer, 1000);
  fuzz_close(ours, config & FUZZ_GRACEFUL);
  fuzz_close(peer, false);
  fuzz_pass_all(&up, &down);
  fuzz_end(ours);
  fuzz_end(peer);
  fuzz_relay_free(&up);
  fuzz_relay_free(&down);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes) {
  fuzz_input in = {data, nbytes};
  int config = fuzz_byte(&in);
  config |= (fuzz_byte(&in) << 8) & ~(FUZZ_PORTIONS | FUZZ_RECEIVED);
  fuzz_side *ours = config & FUZZ_SERVER ? &fuzz_b : &fuzz_a;
  fuzz_side *peer = ours == &fuzz_a ? &fuzz_b : &fuzz_a;
  fuzz_prepare(config);
  message = count = 0;
  is_edited = false;
  while (in.left && count < EDITS) read_edit(&edits[count++], &in);
  fuzz_open(ours, config);
  fuzz_open(peer, 0);
  peer->peer = true;
  fuzz_attach(ours, config, NULL, 0);
  fuzz_attach(peer, fuzz_other(config), NULL, 0);
  end(ours, peer, config);
  return 0;
}
