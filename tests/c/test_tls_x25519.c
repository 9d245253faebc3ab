/* X25519 as TLS 1.3 uses it, by PSA: known answers, and public keys against mbedTLS' own code, where
   they come from another one (.ci/x25519_alt.c). */
#include "tls_test.h"

#include <mbedtls/build_info.h>
#include <psa/crypto.h>

enum { BYTES = 32 };

static psa_key_id_t key_of(const unsigned char *secret) {
  psa_key_attributes_t attributes = PSA_KEY_ATTRIBUTES_INIT;
  psa_key_id_t key = 0;
  ASSERT_EQ(psa_crypto_init(), PSA_SUCCESS);
  psa_set_key_type(&attributes, PSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_MONTGOMERY));
  psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_DERIVE);
  psa_set_key_algorithm(&attributes, PSA_ALG_ECDH);
  ASSERT_EQ(psa_import_key(&attributes, secret, BYTES, &key), PSA_SUCCESS);
  return key;
}

static void public_of(psa_key_id_t key, unsigned char *out) {
  size_t n;
  ASSERT_EQ(psa_export_public_key(key, out, BYTES, &n), PSA_SUCCESS);
  ASSERT_EQ(n, BYTES);
}

static void from_hex(const char *text, unsigned char *out) {
  for (size_t i = 0; i < BYTES; i++) {
    unsigned int byte;
    ASSERT_EQ(sscanf(text + 2 * i, "%2x", &byte), 1);
    out[i] = (unsigned char)byte;
  }
}

/* A secret, its public key, and what both share. */
static void known_answers(const char *own, const char *of_own, const char *peer, const char *both) {
  unsigned char secret[BYTES], expected[BYTES], out[BYTES], other[BYTES];
  size_t n;
  from_hex(own, secret);
  psa_key_id_t key = key_of(secret);
  from_hex(of_own, expected);
  public_of(key, out);
  ASSERT_MEM(out, expected, BYTES);
  from_hex(peer, other);
  from_hex(both, expected);
  ASSERT_EQ(psa_raw_key_agreement(PSA_ALG_ECDH, key, other, BYTES, out, BYTES, &n), PSA_SUCCESS);
  ASSERT_MEM(out, expected, BYTES);
  ASSERT_EQ(psa_destroy_key(key), PSA_SUCCESS);
}

/* RFC 7748, section 6.1. */
TEST_ON(alice_and_bob, ON_ONCE) {
  static const char a[] = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
  static const char of_a[] = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
  static const char b[] = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
  static const char of_b[] = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
  static const char both[] = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742";
  known_answers(a, of_a, of_b, both);
  known_answers(b, of_b, of_a, both);
}

#if MBEDTLS_VERSION_MAJOR < 4
#include <mbedtls/ecp.h>

static int random_bytes(void *unused, unsigned char *out, size_t n) {
  (void)unused;
  for (size_t i = 0; i < n; i++) out[i] = (unsigned char)t_random();
  return 0;
}

static void own_public(const unsigned char *secret, unsigned char *out) {
  mbedtls_ecp_keypair pair;
  size_t n;
  mbedtls_ecp_keypair_init(&pair);
  ASSERT_EQ(mbedtls_ecp_read_key(MBEDTLS_ECP_DP_CURVE25519, &pair, secret, BYTES), 0);
  ASSERT_EQ(mbedtls_ecp_keypair_calc_public(&pair, random_bytes, NULL), 0);
  ASSERT_EQ(mbedtls_ecp_write_public_key(&pair, MBEDTLS_ECP_PF_UNCOMPRESSED, &n, out, BYTES), 0);
  mbedtls_ecp_keypair_free(&pair);
}

/* The first secrets are all zeros and all ones, of which a few bits are replaced. */
TEST_ON(both_agree_on_random_keys, ON_ONCE) {
  unsigned char secret[BYTES], out[BYTES], expected[BYTES];
  for (int i = 0; i < 100; i++) {
    memset(secret, i ? 0xff : 0, sizeof secret);
    if (i > 1) random_bytes(NULL, secret, sizeof secret);
    psa_key_id_t key = key_of(secret);
    public_of(key, out);
    own_public(secret, expected);
    ASSERT_MEM(out, expected, BYTES);
    ASSERT_EQ(psa_destroy_key(key), PSA_SUCCESS);
  }
}
#endif
