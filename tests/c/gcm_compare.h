/* The AES-GCM that TLS uses beside mbedTLS' own, where it is another one (.ci/gcm_alt.c). */
#ifndef GCM_COMPARE_H
#define GCM_COMPARE_H

#include <mbedtls/gcm.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef TL_GCM_ALT_H
/* The state of gcm_alt.c begins with the context of mbedTLS' own code, which has the same key. */
struct own_gcm_context;
int own_gcm_crypt_and_tag(struct own_gcm_context *ctx, int mode, size_t length,
                          const unsigned char *iv, size_t iv_len, const unsigned char *add,
                          size_t add_len, const unsigned char *input, unsigned char *output,
                          size_t tag_len, unsigned char *tag);
int own_gcm_auth_decrypt(struct own_gcm_context *ctx, size_t length, const unsigned char *iv,
                         size_t iv_len, const unsigned char *add, size_t add_len,
                         const unsigned char *tag, size_t tag_len, const unsigned char *input,
                         unsigned char *output);
#define OWN_GCM(ctx) ((struct own_gcm_context *)(ctx)->state)
#else
#define own_gcm_crypt_and_tag mbedtls_gcm_crypt_and_tag
#define own_gcm_auth_decrypt mbedtls_gcm_auth_decrypt
#define OWN_GCM(ctx) (ctx)
#endif

/* One call of either code: where everything lies. */
typedef struct gcm_call {
  bool own;
  const unsigned char *iv, *add, *in;
  unsigned char *out, *tag;
  size_t iv_len, add_len, length, tag_len;
} gcm_call;

static inline int gcm_encrypt(mbedtls_gcm_context *ctx, const gcm_call *c) {
  if (c->own)
    return own_gcm_crypt_and_tag(OWN_GCM(ctx), MBEDTLS_GCM_ENCRYPT, c->length, c->iv, c->iv_len,
                                 c->add, c->add_len, c->in, c->out, c->tag_len, c->tag);
  return mbedtls_gcm_crypt_and_tag(ctx, MBEDTLS_GCM_ENCRYPT, c->length, c->iv, c->iv_len, c->add,
                                   c->add_len, c->in, c->out, c->tag_len, c->tag);
}

static inline int gcm_decrypt(mbedtls_gcm_context *ctx, const gcm_call *c) {
  if (c->own)
    return own_gcm_auth_decrypt(OWN_GCM(ctx), c->length, c->iv, c->iv_len, c->add, c->add_len,
                                c->tag, c->tag_len, c->in, c->out);
  return mbedtls_gcm_auth_decrypt(ctx, c->length, c->iv, c->iv_len, c->add, c->add_len, c->tag,
                                  c->tag_len, c->in, c->out);
}

/* Assembly is not instrumented: what it must not touch is memory that nobody may touch. Each of the
   rooms lies between two such pages. */
enum { GCM_ROOM = 1 << 17, GCM_PAGE = 4096 };
enum { GCM_IV, GCM_ADD, GCM_TAG, GCM_IN, GCM_OUT, GCM_ROOMS };

static inline unsigned char *gcm_room(int which) {
  static unsigned char *rooms[GCM_ROOMS];
  if (!rooms[which]) {
    unsigned char *memory =
        mmap(NULL, GCM_ROOM + 2 * GCM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    rooms[which] = memory + GCM_PAGE;
    if (memory == MAP_FAILED || mprotect(rooms[which], GCM_ROOM, PROT_READ | PROT_WRITE)) abort();
  }
  return rooms[which];
}

/* A copy of the bytes at the beginning or the end of a room. */
static inline unsigned char *gcm_put(int which, bool at_end, const void *bytes, size_t n) {
  unsigned char *place = gcm_room(which) + (at_end ? GCM_ROOM - n : 0);
  if (bytes && n) memcpy(place, bytes, n);
  return place;
}

static inline void gcm_must(bool holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "AES-GCM: %s\n", what);
  abort();
}

/* What the fuzzer and the random test try; the input names all of it: 8 bytes of choices, 32 of key,
   16 of nonce, and the text, which is repeated and is the additional data, too. */
typedef struct gcm_input {
  unsigned int keybits;
  size_t iv_len, tag_len, add_len, length;
  bool at_end, apart;
  long shift; /* of the output against the input, when they are not apart */
  unsigned char key[32], iv[64];
  unsigned char text[GCM_ROOM / 2];
} gcm_input;

enum { GCM_INPUT_HEAD = 8 + 32 + 16 };

