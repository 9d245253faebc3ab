/* AES-GCM as records use it: known answers for the code that TLS uses and for mbedTLS' own, and the
   two against each other. */
#include "tls_test.h"

#include <mbedtls/build_info.h>

#if MBEDTLS_VERSION_MAJOR < 4
#include "gcm_compare.h"

enum { BYTES = 1024 };

typedef struct bytes {
  unsigned char at[BYTES];
  size_t n;
} bytes;

/* A line of gcm_vectors.txt. */
typedef struct vector {
  bool good;
  bytes key, iv, add, plain, cipher, tag;
} vector;

static void read_hex(FILE *file, bytes *out) {
  char text[2 * BYTES + 1];
  ASSERT_EQ(fscanf(file, "%2048s", text), 1);
  out->n = strcmp(text, "-") ? strlen(text) / 2 : 0;
  for (size_t i = 0; i < out->n; i++) {
    unsigned int byte;
    ASSERT_EQ(sscanf(text + 2 * i, "%2x", &byte), 1);
    out->at[i] = (unsigned char)byte;
  }
}

static bool read_vector(FILE *file, vector *v) {
  char word[8];
  while (fscanf(file, "%7s", word) == 1) {
    v->good = !strcmp(word, "good");
    if (v->good || !strcmp(word, "bad")) {
      bytes *fields[] = {&v->key, &v->iv, &v->add, &v->plain, &v->cipher, &v->tag};
      for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) read_hex(file, fields[i]);
      return true;
    }
    ASSERT_EQ(fscanf(file, "%*[^\n]"), 0); /* a comment */
  }
  return false;
}

static gcm_call call_of(const vector *v, bool own, const bytes *in, const bytes *tag, bool end) {
  return (gcm_call){.own = own,
                    .iv = gcm_put(GCM_IV, true, v->iv.at, v->iv.n),
                    .add = gcm_put(GCM_ADD, end, v->add.at, v->add.n),
                    .in = gcm_put(GCM_IN, end, in->at, in->n),
                    .out = gcm_put(GCM_OUT, end, NULL, in->n),
                    .tag = gcm_put(GCM_TAG, true, tag->at, tag->n),
                    .iv_len = v->iv.n,
                    .add_len = v->add.n,
                    .length = in->n,
                    .tag_len = tag->n};
}

static void known_cipher(mbedtls_gcm_context *ctx, const vector *v, bool own, bool end) {
  const bytes none = {.n = v->tag.n};
  gcm_call call = call_of(v, own, &v->plain, &none, end);
  ASSERT_EQ(gcm_encrypt(ctx, &call), 0);
  ASSERT_MEM(call.out, v->cipher.at, v->cipher.n);
  ASSERT_MEM(call.tag, v->tag.at, v->tag.n);
  call.out = (unsigned char *)call.in; /* in place */
  ASSERT_EQ(gcm_encrypt(ctx, &call), 0);
  ASSERT_MEM(call.out, v->cipher.at, v->cipher.n);
}

static void known_plain(mbedtls_gcm_context *ctx, const vector *v, bool own, bool end) {
  gcm_call call = call_of(v, own, &v->cipher, &v->tag, end);
  int ret = gcm_decrypt(ctx, &call);
  if (v->good) {
    ASSERT_EQ(ret, 0);
    ASSERT_MEM(call.out, v->plain.at, v->plain.n);
    call.out = (unsigned char *)call.in;
    ASSERT_EQ(gcm_decrypt(ctx, &call), 0);
    ASSERT_MEM(call.out, v->plain.at, v->plain.n);
  } else if (v->iv.n) {
    ASSERT_EQ(ret, MBEDTLS_ERR_GCM_AUTH_FAILED);
    ASSERT_TRUE(gcm_is_zero(call.out, v->cipher.n));
  } else {
    ASSERT_EQ(ret, MBEDTLS_ERR_GCM_BAD_INPUT);
    ASSERT_EQ(gcm_encrypt(ctx, &call), MBEDTLS_ERR_GCM_BAD_INPUT);
  }
}

/* The interface for data in pieces; output that lags would be allowed, but is not used. */
static void known_in_pieces(mbedtls_gcm_context *ctx, const vector *v) {
  unsigned char out[BYTES], tag[16];
  size_t done = 0, given = 0, n;
  ASSERT_EQ(mbedtls_gcm_starts(ctx, MBEDTLS_GCM_ENCRYPT, v->iv.at, v->iv.n), 0);
  for (; given < v->add.n; given += n) {
    n = 1 + t_below((uint32_t)(v->add.n - given));
    ASSERT_EQ(mbedtls_gcm_update_ad(ctx, v->add.at + given, n), 0);
  }
  for (given = 0; given < v->plain.n; given += n) {
    size_t written;
    n = 1 + t_below((uint32_t)(v->plain.n - given));
    ASSERT_EQ(mbedtls_gcm_update(ctx, v->plain.at + given, n, out + done, BYTES - done, &written),
              0);
    done += written;
  }
  ASSERT_EQ(mbedtls_gcm_finish(ctx, out + done, BYTES - done, &n, tag, v->tag.n), 0);
  ASSERT_EQ(done + n, v->cipher.n);
  ASSERT_MEM(out, v->cipher.at, v->cipher.n);
  ASSERT_MEM(tag, v->tag.at, v->tag.n);
}

static void known_answers(const vector *v) {
  mbedtls_gcm_context ctx;
  mbedtls_gcm_init(&ctx);
  ASSERT_EQ(mbedtls_gcm_setkey(&ctx, MBEDTLS_CIPHER_ID_AES, v->key.at, (unsigned)v->key.n * 8), 0);
  for (int own = 0; own < 2; own++)
    for (int end = 0; end < 2; end++) {
      if (v->good) known_cipher(&ctx, v, own, end);
      known_plain(&ctx, v, own, end);
    }
  if (v->good) known_in_pieces(&ctx, v);
  mbedtls_gcm_free(&ctx);
}

