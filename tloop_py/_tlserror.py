"""What went wrong in TLS, as the exceptions of `ssl`, with OpenSSL's names and numbers.

Programs look at the class, at `reason` and `verify_code`; messages have the same shape as ssl's.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final, NamedTuple

from tloop_py._ffi import ffi, lib

# What an alert of the peer is called (RFC 8446, 6).
_ALERTS: Final = {
    10: "SSLV3_ALERT_UNEXPECTED_MESSAGE",
    20: "SSLV3_ALERT_BAD_RECORD_MAC",
    21: "TLSV1_ALERT_DECRYPTION_FAILED",
    22: "TLSV1_ALERT_RECORD_OVERFLOW",
    40: "SSLV3_ALERT_HANDSHAKE_FAILURE",
    42: "SSLV3_ALERT_BAD_CERTIFICATE",
    43: "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    44: "SSLV3_ALERT_CERTIFICATE_REVOKED",
    45: "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    46: "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    47: "SSLV3_ALERT_ILLEGAL_PARAMETER",
    48: "TLSV1_ALERT_UNKNOWN_CA",
    49: "TLSV1_ALERT_ACCESS_DENIED",
    50: "TLSV1_ALERT_DECODE_ERROR",
    51: "TLSV1_ALERT_DECRYPT_ERROR",
    70: "TLSV1_ALERT_PROTOCOL_VERSION",
    71: "TLSV1_ALERT_INSUFFICIENT_SECURITY",
    80: "TLSV1_ALERT_INTERNAL_ERROR",
    86: "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
    90: "TLSV1_ALERT_USER_CANCELLED",
    100: "TLSV1_ALERT_NO_RENEGOTIATION",
    109: "TLSV13_ALERT_MISSING_EXTENSION",
    110: "TLSV1_UNSUPPORTED_EXTENSION",
    112: "TLSV1_UNRECOGNIZED_NAME",
    115: "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
    116: "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    120: "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
}

# What of ours OpenSSL has a name for: TL_ETLS_*, and codes of mbedTLS.
_REASONS: Final = {
    "NO_ALPN": "NO_APPLICATION_PROTOCOL",
    "VERSION": "UNSUPPORTED_PROTOCOL",
    "HANDSHAKE": "NO_SHARED_CIPHER",
    "NO_CERT": "PEER_DID_NOT_RETURN_A_CERTIFICATE",
    "WRONG_KEY": "KEY_VALUES_MISMATCH",
    "PASSWORD": "BAD_DECRYPT",
    "NO_OWN_CERT": "NO_CERTIFICATE_SET",
}
_MBEDTLS: Final = {
    -0x7180: "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
    -0x7200: "WRONG_VERSION_NUMBER",
    -0x7300: "BAD_EXTENSION",
    -0x7700: "UNEXPECTED_MESSAGE",
}
_MBEDTLS_CLOSE_NOTIFY: Final = -0x7880


class _Refusal(NamedTuple):
    flag: str  # TL_TLS_BAD_*
    code: int  # X509_V_ERR_*
    message: str


# In the order in which OpenSSL looks: it tells the first.
_REFUSALS: Final = [
    _Refusal("UNTRUSTED", 20, "unable to get local issuer certificate"),
    _Refusal("EXT_KEY_USAGE", 26, "unsuitable certificate purpose"),
    _Refusal("KEY_USAGE", 26, "unsuitable certificate purpose"),
    _Refusal("NS_TYPE", 26, "unsuitable certificate purpose"),
    _Refusal("KEY", 66, "EE certificate key too weak"),
    _Refusal("HASH", 68, "CA signature digest algorithm too weak"),
    _Refusal("KEY_TYPE", 76, "unsupported signature algorithm"),
    _Refusal("NAME", 62, "Hostname mismatch, certificate is not valid for {!r}."),
    _Refusal("NO_CRL", 3, "unable to get certificate CRL"),
    _Refusal("CRL_UNTRUSTED", 8, "CRL signature failure"),
    _Refusal("CRL_HASH", 8, "CRL signature failure"),
    _Refusal("CRL_KEY_TYPE", 8, "CRL signature failure"),
    _Refusal("CRL_KEY", 8, "CRL signature failure"),
    _Refusal("CRL_FUTURE", 11, "CRL is not yet valid"),
    _Refusal("CRL_EXPIRED", 12, "CRL has expired"),
    _Refusal("REVOKED", 23, "certificate revoked"),
    _Refusal("FUTURE", 9, "certificate is not yet valid"),
    _Refusal("EXPIRED", 10, "certificate has expired"),
]
_OTHER: Final = _Refusal("OTHER", 1, "unspecified certificate verification error")
_WRONG_ADDRESS: Final = _Refusal(
    "NAME", 64, "IP address mismatch, certificate is not valid for {!r}."
)


def tls_error(code: int, hostname: str | None = None) -> ssl.SSLError:
    """The exception for a code of the TLS ranges; hostname: whom the client wanted to reach."""
    if code < lib.TL_EVERIFY:
        return _verification_error(lib.TL_EVERIFY - code, hostname)
    if code <= lib.TL_EALERT:
        alert = lib.TL_EALERT - code
        return ssl_error(_ALERTS.get(alert, f"ALERT_{alert}"))
    if code == lib.TL_ETLS_TRUNCATED:
        return ssl_error(
            "UNEXPECTED_EOF_WHILE_READING",
            "the peer ended the connection without close_notify",
            ssl.SSLEOFError,
            int(ssl.SSL_ERROR_EOF),
        )
    if code == lib.TL_ETLS + _MBEDTLS_CLOSE_NOTIFY:
        text = "TLS/SSL connection has been closed (EOF)"
        return ssl_error(
            "ZERO_RETURN", text, ssl.SSLZeroReturnError, int(ssl.SSL_ERROR_ZERO_RETURN)
        )
    return _library_error(code)


def ssl_error(
    reason: str,
    text: str = "",
    kind: type[ssl.SSLError] = ssl.SSLError,
    number: int = int(ssl.SSL_ERROR_SSL),
    library: str = "SSL",
) -> ssl.SSLError:
    """`[SSL: REASON] text`, as ssl writes it."""
    text = text or reason.lower().replace("_", " ")
    error = kind(number, f"[{library}: {reason}] {text}")
    error.library, error.reason = library, reason
    return error


def no_authority(remedy: str) -> ssl.SSLError:
    """Nobody can be verified by a context that trusts nobody."""
    return _refused(20, f"unable to get local issuer certificate: {remedy}")


def _library_error(code: int) -> ssl.SSLError:
    text = ffi.string(lib.tl_strerror(code)).decode()
    for name, reason in _REASONS.items():
        if code == getattr(lib, f"TL_ETLS_{name}"):
            return ssl_error(reason, text)
    reason = _MBEDTLS.get(code - lib.TL_ETLS, "")
    return ssl_error(reason or f"MBEDTLS_{lib.TL_ETLS - code:04X}", text)


def _verification_error(flags: int, hostname: str | None) -> ssl.SSLError:
    refusal = next((one for one in _REFUSALS if flags & _bit(one)), _OTHER)
    if refusal.flag == "NAME" and hostname and _is_address(hostname):
        refusal = _WRONG_ADDRESS
    return _refused(refusal.code, refusal.message.format(hostname))


def _is_address(hostname: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, hostname)
        except OSError:
            continue
        return True
    return False


def _bit(refusal: _Refusal) -> int:
    bit: int = getattr(lib, f"TL_TLS_BAD_{refusal.flag}")
    return bit


def _refused(code: int, message: str) -> ssl.SSLError:
    error = ssl_error(
        "CERTIFICATE_VERIFY_FAILED",
        f"certificate verify failed: {message}",
        ssl.SSLCertVerificationError,
    )
    assert isinstance(error, ssl.SSLCertVerificationError)
    error.verify_code, error.verify_message = code, message
    return error
