/* SPDX-License-Identifier: MIT

   tloop_tls.h - TLS 1.2 and 1.3 for the streams of tloop.h, by mbedTLS.

   DO THIS
     In one C file:      #define TLOOP_IMPLEMENTATION
                         #include "tloop_tls.h"        (instead of tloop.h: this compiles both)
     In all the others:  #include "tloop_tls.h"
     Build:              cc -std=c11 -O2 program.c -lmbedtls -lmbedx509 -lmbedcrypto

   A SERVER
     tl_tls_desc desc = {.role = TL_TLS_SERVER, .cert_file = "cert.pem", .key_file = "key.pem"};
     tl_tls *tls = tl_tls_create(&desc, NULL);
     ... on TL_EV_ACCEPT:
     tl_tls_attach(loop, ev->result, tls, NULL);
     tl_stream_read_start(loop, ev->result);

   A CLIENT
     tl_tls_desc desc = {.role = TL_TLS_CLIENT};
     tl_tls *tls = tl_tls_create(&desc, NULL);
     tl_handle stream = tl_stream_connect(loop, &addr);
     tl_tls_attach_desc to = {.hostname = "example.com"};
     tl_tls_attach(loop, stream, tls, &to);
     ... after TL_EV_CONNECT comes TL_EV_TLS; if its result is 0:
     tl_stream_read_start(loop, stream);
     tl_stream_write(loop, stream, "hello", 5);

   After TL_EV_TLS the stream is used with the functions of tloop.h and sends the same events. Bytes
   are plain; the write queue and its watermarks count encrypted ones.

   MACROS
     none of its own: TL_API, TL_STATIC, TL_MALLOC, TL_FREE and TL_ASSERT are tloop.h's

   GLOSSARY
     context   certificates, authorities and rules; made once, used by any number of streams, loops
               and threads at a time
     attach    put TLS on a stream: accepted, connecting, connected, or in use already (STARTTLS)
     session   what a client keeps of a connection to be faster next time

   SAFE BY DEFAULT  A client verifies the server's certificate and name, against the system's
     authorities unless others are given. What switches that off is called INSECURE. A server
     without certificate and key is refused. Nothing is guessed: what cannot be done is an error.
   HANDSHAKE     It runs by itself. TL_EV_TLS tells that it is over: result 0, or why not; then
     close the stream. Before it tl_stream_write answers -ENOTCONN; tl_stream_read_start may be
     called.
   END           TL_EV_EOF: the peer has said that it ends (close_notify). A connection that ends
     without that is an error, TL_ETLS_TRUNCATED, since somebody may have cut it.
     tl_stream_shutdown says that we end and goes on reading. tl_stream_close says so, sends what is
     queued, and waits for the peer's answer until the close time-out; TL_EV_CLOSED then carries
     -ETIMEDOUT. tl_close cuts. tl_discard does, too: nothing can be sent after it.
   ERRORS        -errno, TL_E* of tloop.h, or one of three ranges, all with a text by tl_strerror:
     TL_ETLS + c     mbedTLS' error code c (c < 0)
     TL_EALERT - a   the peer refused, with alert number a
     TL_EVERIFY - f  we refused the peer's certificate: bits TL_TLS_BAD_*
   THREADS       A context is read-only once it is attached, and may be attached in any thread.
   FORK          The child draws other random numbers than its parent. A connection must not be used
     on both sides of a fork.
   MEMORY        mbedTLS takes its own by calloc: about 40 KiB per connection, most of it two
     record buffers. Each loop has 150 KiB for all its connections.
   LIMITS        No key updates, early data and post-handshake authentication in TLS 1.3. No
     renegotiation: whoever asks for it ends the connection. A server that asks for client
     certificates resumes no sessions: mbedTLS does not keep the certificate with a ticket.
*/

#ifndef TLOOP_TLS_H
#define TLOOP_TLS_H

#if defined(TLOOP_IMPLEMENTATION) && defined(TLOOP_H)
#error "tloop_tls.h: include it instead of tloop.h where TLOOP_IMPLEMENTATION is defined"
#endif
#ifdef TLOOP_IMPLEMENTATION
#define TL__HAS_TLS 1
#endif

#include "tloop.h"

#ifdef __cplusplus
extern "C" {
#endif

/* @api begin tls_types */

/* A context. Opaque, reference counted, usable in several loops and threads. */
typedef struct tl_tls tl_tls;

/* A client's session. Opaque, reference counted, immutable. */
typedef struct tl_tls_session tl_tls_session;

enum { TL_TLS_CLIENT = 1, TL_TLS_SERVER = 2 };

/* Protocol versions, as on the wire. */
enum { TL_TLS_1_2 = 771, TL_TLS_1_3 = 772 };

/* Whose certificate is verified. A client always verifies unless it is INSECURE. */
enum {
  TL_TLS_VERIFY_DEFAULT = 0,  /* client: required; server: the client is not asked for one */
  TL_TLS_VERIFY_OPTIONAL = 1, /* server: asked for; one that is sent must be good */
  TL_TLS_VERIFY_REQUIRED = 2, /* server: no connection without a good one */
  TL_TLS_INSECURE_NO_VERIFICATION = 3 /* client: anybody may be the server */
};

/* Flags of a context. */
enum {
  TL_TLS_INSECURE_NO_HOSTNAME = 1, /* client: any name, or none, in a certificate that is good */
  TL_TLS_NO_RESUMPTION = 2,        /* no tickets, no sessions */
  TL_TLS_NO_SYSTEM_CA = 4,         /* client: trust only what is added; none is an error then */
  TL_TLS_CRL_LEAF = 8,             /* refuse a peer whose issuer's revocation list is not here */
  TL_TLS_CRL_CHAIN = 16            /* the same for every certificate in its chain */
};

/* Where the ranges of errors begin, and errors that programs ask for. */
enum {
  TL_EALERT = -131072,          /* TL_EALERT - a: the peer's alert a */
  TL_EVERIFY = -1048576,        /* TL_EVERIFY - f: the peer's certificate is bad: TL_TLS_BAD_* */
  TL_ETLS_TRUNCATED = -94848,   /* the connection ended without close_notify */
  TL_ETLS_NO_ALPN = -95616,     /* no common application protocol */
  TL_ETLS_VERSION = -93824,     /* no common protocol version */
  TL_ETLS_HANDSHAKE = -93696,   /* no common cipher, group or signature */
  TL_ETLS_NO_CERT = -95360,     /* the client sent no certificate, but must */
  TL_ETLS_WRONG_KEY = -98305,   /* the private key is not the certificate's */
  TL_ETLS_PASSWORD = -98306,    /* the private key's password is wrong or missing */
  TL_ETLS_NO_OWN_CERT = -98307, /* a server has no certificate to show */
  TL_ETLS_NO_CA = -98308,       /* there is no authority by which to verify the peer */
  TL_ETLS_NO_NAME = -98309      /* a client does not say whom it wants to reach */
};

/* What can be wrong with a certificate; equal to mbedTLS' MBEDTLS_X509_BAD*. */
enum {
  TL_TLS_BAD_EXPIRED = 1,
  TL_TLS_BAD_REVOKED = 2,
  TL_TLS_BAD_NAME = 4,
  TL_TLS_BAD_UNTRUSTED = 8,
  TL_TLS_BAD_CRL_UNTRUSTED = 16,
  TL_TLS_BAD_CRL_EXPIRED = 32,
  TL_TLS_BAD_MISSING = 64,
  TL_TLS_BAD_OTHER = 256,
  TL_TLS_BAD_FUTURE = 512,
  TL_TLS_BAD_CRL_FUTURE = 1024,
  TL_TLS_BAD_KEY_USAGE = 2048,
  TL_TLS_BAD_EXT_KEY_USAGE = 4096,
  TL_TLS_BAD_NS_TYPE = 8192,
  TL_TLS_BAD_HASH = 16384,
  TL_TLS_BAD_KEY_TYPE = 32768,
  TL_TLS_BAD_KEY = 65536,
  TL_TLS_BAD_CRL_HASH = 131072,
  TL_TLS_BAD_CRL_KEY_TYPE = 262144,
  TL_TLS_BAD_CRL_KEY = 524288,
  TL_TLS_BAD_NO_CRL = 1048576 /* not one of mbedTLS': see TL_TLS_CRL_LEAF */
};

/* Who ended a handshake, or a connection, with an error. */
enum { TL_TLS_BY_NOBODY = 0, TL_TLS_BY_US = 1, TL_TLS_BY_PEER = 2 };

/* Server, in the handshake: name is what the client asks for, "" if it does not say. May call
   tl_tls_use. Returns 0 to go on, anything else to refuse (alert: unrecognized name). */
typedef int (*tl_tls_name_cb)(tl_loop *loop, int64_t stream, const char *name, void *user);

/* One line of a key log in NSS format, without line end; line is valid during the call. Called in
   the thread of whichever loop makes the connection. */
typedef void (*tl_tls_keylog_cb)(const char *line, void *user);

/* How a context is made; all zero but role means default. Texts and files are copied. Time-outs: 0
   is the default, < 0 none. */
typedef struct tl_tls_desc {
  int32_t role;        /* TL_TLS_CLIENT or TL_TLS_SERVER */
  int32_t verify;      /* TL_TLS_VERIFY_* */
  int32_t flags;       /* TL_TLS_* */
  int32_t min_version; /* TL_TLS_1_2 or TL_TLS_1_3; default 1.2 */
  int32_t max_version; /* default 1.3 */
  int32_t
      ticket_lifetime_s; /* server: of a session, and after which ticket keys change; 12 hours */
  int64_t handshake_timeout_ns; /* 60 s */
  int64_t close_timeout_ns;     /* 1 s; counts anew while queued bytes are being sent */
  const char *cert_file;        /* PEM or DER: the certificate, then its chain */
  const char *key_file;         /* NULL: in cert_file */
  const char *key_password;
  const char *ca_file; /* PEM file or a folder of them: who may vouch for the peer */
  const char *alpn;    /* protocols, best first: "h2,http/1.1" */
  const char *ciphers; /* best first, "TLS_AES_128_GCM_SHA256:TLS_ECDHE_RSA_WITH_..." */
  tl_tls_name_cb on_name;
  tl_tls_keylog_cb on_keylog;
  void *user; /* for both */
} tl_tls_desc;

/* A certificate from memory, PEM or DER. */
typedef struct tl_tls_cert {
  const void *chain;
  size_t chain_nbytes;
  const void *key; /* NULL: in chain */
  size_t key_nbytes;
  const char *password; /* NULL: the key is not encrypted */
  const char *names;    /* server: for whom, "a.example,*.b.example"; NULL: for everybody else */
} tl_tls_cert;

/* How TLS is attached to one stream; all zero means default. Copied. */
typedef struct tl_tls_attach_desc {
  const char *hostname;    /* client: whom it wants to reach, a DNS name or an IP address */
  tl_tls_session *session; /* client: resume this one if the server agrees */
  const void *received;    /* bytes of the handshake that were already received by tloop.h */
  size_t received_nbytes;
  int64_t handshake_timeout_ns; /* 0: the context's */
  int64_t close_timeout_ns;     /* 0: the context's */
} tl_tls_attach_desc;

/* What is known of a TLS stream; complete with TL_EV_TLS, and until the handle is gone. */
typedef struct tl_tls_info {
  int32_t version;     /* TL_TLS_1_2, TL_TLS_1_3; 0 before it is agreed */
  int32_t cipher;      /* IANA's number */
  int32_t cipher_bits; /* of its key */
  int32_t resumed;     /* 1: no certificates were exchanged, those of the former connection count */
  int32_t verify_flags; /* TL_TLS_BAD_*; 0: good, or nothing was to be verified */
  int32_t refused_by;   /* TL_TLS_BY_* */
  int32_t alert;        /* the peer's fatal alert, -1: none came */
  int32_t peer_certs;   /* how many tl_tls_peer_cert has */
  int64_t error;        /* what ended it, 0: nothing */
  char cipher_name[64]; /* "TLS_AES_128_GCM_SHA256" */
  char alpn[256];       /* "": none */
} tl_tls_info;

/* @api end */

/* @api begin tls_context */

/* Make a context.
   Returns: it, or NULL with the reason in *error (unless error is NULL): -EINVAL for a desc that
   makes no sense (a server without certificate, an unknown cipher), -ENOENT and other -errno of
   files, TL_ETLS codes of what is in them, -ENOMEM. Owns: the caller, until tl_tls_release. Thread:
   any. */
TL_API tl_tls *tl_tls_create(const tl_tls_desc *desc, int64_t *error);

/* One more owner.
   Returns: tls. Thread: any. */
TL_API tl_tls *tl_tls_retain(tl_tls *tls);

/* One owner less; streams own their context, too. NULL is allowed. Thread: any. */
TL_API void tl_tls_release(tl_tls *tls);

/* Add a certificate with its key. Several without names (one RSA, one ECDSA): the client's
   abilities decide; those with names are taken when the client asks for that name.
   Returns: 0, -EBUSY once the context was attached, -ENOMEM, TL_ETLS codes, TL_ETLS_WRONG_KEY,
   TL_ETLS_PASSWORD. Thread: any, one at a time. */
TL_API int64_t tl_tls_add_cert(tl_tls *tls, const tl_tls_cert *cert);

/* The same from files; key_file, password and names may be NULL.
   Returns: as tl_tls_add_cert, -ENOENT and other -errno. Thread: any, one at a time. */
TL_API int64_t tl_tls_add_cert_file(tl_tls *tls, const char *cert_file, const char *key_file,
                                    const char *password, const char *names);

/* Trust these authorities (PEM, several; or one DER), and no longer the system's.
   Returns: how many could not be understood, -EBUSY, -ENOMEM, TL_ETLS codes when all.
   Thread: any, one at a time. */
TL_API int64_t tl_tls_add_ca(tl_tls *tls, const void *data, size_t nbytes);

/* The same from a file, or from all files of a folder.
   Returns: as tl_tls_add_ca, -ENOENT and other -errno. Thread: any, one at a time. */
TL_API int64_t tl_tls_add_ca_file(tl_tls *tls, const char *path);

/* Trust the system's authorities: $SSL_CERT_FILE, $SSL_CERT_DIR, else where distributions keep
   them.
   Returns: as tl_tls_add_ca, -ENOENT when there are none. Thread: any, one at a time. */
TL_API int64_t tl_tls_add_system_ca(tl_tls *tls);

/* Refuse certificates that these lists revoke (PEM, several; or one DER).
   Returns: 0, -EBUSY, -ENOMEM, TL_ETLS codes. Thread: any, one at a time. */
TL_API int64_t tl_tls_add_crl(tl_tls *tls, const void *data, size_t nbytes);

/* Server: use this key for tickets from now on; the former one still opens its tickets. For several
   processes that share a name; others need not call it. key: 4 bytes of name, then 32 of key.
   Returns: 0, -EINVAL unless 36 bytes and sessions are resumed, TL_ETLS codes. Thread: any. */
TL_API int64_t tl_tls_ticket_key(tl_tls *tls, const void *key, size_t nbytes);

/* The context's cipher number index, best first, as "TLS_AES_128_GCM_SHA256".
   Returns: bytes written, without the final zero; -ENOENT behind the last; -ENOSPC. Thread: any. */
TL_API int tl_tls_cipher(const tl_tls *tls, int index, char *out, size_t capacity);

/* Name and version of mbedTLS.
   Returns: a static string. Thread: any. */
TL_API const char *tl_tls_library(void);

/* What computes AES-GCM here: "mbedTLS", or "ipsec-mb 1.3.0, VAES" where mbedTLS was built with
   that library and the processor has what it needs.
   Returns: a static string. Thread: any. */
TL_API const char *tl_tls_gcm(void);

/* All that the flags say, one reason per line.
   Returns: length without the final zero, or -ENOSPC. Thread: any. */
TL_API int tl_tls_verify_text(uint32_t flags, char *out, size_t capacity);

/* @api end */

/* @api begin tls_stream */

/* Put TLS on a stream: an accepted or connected one, one that still connects, or one that was used
   without until now; what is in its write queue is sent before. The context becomes read-only. desc
   NULL: defaults, only for servers and for clients that do not verify names.
   Returns: 0; then TL_EV_TLS follows. -EALREADY when it has TLS, -EINVAL for a client without
   hostname, a hostname that is too long, or a session of another host or of a context that verified
   less; TL_EBADH, TL_EKIND, -EPIPE after tl_stream_shutdown, the error of a broken stream, -ENOMEM.
   Owns: the stream owns a reference to the context. Thread: loop. */
TL_API int64_t tl_tls_attach(tl_loop *loop, tl_handle stream, tl_tls *tls,
                             const tl_tls_attach_desc *desc);

/* Within on_name: go on with the certificates, authorities and verification of another server
   context. Versions, ciphers and protocols stay those of the first.
   Returns: 0, -EINVAL outside of on_name or for a client's context, -ENOMEM. Thread: loop. */
TL_API int64_t tl_tls_use(tl_loop *loop, tl_handle stream, tl_tls *other);

/* What is known of a TLS stream.
   Returns: 0, -ENOENT for a stream without TLS, TL_EBADH, TL_EKIND. Thread: loop. */
TL_API int tl_tls_query(tl_loop *loop, tl_handle stream, tl_tls_info *info);

/* The peer's certificate in DER: number 0 is its own, then those that it sent along.
   Returns: the bytes and their number in *nbytes, or NULL behind the last. Owns: the stream, until
   the handle is gone. Thread: loop. */
TL_API const void *tl_tls_peer_cert(tl_loop *loop, tl_handle stream, int index, size_t *nbytes);

/* @api end */

/* @api begin tls_session */

/* Client: the session to resume later. TLS 1.3 servers send it after the handshake, together with
   or before their first bytes; each one can be had once.
   Returns: it, or NULL with the reason in *error (unless NULL): -ENOENT when there is none (yet, or
   any more), -ENOMEM, TL_EBADH, TL_EKIND. Owns: the caller. Thread: loop. */
TL_API tl_tls_session *tl_tls_session_get(tl_loop *loop, tl_handle stream, int64_t *error);

/* One owner less. NULL is allowed. Thread: any. */
TL_API void tl_tls_session_release(tl_tls_session *session);

/* Write the session as bytes, for another process. They hold its secrets.
   Returns: how many; -ENOSPC unless capacity suffices; out NULL: only how many. -ENOMEM. Thread:
   any. */
TL_API int64_t tl_tls_session_save(const tl_tls_session *session, void *out, size_t capacity);

/* Read what tl_tls_session_save wrote. It decides whom a client trusts: read no bytes of strangers.
   Returns: a session, or NULL with the reason in *error: -EINVAL for other bytes or another
   mbedTLS, -ENOMEM. Owns: the caller. Thread: any. */
TL_API tl_tls_session *tl_tls_session_load(const void *data, size_t nbytes, int64_t *error);

/* @api end */

#ifdef __cplusplus
}
#endif

