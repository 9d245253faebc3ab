/* X25519 for the pinned mbedTLS: its public keys by Everest's verified code, too, which the release
   uses for shared secrets alone: 50 us instead of 400 in each handshake.

   `.ci/mbedtls build` puts this file in the place of the release's library/psa_crypto_ecp.c, which
   becomes psa_crypto_ecp_own.c. */
#include "common.h"
#include "everest/Hacl_Curve25519.h"
#include "mbedtls/ecp.h"

/* The multiple of X25519's base point; the result has no Y. Everest's code takes constant time, so it
   needs no random numbers to hide the secret. */
static int everest_public(mbedtls_ecp_point *result, const mbedtls_mpi *secret) {
  unsigned char base[32] = {9}, scalar[32], out[32];
  int ret = mbedtls_mpi_write_binary_le(secret, scalar, sizeof scalar);
  if (!ret) Hacl_Curve25519_crypto_scalarmult(out, scalar, base);
  mbedtls_platform_zeroize(scalar, sizeof scalar);
  if (!ret) ret = mbedtls_mpi_read_binary_le(&result->X, out, sizeof out);
  mbedtls_mpi_free(&result->Y);
  return ret ? ret : mbedtls_mpi_lset(&result->Z, 1);
}

static int multiply(mbedtls_ecp_group *group, mbedtls_ecp_point *result, const mbedtls_mpi *secret,
                    const mbedtls_ecp_point *point, int (*f_rng)(void *, unsigned char *, size_t),
                    void *p_rng) {
  if (group->id == MBEDTLS_ECP_DP_CURVE25519 && point == &group->G)
    return everest_public(result, secret);
  return mbedtls_ecp_mul(group, result, secret, point, f_rng, p_rng);
}

#define mbedtls_ecp_mul multiply
#include "psa_crypto_ecp_own.c"