static inline bool gcm_read_input(gcm_input *it, const unsigned char *data, size_t n) {
  if (n < GCM_INPUT_HEAD) return false;
  const size_t given = n - GCM_INPUT_HEAD, most = sizeof it->text;
  it->keybits = 128 + 64u * (data[0] % 3);
  it->at_end = data[0] & 16;
  it->apart = data[0] & 32;
  it->shift = data[0] & 64 ? (long)(signed char)data[1] : 0;
  it->iv_len = data[2] < 192 ? 12 : data[2] % 64;
  it->tag_len = data[3] < 64 ? data[3] % 20 : 16;
  it->add_len = data[4];
  it->length = given * (1 + (size_t)data[5]) + data[6];
  if (it->length > most) it->length = most;
  memcpy(it->key, data + 8, 32);
  for (size_t i = 0; i < sizeof it->iv; i++) it->iv[i] = data[40 + i % 16];
  for (size_t i = 0; i < it->length || i < it->add_len; i++)
    it->text[i] = (unsigned char)(given ? data[GCM_INPUT_HEAD + i % given] + i / given : 0);
  return true;
}

/* Encrypt or decrypt (with the given tag) into the layout that the input names: result and output. */
typedef struct gcm_result {
  int ret;
  unsigned char tag[20], out[GCM_ROOM / 2];
} gcm_result;

static inline void gcm_run(mbedtls_gcm_context *ctx, const gcm_input *it, bool own,
                           const unsigned char *text, const unsigned char *tag,
                           gcm_result *result) {
  const bool inside = !it->apart && it->shift; /* leave room for the shift */
  unsigned char *in = gcm_put(GCM_IN, it->at_end, NULL, it->length);
  if (inside) in += it->at_end ? -128 : 128;
  if (it->length) memcpy(in, text, it->length);
  unsigned char *out =
      it->apart ? gcm_put(GCM_OUT, it->at_end, NULL, it->length) : in + (inside ? it->shift : 0);
  gcm_call call = {own,
                   gcm_put(GCM_IV, true, it->iv, it->iv_len),
                   gcm_put(GCM_ADD, it->at_end, it->text, it->add_len),
                   in,
                   out,
                   gcm_put(GCM_TAG, true, tag, it->tag_len),
                   it->iv_len,
                   it->add_len,
                   it->length,
                   it->tag_len};
  result->ret = tag ? gcm_decrypt(ctx, &call) : gcm_encrypt(ctx, &call);
  memcpy(result->tag, call.tag, it->tag_len);
  if (it->length) memcpy(result->out, out, it->length);
}

static inline void gcm_agree(const gcm_input *it, const gcm_result *a, const gcm_result *b) {
  gcm_must(a->ret == b->ret, "the two return different results");
  if (a->ret && a->ret != MBEDTLS_ERR_GCM_AUTH_FAILED) return;
  gcm_must(!memcmp(a->out, b->out, it->length), "the two give different texts");
  gcm_must(!memcmp(a->tag, b->tag, it->tag_len), "the two give different tags");
}

static inline bool gcm_is_zero(const unsigned char *bytes, size_t n) {
  while (n && !bytes[n - 1]) n--;
  return !n;
}

/* Both codes do the same, in the same places, there and back; a changed tag is refused by both. */
static inline void gcm_compare(const unsigned char *data, size_t n) {
  static gcm_input it;
  static gcm_result own, other, back;
  mbedtls_gcm_context ctx;
  if (!gcm_read_input(&it, data, n)) return;
  mbedtls_gcm_init(&ctx);
  gcm_must(!mbedtls_gcm_setkey(&ctx, MBEDTLS_CIPHER_ID_AES, it.key, it.keybits), "no key");
  gcm_run(&ctx, &it, true, it.text, NULL, &own);
  gcm_run(&ctx, &it, false, it.text, NULL, &other);
  gcm_agree(&it, &own, &other);
  if (!own.ret) {
    gcm_run(&ctx, &it, true, own.out, own.tag, &back);
    gcm_must(!back.ret && !memcmp(back.out, it.text, it.length), "the own code does not come back");
    gcm_run(&ctx, &it, false, own.out, own.tag, &back);
    gcm_must(!back.ret && !memcmp(back.out, it.text, it.length), "the other does not come back");
    own.tag[data[7] % it.tag_len] ^= (unsigned char)(1 << data[7] % 8);
    gcm_run(&ctx, &it, false, own.out, own.tag, &back);
    gcm_must(back.ret == MBEDTLS_ERR_GCM_AUTH_FAILED, "a changed tag is taken");
    gcm_must(gcm_is_zero(back.out, it.length), "a refused text shows");
  }
  mbedtls_gcm_free(&ctx);
}

#endif /* GCM_COMPARE_H */