#endif /* TLOOP_TLS_H */

#ifdef TLOOP_IMPLEMENTATION
#ifndef TLOOP_TLS_IMPLEMENTATION_ONCE
#define TLOOP_TLS_IMPLEMENTATION_ONCE

#include <mbedtls/version.h>

// >>tls-config

#if MBEDTLS_VERSION_NUMBER < 0x03060600
#error "tloop_tls.h needs mbedTLS 3.6.6 or later: older ones have known holes (libmbedtls-dev)"
#endif
#if MBEDTLS_VERSION_MAJOR == 4 && MBEDTLS_VERSION_NUMBER < 0x04010000
#error "tloop_tls.h needs mbedTLS 4.1 or later of the 4.x line: 4.0 cannot reseed after a fork"
#endif

#include <mbedtls/error.h>
#include <mbedtls/ssl.h>
#include <mbedtls/ssl_cache.h>
#include <mbedtls/ssl_ticket.h>
#include <mbedtls/x509_crl.h>
#include <mbedtls/x509_crt.h>
#if MBEDTLS_VERSION_MAJOR < 4
#include <mbedtls/platform.h>
#include <mbedtls/platform_util.h>
#endif
#if defined(MBEDTLS_GCM_ALT)
#include <mbedtls/gcm.h>
#endif
#include <psa/crypto.h>
#include <pthread.h>
#include <sys/random.h>

#ifndef MBEDTLS_THREADING_C
#error "tloop_tls.h needs an mbedTLS with MBEDTLS_THREADING_C: TLS 1.3 shares keys among threads"
#endif
#if !defined(MBEDTLS_SSL_PROTO_TLS1_2) || !defined(MBEDTLS_SSL_PROTO_TLS1_3) || \
    !defined(MBEDTLS_SSL_CLI_C) || !defined(MBEDTLS_SSL_SRV_C)
#error "tloop_tls.h needs an mbedTLS with TLS 1.2 and TLS 1.3, client and server"
#endif
#if !defined(MBEDTLS_SSL_SESSION_TICKETS) || !defined(MBEDTLS_SSL_TICKET_C) || \
    !defined(MBEDTLS_SSL_CACHE_C) || !defined(MBEDTLS_SSL_ALPN) ||             \
    !defined(MBEDTLS_SSL_SERVER_NAME_INDICATION) || !defined(MBEDTLS_SSL_KEEP_PEER_CERTIFICATE)
#error "tloop_tls.h needs an mbedTLS with tickets, session cache, ALPN, SNI and peer certificates"
#endif
#if !defined(MBEDTLS_X509_CRL_PARSE_C) || !defined(MBEDTLS_PEM_PARSE_C) || !defined(MBEDTLS_FS_IO)
#error "tloop_tls.h needs an mbedTLS that reads PEM, revocation lists and files"
#endif

/* mbedTLS 4 draws random numbers by itself; 3.6 asks in each call whom to ask. */
#if MBEDTLS_VERSION_MAJOR >= 4
#define TL__RNG
#else
#define TL__RNG , tl__tls_random, NULL
#endif

enum {
  TL__TLS_RECORD = 16384,
  TL__TLS_STAGE = 7 * TL__TLS_RECORD,         /* encrypted bytes received at a time */
  TL__TLS_WIRE = 7 * (TL__TLS_RECORD + 1024), /* encrypted bytes sent at a time */
  TL__TLS_LEAD = 8, /* where mbedTLS has a number in front of what it sends, see tl__tls_aim */
#if MBEDTLS_VERSION_MAJOR < 4
  /* Not less than mbedTLS' own, whose size it does not tell: a record and some 400 bytes. */
  TL__TLS_IN = MBEDTLS_SSL_IN_CONTENT_LEN + 1024,
  TL__TLS_OUT = MBEDTLS_SSL_OUT_CONTENT_LEN + 1024,
#endif
  TL__TLS_FILE_MAX = 16 << 20,
  TL__TLS_CACHE = 256, /* session ids kept by a server, for TLS 1.2 clients without tickets */
  TL__TICKET_NAME = 4,
  TL__TICKET_KEY = 32
};

#define TL__TLS_HANDSHAKE_NS INT64_C(60000000000) /* as ssl.SSL_HANDSHAKE_TIMEOUT of Python */
#define TL__TLS_CLOSE_NS INT64_C(1000000000)
#define TL__TLS_LIFETIME_S 43200

// >>tls-types

typedef struct tl__tls_cert {
  struct tl__tls_cert *next;
  mbedtls_x509_crt chain;
  mbedtls_pk_context key;
  char *names; /* lower case, or NULL */
} tl__tls_cert;

struct tl_tls {
  atomic_int refs;
  atomic_bool used;
  pthread_mutex_t sealing;
  int32_t role, verify, flags;
  int64_t handshake_ns, close_ns;
  tl_tls_name_cb on_name;
  tl_tls_keylog_cb on_keylog;
  void *user;
  bool resumes, has_ca;
  tl__tls_cert *certs;
  mbedtls_ssl_config conf;
  mbedtls_x509_crt ca;
  mbedtls_x509_crl crl;
  mbedtls_ssl_ticket_context ticket;
  mbedtls_ssl_cache_context cache;
  char *alpn; /* the text, its commas replaced by zeros */
  const char **protocols;
  int *ciphers; /* ends with 0 */
};

struct tl_tls_session {
  atomic_int refs;
  int32_t verified; /* 0 nothing, 1 the certificate, 2 its name too */
  mbedtls_ssl_session session;
  char *hostname;
  unsigned char *certs; /* each: four bytes length, DER */
  size_t certs_nbytes;
};

/* What all TLS streams of a loop share, in turn: nothing stays in it between events. */
typedef struct tl__tls_shared {
  size_t wire_used;
  unsigned char stage[TL__TLS_STAGE], wire[TL__TLS_LEAD + TL__TLS_WIRE], gather[TL__TLS_RECORD];
#if MBEDTLS_VERSION_MAJOR < 4
  unsigned char in[TL__TLS_IN], out[TL__TLS_OUT];
#endif
} tl__tls_shared;

enum { TL__TLS_WAITS = 0, TL__TLS_SHAKES, TL__TLS_OPEN, TL__TLS_FAILED };

typedef struct tl__tls {
  tl__layer layer;
  tl_loop *loop;
  tl__stream *stream;
  tl_tls *context, *other; /* other: whose certificates, see tl_tls_use */
  tl_tls_session *session;
  char *hostname;
  mbedtls_ssl_context ssl;
  tl__node deadline;
  int64_t handshake_ns, close_ns;
  int64_t queued;          /* when the close time-out began */
  const unsigned char *in; /* encrypted bytes that mbedTLS has not taken yet */
  size_t in_left;
  unsigned char *kept; /* the memory of in, unless that is the stage */
  unsigned char *part; /* of a record; NULL: only its number, see tl__tls_enter */
  size_t part_nbytes;
  unsigned char number[8];
  int64_t end; /* 1: none in sight; 0: close_notify came; < 0: what ended it */
  int broken;  /* error of the descriptor, or 0 */
  int32_t alert;
  uint8_t state, refused_by, ip_nbytes;
  unsigned char ip[16]; /* hostname is an address */
  bool full, filled, eof, said_end, is_due, in_callback, shares;
  bool spoke; /* mbedTLS has sent something since this was cleared */
} tl__tls;

// >>tls-errors

static int64_t tl__tls_code(int rc) {
  if (rc == MBEDTLS_ERR_SSL_ALLOC_FAILED || rc == MBEDTLS_ERR_X509_ALLOC_FAILED ||
      rc == MBEDTLS_ERR_PK_ALLOC_FAILED || rc == PSA_ERROR_INSUFFICIENT_MEMORY)
    return -ENOMEM;
  if (rc == MBEDTLS_ERR_PK_PASSWORD_REQUIRED || rc == MBEDTLS_ERR_PK_PASSWORD_MISMATCH)
    return TL_ETLS_PASSWORD;
  return rc < 0 ? TL_ETLS + rc : rc;
}

static const struct {
  int32_t flag;
  const char *text;
} tl__tls_reasons[] = {
    {TL_TLS_BAD_REVOKED, "certificate refused: it is revoked"},
    {TL_TLS_BAD_EXPIRED, "certificate refused: it has expired"},
    {TL_TLS_BAD_FUTURE, "certificate refused: it is not valid yet"},
    {TL_TLS_BAD_NAME, "certificate refused: it is for another name"},
    {TL_TLS_BAD_UNTRUSTED, "certificate refused: its authority is unknown"},
    {TL_TLS_BAD_EXT_KEY_USAGE, "certificate refused: it is for another use (extended key usage)"},
    {TL_TLS_BAD_KEY_USAGE, "certificate refused: it is for another use (key usage)"},
    {TL_TLS_BAD_NS_TYPE, "certificate refused: it is for another use (Netscape type)"},
    {TL_TLS_BAD_KEY, "certificate refused: its key is too weak"},
    {TL_TLS_BAD_HASH, "certificate refused: its signature's hash is too weak"},
    {TL_TLS_BAD_KEY_TYPE, "certificate refused: it is signed in a way that is not allowed"},
    {TL_TLS_BAD_CRL_UNTRUSTED, "certificate refused: the revocation list is not the authority's"},
    {TL_TLS_BAD_CRL_EXPIRED, "certificate refused: the revocation list has expired"},
    {TL_TLS_BAD_CRL_FUTURE, "certificate refused: the revocation list is not valid yet"},
    {TL_TLS_BAD_CRL_HASH, "certificate refused: the revocation list's hash is too weak"},
    {TL_TLS_BAD_CRL_KEY_TYPE,
     "certificate refused: the revocation list's signature is not allowed"},
    {TL_TLS_BAD_CRL_KEY, "certificate refused: the revocation list's key is too weak"},
    {TL_TLS_BAD_NO_CRL, "certificate refused: its issuer's revocation list is missing"},
    {TL_TLS_BAD_MISSING, "certificate refused: there is none"},
    {TL_TLS_BAD_OTHER, "certificate refused"}};

