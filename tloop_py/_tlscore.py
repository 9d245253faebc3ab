"""From settings to a context of the C core, and what the core asks of Python in a handshake."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from tloop_py._ffi import HAS_TLS, ffi, lib, oserror
from tloop_py._pem import password_bytes

if TYPE_CHECKING:
    from tloop_py._pem import PasswordSource
    from tloop_py._tlsobject import NameCallback


class Certificate(NamedTuple):
    """With its chain and private key, PEM or DER."""

    chain: bytes
    key: bytes | None  # None: in chain
    password: bytes | None
    names: str | None  # for whom it is shown, "a.example,*.b.example"; None: to everybody else

    @classmethod
    def check(
        cls, chain: bytes, key: bytes | None, password: PasswordSource, names: str | None
    ) -> Certificate:
        """Raises ssl.SSLError for what does not belong together. The password is asked for only
        when the key is encrypted."""
        probe, made = _empty_server(), cls(chain, key, None, names)
        code = made.add_to(probe)
        if code == lib.TL_ETLS_PASSWORD and password is not None:
            made = made._replace(password=password_bytes(password))
            code = made.add_to(probe)
        if code < 0:
            raise oserror(code, "load_cert_chain()")
        return made

    def add_to(self, core: Any) -> int:
        key = self.chain if self.key is None else self.key
        texts = [_text(self.password), _text(self.names)]
        chain_memory, key_memory = ffi.from_buffer(self.chain), ffi.from_buffer(key)
        cert = ffi.new("tl_tls_cert *")
        cert.chain, cert.chain_nbytes = chain_memory, len(chain_memory)
        cert.key, cert.key_nbytes = key_memory, len(key_memory)
        cert.password, cert.names = texts
        code: int = lib.tl_tls_add_cert(core, cert)
        return code


class Settings(NamedTuple):
    """All of a context that the C core has to know."""

    server: bool = False
    verify: int = 0  # TL_TLS_VERIFY_*, or TL_TLS_INSECURE_NO_VERIFICATION
    flags: int = 0  # TL_TLS_*
    versions: tuple[int, int] = (0x303, 0x304)
    close_timeout: float = 1.0  # seconds
    alpn: tuple[str, ...] = ()
    ciphers: tuple[str, ...] | None = None
    certificates: tuple[Certificate, ...] = ()
    authorities: tuple[bytes, ...] = ()  # DER
    revocations: tuple[bytes, ...] = ()  # DER
    system_authorities: bool = False
    ticket_keys: tuple[bytes, ...] = ()  # the newest is the last


class Core:
    """A context of the C core; never changed. Alive while a transport or a TLSContext has it."""

    __slots__ = ("_callbacks", "c")

    def __init__(self, settings: Settings, callbacks: Callbacks | None = None) -> None:
        # The handle keeps what `user` stands for; nothing of it refers to this object, for the
        # garbage collector cannot look into handles.
        self._callbacks = ffi.NULL if callbacks is None else ffi.new_handle(callbacks)
        desc, texts = _describe(settings)
        if callbacks is not None:
            desc.user = self._callbacks
            desc.on_name = lib.tloop_on_name if callbacks.on_name else ffi.NULL
            desc.on_keylog = lib.tloop_on_keylog if callbacks.keylog else ffi.NULL
        self.c = _create(desc)
        texts.clear()  # copied by now
        _fill(self.c, settings)

    def ciphers(self) -> list[str]:
        names: list[str] = []
        name = ffi.new("char[]", 80)
        while lib.tl_tls_cipher(self.c, len(names), name, len(name)) > 0:
            names.append(ffi.string(name).decode())
        return names

    def add_ticket_key(self, key: bytes) -> None:
        _check(lib.tl_tls_ticket_key(self.c, key, len(key)), "set_ticket_key()")


def library() -> str:
    """Which mbedTLS this is, and what computes its AES-GCM."""
    name, gcm = ffi.string(lib.tl_tls_library()), ffi.string(lib.tl_tls_gcm())
    return f"{name.decode()}, AES-GCM by {gcm.decode()}"


def _describe(settings: Settings) -> tuple[Any, list[Any]]:
    """A tl_tls_desc, and the texts that it refers to."""
    texts = [_text(",".join(settings.alpn) or None)]
    texts.append(_text(None if settings.ciphers is None else ":".join(settings.ciphers)))
    desc = ffi.new("tl_tls_desc *")
    desc.role = lib.TL_TLS_SERVER if settings.server else lib.TL_TLS_CLIENT
    desc.verify, desc.flags = settings.verify, settings.flags
    desc.min_version, desc.max_version = settings.versions
    desc.close_timeout_ns = nanoseconds(settings.close_timeout)
    desc.alpn, desc.ciphers = texts
    return desc, texts


def _create(desc: Any) -> Any:
    error = ffi.new("int64_t *")
    c = lib.tl_tls_create(desc, error)
    if c == ffi.NULL:
        raise oserror(error[0], "cannot make a TLS context")
    return ffi.gc(c, lib.tl_tls_release)


def _fill(core: Any, settings: Settings) -> None:
    for certificate in settings.certificates:
        _check(certificate.add_to(core), "certificate")
    for der in settings.authorities:
        _check(lib.tl_tls_add_ca(core, der, len(der)), "authority")
    for der in settings.revocations:
        _check(lib.tl_tls_add_crl(core, der, len(der)), "revocation list")
    if settings.system_authorities:
        _check(lib.tl_tls_add_system_ca(core), "the system's certificate authorities")
    for key in settings.ticket_keys:
        _check(lib.tl_tls_ticket_key(core, key, len(key)), "ticket key")


def _empty_server() -> Any:
    return Core(Settings(server=True)).c


@functools.cache
def default_ciphers() -> tuple[str, ...]:
    return tuple(Core(Settings()).ciphers())


def knows_cipher(name: str) -> bool:
    try:
        Core(Settings(ciphers=(name, *default_ciphers())))
    except OSError:
        return False
    return True


def understood(certificates: list[bytes], revocations: list[bytes]) -> tuple[Any, Any]:
    """Those that mbedTLS can use; one that it does not know cannot vouch for anybody."""
    probe = _empty_server()
    return (
        [der for der in certificates if lib.tl_tls_add_ca(probe, der, len(der)) == 0],
        [der for der in revocations if lib.tl_tls_add_crl(probe, der, len(der)) == 0],
    )


def nanoseconds(seconds: float) -> int:
    return max(1, int(min(seconds, 1e9) * 1e9))


def _text(text: str | bytes | None) -> Any:
    if text is None:
        return ffi.NULL
    return ffi.new("char[]", text.encode() if isinstance(text, str) else text)


def _check(code: int, what: str) -> None:
    if code < 0:
        raise oserror(code, what)


# -- what the C core asks --------------------------------------------------------------------------


class KeyLog:
    """A file with the secrets of connections, for tools such as Wireshark."""

    def __init__(self, path: Any) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: IO[str] = open(path, "a", encoding="ascii")  # noqa: SIM115 -- as long as this
        if not self._file.tell():
            self.write("# TLS secrets log file, generated by mbedTLS / tloop_py")

    def write(self, line: str) -> None:
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class Callbacks(NamedTuple):
    """What a context has to answer in a handshake; refers to no Core."""

    on_name: NameCallback | None
    keylog: KeyLog | None


_UNKNOWN: Final = 1  # any number but 0 refuses the name

if HAS_TLS:

    @ffi.def_extern(error=_UNKNOWN)  # type: ignore[untyped-decorator]
    def tloop_on_name(_loop: Any, stream: int, name: Any, user: Any) -> int:
        """In the middle of a poll: the loop is the one that runs in this thread."""
        loop: Any = asyncio._get_running_loop()
        transport = loop._handlers.get(stream)
        callback = ffi.from_handle(user).on_name
        if transport is None or callback is None:
            return _UNKNOWN
        accepted: bool = transport._choose_certificate(callback, ffi.string(name).decode("latin-1"))
        loop._write_to_self()  # whatever that has scheduled need not wait for the peer
        return 0 if accepted else _UNKNOWN

    @ffi.def_extern()  # type: ignore[untyped-decorator]
    def tloop_on_keylog(line: Any, user: Any) -> None:
        ffi.from_handle(user).keylog.write(ffi.string(line).decode("ascii"))
