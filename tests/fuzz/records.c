/* Fuzzer: two established ends of ours with the fuzzer in between. The input is a list of steps: either
   end writes, reads or ends; what is on the wire is damaged; and an end sends well encrypted records
   of any kind. Whatever happens, each end receives what the other sent, in order, or an error. */
#define _GNU_SOURCE 1
#include "fuzz.h"

enum {
  WRITE,
  WRITE_MANY,
  PASS,
  PASS_ALL,
  FLIP,
  INJECT,
  DELETE,
  REPEAT,
  SWAP,
  FORGE,
  SHUTDOWN,
  READ,
  CLOSE,
  DISCARD,
  CUT,
  WAIT,
  OPERATIONS
};

/* How the handshake went does not matter here, what it agreed does. */
enum {
  KINDS = FUZZ_ONLY_12 | FUZZ_ONLY_13 | FUZZ_CIPHERS | FUZZ_NARROW | FUZZ_GRACEFUL | FUZZ_SILENT
};

enum { MOST = 300000 }; /* bytes written by one end: more than sockets take */

static fuzz_relay up, down; /* what a, or b, has sent */
static bool damaged, waited;
static struct {
  bool paused, by_hand, ended, cut;
} state[2];

/* How long the first record on the wire is, or what there is of it. */
static size_t record_nbytes(const fuzz_relay *wire) {
  if (wire->used < 5) return wire->used;
  size_t n = 5U + (size_t)wire->bytes[3] * 256 + wire->bytes[4];
  return n < wire->used ? n : wire->used;
}

static void insert(fuzz_relay *wire, size_t at, const uint8_t *bytes, size_t nbytes) {
  if (!nbytes || wire->ended || wire->used + nbytes > MOST) return;
  uint8_t *copy = malloc(nbytes);
  CHECK(copy);
  memcpy(copy, bytes, nbytes);
  if (wire->room < wire->used + nbytes) {
    wire->room = wire->used + nbytes;
    wire->bytes = realloc(wire->bytes, wire->room);
    CHECK(wire->bytes);
  }
  memmove(wire->bytes + at + nbytes, wire->bytes + at, wire->used - at);
  memcpy(wire->bytes + at, copy, nbytes);
  wire->used += nbytes;
  free(copy);
  damaged = true;
}

static void erase(fuzz_relay *wire, size_t at, size_t nbytes) {
  if (nbytes > wire->used - at) nbytes = wire->used - at;
  if (!nbytes) return;
  memmove(wire->bytes + at, wire->bytes + at + nbytes, wire->used - at - nbytes);
  wire->used -= nbytes;
  damaged = true;
}

static void swap(fuzz_relay *wire) {
  size_t n = record_nbytes(wire);
  if (!n || n == wire->used) return;
  insert(wire, wire->used, wire->bytes, n);
  erase(wire, 0, n);
}

/* -- what ends do ------------------------------------------------------------------------------ */

static void write_many(fuzz_side *side, fuzz_input *in) {
  static uint8_t data[16 * 2560];
  tl_buf bufs[16];
  int count = fuzz_byte(in) % 17;
  size_t used = 0;
  for (int i = 0; i < count; i++) {
    size_t n = fuzz_byte(in) * 10U;
    bufs[i] = (tl_buf){data + used, n};
    used += n;
  }
  fuzz_pattern(data, used, side->sent);
  fuzz_acting = side;
  fuzz_note_sent(side, used, tl_stream_writev(side->loop, side->handle, bufs, count));
}

static void receive(fuzz_side *side, size_t nbytes) {
  static uint8_t data[65536];
  fuzz_acting = side;
  int64_t n = tl_stream_recv(side->loop, side->handle, data, nbytes);
  if (n == 0 && nbytes && !side->closed) side->eof = true;
  if (n > 0) {
    side->eof = false; /* it was not the end, then: fuzz_note_data must complain */
    fuzz_note_data(side, data, (size_t)n);
  }
}

static void read_somehow(fuzz_side *side, int who, int how, fuzz_input *in) {
  static int (*const change[])(tl_loop *, tl_handle) = {tl_stream_read_stop, tl_stream_read_start,
                                                        tl_stream_read_notify};
  if (how % 4 == 3) {
    if (state[who].by_hand) receive(side, fuzz_short(in));
    return;
  }
  if (side->eof) return;
  if (change[how % 4](side->loop, side->handle) < 0) return;
  state[who].paused = how % 4 != 1;
  state[who].by_hand = how % 4 == 2;
}

static void forge(fuzz_side *side, fuzz_input *in) {
  uint8_t type = fuzz_byte(in);
  size_t nbytes = fuzz_short(in) % 16384;
  const uint8_t *bytes = fuzz_bytes(in, &nbytes);
  (void)fuzz_forge(side, type, bytes, nbytes);
}