static const char *tl__tls_reason(uint32_t flags) {
  for (size_t i = 0; i < sizeof tl__tls_reasons / sizeof *tl__tls_reasons; i++)
    if (flags & (uint32_t)tl__tls_reasons[i].flag) return tl__tls_reasons[i].text;
  return "certificate refused";
}

static const char *tl__tls_alert_text(int64_t alert) {
  switch (alert) {
    case 10: return "refused by the peer: unexpected message";
    case 20: return "refused by the peer: bad record";
    case 22: return "refused by the peer: record too large";
    case 40: return "refused by the peer: handshake failure (no common cipher, group or signature)";
    case 41: return "refused by the peer: certificate required";
    case 42: return "refused by the peer: bad certificate";
    case 43: return "refused by the peer: unsupported certificate";
    case 44: return "refused by the peer: certificate revoked";
    case 45: return "refused by the peer: certificate expired";
    case 46: return "refused by the peer: certificate not acceptable";
    case 47: return "refused by the peer: illegal parameter";
    case 48: return "refused by the peer: unknown certificate authority";
    case 49: return "refused by the peer: access denied";
    case 50: return "refused by the peer: message not understood";
    case 51: return "refused by the peer: cryptographic check failed";
    case 70: return "refused by the peer: protocol version";
    case 71: return "refused by the peer: insufficient security";
    case 80: return "refused by the peer: internal error";
    case 86: return "refused by the peer: inappropriate fallback";
    case 90: return "refused by the peer: cancelled by its user";
    case 100: return "refused by the peer: no renegotiation";
    case 109: return "refused by the peer: missing extension";
    case 110: return "refused by the peer: unsupported extension";
    case 112: return "refused by the peer: unrecognized name";
    case 115: return "refused by the peer: unknown identity";
    case 116: return "refused by the peer: certificate required";
    case 120: return "refused by the peer: no common application protocol";
    default: return "refused by the peer";
  }
}

static const char *tl__tls_strerror(int64_t code) {
  if (code == TL_ETLS_WRONG_KEY) return "the private key is not that of the certificate";
  if (code == TL_ETLS_PASSWORD) return "the private key's password is wrong or missing";
  if (code == TL_ETLS_NO_OWN_CERT) return "a server needs a certificate and its private key";
  if (code == TL_ETLS_NO_CA) return "no certificate authority to verify the peer by";
  if (code == TL_ETLS_NO_NAME) return "a client needs the hostname that it verifies";
  if (code == TL_ETLS_TRUNCATED) return "TLS connection cut off: no close_notify came";
  if (code < TL_EVERIFY) return tl__tls_reason((uint32_t)(TL_EVERIFY - code));
  if (code < TL_EALERT) return tl__tls_alert_text(TL_EALERT - code);
  static _Thread_local char text[160];
  mbedtls_strerror((int)(code - TL_ETLS), text, sizeof text);
  return text;
}

TL_API int tl_tls_verify_text(uint32_t flags, char *out, size_t capacity) {
  size_t used = 0;
  if (!capacity) return -ENOSPC;
  out[0] = 0;
  for (size_t i = 0; i < sizeof tl__tls_reasons / sizeof *tl__tls_reasons; i++) {
    if (!(flags & (uint32_t)tl__tls_reasons[i].flag)) continue;
    int n =
        snprintf(out + used, capacity - used, "%s%s", used ? "\n" : "", tl__tls_reasons[i].text);
    if (n < 0 || (size_t)n >= capacity - used) return -ENOSPC;
    used += (size_t)n;
  }
  return (int)used;
}

TL_API const char *tl_tls_library(void) { return MBEDTLS_VERSION_STRING_FULL; }

TL_API const char *tl_tls_gcm(void) {
#ifdef TL_GCM_ALT_H
  const char *name = tl_gcm_alt_name();
  if (name) return name;
#endif
  return "mbedTLS";
}

// >>tls-random

/* TLS 1.3, and all of mbedTLS 4, draws from PSA's generator, which seeds itself anew in the child
   of a fork (since 3.6.6 and 4.1). What 3.6 asks us for comes straight from the kernel: nothing to
   seed, to lock or to share. */

