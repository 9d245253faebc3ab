"""What `get_extra_info("ssl_object")` gives: a connection, asked as one asks an ssl.SSLObject."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Literal, overload

from tloop_py import _x509
from tloop_py._ffi import ffi, lib, oserror

if TYPE_CHECKING:
    from collections.abc import Callable

    from tloop_py._tlscontext import TLSContext
    from tloop_py._tlstransport import TLSTransport

    NameCallback = Callable[["TLSObject", str | None, TLSContext], int | None]

_VERSIONS = {0x303: "TLSv1.2", 0x304: "TLSv1.3"}


class TLSSession:
    """A session that a later connection of a client to the same host may resume. Immutable; usable
    in any thread. Its bytes are as secret as the connection was."""

    __slots__ = ("_c",)

    def __init__(self, c: Any) -> None:
        self._c = ffi.gc(c, lib.tl_tls_session_release)

    @classmethod
    def from_bytes(cls, data: bytes) -> TLSSession:
        """What to_bytes gave, in this process or another one. It decides whom a client trusts:
        read no bytes of strangers. Raises ValueError for anything else."""
        error = ffi.new("int64_t *")
        c = lib.tl_tls_session_load(data, len(data), error)
        if c == ffi.NULL:
            raise ValueError("not the bytes of a TLSSession, or one of another mbedTLS")
        return cls(c)

    def to_bytes(self) -> bytes:
        size = lib.tl_tls_session_save(self._c, ffi.NULL, 0)
        memory = ffi.new("char[]", max(size, 1))
        size = lib.tl_tls_session_save(self._c, memory, len(memory))
        if size < 0:
            raise oserror(size, "saving a TLS session")
        return bytes(ffi.buffer(memory, size))


class TLSObject:
    """One connection. Complete once the handshake is over, and still so after the end."""

    __slots__ = (
        "__weakref__", "_alpn", "_certificates", "_cipher", "_context", "_resumed", "_session",
        "_transport", "_verified", "_version", "server_hostname", "server_side",
    )  # fmt: skip

    def __init__(
        self, transport: TLSTransport, context: TLSContext, server_hostname: str | None
    ) -> None:
        self._transport = weakref.ref(transport)
        self._context = context
        self.server_side = context._server
        self.server_hostname = server_hostname
        self._version: str | None = None
        self._cipher: tuple[str, str, int] | None = None
        self._alpn: str | None = None
        self._certificates: list[bytes] = []
        self._resumed = self._verified = False
        self._session: TLSSession | None = None

    def _settle(self, c: Any, handle: int) -> None:
        """The handshake is over: remember what was agreed."""
        info = ffi.new("tl_tls_info *")
        if lib.tl_tls_query(c, handle, info) < 0:
            return
        self._version = _VERSIONS[info.version]
        self._cipher = ffi.string(info.cipher_name).decode(), self._version, info.cipher_bits
        self._alpn = ffi.string(info.alpn).decode() or None
        self._resumed = bool(info.resumed)
        self._verified = self._context._verifies
        nbytes = ffi.new("size_t *")
        for index in range(info.peer_certs):
            der = lib.tl_tls_peer_cert(c, handle, index, nbytes)
            self._certificates.append(bytes(ffi.buffer(der, nbytes[0])))

    # -- as ssl.SSLObject --------------------------------------------------------------------------

    @property
    def context(self) -> TLSContext:
        """The context. In sni_callback another one can be set, whose certificates, authorities and
        verification the handshake goes on with."""
        return self._context

    @context.setter
    def context(self, context: TLSContext) -> None:
        if not isinstance(context, type(self._context)):
            raise TypeError(f"context must be a TLSContext, not {context!r}")
        transport = self._transport()
        if transport is None:
            raise ValueError("context can be set within sni_callback only")
        transport._use(context)
        self._context = context

    def version(self) -> str | None:
        """ "TLSv1.2" or "TLSv1.3"; None before it is agreed."""
        return self._version

    def cipher(self) -> tuple[str, str, int] | None:
        """Name (IANA's), protocol version, bits of the key."""
        return self._cipher

    def compression(self) -> None:
        """There is none."""

    def selected_alpn_protocol(self) -> str | None:
        return self._alpn

    @overload
    def getpeercert(self, binary_form: Literal[False] = False) -> dict[str, Any] | None: ...
    @overload
    def getpeercert(self, binary_form: Literal[True]) -> bytes | None: ...
    @overload
    def getpeercert(self, binary_form: bool) -> dict[str, Any] | bytes | None: ...
    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """The peer's certificate: None when it has shown none, {} when it was not verified; in DER
        in any case. Raises ValueError before the handshake is over."""
        if self._version is None:
            raise ValueError("handshake not done yet")
        if not self._certificates:
            return None
        if binary_form:
            return self._certificates[0]
        return _x509.decode(self._certificates[0]) if self._verified else {}

    def get_unverified_chain(self) -> list[bytes]:
        """What the peer has shown, in DER: its certificate, then those that it sent along."""
        return list(self._certificates)

    @property
    def session_reused(self) -> bool:
        """Was a session resumed, without showing certificates again?"""
        return self._resumed

    @property
    def session(self) -> TLSSession | None:
        """Client: the newest session, to be set as `TLSContext.session`. None before there is one:
        a TLS 1.3 server sends it after the handshake, with its first bytes."""
        transport = self._transport()
        if transport is not None and transport._handle and not self.server_side:
            c = lib.tl_tls_session_get(transport._c, transport._handle, ffi.NULL)
            if c != ffi.NULL:
                self._session = TLSSession(c)
        return self._session
