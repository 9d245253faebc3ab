"""What certificate files hold, and passwords as `ssl` takes them."""

from __future__ import annotations

import os
import re
from binascii import a2b_base64
from typing import TYPE_CHECKING, Final

from tloop_py._x509 import split_der

if TYPE_CHECKING:
    from collections.abc import Callable

    Password = str | bytes | bytearray
    PasswordSource = Password | Callable[[], Password] | None
    Data = str | bytes | bytearray | memoryview
    PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_BLOCK: Final = re.compile(
    rb"-----BEGIN (X509 CRL|(?:X509 )?CERTIFICATE)-----(.*?)-----END \1-----", re.DOTALL
)
_MAX_PASSWORD: Final = 1024  # bytes; ssl's limit


def read(path: PathLike) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def as_bytes(data: Data, what: str) -> bytes:
    """PEM may be text."""
    if isinstance(data, str):
        try:
            return data.encode("ascii")
        except UnicodeEncodeError as exc:
            raise TypeError(f"{what} should be an ASCII string or a bytes-like object") from exc
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"{what} should be an ASCII string or a bytes-like object")
    return bytes(data)


def split(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """The certificates and the revocation lists, each in DER, of a PEM or DER file."""
    found: dict[bool, list[bytes]] = {True: [], False: []}
    if b"-----BEGIN" not in data:
        try:
            return split_der(data), []
        except (IndexError, ValueError):
            return [], []
    for kind, text in _BLOCK.findall(data):
        found[kind == b"X509 CRL"].append(a2b_base64(text))
    return found[False], found[True]


def read_folder(path: PathLike) -> list[bytes]:
    """The contents of all files of a folder of certificates; links to one file count once."""
    folder = os.fsdecode(path)
    files = {os.path.realpath(os.path.join(folder, name)) for name in os.listdir(folder)}
    return [read(file) for file in sorted(files) if os.path.isfile(file)]


def password_bytes(source: PasswordSource) -> bytes:
    """Ask for the password, if it is a function that knows it."""
    given = source() if callable(source) else source
    if isinstance(given, str):
        given = given.encode()
    if not isinstance(given, (bytes, bytearray)):
        if callable(source):
            raise TypeError("password callback must return a string")
        raise TypeError("password should be a string or callable")
    if len(given) > _MAX_PASSWORD:
        raise ValueError(f"password cannot be longer than {_MAX_PASSWORD} bytes")
    return bytes(given)