#if MBEDTLS_VERSION_MAJOR < 4
static int tl__tls_random(void *unused, unsigned char *out, size_t nbytes) {
  (void)unused;
  while (nbytes) {
    ssize_t n = getrandom(out, nbytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return MBEDTLS_ERR_SSL_INTERNAL_ERROR;
    out += n;
    nbytes -= (size_t)n;
  }
  return 0;
}
#endif

// >>tls-files

static void *tl__tls_calloc(size_t nbytes) {
  void *p = TL_MALLOC(nbytes);
  if (p) memset(p, 0, nbytes);
  return p;
}

static void tl__tls_free_text(char *text) {
  if (text) TL_FREE(text);
}

static void tl__tls_wipe(void *data, size_t nbytes) {
  volatile unsigned char *p = (volatile unsigned char *)data;
  while (nbytes--) *p++ = 0;
}

/* A copy with a final zero, which mbedTLS wants of PEM. */
static unsigned char *tl__tls_copy(const void *data, size_t nbytes) {
  unsigned char *p = (unsigned char *)TL_MALLOC(nbytes + 1);
  if (!p) return NULL;
  if (nbytes) memcpy(p, data, nbytes);
  p[nbytes] = 0;
  return p;
}

static char *tl__tls_copy_text(const char *text) {
  return (char *)tl__tls_copy(text, strlen(text));
}

typedef struct tl__tls_blob {
  unsigned char *data; /* with a final zero */
  size_t nbytes;
} tl__tls_blob;

static void tl__tls_blob_free(tl__tls_blob *blob) {
  if (!blob->data) return;
  tl__tls_wipe(blob->data, blob->nbytes);
  TL_FREE(blob->data);
  blob->data = NULL;
}

static int tl__tls_read_all(int fd, size_t size, tl__tls_blob *blob) {
  blob->data = (unsigned char *)TL_MALLOC(size + 1);
  if (!blob->data) return -ENOMEM;
  for (blob->nbytes = 0; blob->nbytes < size;) {
    ssize_t n = read(fd, blob->data + blob->nbytes, size - blob->nbytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -errno;
    if (n == 0) break;
    blob->nbytes += (size_t)n;
  }
  blob->data[blob->nbytes] = 0;
  return 0;
}

static int tl__tls_read_file(const char *path, tl__tls_blob *blob) {
  struct stat st;
  *blob = (tl__tls_blob){NULL, 0};
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  int rc = fstat(fd, &st) < 0 ? -errno : 0;
  if (rc == 0 && S_ISDIR(st.st_mode)) rc = -EISDIR;
  if (rc == 0 && st.st_size > TL__TLS_FILE_MAX) rc = -EFBIG;
  if (rc == 0) rc = tl__tls_read_all(fd, (size_t)st.st_size, blob);
  close(fd);
  if (rc < 0) tl__tls_blob_free(blob);
  return rc;
}

static size_t tl__tls_parse_size(const tl__tls_blob *blob) {
  bool pem = strstr((const char *)blob->data, "-----BEGIN") != NULL;
  return blob->nbytes + pem;
}

// >>tls-names

/* "TLS_AES_128_GCM_SHA256" is "TLS1-3-AES-128-GCM-SHA256" to mbedTLS; for TLS 1.2 only _ and -
   differ. */
static void tl__tls_cipher_text(const char *name, char *out, size_t capacity) {
  bool tls13 = strncmp(name, "TLS1-3-", 7) == 0;
  (void)snprintf(out, capacity, "TLS_%s", name + (tls13 ? 7 : 4));
  for (; *out; out++)
    if (*out == '-') *out = '_';
}

static int tl__tls_cipher_id(const char *name, size_t nbytes) {
  char text[80], own[80];
  if (nbytes >= sizeof text) return 0;
  memcpy(text, name, nbytes);
  text[nbytes] = 0;
  for (const int *id = mbedtls_ssl_list_ciphersuites(); *id; id++) {
    tl__tls_cipher_text(mbedtls_ssl_get_ciphersuite_name(*id), own, sizeof own);
    if (strcmp(own, text) == 0) return *id;
  }
  return 0;
}

static int32_t tl__tls_cipher_version(int id) { return id >> 8 == 0x13 ? TL_TLS_1_3 : TL_TLS_1_2; }

/* AES-GCM and ChaCha20 with ephemeral keys. AES-128 first: the fastest here, and no weaker in
   practice. */
static const int tl__tls_ciphers[] = {0x1301, 0x1303, 0x1302, 0xC02B, 0xC02F,
                                      0xCCA9, 0xCCA8, 0xC02C, 0xC030, 0};

/* PKCS #1 before PSS: a server for TLS 1.2 takes what stands first, but mbedTLS' client understands
   PSS only in TLS 1.3, although it must offer it. */
static const uint16_t tl__tls_signatures[] = {0x0403, 0x0503, 0x0603, 0x0401, 0x0501,
                                              0x0601, 0x0804, 0x0805, 0x0806, 0};

/* Does a list such as "a.example,*.b.example" have this (lower case) name? */
static bool tl__tls_has_name(const char *list, const char *name) {
  const char *dot = strchr(name, '.');
  for (size_t n; *list; list += n + (list[n] == ',')) {
    n = strcspn(list, ",");
    bool wild = n > 2 && list[0] == '*' && list[1] == '.';
    const char *wanted = wild ? dot : name, *offered = wild ? list + 1 : list;
    size_t offered_nbytes = wild ? n - 1 : n;
    if (wanted && strlen(wanted) == offered_nbytes && !memcmp(wanted, offered, offered_nbytes))
      return true;
  }
  return false;
}

static void tl__tls_lower(char *text) {
  for (; *text; text++)
    if (*text >= 'A' && *text <= 'Z') *text = (char)(*text + ('a' - 'A'));
}

static size_t tl__tls_ip(const char *hostname, unsigned char ip[16]) {
  if (inet_pton(AF_INET, hostname, ip) == 1) return 4;
  return inet_pton(AF_INET6, hostname, ip) == 1 ? 16 : 0;
}

// >>tls-context

static void tl__tls_cert_free(tl__tls_cert *cert) {
  mbedtls_x509_crt_free(&cert->chain);
  mbedtls_pk_free(&cert->key);
  tl__tls_free_text(cert->names);
  TL_FREE(cert);
}

static void tl__tls_context_free(tl_tls *tls) {
  pthread_mutex_destroy(&tls->sealing);
  while (tls->certs) {
    tl__tls_cert *next = tls->certs->next;
    tl__tls_cert_free(tls->certs);
    tls->certs = next;
  }
  mbedtls_ssl_config_free(&tls->conf);
  mbedtls_x509_crt_free(&tls->ca);
  mbedtls_x509_crl_free(&tls->crl);
  mbedtls_ssl_ticket_free(&tls->ticket);
  mbedtls_ssl_cache_free(&tls->cache);
  tl__tls_free_text(tls->alpn);
  if (tls->protocols) TL_FREE((void *)(uintptr_t)tls->protocols);
  if (tls->ciphers) TL_FREE(tls->ciphers);
  TL_FREE(tls);
}

TL_API tl_tls *tl_tls_retain(tl_tls *tls) {
  atomic_fetch_add(&tls->refs, 1);
  return tls;
}

TL_API void tl_tls_release(tl_tls *tls) {
  if (tls && atomic_fetch_sub(&tls->refs, 1) == 1) tl__tls_context_free(tls);
}

static int64_t tl__tls_parse_key(tl__tls_cert *own, const tl__tls_blob *key, const char *password) {
  const unsigned char *text = (const unsigned char *)password;
  int rc = mbedtls_pk_parse_key(&own->key, key->data, tl__tls_parse_size(key), text,
                                text ? strlen(password) : 0 TL__RNG);
  if (rc != 0) return tl__tls_code(rc);
  return mbedtls_pk_check_pair(&own->chain.pk, &own->key TL__RNG) ? TL_ETLS_WRONG_KEY : 0;
}

static int64_t tl__tls_fill_cert(tl__tls_cert *own, const tl__tls_blob *chain,
                                 const tl__tls_blob *key, const char *password, const char *names) {
  int rc = mbedtls_x509_crt_parse(&own->chain, chain->data, tl__tls_parse_size(chain));
  if (rc != 0) return rc > 0 ? TL_ETLS + MBEDTLS_ERR_X509_INVALID_FORMAT : tl__tls_code(rc);
  if (names && !(own->names = tl__tls_copy_text(names))) return -ENOMEM;
  if (own->names) tl__tls_lower(own->names);
  return tl__tls_parse_key(own, key, password);
}

/* A certificate without names is the configuration's own; the others wait for on_name. */
static int64_t tl__tls_append_cert(tl_tls *tls, tl__tls_cert *own) {
  tl__tls_cert **at = &tls->certs;
  int rc = own->names ? 0 : mbedtls_ssl_conf_own_cert(&tls->conf, &own->chain, &own->key);
  if (rc != 0) return tl__tls_code(rc);
  while (*at) at = &(*at)->next;
  *at = own;
  return 0;
}

static int64_t tl__tls_add(tl_tls *tls, const tl__tls_blob *chain, const tl__tls_blob *key,
                           const char *password, const char *names) {
  if (atomic_load(&tls->used)) return -EBUSY;
  tl__tls_cert *own = (tl__tls_cert *)tl__tls_calloc(sizeof *own);
  if (!own) return -ENOMEM;
  mbedtls_x509_crt_init(&own->chain);
  mbedtls_pk_init(&own->key);
  int64_t rc = tl__tls_fill_cert(own, chain, key, password, names);
  if (rc == 0) rc = tl__tls_append_cert(tls, own);
  if (rc < 0) tl__tls_cert_free(own);
  return rc;
}

TL_API int64_t tl_tls_add_cert(tl_tls *tls, const tl_tls_cert *cert) {
  tl__tls_blob chain = {tl__tls_copy(cert->chain, cert->chain_nbytes), cert->chain_nbytes};
  tl__tls_blob key = {NULL, cert->key_nbytes};
  if (cert->key) key.data = tl__tls_copy(cert->key, cert->key_nbytes);
  int64_t rc = -ENOMEM;
  if (chain.data && (!cert->key || key.data))
    rc = tl__tls_add(tls, &chain, cert->key ? &key : &chain, cert->password, cert->names);
  tl__tls_blob_free(&chain);
  tl__tls_blob_free(&key);
  return rc;
}

TL_API int64_t tl_tls_add_cert_file(tl_tls *tls, const char *cert_file, const char *key_file,
                                    const char *password, const char *names) {
  tl__tls_blob chain, key = {NULL, 0};
  int64_t rc = tl__tls_read_file(cert_file, &chain);
  if (rc == 0 && key_file) rc = tl__tls_read_file(key_file, &key);
  if (rc == 0) rc = tl__tls_add(tls, &chain, key_file ? &key : &chain, password, names);
  tl__tls_blob_free(&chain);
  tl__tls_blob_free(&key);
  return rc;
}

/* rc: what mbedTLS answers, the number of certificates that it could not read, or an error. */
static int64_t tl__tls_added_ca(tl_tls *tls, int rc) {
  if (rc < 0) return tl__tls_code(rc);
  tls->has_ca = true;
  return rc;
}

TL_API int64_t tl_tls_add_ca(tl_tls *tls, const void *data, size_t nbytes) {
  if (atomic_load(&tls->used)) return -EBUSY;
  tl__tls_blob blob = {tl__tls_copy(data, nbytes), nbytes};
  if (!blob.data) return -ENOMEM;
  int rc = mbedtls_x509_crt_parse(&tls->ca, blob.data, tl__tls_parse_size(&blob));
  tl__tls_blob_free(&blob);
  return tl__tls_added_ca(tls, rc);
}

TL_API int64_t tl_tls_add_ca_file(tl_tls *tls, const char *path) {
  tl__tls_blob blob;
  if (atomic_load(&tls->used)) return -EBUSY;
  int64_t rc = tl__tls_read_file(path, &blob);
  if (rc == -EISDIR) return tl__tls_added_ca(tls, mbedtls_x509_crt_parse_path(&tls->ca, path));
  if (rc == 0) rc = tl_tls_add_ca(tls, blob.data, blob.nbytes);
  tl__tls_blob_free(&blob);
  return rc;
}

TL_API int64_t tl_tls_add_system_ca(tl_tls *tls) {
  static const char *const places[] = {"/etc/ssl/certs/ca-certificates.crt",
                                       "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
                                       "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
                                       "/etc/ssl/cert.pem"};
  const char *file = secure_getenv("SSL_CERT_FILE"), *folder = secure_getenv("SSL_CERT_DIR");
  if (file) return tl_tls_add_ca_file(tls, file);
  if (folder) return tl_tls_add_ca_file(tls, folder);
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    int64_t rc = tl_tls_add_ca_file(tls, places[i]);
    if (rc != -ENOENT) return rc;
  }
  return -ENOENT;
}

TL_API int64_t tl_tls_add_crl(tl_tls *tls, const void *data, size_t nbytes) {
  if (atomic_load(&tls->used)) return -EBUSY;
  tl__tls_blob blob = {tl__tls_copy(data, nbytes), nbytes};
  if (!blob.data) return -ENOMEM;
  int rc = mbedtls_x509_crl_parse(&tls->crl, blob.data, tl__tls_parse_size(&blob));
  tl__tls_blob_free(&blob);
  return rc == 0 ? 0 : tl__tls_code(rc);
}

TL_API int64_t tl_tls_ticket_key(tl_tls *tls, const void *key, size_t nbytes) {
  const unsigned char *name = (const unsigned char *)key;
  if (nbytes != TL__TICKET_NAME + TL__TICKET_KEY || tls->role != TL_TLS_SERVER || !tls->resumes)
    return -EINVAL;
  mbedtls_threading_mutex_t *mutex = &tls->ticket.MBEDTLS_PRIVATE(mutex);
  int rc = mbedtls_mutex_lock(mutex);
  if (rc != 0) return tl__tls_code(rc);
  rc = mbedtls_ssl_ticket_rotate(&tls->ticket, name, TL__TICKET_NAME, name + TL__TICKET_NAME,
                                 TL__TICKET_KEY, tls->ticket.MBEDTLS_PRIVATE(ticket_lifetime));
  (void)mbedtls_mutex_unlock(mutex);
  return tl__tls_code(rc);
}

TL_API int tl_tls_cipher(const tl_tls *tls, int index, char *out, size_t capacity) {
  char name[80];
  if (index < 0) return -ENOENT;
  for (int i = 0; i <= index; i++)
    if (!tls->ciphers[i]) return -ENOENT;
  tl__tls_cipher_text(mbedtls_ssl_get_ciphersuite_name(tls->ciphers[index]), name, sizeof name);
  size_t n = strlen(name);
  if (n >= capacity) return -ENOSPC;
  memcpy(out, name, n + 1);
  return (int)n;
}

static int64_t tl__tls_set_versions(tl_tls *tls, const tl_tls_desc *desc) {
  int32_t least = desc->min_version ? desc->min_version : TL_TLS_1_2;
  int32_t most = desc->max_version ? desc->max_version : TL_TLS_1_3;
  if (least < TL_TLS_1_2 || most > TL_TLS_1_3 || least > most) return -EINVAL;
  mbedtls_ssl_conf_min_tls_version(&tls->conf, (mbedtls_ssl_protocol_version)least);
  mbedtls_ssl_conf_max_tls_version(&tls->conf, (mbedtls_ssl_protocol_version)most);
  for (int32_t version = least; version <= most; version++) {
    const int *id = tls->ciphers;
    while (*id && tl__tls_cipher_version(*id) != version) id++;
    if (!*id) return -EINVAL; /* a version that is allowed, but without a cipher */
  }
  return 0;
}

static int64_t tl__tls_set_ciphers(tl_tls *tls, const char *text) {
  size_t count = sizeof tl__tls_ciphers / sizeof *tl__tls_ciphers, used = 0;
  for (const char *p = text; p && *p; p++) count++;
  tls->ciphers = (int *)tl__tls_calloc(count * sizeof(int));
  if (!tls->ciphers) return -ENOMEM;
  if (!text) memcpy(tls->ciphers, tl__tls_ciphers, sizeof tl__tls_ciphers);
  for (size_t n; text && *text; text += n + (text[n] != 0)) {
    n = strcspn(text, ":,");
    int id = tl__tls_cipher_id(text, n);
    if (!id) return -EINVAL;
    tls->ciphers[used++] = id;
  }
  mbedtls_ssl_conf_ciphersuites(&tls->conf, tls->ciphers);
  return 0;
}

static int64_t tl__tls_set_alpn(tl_tls *tls, const char *text) {
  if (!text || !*text) return 0;
  size_t nbytes = strlen(text), used = 0; /* there are fewer protocols than bytes */
  tls->alpn = (char *)tl__tls_copy(text, nbytes);
  tls->protocols = (const char **)tl__tls_calloc((nbytes + 1) * sizeof(char *));
  if (!tls->alpn || !tls->protocols) return -ENOMEM;
  for (size_t begin = 0, end; begin <= nbytes; begin = end + 1) {
    end = begin + strcspn(tls->alpn + begin, ",");
    tls->alpn[end] = 0;
    if (end == begin) return -EINVAL;
    tls->protocols[used++] = tls->alpn + begin;
  }
  int rc = mbedtls_ssl_conf_alpn_protocols(&tls->conf, tls->protocols);
  return rc == MBEDTLS_ERR_SSL_BAD_INPUT_DATA ? -EINVAL : tl__tls_code(rc);
}

static int tl__tls_authmode(const tl_tls *tls) {
  switch (tls->verify) {
    case TL_TLS_VERIFY_OPTIONAL: return MBEDTLS_SSL_VERIFY_OPTIONAL;
    case TL_TLS_VERIFY_REQUIRED: return MBEDTLS_SSL_VERIFY_REQUIRED;
    default: return MBEDTLS_SSL_VERIFY_NONE;
  }
}

static int64_t tl__tls_set_verify(tl_tls *tls, const tl_tls_desc *desc) {
  bool client = tls->role == TL_TLS_CLIENT;
  bool insecure = desc->verify == TL_TLS_INSECURE_NO_VERIFICATION;
  if (desc->verify < 0 || desc->verify > TL_TLS_INSECURE_NO_VERIFICATION || (insecure && !client))
    return -EINVAL;
  /* A client that asks politely asks nothing at all: mbedTLS would go on whatever the answer. */
  tls->verify = client && !insecure ? TL_TLS_VERIFY_REQUIRED : desc->verify;
  mbedtls_ssl_conf_authmode(&tls->conf, tl__tls_authmode(tls));
  if (desc->ca_file) {
    int64_t rc = tl_tls_add_ca_file(tls, desc->ca_file);
    if (rc < 0) return rc;
  }
  return 0;
}

static int tl__tls_name_hook(mbedtls_ssl_context *ssl);

static int64_t tl__tls_set_resumption(tl_tls *tls, const tl_tls_desc *desc) {
  int32_t lifetime = desc->ticket_lifetime_s ? desc->ticket_lifetime_s : TL__TLS_LIFETIME_S;
  bool asks = tls->role == TL_TLS_SERVER && tls->verify != TL_TLS_VERIFY_DEFAULT;
  if (lifetime < 0 || lifetime > 604800) return -EINVAL; /* RFC 8446: seven days */
  tls->resumes = !asks && !(tls->flags & TL_TLS_NO_RESUMPTION);
  if (tls->role == TL_TLS_CLIENT) {
    mbedtls_ssl_conf_session_tickets(&tls->conf, tls->resumes);
#if MBEDTLS_VERSION_MAJOR < 4
    mbedtls_ssl_conf_tls13_enable_signal_new_session_tickets(&tls->conf, tls->resumes);
#endif
    return 0;
  }
  mbedtls_ssl_conf_cert_cb(&tls->conf, tl__tls_name_hook);
  if (!tls->resumes) return 0;
#if MBEDTLS_VERSION_MAJOR >= 4
  int rc = mbedtls_ssl_ticket_setup(&tls->ticket, PSA_ALG_GCM, PSA_KEY_TYPE_AES, 256,
                                    (uint32_t)lifetime);
#else
  int rc = mbedtls_ssl_ticket_setup(&tls->ticket, tl__tls_random, NULL, MBEDTLS_CIPHER_AES_256_GCM,
                                    (uint32_t)lifetime);
#endif
  mbedtls_ssl_conf_session_tickets_cb(&tls->conf, mbedtls_ssl_ticket_write,
                                      mbedtls_ssl_ticket_parse, &tls->ticket);
  mbedtls_ssl_cache_set_timeout(&tls->cache, lifetime);
  mbedtls_ssl_cache_set_max_entries(&tls->cache, TL__TLS_CACHE);
  mbedtls_ssl_conf_session_cache(&tls->conf, &tls->cache, mbedtls_ssl_cache_get,
                                 mbedtls_ssl_cache_set);
  return tl__tls_code(rc);
}

static int64_t tl__tls_configure(tl_tls *tls, const tl_tls_desc *desc) {
  int endpoint = tls->role == TL_TLS_SERVER ? MBEDTLS_SSL_IS_SERVER : MBEDTLS_SSL_IS_CLIENT;
  int rc = psa_crypto_init(); /* once for the process; later calls do nothing, under a lock */
  if (rc == 0)
    rc = mbedtls_ssl_config_defaults(&tls->conf, endpoint, MBEDTLS_SSL_TRANSPORT_STREAM,
                                     MBEDTLS_SSL_PRESET_DEFAULT);
  if (rc != 0) return tl__tls_code(rc);
#if MBEDTLS_VERSION_MAJOR < 4
  mbedtls_ssl_conf_rng(&tls->conf, tl__tls_random, NULL);
#endif
  mbedtls_ssl_conf_sig_algs(&tls->conf, tl__tls_signatures);
  int64_t code = tl__tls_set_ciphers(tls, desc->ciphers);
  if (code == 0) code = tl__tls_set_versions(tls, desc);
  if (code == 0) code = tl__tls_set_alpn(tls, desc->alpn);
  if (code == 0) code = tl__tls_set_verify(tls, desc);
  if (code == 0) code = tl__tls_set_resumption(tls, desc);
  if (code == 0 && desc->cert_file)
    code = tl_tls_add_cert_file(tls, desc->cert_file, desc->key_file, desc->key_password, NULL);
  return code;
}

static tl_tls *tl__tls_context_new(const tl_tls_desc *desc) {
  tl_tls *tls = (tl_tls *)tl__tls_calloc(sizeof *tls);
  if (!tls) return NULL;
  atomic_init(&tls->refs, 1);
  pthread_mutex_init(&tls->sealing, NULL);
  tls->role = desc->role;
  tls->flags = desc->flags;
  tls->on_name = desc->on_name;
  tls->on_keylog = desc->on_keylog;
  tls->user = desc->user;
  tls->handshake_ns =
      desc->handshake_timeout_ns ? desc->handshake_timeout_ns : TL__TLS_HANDSHAKE_NS;
  tls->close_ns = desc->close_timeout_ns ? desc->close_timeout_ns : TL__TLS_CLOSE_NS;
  mbedtls_ssl_config_init(&tls->conf);
  mbedtls_x509_crt_init(&tls->ca);
  mbedtls_x509_crl_init(&tls->crl);
  mbedtls_ssl_ticket_init(&tls->ticket);
  mbedtls_ssl_cache_init(&tls->cache);
  return tls;
}

TL_API tl_tls *tl_tls_create(const tl_tls_desc *desc, int64_t *error) {
  int64_t unused;
  if (!error) error = &unused;
  *error = -EINVAL;
  if (desc->role != TL_TLS_CLIENT && desc->role != TL_TLS_SERVER) return NULL;
  *error = -ENOMEM;
  tl_tls *tls = tl__tls_context_new(desc);
  if (!tls) return NULL;
  *error = tl__tls_configure(tls, desc);
  if (*error == 0) return tls;
  tl__tls_context_free(tls);
  return NULL;
}

static int64_t tl__tls_complete(tl_tls *tls) {
  if (tls->role == TL_TLS_SERVER && !tls->certs) return TL_ETLS_NO_OWN_CERT;
  if (tl__tls_authmode(tls) == MBEDTLS_SSL_VERIFY_NONE) return 0;
  bool system_too = tls->role == TL_TLS_CLIENT && !(tls->flags & TL_TLS_NO_SYSTEM_CA);
  if (!tls->has_ca && !system_too) return TL_ETLS_NO_CA;
  int64_t rc = tls->has_ca ? 0 : tl_tls_add_system_ca(tls);
  bool has_crl = tls->crl.raw.p != NULL;
  mbedtls_ssl_conf_ca_chain(&tls->conf, &tls->ca, has_crl ? &tls->crl : NULL);
  return rc < 0 ? rc : 0;
}

/* Before the first stream: is anything missing? From here on the context is only read, by any
   number of threads. */
static int64_t tl__tls_seal(tl_tls *tls) {
  if (atomic_load(&tls->used)) return 0;
  pthread_mutex_lock(&tls->sealing);
  int64_t rc = atomic_load(&tls->used) ? 0 : tl__tls_complete(tls);
  if (rc == 0) atomic_store(&tls->used, true);
  pthread_mutex_unlock(&tls->sealing);
  return rc;
}

// >>tls-wire

/* mbedTLS asks for the header of a record, then for its body. So encrypted bytes are received into
   the loop's stage, many records at a time, and handed out from there; what is left at the end of
   an event moves to memory of its own. Sent records gather in the wire and leave together. */

static tl__tls *tl__tls_of(const tl__stream *s) { return (tl__tls *)s->layer; }

static tl__tls_shared *tl__tls_shared_of(const tl__tls *t) {
  return (tl__tls_shared *)t->loop->layer_memory;
}

static void tl__tls_drop_kept(tl__tls *t) {
  tl__free(t->loop, t->kept);
  t->kept = NULL;
}

/* One receive per event, as for streams without TLS. */
static void tl__tls_receive(tl__tls *t) {
  tl__tls_shared *shared = tl__tls_shared_of(t);
  if (t->filled || t->eof || t->broken) return;
  t->filled = true;
  ssize_t n = tl__recv(t->loop, t->stream, shared->stage, TL__TLS_STAGE);
  tl__note_received(t->stream, n, TL__TLS_STAGE);
  if (n > 0) {
    t->in = shared->stage;
    t->in_left = (size_t)n;
  } else if (n == 0) {
    t->eof = true;
  } else if (n != -EAGAIN) {
    t->broken = (int)n;
  }
}

static int tl__tls_pull(void *user, unsigned char *out, size_t nbytes) {
  tl__tls *t = (tl__tls *)user;
  if (!t->in_left) {
    tl__tls_drop_kept(t);
    tl__tls_receive(t);
  }
  if (!t->in_left && t->broken) return MBEDTLS_ERR_SSL_INTERNAL_ERROR;
  if (!t->in_left) return t->eof ? 0 : MBEDTLS_ERR_SSL_WANT_READ;
  if (nbytes > t->in_left) nbytes = t->in_left;
  memcpy(out, t->in, nbytes);
  t->in += nbytes;
  t->in_left -= nbytes;
  return (int)nbytes;
}

/* Send or queue what has gathered. After an error the stream is broken. */
static int tl__tls_flush(tl__tls *t) {
  tl__tls_shared *shared = tl__tls_shared_of(t);
  tl_buf buf = {shared->wire + TL__TLS_LEAD, shared->wire_used};
  shared->wire_used = 0;
  if (t->broken) return t->broken;
  if (!buf.nbytes) return 0;
  int64_t rc = t->stream->error ? t->stream->error : tl__write_one(t->loop, t->stream, &buf);
  if (rc < 0) t->broken = (int)rc;
  return t->broken;
}

static int tl__tls_push(void *user, const unsigned char *data, size_t nbytes) {
  tl__tls *t = (tl__tls *)user;
  tl__tls_shared *shared = tl__tls_shared_of(t);
  if (nbytes > TL__TLS_WIRE - shared->wire_used && tl__tls_flush(t) < 0)
    return MBEDTLS_ERR_SSL_INTERNAL_ERROR;
  unsigned char *end = shared->wire + TL__TLS_LEAD + shared->wire_used;
  if (data != end) memcpy(end, data, nbytes); /* else see tl__tls_aim */
  shared->wire_used += nbytes;
  t->spoke = true;
  return (int)nbytes;
}

static bool tl__tls_holds(tl__tls *t) {
  return t->in_left || (t->state == TL__TLS_OPEN && mbedtls_ssl_get_bytes_avail(&t->ssl));
}

/* End of an event: keep what mbedTLS has not taken, and come back for it. -ENOMEM breaks the
   stream. */
static int tl__tls_settle(tl__tls *t) {
  tl__stream *s = t->stream;
  t->filled = false;
  if (t->in_left && !t->kept) {
    t->kept = (unsigned char *)tl__alloc(t->loop, t->in_left);
    if (!t->kept) return -ENOMEM;
    memcpy(t->kept, t->in, t->in_left);
    t->in = t->kept;
  }
  if (!t->in_left) tl__tls_drop_kept(t);
  if (!s->edge && !s->received) s->io.ready = (uint8_t)(s->io.ready & ~TL_READ);
  if (tl__tls_holds(t) || t->end != 1 || t->eof) s->io.ready |= TL_READ;
  tl__come_back(t->loop, &s->io);
  return 0;
}

// >>tls-buffers

/* mbedTLS gives each connection 33 KB to decrypt and encrypt in, where next to nothing stays
   between events. So once their handshakes are over, the connections of a loop take turns with one
   such pair, which stays in the cache. What mbedTLS has to find again goes with the connection: the
   number of the next record, at the front, and whatever it has of a record not yet whole or
   not yet read. Writing leaves nothing. */

#if MBEDTLS_VERSION_MAJOR < 4 && !defined(MBEDTLS_SSL_VARIABLE_BUFFER_LENGTH)

/* Into another buffer: what points into the present one, up to a NULL, and the pointer to that. */
static void tl__tls_move(unsigned char **buffer, unsigned char **const *places, unsigned char *to) {
  for (; *places; places++)
    if (**places) **places = to + (**places - *buffer);
  *buffer = to;
}

/* A connection's own buffer, of which nbytes may be secret. */
static void tl__tls_give_up(unsigned char *buffer, size_t nbytes) {
  mbedtls_platform_zeroize(buffer, nbytes);
  mbedtls_free(buffer);
}

static void tl__tls_move_in(mbedtls_ssl_context *ssl, unsigned char *to) {
  unsigned char **const places[] = {&ssl->MBEDTLS_PRIVATE(in_ctr),
                                    &ssl->MBEDTLS_PRIVATE(in_hdr),
                                    &ssl->MBEDTLS_PRIVATE(in_len),
                                    &ssl->MBEDTLS_PRIVATE(in_iv),
                                    &ssl->MBEDTLS_PRIVATE(in_msg),
                                    &ssl->MBEDTLS_PRIVATE(in_offt),
#if defined(MBEDTLS_SSL_DTLS_CONNECTION_ID)
                                    &ssl->MBEDTLS_PRIVATE(in_cid),
#endif
                                    NULL};
  tl__tls_move(&ssl->MBEDTLS_PRIVATE(in_buf), places, to);
}

/* But for out_ctr: mbedTLS only writes there. */
static void tl__tls_move_out(mbedtls_ssl_context *ssl, unsigned char *to) {
  unsigned char **const places[] = {&ssl->MBEDTLS_PRIVATE(out_hdr),
                                    &ssl->MBEDTLS_PRIVATE(out_len),
                                    &ssl->MBEDTLS_PRIVATE(out_iv),
                                    &ssl->MBEDTLS_PRIVATE(out_msg),
#if defined(MBEDTLS_SSL_DTLS_CONNECTION_ID)
                                    &ssl->MBEDTLS_PRIVATE(out_cid),
#endif
                                    NULL};
  tl__tls_move(&ssl->MBEDTLS_PRIVATE(out_buf), places, to);
}

/* How much of the buffer mbedTLS has to find again: encrypted bytes of a record, a message or what
   is left of it. */
static size_t tl__tls_used(const mbedtls_ssl_context *ssl) {
  const unsigned char *message = ssl->MBEDTLS_PRIVATE(in_msg);
  const unsigned char *end = ssl->MBEDTLS_PRIVATE(in_hdr) + ssl->MBEDTLS_PRIVATE(in_left);
  if (ssl->MBEDTLS_PRIVATE(in_offt)) message = ssl->MBEDTLS_PRIVATE(in_offt);
  if (ssl->MBEDTLS_PRIVATE(in_msglen) && message + ssl->MBEDTLS_PRIVATE(in_msglen) > end)
    end = message + ssl->MBEDTLS_PRIVATE(in_msglen);
  return (size_t)(end - ssl->MBEDTLS_PRIVATE(in_buf));
}

/* Before reading. */
static void tl__tls_enter(tl__tls *t) {
  if (!t->shares) return;
  memcpy(tl__tls_shared_of(t)->in, t->part ? t->part : t->number, t->part_nbytes);
  tl__free(t->loop, t->part);
  t->part = NULL;
}

/* After reading. -ENOMEM: the connection cannot go on. */
static int tl__tls_leave(tl__tls *t) {
  if (!t->shares) return 0;
  size_t nbytes = tl__tls_used(&t->ssl);
  if (nbytes > sizeof t->number) {
    t->part_nbytes = 0;
    t->part = (unsigned char *)tl__alloc(t->loop, nbytes);
    if (!t->part) return -ENOMEM;
  }
  t->part_nbytes = nbytes;
  memcpy(t->part ? t->part : t->number, tl__tls_shared_of(t)->in, nbytes);
  return 0;
}

/* After the handshake. */
static int tl__tls_share(tl__tls *t) {
  tl__tls_shared *shared = tl__tls_shared_of(t);
  unsigned char *in = t->ssl.MBEDTLS_PRIVATE(in_buf), *out = t->ssl.MBEDTLS_PRIVATE(out_buf);
  memcpy(shared->in, in, tl__tls_used(&t->ssl));
  tl__tls_move_in(&t->ssl, shared->in);
  tl__tls_move_out(&t->ssl, shared->out);
  t->ssl.MBEDTLS_PRIVATE(out_ctr) = shared->out;
  tl__tls_give_up(in, MBEDTLS_SSL_IN_CONTENT_LEN);
  tl__tls_give_up(out, MBEDTLS_SSL_OUT_CONTENT_LEN);
  t->shares = true;
  return tl__tls_leave(t);
}

/* Before encrypting: the next record is made where it is sent from. Only one, and no other kind:
   what mbedTLS has to say by itself is made in the shared buffer, and copied. */
static void tl__tls_aim(tl__tls *t) {
  tl__tls_shared *shared = tl__tls_shared_of(t);
  if (!t->shares || t->ssl.MBEDTLS_PRIVATE(state) != MBEDTLS_SSL_HANDSHAKE_OVER) return;
  if (TL__TLS_WIRE - shared->wire_used < TL__TLS_OUT) (void)tl__tls_flush(t);
  tl__tls_move_out(&t->ssl, shared->wire + shared->wire_used);
}

static void tl__tls_aim_back(tl__tls *t) {
  if (t->shares) tl__tls_move_out(&t->ssl, tl__tls_shared_of(t)->out);
}

static void tl__tls_unshare(tl__tls *t) {
  tl__free(t->loop, t->part);
  if (t->shares) t->ssl.MBEDTLS_PRIVATE(in_buf) = t->ssl.MBEDTLS_PRIVATE(out_buf) = NULL;
}

#else
static void tl__tls_enter(tl__tls *t) { (void)t; }
static void tl__tls_aim(tl__tls *t) { (void)t; }
static void tl__tls_aim_back(tl__tls *t) { (void)t; }
static void tl__tls_unshare(tl__tls *t) { (void)t; }
static int tl__tls_leave(tl__tls *t) { return (void)t, 0; }
static int tl__tls_share(tl__tls *t) { return (void)t, 0; }
#endif

// >>tls-handshake

static int32_t tl__tls_fatal_alert(const tl__tls *t) {
#if MBEDTLS_VERSION_MAJOR >= 4
  return mbedtls_ssl_get_fatal_alert(&t->ssl);
#else
  return t->ssl.MBEDTLS_PRIVATE(in_msg)[1];
#endif
}

/* A TLS 1.3 client that refuses the server's certificate may say so without encryption, as OpenSSL
   does; mbedTLS takes that for a damaged record. Type, version, length, level, alert. */
static bool tl__tls_is_plain_alert(const tl__tls *t, int rc) {
  static const unsigned char start[] = {21, 3, 3, 0, 2, MBEDTLS_SSL_ALERT_LEVEL_FATAL};
  return rc == MBEDTLS_ERR_SSL_INVALID_MAC && t->state == TL__TLS_SHAKES &&
         memcmp(t->ssl.MBEDTLS_PRIVATE(in_hdr), start, sizeof start) == 0;
}

/* Why mbedTLS gave up, as one of our codes. */
static int64_t tl__tls_failure(tl__tls *t, int rc) {
  bool plain = tl__tls_is_plain_alert(t, rc);
  if (t->broken) return t->broken;
  if (plain || rc == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE) {
    t->alert = plain ? t->ssl.MBEDTLS_PRIVATE(in_hdr)[6] : tl__tls_fatal_alert(t);
    t->refused_by = TL_TLS_BY_PEER;
    return TL_EALERT - t->alert;
  }
  if (rc != MBEDTLS_ERR_SSL_CONN_EOF) t->refused_by = TL_TLS_BY_US;
  uint32_t flags = mbedtls_ssl_get_verify_result(&t->ssl);
  if ((rc == MBEDTLS_ERR_X509_CERT_VERIFY_FAILED || rc == MBEDTLS_ERR_SSL_BAD_CERTIFICATE) &&
      flags && flags != UINT32_MAX)
    return TL_EVERIFY - (int64_t)flags;
  return tl__tls_code(rc);
}

static void tl__tls_break(tl__tls *t, int64_t code) {
  (void)tl__tls_flush(t); /* the alert */
  t->end = code;
  t->state = TL__TLS_FAILED;
  t->stream->internal = false;
  tl__heap_remove(t->loop, &t->deadline);
  if (!t->stream->error) tl__stream_break(t->loop, t->stream, (int)code);
}

static void tl__tls_alert(tl__tls *t, unsigned char alert) {
  (void)mbedtls_ssl_send_alert_message(&t->ssl, MBEDTLS_SSL_ALERT_LEVEL_FATAL, alert);
}

/* mbedTLS does not always tell the peer why it gives up: then we do. */
static void tl__tls_explain(tl__tls *t, int rc) {
  if (t->spoke || t->broken || rc == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE ||
      rc == MBEDTLS_ERR_SSL_CONN_EOF)
    return;
  if (rc == MBEDTLS_ERR_SSL_UNEXPECTED_MESSAGE)
    tl__tls_alert(t, MBEDTLS_SSL_ALERT_MSG_UNEXPECTED_MESSAGE);
  else if (rc == MBEDTLS_ERR_SSL_UNRECOGNIZED_NAME)
    tl__tls_alert(t, MBEDTLS_SSL_ALERT_MSG_UNRECOGNIZED_NAME);
  else if (tl__tls_code(rc) == -ENOMEM)
    tl__tls_alert(t, MBEDTLS_SSL_ALERT_MSG_INTERNAL_ERROR);
  else
    tl__tls_alert(t, MBEDTLS_SSL_ALERT_MSG_HANDSHAKE_FAILURE);
}

/* mbedTLS accepts a bad certificate where none is required. We do not. */
static int tl__tls_check_optional(tl__tls *t) {
  const tl_tls *rules = t->other ? t->other : t->context;
  if (rules->verify != TL_TLS_VERIFY_OPTIONAL) return 0;
  uint32_t flags = mbedtls_ssl_get_verify_result(&t->ssl);
  if (flags == UINT32_MAX || !(flags & ~(uint32_t)(TL_TLS_BAD_MISSING | 128))) return 0;
  tl__tls_alert(t, flags & TL_TLS_BAD_UNTRUSTED ? MBEDTLS_SSL_ALERT_MSG_UNKNOWN_CA
                                                : MBEDTLS_SSL_ALERT_MSG_BAD_CERT);
  return MBEDTLS_ERR_X509_CERT_VERIFY_FAILED;
}

static int tl__tls_step_of(const tl__tls *t) { return t->ssl.MBEDTLS_PRIVATE(state); }

static void tl__tls_set_out(tl__tls *t, mbedtls_ssl_transform *transform) {
  t->ssl.MBEDTLS_PRIVATE(transform_out) = transform;
  memset(t->ssl.MBEDTLS_PRIVATE(cur_out_ctr), 0, sizeof t->ssl.MBEDTLS_PRIVATE(cur_out_ctr));
}

/* In TLS 1.3 mbedTLS changes the keys by which it sends when it has something to send. An alert
   before that would go out under keys that the peer has left (their issue 10877): it would read
   "bad record" instead of the reason. So a server moves on once it has sent its last message, and a
   client has its keys in hand while it reads the server's. */
static int tl__tls_step(tl__tls *t) {
  mbedtls_ssl_context *ssl = &t->ssl;
  int step = tl__tls_step_of(t);
  bool tls13 = mbedtls_ssl_get_version_number(ssl) == MBEDTLS_SSL_VERSION_TLS1_3;
  bool client = t->context->role == TL_TLS_CLIENT;
  mbedtls_ssl_transform *last = ssl->MBEDTLS_PRIVATE(transform_application);
  bool lent = tls13 && client && !ssl->MBEDTLS_PRIVATE(transform_out) &&
              step != MBEDTLS_SSL_CLIENT_CCS_AFTER_SERVER_FINISHED &&
              step != MBEDTLS_SSL_CLIENT_CERTIFICATE;
  if (lent) tl__tls_set_out(t, ssl->MBEDTLS_PRIVATE(transform_in));
  if (tls13 && !client && last && ssl->MBEDTLS_PRIVATE(transform_out) != last)
    tl__tls_set_out(t, last);
  t->spoke = false;
  int rc = mbedtls_ssl_handshake_step(ssl);
  if (rc != 0 && rc != MBEDTLS_ERR_SSL_WANT_READ) tl__tls_explain(t, rc);
  if (lent && (rc == 0 || rc == MBEDTLS_ERR_SSL_WANT_READ)) tl__tls_set_out(t, NULL);
  return rc;
}

/* Step by step, for mbedTLS does not tell whether a session was resumed: only in a full handshake
   does the server come to its certificate. A server's last steps send tickets, when mbedTLS calls
   the handshake over already. */
static int tl__tls_steps(tl__tls *t) {
  int rc = 0;
  while (rc == 0 && tl__tls_step_of(t) != MBEDTLS_SSL_HANDSHAKE_OVER) {
    rc = tl__tls_step(t);
    t->full |= tl__tls_step_of(t) == MBEDTLS_SSL_SERVER_CERTIFICATE;
    if (rc == 0) rc = tl__tls_check_optional(t);
  }
  return rc;
}

/* Sessions of one server name must not open another that asks for certificates. */
static bool tl__tls_must_not_resume(const tl__tls *t) {
  return !t->full && t->other && tl__tls_authmode(t->other) != MBEDTLS_SSL_VERIFY_NONE;
}

static int tl__tls_established(tl__tls *t) {
  tl__stream *s = t->stream;
  t->state = TL__TLS_OPEN;
  tl__heap_remove(t->loop, &t->deadline);
  s->internal = false;
  if (!s->reading) tl__unwant(&s->io, TL_READ);
  return tl__tls_share(t);
}

static void tl__tls_free(tl_loop *loop, tl__stream *s);

static bool tl__tls_handshake(tl_loop *loop, tl__stream *s, tl_event *ev) {
  tl__tls *t = tl__tls_of(s);
  t->in_callback = true; /* on_name may close the stream */
  int rc = t->is_due ? 0 : tl__tls_steps(t);
  t->in_callback = false;
  if (s->io.head.closing) {
    tl__tls_shared_of(t)->wire_used = 0;
    tl__tls_free(loop, s);
    return false;
  }
  int64_t code = t->is_due ? -ETIMEDOUT : 0;
  bool waits = rc == MBEDTLS_ERR_SSL_WANT_READ || rc == MBEDTLS_ERR_SSL_WANT_WRITE;
  if (rc == 0 && !code && tl__tls_must_not_resume(t)) {
    tl__tls_alert(t, MBEDTLS_SSL_ALERT_MSG_HANDSHAKE_FAILURE);
    rc = MBEDTLS_ERR_SSL_BAD_CERTIFICATE;
  }
  if (rc != 0 && !waits) code = tl__tls_failure(t, rc);
  if (!code) code = tl__tls_flush(t);
  if (!code && !waits) code = tl__tls_established(t);
  if (!code) code = tl__tls_settle(t);
  if (!code && waits) return false;
  if (code) tl__tls_break(t, code);
  *ev = (tl_event){s->io.head.id, TL_EV_TLS, code, 0};
  return true;
}

// >>tls-input

static void tl__tls_ended(tl__tls *t, int rc) {
  t->end = 0;
  if (rc == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY) return;
  tl__tls_explain(t, rc);
  t->end = tl__tls_failure(t, rc);
}

/* Calls that bring nothing, though more may be there. A ticket of TLS 1.3 costs two: the first
   finds it and answers as if bytes were missing, the second takes it; without that the next write
   would, and fail. Two empty records in a row look like the end; mbedTLS refuses the fourth. */
static bool tl__tls_goes_on(const tl__tls *t, int rc) {
  if (rc == 0) return t->in_left || !t->eof;
  return rc == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET ||
         (rc == MBEDTLS_ERR_SSL_WANT_READ && tl__tls_step_of(t) != MBEDTLS_SSL_HANDSHAKE_OVER);
}

/* Decrypt into out. Returns bytes, 0 at the peer's close_notify, -EAGAIN, or what ended it. */
static int64_t tl__tls_take(tl__tls *t, unsigned char *out, size_t room) {
  size_t total = 0;
  t->spoke = false;
  tl__tls_enter(t);
  while (t->end == 1 && total < room) {
    int rc = mbedtls_ssl_read(&t->ssl, out + total, room - total);
    /* Reading makes mbedTLS write only to refuse a renegotiation. Who asks again and again would
       fill our queue, so nobody may ask. */
    if (t->spoke && (rc > 0 || rc == MBEDTLS_ERR_SSL_WANT_READ))
      rc = MBEDTLS_ERR_SSL_UNEXPECTED_MESSAGE;
    if (rc > 0)
      total += (size_t)rc;
    else if (tl__tls_goes_on(t, rc))
      continue;
    else if (rc == MBEDTLS_ERR_SSL_WANT_READ || rc == MBEDTLS_ERR_SSL_WANT_WRITE)
      break;
    else
      tl__tls_ended(t, rc ? rc : MBEDTLS_ERR_SSL_CONN_EOF);
  }
  int left = tl__tls_leave(t), code = tl__tls_flush(t);
  if (code == 0) code = tl__tls_settle(t);
  if (code == 0) code = left;
  if (code < 0 && t->end == 1) t->end = code;
  if (total) return (int64_t)total;
  return t->end == 1 ? -EAGAIN : t->end;
}

static int64_t tl__tls_recv(tl_loop *loop, tl__stream *s, void *buffer, size_t nbytes) {
  tl__tls *t = tl__tls_of(s);
  (void)loop;
  if (t->state != TL__TLS_OPEN) return -ENOTCONN;
  if (!nbytes) return 0;
  int64_t n = tl__tls_take(t, (unsigned char *)buffer, nbytes);
  if (n == 0) tl__unwant(&s->io, TL_READ);
  if (n < 0 && n != -EAGAIN) tl__tls_break(t, n);
  return n;
}

static bool tl__tls_data(tl_loop *loop, tl__stream *s, tl_event *ev) {
  tl__tls *t = tl__tls_of(s);
  size_t offset = loop->arena_used;
  int64_t n = tl__tls_take(t, loop->arena + offset, TL_ARENA_BYTES - offset);
  if (n == -EAGAIN) return false;
  if (n > 0) {
    loop->arena_used = offset + tl__arena_round((size_t)n);
    *ev = (tl_event){s->io.head.id, TL_EV_DATA, n, (int64_t)offset};
  } else if (n == 0) {
    tl__unwant(&s->io, TL_READ);
    *ev = (tl_event){s->io.head.id, TL_EV_EOF, 0, 0};
  } else {
    tl__tls_break(t, n);
    *ev = (tl_event){s->io.head.id, TL_EV_ERROR, n, TL_READ};
  }
  return true;
}

// >>tls-close

static void tl__tls_finish(tl__tls *t, int64_t result) {
  t->stream->io.head.close_result = (int)result;
  (void)tl_close(t->loop, t->stream->io.head.id);
}

/* Everything is sent; has the peer ended, too? */
static bool tl__tls_is_over(const tl__tls *t) {
  return !t->stream->first && (t->end != 1 || t->eof);
}

/* A graceful close: what still comes is thrown away, until the peer ends. */
static void tl__tls_drain(tl_loop *loop, tl__stream *s) {
  tl__tls *t = tl__tls_of(s);
  size_t offset = loop->arena_used;
  int64_t left = s->flow.queued;
  if (t->is_due && left >= t->queued) {
    tl__tls_finish(t, -ETIMEDOUT);
    return;
  }
  if (t->is_due) { /* slow, but it takes what we send */
    t->is_due = false;
    t->queued = left;
    (void)tl__heap_insert(loop, &t->deadline, tl__add_clamped(loop->now_ns, t->close_ns));
  }
  int64_t n = tl__tls_take(t, loop->arena + offset, TL_ARENA_BYTES - offset);
  if (t->broken)
    tl__tls_finish(t, left ? t->broken : 0);
  else if (tl__tls_is_over(t))
    tl__tls_finish(t, 0);
  else if (n <= 0 && n != -EAGAIN)
    tl__unwant(&s->io, TL_READ); /* the queue is still being sent */
}

/* After close_notify nothing of ours follows: the peer may see it twice. */
static void tl__tls_emptied(tl_loop *loop, tl__stream *s) {
  tl__tls *t = tl__tls_of(s);
  (void)loop;
  if (!s->finishing) return;
  shutdown(s->io.fd, SHUT_WR);
  if (tl__tls_is_over(t)) tl__tls_finish(t, 0);
}

static int tl__tls_say_end(tl__tls *t) {
  if (t->said_end) return 0;
  t->said_end = true;
  int rc = mbedtls_ssl_close_notify(&t->ssl);
  int64_t code = rc ? tl__tls_code(rc) : 0;
  int sent = tl__tls_flush(t);
  return code ? (int)code : sent;
}

static int tl__tls_shutdown(tl_loop *loop, tl__stream *s) {
  tl__tls *t = tl__tls_of(s);
  (void)loop;
  if (t->state != TL__TLS_OPEN) return -ENOTCONN;
  int rc = tl__tls_say_end(t);
  if (rc == 0) s->shut = true;
  return rc;
}

static int tl__tls_close(tl_loop *loop, tl__stream *s) {
  tl__tls *t = tl__tls_of(s);
  int rc = t->state == TL__TLS_OPEN ? tl__tls_say_end(t) : 0;
  if (t->state != TL__TLS_OPEN || rc < 0 || tl__tls_is_over(t)) {
    s->io.head.close_result = rc;
    return tl_close(loop, s->io.head.id);
  }
  s->finishing = s->internal = true;
  t->queued = s->flow.queued;
  int64_t until_ns = tl__add_clamped(tl__clock(loop), t->close_ns); /* encrypting takes time */
  rc = t->close_ns < 0 ? 0 : tl__heap_insert(loop, &t->deadline, until_ns);
  if (rc == 0) rc = tl__want(loop, &s->io, TL_READ);
  if (rc < 0) return tl_close(loop, s->io.head.id);
  if (!s->first) shutdown(s->io.fd, SHUT_WR);
  return 0;
}

static void tl__tls_cut(tl__stream *s) { tl__tls_of(s)->said_end = s->shut = true; }

// >>tls-output

static int64_t tl__tls_encrypt(tl__tls *t, const unsigned char *data, size_t nbytes) {
  while (nbytes) {
    tl__tls_aim(t);
    int rc = mbedtls_ssl_write(&t->ssl, data, nbytes);
    tl__tls_aim_back(t);
    if (rc <= 0)
      return t->broken ? t->broken : tl__tls_code(rc ? rc : MBEDTLS_ERR_SSL_INTERNAL_ERROR);
    data += rc;
    nbytes -= (size_t)rc;
  }
  return 0;
}

/* Small buffers share records. */
static int64_t tl__tls_encrypt_all(tl__tls *t, const tl_buf *bufs, int count) {
  unsigned char *gather = tl__tls_shared_of(t)->gather;
  size_t used = 0;
  int64_t rc = 0;
  for (int i = 0; i < count && rc == 0; i++) {
    const unsigned char *data = (const unsigned char *)bufs[i].data;
    size_t left = bufs[i].nbytes;
    while (left && rc == 0) {
      size_t n = TL__TLS_RECORD - used < left ? TL__TLS_RECORD - used : left;
      memcpy(gather + used, data, n);
      used += n, data += n, left -= n;
      if (used == TL__TLS_RECORD) rc = tl__tls_encrypt(t, gather, used), used = 0;
    }
  }
  return rc == 0 ? tl__tls_encrypt(t, gather, used) : rc;
}

static int64_t tl__tls_write(tl_loop *loop, tl__stream *s, const tl_buf *bufs, int count) {
  tl__tls *t = tl__tls_of(s);
  (void)loop;
  if (t->state != TL__TLS_OPEN) return -ENOTCONN;
  int64_t rc = count == 1 ? tl__tls_encrypt(t, (const unsigned char *)bufs->data, bufs->nbytes)
                          : tl__tls_encrypt_all(t, bufs, count);
  int sent = tl__tls_flush(t);
  if (rc == 0) rc = sent;
  if (rc == 0) return s->flow.queued;
  tl__tls_break(t, rc);
  return rc;
}

// >>tls-attach

static bool tl__tls_input(tl_loop *loop, tl__stream *s, tl_event *ev) {
  tl__tls *t = tl__tls_of(s);
  if (t->state == TL__TLS_SHAKES) return tl__tls_handshake(loop, s, ev);
  if (s->finishing) {
    tl__tls_drain(loop, s);
    return false;
  }
  if (!s->notify) return tl__tls_data(loop, s, ev);
  *ev = (tl_event){s->io.head.id, TL_EV_READABLE, 0, 0};
  return true;
}

/* The deadline of the handshake or of the close: input, which may make an event, looks at it. */
static void tl__tls_due(tl_loop *loop, tl__stream *s) {
  if (s->error) return;
  tl__tls_of(s)->is_due = true;
  s->io.ready |= TL_READ;
  s->io.want |= TL_READ;
  if (tl__linked(&s->io.again)) tl__unlink(&s->io.again);
  tl__link_last(&loop->rereads, &s->io.again);
}

static int tl__tls_begin(tl_loop *loop, tl__stream *s) {
  tl__tls *t = tl__tls_of(s);
  int64_t until_ns = tl__add_clamped(tl__clock(loop), t->handshake_ns);
  int rc = t->handshake_ns < 0 ? 0 : tl__heap_insert(loop, &t->deadline, until_ns);
  t->state = TL__TLS_SHAKES;
  s->internal = true;
  /* A client has to speak first, and bytes may have been received already. */
  s->io.ready |= TL_READ;
  return rc < 0 ? rc : tl__want(loop, &s->io, TL_READ);
}

static void tl__tls_delete(tl__tls *t) {
  tl_loop *loop = t->loop;
  tl__heap_remove(loop, &t->deadline);
  tl__tls_unshare(t);
  mbedtls_ssl_free(&t->ssl);
  tl_tls_session_release(t->session);
  tl__tls_free_text(t->hostname);
  tl__tls_drop_kept(t);
  tl_tls_release(t->other);
  tl_tls_release(t->context);
  tl__free(loop, t);
}

static void tl__tls_free(tl_loop *loop, tl__stream *s) {
  tl__tls *t = tl__tls_of(s);
  (void)loop;
  tl__heap_remove(loop, &t->deadline);
  if (t->in_callback) return; /* tl__tls_handshake does it when mbedTLS has returned */
  s->layer = NULL;
  tl__tls_delete(t);
}

static const tl__layer_ops tl__tls_ops = {
    .begin = tl__tls_begin,
    .input = tl__tls_input,
    .recv = tl__tls_recv,
    .write = tl__tls_write,
    .shutdown = tl__tls_shutdown,
    .close = tl__tls_close,
    .emptied = tl__tls_emptied,
    .cut = tl__tls_cut,
    .due = tl__tls_due,
    .free = tl__tls_free,
};

/* The name is checked by mbedTLS; an address by us, since mbedTLS would also ask the server for it
   as a name, which RFC 6066 forbids. */
static bool tl__tls_has_ip(const mbedtls_x509_crt *crt, const unsigned char *ip, size_t nbytes) {
  for (const mbedtls_x509_sequence *at = &crt->subject_alt_names; at; at = at->next) {
    mbedtls_x509_subject_alternative_name san;
    if (!at->buf.p || mbedtls_x509_parse_subject_alt_name(&at->buf, &san) != 0) continue;
    const mbedtls_x509_buf *value = &san.san.unstructured_name;
    bool same = san.type == MBEDTLS_X509_SAN_IP_ADDRESS && value->len == nbytes &&
                memcmp(value->p, ip, nbytes) == 0;
    mbedtls_x509_free_subject_alt_name(&san);
    if (same) return true;
  }
  return false;
}

/* mbedTLS takes a list that is not there for one that is empty. */
static bool tl__tls_has_crl(const tl_tls *rules, const mbedtls_x509_crt *crt) {
  for (const mbedtls_x509_crl *crl = &rules->crl; crl && crl->raw.p; crl = crl->next)
    if (crl->issuer_raw.len == crt->issuer_raw.len &&
        memcmp(crl->issuer_raw.p, crt->issuer_raw.p, crt->issuer_raw.len) == 0)
      return true;
  return false;
}

static int tl__tls_verify_hook(void *user, mbedtls_x509_crt *crt, int depth, uint32_t *flags) {
  const tl__tls *t = (const tl__tls *)user;
  const tl_tls *rules = t->other ? t->other : t->context;
  int needs = depth > 0 ? TL_TLS_CRL_CHAIN : TL_TLS_CRL_LEAF | TL_TLS_CRL_CHAIN;
  if ((rules->flags & needs) && !tl__tls_has_crl(rules, crt)) *flags |= TL_TLS_BAD_NO_CRL;
  if (depth > 0) return 0;
  if (t->context->flags & TL_TLS_INSECURE_NO_HOSTNAME)
    *flags &= ~(uint32_t)TL_TLS_BAD_NAME;
  else if (t->ip_nbytes && !tl__tls_has_ip(crt, t->ip, t->ip_nbytes))
    *flags |= TL_TLS_BAD_NAME;
  return 0;
}

static const char *tl__tls_key_label(mbedtls_ssl_key_export_type type) {
  switch (type) {
    case MBEDTLS_SSL_KEY_EXPORT_TLS12_MASTER_SECRET: return "CLIENT_RANDOM";
    case MBEDTLS_SSL_KEY_EXPORT_TLS1_3_CLIENT_HANDSHAKE_TRAFFIC_SECRET:
      return "CLIENT_HANDSHAKE_TRAFFIC_SECRET";
    case MBEDTLS_SSL_KEY_EXPORT_TLS1_3_SERVER_HANDSHAKE_TRAFFIC_SECRET:
      return "SERVER_HANDSHAKE_TRAFFIC_SECRET";
    case MBEDTLS_SSL_KEY_EXPORT_TLS1_3_CLIENT_APPLICATION_TRAFFIC_SECRET:
      return "CLIENT_TRAFFIC_SECRET_0";
    case MBEDTLS_SSL_KEY_EXPORT_TLS1_3_SERVER_APPLICATION_TRAFFIC_SECRET:
      return "SERVER_TRAFFIC_SECRET_0";
    default: return NULL;
  }
}

static char *tl__tls_hex(char *out, const unsigned char *data, size_t nbytes) {
  static const char digits[] = "0123456789abcdef";
  for (size_t i = 0; i < nbytes; i++) {
    *out++ = digits[data[i] >> 4];
    *out++ = digits[data[i] & 15];
  }
  return out;
}

static void tl__tls_keylog_hook(void *user, mbedtls_ssl_key_export_type type,
                                const unsigned char *secret, size_t nbytes,
                                const unsigned char client_random[32],
                                const unsigned char server_random[32], mbedtls_tls_prf_types prf) {
  const tl__tls *t = (const tl__tls *)user;
  const char *label = tl__tls_key_label(type);
  char line[64 + 64 + 2 * 64 + 4];
  (void)server_random, (void)prf;
  if (!label || nbytes > 64) return;
  char *at = line + snprintf(line, 64, "%s ", label);
  at = tl__tls_hex(at, client_random, 32);
  *at++ = ' ';
  *tl__tls_hex(at, secret, nbytes) = 0;
  t->context->on_keylog(line, t->context->user);
  tl__tls_wipe(line, sizeof line);
}

static int tl__tls_use_certs(tl__tls *t, const tl_tls *from, const char *name) {
  for (tl__tls_cert *own = from->certs; own; own = own->next) {
    bool wanted = name ? own->names && tl__tls_has_name(own->names, name) : !own->names;
    int rc = wanted ? mbedtls_ssl_set_hs_own_cert(&t->ssl, &own->chain, &own->key) : 0;
    if (rc != 0) return rc;
  }
  return 0;
}

static bool tl__tls_knows(const tl_tls *tls, const char *name) {
  for (const tl__tls_cert *own = tls->certs; own; own = own->next)
    if (name ? own->names && tl__tls_has_name(own->names, name) : !own->names) return true;
  return false;
}

static int tl__tls_choose(tl__tls *t, const char *name) {
  const tl_tls *tls = t->context;
  if (tls->on_name && tls->on_name(t->loop, t->stream->io.head.id, name, tls->user) != 0)
    return MBEDTLS_ERR_SSL_UNRECOGNIZED_NAME;
  if (t->other) tls = t->other;
  bool named = tl__tls_knows(tls, name);
  if (!named && !tl__tls_knows(tls, NULL)) return MBEDTLS_ERR_SSL_UNRECOGNIZED_NAME;
  return named || t->other ? tl__tls_use_certs(t, tls, named ? name : NULL) : 0;
}

/* Called when the ClientHello has been read, whether it has a name or not. */
static int tl__tls_name_hook(mbedtls_ssl_context *ssl) {
  tl__tls *t = (tl__tls *)mbedtls_ssl_get_user_data_p(ssl);
  char name[256] = "";
  size_t nbytes = 0;
  const unsigned char *sent = mbedtls_ssl_get_hs_sni(ssl, &nbytes);
  int rc = nbytes >= sizeof name || (sent && memchr(sent, 0, nbytes))
               ? MBEDTLS_ERR_SSL_UNRECOGNIZED_NAME
               : 0;
  if (rc == 0 && sent) memcpy(name, sent, nbytes);
  tl__tls_lower(name);
  if (rc == 0) rc = tl__tls_choose(t, name);
  return rc;
}

static int32_t tl__tls_verified(const tl_tls *tls) {
  if (tls->verify != TL_TLS_VERIFY_REQUIRED) return 0;
  return tls->flags & TL_TLS_INSECURE_NO_HOSTNAME ? 1 : 2;
}

/* Whom the client wants to reach, without the final dot of an absolute name. */
static int64_t tl__tls_set_hostname(tl__tls *t, const char *hostname) {
  if (!hostname && tl__tls_verified(t->context) == 2) return TL_ETLS_NO_NAME;
  if (!hostname) return mbedtls_ssl_set_hostname(&t->ssl, NULL);
  size_t nbytes = strlen(hostname);
  if (nbytes && hostname[nbytes - 1] == '.') nbytes--;
  if (!nbytes || nbytes > 253) return -EINVAL;
  t->hostname = (char *)tl__tls_copy(hostname, nbytes);
  if (!t->hostname) return -ENOMEM;
  tl__tls_lower(t->hostname);
  t->ip_nbytes = (uint8_t)tl__tls_ip(t->hostname, t->ip);
  return tl__tls_code(mbedtls_ssl_set_hostname(&t->ssl, t->ip_nbytes ? NULL : t->hostname));
}

static int64_t tl__tls_set_session(tl__tls *t, tl_tls_session *session) {
  const char *own = t->hostname ? t->hostname : "";
  if (!session) return 0;
  if (strcmp(session->hostname, own) != 0 || session->verified < tl__tls_verified(t->context))
    return -EINVAL;
  atomic_fetch_add(&session->refs, 1);
  t->session = session;
  return tl__tls_code(mbedtls_ssl_set_session(&t->ssl, &session->session));
}

static int64_t tl__tls_set_client(tl__tls *t, const tl_tls_attach_desc *desc) {
  int64_t code = tl__tls_set_hostname(t, desc->hostname);
  return code == 0 ? tl__tls_set_session(t, desc->session) : code;
}

static int64_t tl__tls_set_up(tl__tls *t, const tl_tls_attach_desc *desc) {
  tl_tls *tls = t->context;
  int rc = mbedtls_ssl_setup(&t->ssl, &tls->conf);
  if (rc != 0) return tl__tls_code(rc);
  mbedtls_ssl_set_user_data_p(&t->ssl, t);
  mbedtls_ssl_set_bio(&t->ssl, t, tl__tls_push, tl__tls_pull, NULL);
  mbedtls_ssl_set_verify(&t->ssl, tl__tls_verify_hook, t);
  if (tls->on_keylog) mbedtls_ssl_set_export_keys_cb(&t->ssl, tl__tls_keylog_hook, t);
  if (desc->handshake_timeout_ns) t->handshake_ns = desc->handshake_timeout_ns;
  if (desc->close_timeout_ns) t->close_ns = desc->close_timeout_ns;
  if (desc->received_nbytes) {
    t->kept = (unsigned char *)tl__alloc(t->loop, desc->received_nbytes);
    if (!t->kept) return -ENOMEM;
    memcpy(t->kept, desc->received, desc->received_nbytes);
    t->in = t->kept;
    t->in_left = desc->received_nbytes;
  }
  return tls->role == TL_TLS_CLIENT ? tl__tls_set_client(t, desc) : 0;
}

static tl__tls *tl__tls_new(tl_loop *loop, tl__stream *s, tl_tls *tls) {
  if (!loop->layer_memory) {
    loop->layer_memory = tl__alloc(loop, sizeof(tl__tls_shared));
    if (!loop->layer_memory) return NULL;
    ((tl__tls_shared *)loop->layer_memory)->wire_used = 0;
  }
  tl__tls *t = (tl__tls *)tl__alloc(loop, sizeof *t);
  if (!t) return NULL;
  memset(t, 0, sizeof *t);
  t->layer.ops = &tl__tls_ops;
  t->loop = loop;
  t->stream = s;
  t->context = tl_tls_retain(tls);
  t->deadline.owner = &s->io.head;
  t->handshake_ns = tls->handshake_ns;
  t->close_ns = tls->close_ns;
  t->end = 1;
  t->alert = -1;
  mbedtls_ssl_init(&t->ssl);
  return t;
}

TL_API int64_t tl_tls_attach(tl_loop *loop, tl_handle stream, tl_tls *tls,
                             const tl_tls_attach_desc *desc) {
  const tl_tls_attach_desc none = {0};
  int error;
  tl__stream *s = (tl__stream *)tl__open(loop, stream, TL__STREAM, &error);
  if (!s) return error;
  if (s->error) return s->error;
  if (s->layer || s->finishing) return s->layer ? -EALREADY : TL_EBADH;
  if (s->shut) return -EPIPE;
  int64_t code = tl__tls_seal(tls);
  if (code == 0) code = tl__leave_ring(loop, &s->io);
  if (code < 0) return code;
  tl__tls *t = tl__tls_new(loop, s, tls);
  if (!t) return -ENOMEM;
  code = tl__tls_set_up(t, desc ? desc : &none);
  if (code == 0) {
    s->layer = &t->layer;
    s->reading = (s->io.want & TL_READ) != 0;
    if (!s->connecting) code = tl__tls_begin(loop, s);
    if (code == 0) return 0;
    s->layer = NULL;
    s->internal = false;
    if (!s->edge) s->io.ready = s->received ? TL_READ : 0;
  }
  tl__tls_delete(t);
  return code;
}

TL_API int64_t tl_tls_use(tl_loop *loop, tl_handle stream, tl_tls *other) {
  int error;
  tl__stream *s = (tl__stream *)tl__open(loop, stream, TL__STREAM, &error);
  if (!s) return error;
  tl__tls *t = s->layer ? tl__tls_of(s) : NULL;
  if (!t || !t->in_callback || other->role != TL_TLS_SERVER) return -EINVAL;
  int64_t code = tl__tls_seal(other);
  if (code < 0) return code;
  tl_tls_retain(other);
  tl_tls_release(t->other);
  t->other = other;
  mbedtls_ssl_set_hs_authmode(&t->ssl, tl__tls_authmode(other));
  if (tl__tls_authmode(other) != MBEDTLS_SSL_VERIFY_NONE)
    mbedtls_ssl_set_hs_ca_chain(&t->ssl, &other->ca, other->crl.raw.p ? &other->crl : NULL);
  return 0;
}

// >>tls-query

static tl__tls *tl__tls_find(const tl_loop *loop, tl_handle stream, int64_t *error) {
  int rc;
  const tl__stream *s = (const tl__stream *)tl__open(loop, stream, TL__STREAM, &rc);
  *error = s ? -ENOENT : rc;
  return s && s->layer ? tl__tls_of(s) : NULL;
}

/* Certificates that a session remembers from the connection before, for TLS 1.3 sends none. */
static const unsigned char *tl__tls_stored_cert(const tl_tls_session *session, int index,
                                                size_t *nbytes) {
  const unsigned char *p = session->certs, *end = p + session->certs_nbytes;
  for (int i = 0; p && end - p >= 4; i++) {
    uint32_t n;
    memcpy(&n, p, sizeof n);
    p += 4;
    if (i == index) {
      *nbytes = n;
      return p;
    }
    p += n;
  }
  return NULL;
}

static const unsigned char *tl__tls_cert_at(const tl__tls *t, int index, size_t *nbytes) {
  const mbedtls_x509_crt *crt = mbedtls_ssl_get_peer_cert(&t->ssl);
  if (!crt && t->session && t->state == TL__TLS_OPEN && !t->full)
    return tl__tls_stored_cert(t->session, index, nbytes);
  for (; crt && index > 0; index--) crt = crt->next;
  if (!crt) return NULL;
  *nbytes = crt->raw.len;
  return crt->raw.p;
}

TL_API const void *tl_tls_peer_cert(tl_loop *loop, tl_handle stream, int index, size_t *nbytes) {
  int64_t error;
  const tl__tls *t = tl__tls_find(loop, stream, &error);
  *nbytes = 0;
  return t && index >= 0 ? tl__tls_cert_at(t, index, nbytes) : NULL;
}

static void tl__tls_query_agreed(const tl__tls *t, tl_tls_info *info) {
  const char *alpn = mbedtls_ssl_get_alpn_protocol(&t->ssl);
  info->version = (int32_t)mbedtls_ssl_get_version_number(&t->ssl);
  info->cipher = mbedtls_ssl_get_ciphersuite_id_from_ssl(&t->ssl);
  tl__tls_cipher_text(mbedtls_ssl_get_ciphersuite_name(info->cipher), info->cipher_name,
                      sizeof info->cipher_name);
  info->cipher_bits = strstr(info->cipher_name, "_128_") ? 128 : 256;
  info->resumed = !t->full;
  if (alpn) (void)snprintf(info->alpn, sizeof info->alpn, "%s", alpn);
}

TL_API int tl_tls_query(tl_loop *loop, tl_handle stream, tl_tls_info *info) {
  int64_t error;
  size_t nbytes;
  const tl__tls *t = tl__tls_find(loop, stream, &error);
  memset(info, 0, sizeof *info);
  if (!t) return (int)error;
  info->alert = t->alert;
  info->refused_by = t->refused_by;
  info->error = t->end < 0 ? t->end : t->stream->error;
  if (t->end < TL_EVERIFY) info->verify_flags = (int32_t)(TL_EVERIFY - t->end);
  if (mbedtls_ssl_is_handshake_over((mbedtls_ssl_context *)(uintptr_t)&t->ssl))
    tl__tls_query_agreed(t, info);
  while (tl__tls_cert_at(t, info->peer_certs, &nbytes)) info->peer_certs++;
  return 0;
}

// >>tls-session

/* As bytes: "tls1", then four-byte numbers (verified, and the lengths of what follows): hostname,
   certificates, mbedTLS' own format, which checks itself. */

enum { TL__SESSION_HEAD = 20 };

static void tl__tls_session_free(tl_tls_session *session) {
  mbedtls_ssl_session_free(&session->session);
  tl__tls_free_text(session->hostname);
  if (session->certs) TL_FREE(session->certs);
  TL_FREE(session);
}

TL_API void tl_tls_session_release(tl_tls_session *session) {
  if (session && atomic_fetch_sub(&session->refs, 1) == 1) tl__tls_session_free(session);
}

static tl_tls_session *tl__tls_session_new(void) {
  tl_tls_session *session = (tl_tls_session *)tl__tls_calloc(sizeof *session);
  if (!session) return NULL;
  atomic_init(&session->refs, 1);
  mbedtls_ssl_session_init(&session->session);
  return session;
}

static bool tl__tls_session_certs(tl_tls_session *session, const tl__tls *t) {
  size_t nbytes, total = 0;
  const unsigned char *der;
  for (int i = 0; tl__tls_cert_at(t, i, &nbytes); i++) total += 4 + nbytes;
  session->certs = (unsigned char *)TL_MALLOC(total + 1);
  if (!session->certs) return false;
  session->certs_nbytes = total;
  unsigned char *out = session->certs;
  for (int i = 0; (der = tl__tls_cert_at(t, i, &nbytes)) != NULL; i++, out += nbytes) {
    uint32_t n = (uint32_t)nbytes;
    memcpy(out, &n, sizeof n);
    out += 4;
    memcpy(out, der, nbytes);
  }
  return true;
}

static int64_t tl__tls_session_fill(tl_tls_session *session, tl__tls *t) {
  if (t->state != TL__TLS_OPEN) return -ENOENT;
  int rc = mbedtls_ssl_get_session(&t->ssl, &session->session);
  if (rc != 0) return tl__tls_code(rc) == -ENOMEM ? -ENOMEM : -ENOENT;
  session->verified = tl__tls_verified(t->context);
  session->hostname = tl__tls_copy_text(t->hostname ? t->hostname : "");
  return session->hostname && tl__tls_session_certs(session, t) ? 0 : -ENOMEM;
}

TL_API tl_tls_session *tl_tls_session_get(tl_loop *loop, tl_handle stream, int64_t *error) {
  int64_t unused;
  if (!error) error = &unused;
  tl__tls *t = tl__tls_find(loop, stream, error);
  if (!t) return NULL;
  tl_tls_session *session = tl__tls_session_new();
  *error = session ? tl__tls_session_fill(session, t) : -ENOMEM;
  if (*error == 0) return session;
  tl_tls_session_release(session);
  return NULL;
}

static unsigned char *tl__tls_put(unsigned char *out, const void *data, size_t nbytes) {
  if (nbytes) memcpy(out, data, nbytes);
  return out + nbytes;
}

TL_API int64_t tl_tls_session_save(const tl_tls_session *session, void *out, size_t capacity) {
  size_t own = 0, host = strlen(session->hostname);
  (void)mbedtls_ssl_session_save(&session->session, NULL, 0, &own);
  size_t total = TL__SESSION_HEAD + host + session->certs_nbytes + own;
  const uint32_t numbers[4] = {(uint32_t)session->verified, (uint32_t)host,
                               (uint32_t)session->certs_nbytes, (uint32_t)own};
  if (!out) return (int64_t)total;
  if (capacity < total) return -ENOSPC;
  unsigned char *at = tl__tls_put((unsigned char *)out, "tls1", 4);
  at = tl__tls_put(at, numbers, sizeof numbers);
  at = tl__tls_put(at, session->hostname, host);
  at = tl__tls_put(at, session->certs, session->certs_nbytes);
  int rc = mbedtls_ssl_session_save(&session->session, at, own, &own);
  return rc == 0 ? (int64_t)total : tl__tls_code(rc);
}

/* Do the lengths in front of the certificates lead exactly to their end? */
static bool tl__tls_certs_fit(const unsigned char *p, size_t nbytes) {
  while (nbytes) {
    uint32_t n = 0;
    if (nbytes < 4) return false;
    memcpy(&n, p, sizeof n);
    if (n > nbytes - 4) return false;
    p += 4 + n;
    nbytes -= 4 + n;
  }
  return true;
}

static int64_t tl__tls_session_read(tl_tls_session *session, const unsigned char *data,
                                    size_t nbytes) {
  uint32_t numbers[4];
  if (nbytes < TL__SESSION_HEAD || memcmp(data, "tls1", 4) != 0) return -EINVAL;
  memcpy(numbers, data + 4, sizeof numbers);
  const unsigned char *at = data + TL__SESSION_HEAD;
  uint64_t total = (uint64_t)TL__SESSION_HEAD + numbers[1] + numbers[2] + numbers[3];
  if (total != nbytes || numbers[0] > 2 || !tl__tls_certs_fit(at + numbers[1], numbers[2]))
    return -EINVAL;
  session->verified = (int32_t)numbers[0];
  session->hostname = (char *)tl__tls_copy(at, numbers[1]);
  session->certs = tl__tls_copy(at + numbers[1], numbers[2]);
  session->certs_nbytes = numbers[2];
  if (!session->hostname || !session->certs) return -ENOMEM;
  int rc = mbedtls_ssl_session_load(&session->session, at + numbers[1] + numbers[2], numbers[3]);
  return rc == 0 ? 0 : tl__tls_code(rc) == -ENOMEM ? -ENOMEM : -EINVAL;
}

TL_API tl_tls_session *tl_tls_session_load(const void *data, size_t nbytes, int64_t *error) {
  int64_t unused;
  if (!error) error = &unused;
  tl_tls_session *session = tl__tls_session_new();
  *error = session ? tl__tls_session_read(session, (const unsigned char *)data, nbytes) : -ENOMEM;
  if (*error == 0) return session;
  tl_tls_session_release(session);
  return NULL;
}

#endif /* TLOOP_TLS_IMPLEMENTATION_ONCE */
#endif /* TLOOP_IMPLEMENTATION */

/* MIT licence; its text is in the file LICENSE. */
