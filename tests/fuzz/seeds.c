/* Writes what the fuzzers begin with: seeds FUZZER FOLDER. */
#define _GNU_SOURCE 1
#include "fuzz.h"

static const char *folder;
static int number;

static void save(int config, const void *data, size_t nbytes) {
  char path[512];
  const uint8_t head[2] = {(uint8_t)config, (uint8_t)(config >> 8)};
  (void)snprintf(path, sizeof path, "%s/%04x-%d", folder, (unsigned)config, number++);
  FILE *file = fopen(path, "wb");
  CHECK(file && fwrite(head, 1, 2, file) == 2 && fwrite(data, 1, nbytes, file) == nbytes);
  CHECK(fclose(file) == 0);
}

/* What one end receives in a connection that succeeds, with some data and a proper end. */
static void record(int config) {
  fuzz_relay up = {0}, down = {0};
  uint8_t *bytes = NULL;
  size_t used = 0;
  fuzz_prepare(config);
  fuzz_open(&fuzz_a, 0);
  fuzz_open(&fuzz_b, 0);
  fuzz_attach(&fuzz_a, config & ~FUZZ_SERVER, NULL, 0);
  fuzz_attach(&fuzz_b, config | FUZZ_SERVER, NULL, 0);
  fuzz_side *peer = config & FUZZ_SERVER ? &fuzz_a : &fuzz_b;
  fuzz_relay *from = config & FUZZ_SERVER ? &up : &down;
  for (int i = 0; i < 20; i++) {
    (void)fuzz_turn(&fuzz_a);
    (void)fuzz_turn(&fuzz_b);
    fuzz_collect(&fuzz_a, &up);
    fuzz_collect(&fuzz_b, &down);
    bytes = realloc(bytes, used + from->used + 1);
    CHECK(bytes);
    memcpy(bytes + used, from->bytes, from->used);
    used += from->used;
    (void)fuzz_pass(&up, &fuzz_b, up.used);
    (void)fuzz_pass(&down, &fuzz_a, down.used);
    if (i == 10) fuzz_send(peer, 100);
    if (i == 15) fuzz_close(peer, true);
  }
  CHECK(fuzz_a.tls && fuzz_a.result == 0 && fuzz_b.tls && fuzz_b.result == 0);
  save(config, bytes, used);
  fuzz_close(&fuzz_a, false);
  fuzz_close(&fuzz_b, false);
  fuzz_end(&fuzz_a);
  fuzz_end(&fuzz_b);
  fuzz_relay_free(&up);
  fuzz_relay_free(&down);
  free(bytes);
}

static const int versions[] = {FUZZ_ONLY_12, FUZZ_ONLY_13};
static const int kinds[] = {0,           FUZZ_ALPN,   FUZZ_RSA,     FUZZ_RESUME, FUZZ_MUTUAL,
                            FUZZ_NAMED,  FUZZ_LAX,    0x4000,       0x8000,      0xC000,
                            FUZZ_SILENT, FUZZ_NARROW, FUZZ_GRACEFUL};

static void each(void (*make)(int config)) {
  for (size_t i = 0; i < sizeof versions / sizeof *versions; i++)
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
      for (int role = 0; role < 2; role++) make(versions[i] | kinds[k] | role);
}

/* One edit of each kind in each of the first messages. */
static void edit(int config) {
  save(config, "", 0);
  for (uint8_t message = 0; message < 6; message++) {
    uint8_t operation = (uint8_t)(number % 12);
    const uint8_t bytes[] = {message, operation, 0, (uint8_t)number, 22, 0, 5, 1, 2, 3, 4, 5};
    save(config, bytes, sizeof bytes);
  }
}

static void steps(int config) {
  static const uint8_t talk[] = {0x00, 0x10, 0x00, 0x80, 0x50, 0x00, 0x02, 0x00, 0x80, 0x03,
                                 0x01, 5,    1,    2,    3,    0,    30,   0x0A, 0x03, 0x8A};
  static const uint8_t hurt[] = {0x00, 0x00, 0x64, 0x04, 0x00, 0x08, 0x01, 0x03};
  static const uint8_t replay[] = {0x00, 0x00, 0x64, 0x07, 0x00, 0x00, 0x00, 0x03};
  static const uint8_t inject[] = {0x00, 0x00, 0x64, 0x05, 0x00, 0x00, 0x05,
                                   0x17, 0x03, 0x03, 0xff, 0xff, 0x03};
  static const uint8_t forged[][16] = {
      {0x09, 22, 0, 4, 0, 0, 0, 0, 3}, /* HelloRequest */
      {0x89, 22, 0, 4, 0, 0, 0, 0, 3},
      {0x89, 22, 0, 5, 24, 0, 0, 1, 0, 3},            /* KeyUpdate */
      {0x89, 22, 0, 9, 4, 0, 0, 5, 1, 2, 3, 4, 0, 3}, /* NewSessionTicket */
      {0x89, 21, 0, 2, 1, 0, 3},                      /* close_notify */
      {0x09, 21, 0, 2, 2, 40, 3},
      {0x09, 20, 0, 1, 1, 3},
      {0x09, 23, 0, 0, 3},
  };
  static const uint8_t pause[] = {0x0B, 0x00, 0x40, 0x00, 0x80, 0x40, 0x00, 0x03, 0x1B, 0x03, 0x2B,
                                  0x80, 0x10, 0x00, 0x03, 0x3B, 0x08, 0x00, 0x3B, 0x10, 0x00};
  static const uint8_t ends[] = {0x00, 0xff, 0xff, 0x00, 0xff, 0xff, 0x02, 0x10, 0x00,
                                 0x0C, 0x0F, 0xff, 0x03, 0x82, 0x10, 0x00, 0x8C, 0x03};
  static const uint8_t cut[] = {0x00, 0x40, 0x00, 0x02, 0x10, 0x00, 0x0E, 0x03};
  save(config, talk, sizeof talk);
  save(config, hurt, sizeof hurt);
  save(config, replay, sizeof replay);
  save(config, inject, sizeof inject);
  save(config, pause, sizeof pause);
  save(config, ends, sizeof ends);
  save(config, cut, sizeof cut);
  for (size_t i = 0; i < sizeof forged / sizeof *forged; i++)
    save(config, forged[i], sizeof forged[i]);
}

int main(int argc, char **argv) {
  const char *name = argc == 3 ? argv[1] : "";
  folder = argv[argc - 1];
  if (strcmp(name, "handshake") == 0)
    each(record);
  else if (strcmp(name, "messages") == 0)
    each(edit);
  else if (strcmp(name, "records") == 0)
    each(steps);
  else
    return fprintf(stderr, "usage: seeds handshake|messages|records FOLDER\n"), 2;
  printf("%d seeds for %s\n", number, name);
  return 0;
}
