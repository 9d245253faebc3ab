/* AES-GCM for the pinned mbedTLS, by Intel's ipsec-mb: many blocks at a time, where mbedTLS does one.

   `.ci/mbedtls build` puts this file in the place of the release's library/gcm.c, which becomes
   gcm_own.c. What TLS does, records with a nonce of 12 bytes, goes to ipsec-mb if the processor has
   AES-NI and PCLMULQDQ, in its best variant up to VAES on AVX-512. Everything else goes to mbedTLS' own
   code: other processors, other ciphers, other nonces, data in pieces, buffers that half overlap. */
#include "mbedtls/build_info.h"

/* mbedTLS' own code, under other names. */
#undef MBEDTLS_GCM_ALT
#define mbedtls_gcm_context own_gcm_context
#define mbedtls_gcm_init own_gcm_init
#define mbedtls_gcm_setkey own_gcm_setkey
#define mbedtls_gcm_starts own_gcm_starts
#define mbedtls_gcm_update_ad own_gcm_update_ad
#define mbedtls_gcm_update own_gcm_update
#define mbedtls_gcm_finish own_gcm_finish
#define mbedtls_gcm_crypt_and_tag own_gcm_crypt_and_tag
#define mbedtls_gcm_auth_decrypt own_gcm_auth_decrypt
#define mbedtls_gcm_free own_gcm_free
#include "gcm_own.c"

/* And the names again for what stands below. */
#undef mbedtls_gcm_context
#undef mbedtls_gcm_init
#undef mbedtls_gcm_setkey
#undef mbedtls_gcm_starts
#undef mbedtls_gcm_update_ad
#undef mbedtls_gcm_update
#undef mbedtls_gcm_finish
#undef mbedtls_gcm_crypt_and_tag
#undef mbedtls_gcm_auth_decrypt
#undef mbedtls_gcm_free
#undef MBEDTLS_GCM_H
#define MBEDTLS_GCM_ALT
#include <intel-ipsec-mb.h>
#include <pthread.h>

#include "mbedtls/gcm.h"

enum {
  KEY_ALIGNMENT = 64,  /* as struct gcm_key_data is declared */
  FAST_AAD = 1 << 16,  /* more is not for records; old ipsec-mb errs from 512 MiB on */
  FAST_TEXT = 1 << 30, /* far below where the counter of 32 bits ends */
};

/* ipsec-mb's functions for one size of keys. */
typedef struct gcm_alt_kernel {
  aes_gcm_pre_t expand;
  aes_gcm_enc_dec_t encrypt, decrypt;
} gcm_alt_kernel;

/* Key schedules of both. The memory is aligned here, because mbedtls_calloc does not promise 64. */
typedef struct gcm_alt_state {
  own_gcm_context own;
  const gcm_alt_kernel *fast; /* NULL: this key is for the own code alone */
  struct gcm_key_data *key;
  unsigned char memory[sizeof(struct gcm_key_data) + KEY_ALIGNMENT];
} gcm_alt_state;

static gcm_alt_kernel kernels[3]; /* for 128, 192 and 256 bits; empty where the processor cannot */
static char name[64];
static pthread_once_t chosen = PTHREAD_ONCE_INIT;

static void take_kernels(const IMB_MGR *mgr) {
  kernels[0] = (gcm_alt_kernel){mgr->gcm128_pre, mgr->gcm128_enc, mgr->gcm128_dec};
  kernels[1] = (gcm_alt_kernel){mgr->gcm192_pre, mgr->gcm192_enc, mgr->gcm192_dec};
  kernels[2] = (gcm_alt_kernel){mgr->gcm256_pre, mgr->gcm256_enc, mgr->gcm256_dec};
}

static const char *variant(IMB_ARCH arch, uint64_t features) {
  if (arch >= IMB_ARCH_AVX512) return features & IMB_FEATURE_VAES ? "VAES" : "AVX-512";
  return arch == IMB_ARCH_AVX2 ? "AVX2" : arch == IMB_ARCH_SSE ? "SSE" : "AVX";
}

/* ipsec-mb asks the processor alone; the kernel must keep the wide registers, too. */
static int is_kept(IMB_ARCH arch) {
  __builtin_cpu_init();
  if (arch >= IMB_ARCH_AVX512) return !!__builtin_cpu_supports("avx512f");
  return arch == IMB_ARCH_SSE || __builtin_cpu_supports("avx");
}

/* Without AES-NI ipsec-mb would compute by tables: then mbedTLS' own code is as good. */
static void choose(void) {
  IMB_ARCH arch = IMB_ARCH_NONE;
  IMB_MGR *mgr = alloc_mb_mgr(0);
  if (!mgr) return;
  init_mb_mgr_auto(mgr, &arch);
  const uint64_t needed = IMB_FEATURE_AESNI | IMB_FEATURE_PCLMULQDQ | IMB_FEATURE_SELF_TEST_PASS;
  if (!imb_get_errno(mgr) && arch >= IMB_ARCH_SSE && is_kept(arch) &&
      (mgr->features & needed) == needed) {
    take_kernels(mgr);
    snprintf(name, sizeof name, "ipsec-mb %s, %s", imb_get_version_str(),
             variant(arch, mgr->features));
  }
  free_mb_mgr(mgr);
}

const char *tl_gcm_alt_name(void) {
  pthread_once(&chosen, choose);
  return *name ? name : NULL;
}

/* -- the interface of mbedTLS ------------------------------------------------------------------ */

