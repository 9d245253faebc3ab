/* AES-GCM for the pinned mbedTLS: the context of its MBEDTLS_GCM_ALT. See gcm_alt.c. */
#ifndef TL_GCM_ALT_H
#define TL_GCM_ALT_H

typedef struct mbedtls_gcm_context {
  struct gcm_alt_state *state; /* NULL: without a key */
} mbedtls_gcm_context;

/* What AES-GCM runs on here, as "ipsec-mb 1.3.0, VAES".
   Returns: a static string; NULL if it is mbedTLS' own code. Thread: any. */
const char *tl_gcm_alt_name(void);

#endif
