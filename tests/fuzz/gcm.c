/* The AES-GCM that records use against mbedTLS' own, where it is another one (.ci/gcm_alt.c). */
#define _GNU_SOURCE 1
#include <stdint.h>

#include "../c/gcm_compare.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes) {
  gcm_compare(data, nbytes);
  return 0;
}