static void damage(fuzz_relay *wire, int operation, fuzz_input *in) {
  size_t at = fuzz_short(in) % (wire->used + 1), n = fuzz_byte(in);
  const uint8_t *bytes = operation == INJECT ? fuzz_bytes(in, &n) : NULL;
  if (operation == INJECT) insert(wire, at, bytes, n);
  if (operation == DELETE) erase(wire, at, n);
  if (operation == REPEAT) insert(wire, 0, wire->bytes, record_nbytes(wire));
  if (operation == SWAP) swap(wire);
  if (operation != FLIP || at == wire->used || !n) return;
  wire->bytes[at] ^= (uint8_t)n;
  damaged = true;
}

static void pass(bool a, size_t nbytes) {
  fuzz_side *from = a ? &fuzz_a : &fuzz_b, *to = a ? &fuzz_b : &fuzz_a;
  fuzz_relay *wire = a ? &up : &down;
  (void)fuzz_turn(from);
  fuzz_collect(from, wire);
  (void)fuzz_pass(wire, to, nbytes);
  (void)fuzz_turn(to);
}

static void step(fuzz_input *in) {
  uint8_t what = fuzz_byte(in);
  bool a = what < 128;
  fuzz_side *side = a ? &fuzz_a : &fuzz_b;
  fuzz_relay *wire = a ? &up : &down;
  fuzz_acting = side;
  fuzz_collect(side, wire);
  if (side->closed) return;
  switch (what % OPERATIONS) {
    case WRITE:
      if (side->sent < MOST && !state[!a].ended) fuzz_send(side, fuzz_short(in));
      break;
    case WRITE_MANY:
      if (side->sent < MOST && !state[!a].ended) write_many(side, in);
      break;
    case PASS: pass(a, fuzz_short(in)); break;
    case PASS_ALL: fuzz_pass_all(&up, &down); break;
    case FORGE: forge(side, in); break;
    case SHUTDOWN:
      if (tl_stream_shutdown(side->loop, side->handle) == 0) state[!a].ended = true;
      break;
    case READ: read_somehow(side, !a, what / OPERATIONS, in); break;
    case CLOSE:
      state[!a].ended = true;
      fuzz_close(side, true);
      break;
    case DISCARD:
      if (tl_discard(side->loop, side->handle) > 0) damaged = true;
      break;
    case CUT: wire->ended = state[!a].cut = true; break;
    case WAIT: fuzz_advance(fuzz_short(in) * (SECOND / 30000)), waited = true; break;
    default: damage(wire, what % OPERATIONS, in);
  }
}

/* -- the input --------------------------------------------------------------------------------- */

/* Who has seen the end of the stream knows that the other said so. */
static void check_end(const fuzz_side *side, const fuzz_side *other, int others) {
  if (side->eof && !other->forged) CHECK(state[others].ended);
}

/* With nothing in its way, everything arrives. */
static void check_arrived(const fuzz_side *side, const fuzz_side *other, int who) {
  if (!state[who].paused && !state[who].ended) CHECK(side->received == other->sent);
}

static void begin(int config) {
  fuzz_prepare(config);
  up.used = down.used = 0;
  up.ended = up.told = down.ended = down.told = damaged = waited = false;
  memset(state, 0, sizeof state);
  fuzz_open(&fuzz_a, config);
  fuzz_open(&fuzz_b, config);
  fuzz_attach(&fuzz_a, config, NULL, 0);
  fuzz_attach(&fuzz_b, fuzz_other(config), NULL, 0);
  fuzz_pass_all(&up, &down);
  CHECK(fuzz_a.tls && fuzz_a.result == 0 && fuzz_b.tls && fuzz_b.result == 0);
}

static void finish(int config) {
  fuzz_pass_all(&up, &down);
  bool touched =
      damaged || waited || fuzz_a.forged || fuzz_b.forged || state[0].cut || state[1].cut;
  check_end(&fuzz_a, &fuzz_b, 1);
  check_end(&fuzz_b, &fuzz_a, 0);
  if (!touched) {
    CHECK(!fuzz_a.failed && !fuzz_b.failed);
    check_arrived(&fuzz_a, &fuzz_b, 0);
    check_arrived(&fuzz_b, &fuzz_a, 1);
  }
  fuzz_close(&fuzz_a, config & FUZZ_GRACEFUL);
  fuzz_close(&fuzz_b, config & FUZZ_SILENT);
  fuzz_pass_all(&up, &down);
  fuzz_end(&fuzz_a);
  fuzz_end(&fuzz_b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes) {
  fuzz_input in = {data, nbytes};
  int config = fuzz_byte(&in);
  config |= fuzz_byte(&in) << 8;
  config = (config & KINDS) | FUZZ_RESUME; /* which costs least */
  begin(config);
  for (int i = 0; in.left && i < 200; i++) step(&in);
  finish(config);
  return 0;
}
