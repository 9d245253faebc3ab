"""`TLSContext`: TLS by mbedTLS in the C core, with the names of `ssl.SSLContext`."""

from __future__ import annotations

import os
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, NoReturn, overload

from tloop_py import _pem, _x509
from tloop_py._environ import CLOSE_TIMEOUT, TLS_VERSIONS, logger
from tloop_py._ffi import HAS_TLS, lib
from tloop_py._tlscore import (
    Callbacks,
    Certificate,
    Core,
    KeyLog,
    Settings,
    default_ciphers,
    knows_cipher,
    library,
    understood,
)
from tloop_py._tlserror import no_authority, ssl_error
from tloop_py._tlsobject import TLSSession

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tloop_py._pem import Data, PasswordSource, PathLike
    from tloop_py._tlsobject import NameCallback

_ROLES: Final = {ssl.PROTOCOL_TLS_CLIENT: False, ssl.PROTOCOL_TLS_SERVER: True}
_VERSION_OF: Final = {
    0x303: ssl.TLSVersion.TLSv1_2,
    0x304: ssl.TLSVersion.TLSv1_3,
}
_NUMBER_OF: Final = {
    ssl.TLSVersion.MINIMUM_SUPPORTED: 0x303,
    ssl.TLSVersion.MAXIMUM_SUPPORTED: 0x304,
    **{version: number for number, version in _VERSION_OF.items()},
}

# mbedTLS prefers the trusted certificates, and takes each for a root.
_FLAGS_ALWAYS: Final = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
_FLAGS_CHOICE: Final = ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_CRL_CHECK_CHAIN

# What always holds of mbedTLS. OP_ALL stands for workarounds that nobody needs here.
_OPTIONS_ALWAYS: Final = (
    ssl.OP_NO_SSLv2
    | ssl.OP_NO_SSLv3
    | ssl.OP_NO_TLSv1
    | ssl.OP_NO_TLSv1_1
    | ssl.OP_NO_COMPRESSION
    | ssl.OP_NO_RENEGOTIATION
    | ssl.OP_SINGLE_DH_USE
    | ssl.OP_SINGLE_ECDH_USE
    | ssl.OP_ENABLE_MIDDLEBOX_COMPAT
    | ssl.OP_ALL
)
_OPTIONS_CHOICE: Final = ssl.OP_NO_TICKET

_NO_TLS = (
    "this build of tloop_py has no TLSContext: it was compiled without mbedTLS; "
    "in a checkout run `make mbedtls module`, elsewhere install libmbedtls-dev (3.6.6 or later) "
    "and reinstall tloop; or use ssl.SSLContext, which works with every build"
)
TICKET_KEY_BYTES: Final = 36


