/* The implementation with its internal checks, and with the fuzzer's clock and random numbers instead
   of the system's. */
#define _GNU_SOURCE 1
#define MBEDTLS_ALLOW_PRIVATE_ACCESS
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

static int fuzz_clock_gettime(clockid_t id, struct timespec *ts);
static ssize_t fuzz_getrandom(void *out, size_t nbytes, unsigned flags);

#define clock_gettime fuzz_clock_gettime
#define getrandom fuzz_getrandom
#define TL_MALLOC(n) malloc(n)
#define TL_REALLOC(p, n) realloc(p, n)
#define TL_FREE(p) free(p)
#define TL_ASSERT(x) ((x) ? (void)0 : __builtin_trap())
#define TLOOP_IMPLEMENTATION
#include "tloop_tls.h"

#include "fuzz.h"

/* Monotonic over all inputs, since loops rely on that; the wall clock stands still. */
static int64_t fuzz_now_ns = SECOND;
static const time_t fuzz_wall_s = 1780000000; /* within the certificates' validity */

void fuzz_advance(int64_t ns) { fuzz_now_ns += ns; }

static int fuzz_clock_gettime(clockid_t id, struct timespec *ts) {
  (void)id;
  *ts = (struct timespec){.tv_sec = fuzz_now_ns / SECOND, .tv_nsec = fuzz_now_ns % SECOND};
  return 0;
}

static mbedtls_time_t fuzz_time(mbedtls_time_t *out) {
  if (out) *out = fuzz_wall_s;
  return fuzz_wall_s;
}

mbedtls_ms_time_t mbedtls_ms_time(void) { return (mbedtls_ms_time_t)fuzz_wall_s * 1000; }

void fuzz_set_time(void) { mbedtls_platform_set_time(fuzz_time); }

void fuzz_seed(uint64_t seed, uint64_t *state) { *state = seed * 0x9E3779B97F4A7C15U; }

/* SplitMix64, one state for each end: what one draws does not depend on the other. */
static void fuzz_draw(unsigned char *out, size_t nbytes) {
  for (size_t i = 0; i < nbytes; i++) {
    uint64_t z = fuzz_acting->random += 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    out[i] = (unsigned char)(z >> 32);
  }
}

static ssize_t fuzz_getrandom(void *out, size_t nbytes, unsigned flags) {
  (void)flags;
  fuzz_draw(out, nbytes);
  return (ssize_t)nbytes;
}

psa_status_t mbedtls_psa_external_get_random(mbedtls_psa_external_random_context_t *context,
                                             uint8_t *out, size_t room, size_t *nbytes) {
  (void)context;
  fuzz_draw(out, *nbytes = room);
  return PSA_SUCCESS;
}

/* A context keeps ids of sessions; the next input must not find them. */
void fuzz_forget(tl_tls *tls) {
  if (tls->role != TL_TLS_SERVER) return;
  mbedtls_ssl_cache_free(&tls->cache);
  mbedtls_ssl_cache_init(&tls->cache);
  mbedtls_ssl_cache_set_timeout(&tls->cache, TL__TLS_LIFETIME_S);
  mbedtls_ssl_cache_set_max_entries(&tls->cache, TL__TLS_CACHE);
}

/* Whether these are the bytes of the first certificate in a file. */
bool fuzz_is_certificate(const char *path, const void *der, size_t nbytes) {
  static struct {
    char path[512];
    mbedtls_x509_crt crt;
  } known[4];
  size_t i = 0;
  while (known[i].path[0] && strcmp(known[i].path, path) != 0) i++;
  if (!known[i].path[0]) {
    mbedtls_x509_crt_init(&known[i].crt);
    if (mbedtls_x509_crt_parse_file(&known[i].crt, path) != 0) __builtin_trap();
    (void)snprintf(known[i].path, sizeof known[i].path, "%s", path);
  }
  return known[i].crt.raw.len == nbytes && memcmp(known[i].crt.raw.p, der, nbytes) == 0;
}

int mbedtls_ssl_write_record(mbedtls_ssl_context *ssl, int force_flush);

/* Send a record of any type, encrypted as it should be. */
int fuzz_forge(fuzz_side *side, uint8_t type, const void *data, size_t nbytes) {
  int error;
  tl__stream *s = (tl__stream *)tl__open(side->loop, side->handle, TL__STREAM, &error);
  tl__tls *t = s && s->layer ? tl__tls_of(s) : NULL;
  if (!t || t->state != TL__TLS_OPEN || s->error || t->said_end) return -ENOTCONN;
  t->ssl.out_msgtype = type;
  t->ssl.out_msglen = nbytes;
  memcpy(t->ssl.out_msg, data, nbytes);
  side->forged = true;
  fuzz_acting = side;
  int rc = mbedtls_ssl_write_record(&t->ssl, 1);
  return rc ? rc : tl__tls_flush(t);
}