TEST_ON(vectors_of_nist_and_wycheproof, ON_ONCE) {
  static vector v;
  char path[4096];
  int good = 0, bad = 0;
  snprintf(path, sizeof path, "%s/tests/c/gcm_vectors.txt", getenv("TL_TEST_ROOT"));
  FILE *file = fopen(path, "r");
  ASSERT_TRUE(file);
  while (read_vector(file, &v)) {
    known_answers(&v);
    *(v.good ? &good : &bad) += 1;
  }
  fclose(file);
  ASSERT_EQ(good, 703);
  ASSERT_EQ(bad, 243);
}

/* Every length up to where the widest code has gone through its loop twice, then longer ones. */
static void compare_length(size_t length, unsigned char choices) {
  static unsigned char data[GCM_INPUT_HEAD + 40000];
  for (size_t i = 0; i < GCM_INPUT_HEAD + length; i++) data[i] = (unsigned char)t_random();
  memcpy(data, (unsigned char[8]){choices, 0, 0, 255, data[4]}, 7);
  gcm_compare(data, GCM_INPUT_HEAD + length);
}

TEST_ON(both_agree_at_every_length, ON_ONCE | SLOW) {
  for (size_t length = 0; length < 1700; length++)
    for (unsigned char keys = 0; keys < 3; keys++)
      compare_length(length, (unsigned char)(keys | (t_random() & 0x30)));
  for (size_t length = 1700; length < 40000; length += 1 + t_below(700))
    compare_length(length, (unsigned char)(t_random() & 0x3f));
}

TEST_ON(both_agree_on_random_calls, ON_ONCE | SLOW) {
  unsigned char data[GCM_INPUT_HEAD + 200];
  for (int i = 0; i < 4000; i++) {
    for (size_t k = 0; k < sizeof data; k++) data[k] = (unsigned char)t_random();
    gcm_compare(data, GCM_INPUT_HEAD + t_below(200));
  }
}

/* All 13 tags of a text begin the longest one; no others are made or taken. */
TEST_ON(tags_of_every_length, ON_ONCE) {
  mbedtls_gcm_context ctx;
  unsigned char key[16] = "0123456789abcde", text[48] = "a text", out[48], whole[16], tag[20];
  mbedtls_gcm_init(&ctx);
  ASSERT_EQ(mbedtls_gcm_setkey(&ctx, MBEDTLS_CIPHER_ID_AES, key, 128), 0);
  gcm_call call = {false, key, key, text, out, whole, 12, 16, sizeof text, 16};
  ASSERT_EQ(gcm_encrypt(&ctx, &call), 0);
  call.tag = tag;
  for (size_t n = 0; n <= sizeof tag; n++) {
    call.tag_len = n;
    memset(tag, 0xa5, sizeof tag);
    int ret = gcm_encrypt(&ctx, &call);
    ASSERT_EQ(ret, n < 4 || n > 16 ? MBEDTLS_ERR_GCM_BAD_INPUT : 0);
    if (ret) continue;
    ASSERT_MEM(tag, whole, n);
    for (size_t i = n; i < sizeof tag; i++) ASSERT_EQ(tag[i], 0xa5);
  }
  mbedtls_gcm_free(&ctx);
}

TEST_ON(contexts_without_a_key_and_with_two, ON_ONCE) {
  mbedtls_gcm_context ctx;
  unsigned char key[32] = "0123456789abcdef0123456789abcde", out[16], tag[16];
  gcm_call call = {false, key, key, key, out, tag, 12, 4, 16, 16};
  unsigned char first[16];
  mbedtls_gcm_init(&ctx);
  mbedtls_gcm_free(&ctx);
  mbedtls_gcm_init(&ctx);
  ASSERT_NE(mbedtls_gcm_setkey(&ctx, MBEDTLS_CIPHER_ID_AES, key, 100), 0);
  ASSERT_EQ(mbedtls_gcm_setkey(&ctx, MBEDTLS_CIPHER_ID_AES, key, 128), 0);
  ASSERT_EQ(gcm_encrypt(&ctx, &call), 0);
  memcpy(first, tag, 16);
  ASSERT_EQ(mbedtls_gcm_setkey(&ctx, MBEDTLS_CIPHER_ID_AES, key, 256), 0);
  ASSERT_EQ(gcm_encrypt(&ctx, &call), 0);
  ASSERT_TRUE(memcmp(first, tag, 16));
  ASSERT_EQ(mbedtls_gcm_setkey(&ctx, MBEDTLS_CIPHER_ID_AES, key, 128), 0);
  ASSERT_EQ(gcm_encrypt(&ctx, &call), 0);
  ASSERT_MEM(first, tag, 16);
  mbedtls_gcm_free(&ctx);
}

/* What is said to compute is what computes. */
TEST_ON(the_code_has_a_name, ON_ONCE) {
#ifdef TL_GCM_ALT_H
  const char *name = tl_gcm_alt_name();
  ASSERT_STR(tl_tls_gcm(), name ? name : "mbedTLS");
  ASSERT_TRUE(!name || !strncmp(name, "ipsec-mb ", 9));
#else
  ASSERT_STR(tl_tls_gcm(), "mbedTLS");
#endif
}
#else
TEST_ON(aes_gcm_of_mbedtls_4, ON_ONCE) { ASSERT_STR(tl_tls_gcm(), "mbedTLS"); }
#endif