class TLSContext:
    """What connections of a client, or of a server, have in common; for `ssl=` on tloop's loops.

    protocol: ssl.PROTOCOL_TLS_CLIENT, which verifies certificates and names but trusts nobody until
    told to, or ssl.PROTOCOL_TLS_SERVER, which needs load_cert_chain().

    Properties and methods mean what they mean for ssl.SSLContext; what is missing here, or raises,
    mbedTLS does not do. A change counts for connections made later. Any number of loops in any
    threads may use a context; change it in one thread at a time. Raises RuntimeError when tloop_py
    was built without mbedTLS.
    """

    __slots__ = (
        "__weakref__", "_alpn", "_authorities", "_certificates", "_check_hostname", "_ciphers",
        "_close_timeout", "_core", "_keylog", "_lock", "_options", "_revocations", "_server",
        "_session", "_sni_callback", "_system_authorities", "_ticket_keys", "_tickets",
        "_verify_flags", "_verify_mode", "_versions",
    )  # fmt: skip

    def __init__(self, protocol: int) -> None:
        if not HAS_TLS:
            raise RuntimeError(_NO_TLS)
        if protocol not in _ROLES:
            raise ValueError(
                "protocol must be ssl.PROTOCOL_TLS_CLIENT or ssl.PROTOCOL_TLS_SERVER, "
                f"not {protocol!r}"
            )
        self._server = _ROLES[ssl._SSLMethod(protocol)]
        self._check_hostname = not self._server
        self._verify_mode = ssl.CERT_NONE if self._server else ssl.CERT_REQUIRED
        self._verify_flags = ssl.VerifyFlags(0)
        self._versions = TLS_VERSIONS
        self._options = ssl.Options(0)
        self._tickets = True
        self._alpn: tuple[str, ...] = ()
        self._ciphers: tuple[str, ...] | None = None
        self._certificates: tuple[Certificate, ...] = ()
        self._authorities: dict[bytes, None] = {}  # in DER, in order
        self._revocations: dict[bytes, None] = {}
        self._system_authorities = False
        self._ticket_keys: tuple[bytes, ...] = ()
        self._close_timeout = CLOSE_TIMEOUT
        self._sni_callback: NameCallback | None = None
        self._keylog: KeyLog | None = None
        self._session: TLSSession | None = None
        self._core: Core | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.protocol.name}>"

    # -- use ---------------------------------------------------------------------------------------

    def _ready(self, server_side: bool) -> Core:
        """The C core's context, made when it is needed. Raises ssl.SSLError for one that could not
        make a single connection."""
        if server_side != self._server:
            side = "server" if server_side else "client"
            raise ssl.SSLError(
                1, f"Cannot create a {side} socket with a {self.protocol.name} context"
            )
        with self._lock:
            if self._core is None:
                self._check_complete()
                callbacks = Callbacks(self._sni_callback, self._keylog)
                self._core = Core(self._settings(), callbacks if any(callbacks) else None)
                logger.debug("%r is ready, by %s", self, self.library)
            return self._core

    def _check_complete(self) -> None:
        if self._server and not self._certificates:
            raise ssl_error(
                "NO_CERTIFICATE_SET",
                "a server needs a certificate and its private key: call load_cert_chain()",
            )
        if self._verifies and not self._authorities and not self._system_authorities:
            raise no_authority(
                "the context trusts nobody; call load_verify_locations() or load_default_certs()"
            )
        if self._versions[0] > self._versions[1]:
            raise ssl_error("NO_PROTOCOLS_AVAILABLE", "minimum_version is above maximum_version")

    def _settings(self) -> Settings:
        return Settings(
            server=self._server,
            verify=self._verify_number(),
            flags=self._flags(),
            versions=self._versions,
            close_timeout=self._close_timeout,
            alpn=self._alpn,
            ciphers=self._all_ciphers(),
            certificates=self._certificates,
            authorities=tuple(self._authorities),
            revocations=tuple(self._revocations),
            system_authorities=self._system_authorities,
            ticket_keys=self._ticket_keys,
        )

    def _verify_number(self) -> int:
        number: int
        if not self._server:
            insecure = self._verify_mode == ssl.CERT_NONE
            number = lib.TL_TLS_INSECURE_NO_VERIFICATION if insecure else lib.TL_TLS_VERIFY_DEFAULT
        elif self._verify_mode == ssl.CERT_NONE:
            number = lib.TL_TLS_VERIFY_DEFAULT
        else:
            optional = self._verify_mode == ssl.CERT_OPTIONAL
            number = lib.TL_TLS_VERIFY_OPTIONAL if optional else lib.TL_TLS_VERIFY_REQUIRED
        return number

    def _flags(self) -> int:
        flags = lib.TL_TLS_NO_SYSTEM_CA
        if not self._server and not self._check_hostname:
            flags |= lib.TL_TLS_INSECURE_NO_HOSTNAME
        if not self._tickets or self._options & ssl.OP_NO_TICKET:
            flags |= lib.TL_TLS_NO_RESUMPTION
        if self._verify_flags & ssl.VERIFY_CRL_CHECK_LEAF:
            flags |= lib.TL_TLS_CRL_LEAF
        if self._verify_flags & ssl.VERIFY_CRL_CHECK_CHAIN == ssl.VERIFY_CRL_CHECK_CHAIN:
            flags |= lib.TL_TLS_CRL_CHAIN
        return flags

    @property
    def _verifies(self) -> bool:
        return self._verify_mode != ssl.CERT_NONE

    def _changed(self) -> None:
        """Connections that exist keep the context that they were made with."""
        with self._lock:
            self._core = None

    # -- who we are --------------------------------------------------------------------------------

    @property
    def protocol(self) -> ssl._SSLMethod:
        return ssl.PROTOCOL_TLS_SERVER if self._server else ssl.PROTOCOL_TLS_CLIENT

    def load_cert_chain(
        self,
        certfile: PathLike | None = None,
        keyfile: PathLike | None = None,
        password: PasswordSource = None,
        *,
        certdata: Data | None = None,
        keydata: Data | None = None,
        server_names: Iterable[str] | None = None,
    ) -> None:
        """Show this certificate: PEM or DER, followed by its chain, and by its key unless that is
        given. certdata and keydata: the same from memory.

        Called more than once, the peer's abilities (RSA, ECDSA) decide. server_names: show it to
        clients that ask for one of these names ("www.example", "*.example") alone.
        Raises ssl.SSLError when certificate, key and password do not belong together.
        """
        if (certfile is None) == (certdata is None):
            raise TypeError("load_cert_chain() takes either certfile or certdata")
        if keyfile is not None and keydata is not None:
            raise TypeError("load_cert_chain() takes either keyfile or keydata")
        if password is not None and not callable(password):
            _pem.password_bytes(password)  # which complains about its type
        chain = _read("certdata", certfile, certdata)
        key = None
        if keyfile is not None or keydata is not None:
            key = _read("keydata", keyfile, keydata)
        names = None if server_names is None else ",".join(server_names)
        certificate = Certificate.check(chain, key, password, names)
        self._certificates += (certificate,)
        self._changed()

    # -- whom we trust -----------------------------------------------------------------------------

    def load_verify_locations(
        self,
        cafile: PathLike | None = None,
        capath: PathLike | None = None,
        cadata: Data | None = None,
    ) -> None:
        """Trust these certificates, and refuse what these lists revoke: PEM, or DER, of a file, of
        all files of a folder (read now), or from memory."""
        if cafile is None and capath is None and cadata is None:
            raise TypeError("cafile, capath and cadata cannot be all omitted")
        if cafile is not None:
            self._trust(_pem.read(cafile), f"no certificate or crl found in {cafile!r}")
        if cadata is not None:
            data = _pem.as_bytes(cadata, "cadata")
            if not data:
                raise ValueError("Empty certificate data")
            self._trust(data, "no certificate or crl found in cadata")
        if capath is not None:
            for data in _pem.read_folder(capath):
                self._trust(data, "")

    def _trust(self, data: bytes, complaint: str) -> None:
        """No complaint: what is no certificate does not matter."""
        authorities, revocations = understood(*_pem.split(data))
        if complaint and not authorities and not revocations:
            raise ssl_error("NO_CERTIFICATE_OR_CRL_FOUND", complaint, library="X509")
        self._authorities.update(dict.fromkeys(authorities))
        self._revocations.update(dict.fromkeys(revocations))
        self._changed()

    def load_default_certs(self, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        """Trust the system's certificate authorities: $SSL_CERT_FILE, $SSL_CERT_DIR, or where
        distributions keep them."""
        if not isinstance(purpose, ssl.Purpose):
            raise TypeError(purpose)
        self.set_default_verify_paths()

    def set_default_verify_paths(self) -> None:
        self._system_authorities = True
        self._changed()

    @overload
    def get_ca_certs(self) -> list[dict[str, Any]]: ...
    @overload
    def get_ca_certs(self, binary_form: bool) -> list[Any]: ...
    def get_ca_certs(self, binary_form: bool = False) -> list[Any]:
        """What load_verify_locations() has been given; not the system's."""
        return [der if binary_form else _x509.decode(der) for der in self._authorities]

    @property
    def verify_mode(self) -> ssl.VerifyMode:
        """Of a server: whether clients must (CERT_REQUIRED) or may (CERT_OPTIONAL) show a
        certificate. A client verifies with either."""
        return self._verify_mode

    @verify_mode.setter
    def verify_mode(self, mode: ssl.VerifyMode) -> None:
        mode = ssl.VerifyMode(mode)
        if mode == ssl.CERT_NONE and self._check_hostname:
            raise ValueError("Cannot set verify_mode to CERT_NONE when check_hostname is enabled.")
        self._verify_mode = mode
        self._changed()

    @property
    def check_hostname(self) -> bool:
        """Client: must the certificate be for the host that was asked for?"""
        return self._check_hostname

    @check_hostname.setter
    def check_hostname(self, check: bool) -> None:
        if check and self._server:
            raise ValueError("check_hostname is for clients: no client tells a server its name")
        if check and self._verify_mode == ssl.CERT_NONE:
            self._verify_mode = ssl.CERT_REQUIRED
        self._check_hostname = bool(check)
        self._changed()

    @property
    def verify_flags(self) -> ssl.VerifyFlags:
        """VERIFY_CRL_CHECK_LEAF and VERIFY_CRL_CHECK_CHAIN can be set: then a certificate is
        refused when no revocation list of its issuer was loaded. One that was loaded counts anyway.
        """
        return self._verify_flags | _FLAGS_ALWAYS

    @verify_flags.setter
    def verify_flags(self, flags: ssl.VerifyFlags) -> None:
        asked = ssl.VerifyFlags(flags)
        _refuse_bits(
            "verify_flags", asked & ~(_FLAGS_ALWAYS | _FLAGS_CHOICE), _FLAGS_ALWAYS & ~asked
        )
        self._verify_flags = asked & _FLAGS_CHOICE
        self._changed()

    # -- what is spoken ----------------------------------------------------------------------------

    @property
    def minimum_version(self) -> ssl.TLSVersion:
        return _VERSION_OF[self._versions[0]]

    @minimum_version.setter
    def minimum_version(self, version: ssl.TLSVersion) -> None:
        self._versions = _version_number(version), self._versions[1]
        self._changed()

    @property
    def maximum_version(self) -> ssl.TLSVersion:
        return _VERSION_OF[self._versions[1]]

    @maximum_version.setter
    def maximum_version(self, version: ssl.TLSVersion) -> None:
        self._versions = self._versions[0], _version_number(version)
        self._changed()

    @property
    def options(self) -> ssl.Options:
        """OP_NO_TICKET can be chosen; the others that are set always hold."""
        return self._options | _OPTIONS_ALWAYS

    @options.setter
    def options(self, options: ssl.Options) -> None:
        asked = ssl.Options(options)
        _refuse_bits(
            "options", asked & ~(_OPTIONS_ALWAYS | _OPTIONS_CHOICE), _OPTIONS_ALWAYS & ~asked
        )
        self._options = asked & _OPTIONS_CHOICE
        self._changed()

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """Best first. Unlike OpenSSL as Python sets it up, a server that shares none of them with
        its client ends the handshake, as RFC 7301 has it."""
        protocols = tuple(alpn_protocols)
        for name in protocols:
            if not name.isascii() or not 0 < len(name) < 256 or "," in name or "\0" in name:
                raise ssl.SSLError(1, f"{name!r} cannot be the name of an ALPN protocol here")
        self._alpn = protocols
        self._changed()

    def set_ciphers(self, ciphers: str) -> None:
        """Names of IANA, best first, with colons between them. A version of TLS none of whose
        ciphers is named keeps its own when ciphers of the other one are: unless that is TLS 1.2,
        which must then be excluded by minimum_version."""
        names = tuple(name for name in ciphers.replace(",", ":").split(":") if name)
        unknown = [name for name in names if not knows_cipher(name)]
        if unknown or not names:
            raise ssl.SSLError(
                1,
                f"No cipher can be selected: {', '.join(map(repr, unknown)) or 'no name'}: "
                "TLSContext takes IANA's names, such as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            )
        self._ciphers = names
        self._changed()

    def _all_ciphers(self) -> tuple[str, ...] | None:
        """Of each version that is allowed there must be one."""
        if self._ciphers is None:
            return None
        chosen = self._ciphers
        if self._versions[0] == 0x303 and not any(map(_is_tls12, chosen)):
            raise ssl_error(
                "NO_CIPHERS_AVAILABLE",
                "TLS 1.2 is allowed, but set_ciphers() named none for it: name one, "
                "or set minimum_version to ssl.TLSVersion.TLSv1_3",
            )
        if all(map(_is_tls12, chosen)):
            chosen += tuple(name for name in default_ciphers() if not _is_tls12(name))
        return chosen

    def get_ciphers(self) -> list[dict[str, Any]]:
        """Those that would be used, best first: dicts with name, protocol, alg_bits,
        strength_bits and aead."""
        chosen = self._all_ciphers() or default_ciphers()
        low, high = self._versions
        return [
            _describe_cipher(name)
            for name in chosen
            if low <= (0x303 if _is_tls12(name) else 0x304) <= high
        ]

    # -- connections -------------------------------------------------------------------------------

    @property
    def library(self) -> str:
        """What does the work, as "Mbed TLS 3.6.6, AES-GCM by ipsec-mb 1.3.0, VAES"."""
        return library()

    @property
    def close_timeout(self) -> float:
        """Seconds for which a closed connection waits until the peer has taken what was written and
        ended, too, unless ssl_shutdown_timeout is given; each time that the peer takes something
        they count anew. $TLOOP_SSL_CLOSE_TIMEOUT, in milliseconds, or 1.0."""
        return self._close_timeout

    @close_timeout.setter
    def close_timeout(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"close_timeout should be a positive number, got {seconds}")
        self._close_timeout = seconds
        self._changed()

    @property
    def sni_callback(self) -> NameCallback | None:
        """Server: called as callback(ssl_object, name or None, this context) when a client has said
        whom it wants to reach. It may set ssl_object.context, and returns None to go on; anything
        else refuses the client (alert: unrecognized name), and so does an exception."""
        return self._sni_callback

    @sni_callback.setter
    def sni_callback(self, callback: NameCallback | None) -> None:
        if callback is not None and not callable(callback):
            raise TypeError("not a callable object")
        if not self._server:
            raise ValueError("sni_callback is for servers")
        self._sni_callback = callback
        self._changed()

    @property
    def keylog_filename(self) -> Any:
        """Where secrets of connections are written, for tools such as Wireshark; None: nowhere."""
        return None if self._keylog is None else self._keylog.path

    @keylog_filename.setter
    def keylog_filename(self, path: Any) -> None:
        self._keylog = None if path is None else KeyLog(path)
        self._changed()

    @property
    def num_tickets(self) -> int:
        """Server: 1, or 0 for no resumption."""
        return int(self._tickets)

    @num_tickets.setter
    def num_tickets(self, number: int) -> None:
        if not self._server:
            raise ValueError("num_tickets is for servers")
        if number not in (0, 1):
            raise ValueError(f"num_tickets must be 0 or 1, as mbedTLS sends one; got {number}")
        self._tickets = bool(number)
        self._changed()

    def set_ticket_key(self, key: bytes) -> None:
        """Server: encrypt tickets with this key from now on; what the former key has encrypted can
        still be resumed. For several processes that serve one name: others need not call it.

        key: 36 secret random bytes. Replace it every few hours.
        """
        if not self._server:
            raise ValueError("set_ticket_key() is for servers")
        if len(key) != TICKET_KEY_BYTES:
            raise ValueError(f"a ticket key has {TICKET_KEY_BYTES} bytes, not {len(key)}")
        self._ticket_keys = (*self._ticket_keys[-1:], bytes(key))
        with self._lock:
            if self._core is not None:
                self._core.add_ticket_key(bytes(key))

    @property
    def session(self) -> TLSSession | None:
        """Client: resumed by new connections to the host that it was made with, if the server
        agrees; others do without."""
        return self._session

    @session.setter
    def session(self, session: TLSSession | None) -> None:
        if session is not None and not isinstance(session, TLSSession):
            raise TypeError(f"session must be a TLSSession or None, not {session!r}")
        if self._server:
            raise ValueError("session is for clients")
        self._session = session

    # -- what only ssl.SSLContext can do -----------------------------------------------------------

    def wrap_socket(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            "a TLSContext makes connections of tloop's event loops only; use an ssl.SSLContext here"
        )

    wrap_bio = wrap_socket


def create_tls_context(
    purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH,
    *,
    cafile: PathLike | None = None,
    capath: PathLike | None = None,
    cadata: Data | None = None,
    certfile: PathLike | None = None,
    keyfile: PathLike | None = None,
    password: PasswordSource = None,
    alpn_protocols: Iterable[str] = (),
) -> TLSContext:
    """A TLSContext as ssl.create_default_context makes an SSLContext.

    For ssl.Purpose.SERVER_AUTH a client that verifies servers, by the given authorities or else by
    the system's; for ssl.Purpose.CLIENT_AUTH a server, which asks clients for no certificate.
    """
    if purpose == ssl.Purpose.SERVER_AUTH:
        context = TLSContext(ssl.PROTOCOL_TLS_CLIENT)
    elif purpose == ssl.Purpose.CLIENT_AUTH:
        context = TLSContext(ssl.PROTOCOL_TLS_SERVER)
    else:
        raise ValueError(purpose)
    if cafile is not None or capath is not None or cadata is not None:
        context.load_verify_locations(cafile, capath, cadata)
    elif context.verify_mode != ssl.CERT_NONE:
        context.load_default_certs(purpose)
    if certfile is not None:
        context.load_cert_chain(certfile, keyfile, password)
    context.set_alpn_protocols(alpn_protocols)
    keylog = os.environ.get("SSLKEYLOGFILE")
    if keylog and not sys.flags.ignore_environment:
        context.keylog_filename = keylog
    return context


def _read(what: str, path: PathLike | None, data: Data | None) -> bytes:
    return _pem.read(path) if path is not None else _pem.as_bytes(data or b"", what)


def _version_number(version: int) -> int:
    number = _NUMBER_OF.get(ssl.TLSVersion(version))
    if number is None:
        raise ValueError(f"mbedTLS speaks TLS 1.2 and 1.3 only, not {ssl.TLSVersion(version).name}")
    return number


def _refuse_bits(name: str, unknown: Any, missing: Any) -> None:
    """unknown: bits that cannot be set; missing: bits that cannot be cleared."""
    if unknown:
        raise ValueError(f"mbedTLS cannot honour {name} {unknown!r}")
    if missing:
        raise ValueError(
            f"mbedTLS cannot do without {missing!r}; change {name} with |= and &= ~, "
            "so that the others stay"
        )


def _is_tls12(cipher: str) -> bool:
    return "_WITH_" in cipher


def _describe_cipher(name: str) -> dict[str, Any]:
    bits = 128 if "_128_" in name else 256
    return {
        "name": name,
        "protocol": "TLSv1.2" if _is_tls12(name) else "TLSv1.3",
        "alg_bits": bits,
        "strength_bits": bits,
        "aead": "_CBC_" not in name,
    }