void mbedtls_gcm_init(mbedtls_gcm_context *ctx) { ctx->state = NULL; }

void mbedtls_gcm_free(mbedtls_gcm_context *ctx) {
  if (!ctx || !ctx->state) return;
  own_gcm_free(&ctx->state->own);
  mbedtls_platform_zeroize(ctx->state, sizeof *ctx->state);
  mbedtls_free(ctx->state);
  ctx->state = NULL;
}

static void expand_key(gcm_alt_state *state, const unsigned char *key, unsigned int keybits) {
  const gcm_alt_kernel *fast = &kernels[keybits / 64 - 2];
  if (!tl_gcm_alt_name()) return;
  uintptr_t address = (uintptr_t)state->memory;
  state->key = (void *)(state->memory + (KEY_ALIGNMENT - address % KEY_ALIGNMENT));
  state->fast = fast;
  fast->expand(key, state->key);
}

int mbedtls_gcm_setkey(mbedtls_gcm_context *ctx, mbedtls_cipher_id_t cipher,
                       const unsigned char *key, unsigned int keybits) {
  mbedtls_gcm_free(ctx);
  ctx->state = mbedtls_calloc(1, sizeof *ctx->state);
  if (!ctx->state) return MBEDTLS_ERR_CIPHER_ALLOC_FAILED;
  own_gcm_init(&ctx->state->own);
  int ret = own_gcm_setkey(&ctx->state->own, cipher, key, keybits);
  if (ret)
    mbedtls_gcm_free(ctx);
  else if (cipher == MBEDTLS_CIPHER_ID_AES)
    expand_key(ctx->state, key, keybits);
  return ret;
}

static int is_fast(const mbedtls_gcm_context *ctx, size_t length, size_t iv_len, size_t add_len,
                   const unsigned char *input, const unsigned char *output, size_t tag_len) {
  const size_t distance = (size_t)((uintptr_t)output - (uintptr_t)input);
  const int overlap = distance && (distance < length || (size_t)0 - distance < length);
  return ctx->state->fast && iv_len == 12 && !overlap && length < FAST_TEXT && add_len < FAST_AAD &&
         tag_len >= 4 && tag_len <= 16;
}

int mbedtls_gcm_crypt_and_tag(mbedtls_gcm_context *ctx, int mode, size_t length,
                              const unsigned char *iv, size_t iv_len, const unsigned char *add,
                              size_t add_len, const unsigned char *input, unsigned char *output,
                              size_t tag_len, unsigned char *tag) {
  struct gcm_context_data work;
  unsigned char whole[16]; /* ipsec-mb writes tags of some lengths only */
  gcm_alt_state *state = ctx->state;
  if (!state) return MBEDTLS_ERR_GCM_BAD_INPUT;
  if (!is_fast(ctx, length, iv_len, add_len, input, output, tag_len))
    return own_gcm_crypt_and_tag(&state->own, mode, length, iv, iv_len, add, add_len, input, output,
                                 tag_len, tag);
  (mode == MBEDTLS_GCM_ENCRYPT ? state->fast->encrypt : state->fast->decrypt)(
      state->key, &work, output, input, length, iv, add, add_len, whole, sizeof whole);
  memcpy(tag, whole, tag_len);
  mbedtls_platform_zeroize(&work, sizeof work);
  return 0;
}

int mbedtls_gcm_auth_decrypt(mbedtls_gcm_context *ctx, size_t length, const unsigned char *iv,
                             size_t iv_len, const unsigned char *add, size_t add_len,
                             const unsigned char *tag, size_t tag_len, const unsigned char *input,
                             unsigned char *output) {
  unsigned char expected[16];
  int ret = mbedtls_gcm_crypt_and_tag(ctx, MBEDTLS_GCM_DECRYPT, length, iv, iv_len, add, add_len,
                                      input, output, tag_len, expected);
  if (ret) return ret;
  if (!mbedtls_ct_memcmp(tag, expected, tag_len)) return 0;
  mbedtls_platform_zeroize(output, length);
  return MBEDTLS_ERR_GCM_AUTH_FAILED;
}

/* -- in pieces: nothing of TLS does that ----------------------------------------------------------- */

int mbedtls_gcm_starts(mbedtls_gcm_context *ctx, int mode, const unsigned char *iv, size_t iv_len) {
  if (!ctx->state) return MBEDTLS_ERR_GCM_BAD_INPUT;
  return own_gcm_starts(&ctx->state->own, mode, iv, iv_len);
}

int mbedtls_gcm_update_ad(mbedtls_gcm_context *ctx, const unsigned char *add, size_t add_len) {
  if (!ctx->state) return MBEDTLS_ERR_GCM_BAD_INPUT;
  return own_gcm_update_ad(&ctx->state->own, add, add_len);
}

int mbedtls_gcm_update(mbedtls_gcm_context *ctx, const unsigned char *input, size_t input_length,
                       unsigned char *output, size_t output_size, size_t *output_length) {
  if (!ctx->state) return MBEDTLS_ERR_GCM_BAD_INPUT;
  return own_gcm_update(&ctx->state->own, input, input_length, output, output_size, output_length);
}

int mbedtls_gcm_finish(mbedtls_gcm_context *ctx, unsigned char *output, size_t output_size,
                       size_t *output_length, unsigned char *tag, size_t tag_len) {
  if (!ctx->state) return MBEDTLS_ERR_GCM_BAD_INPUT;
  return own_gcm_finish(&ctx->state->own, output, output_size, output_length, tag, tag_len);
}
