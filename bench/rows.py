"""What is measured: each row is one declaration of a server, and of how it is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass

HELLO = b"Hello from an asyncio server\n"
JSON = json.dumps({"message": "Hello, world!"}).encode()
CLIENTS = {"asyncpg", "redis"}  # packages with which a loop is the client, see services.py
PEERS = ("rloop", "rsloop", "zuvloop", "blazio", "zloop", "veloxloop")  # beside uvloop
TLS = ("-T",)
NEW_SESSION = ("-T", "-n")


@dataclass(frozen=True)
class Kind:
    """A mode of ``serve.py`` and the options of ``load.c``; numbers that a row may override."""

    title: str
    server: str
    load: tuple[str, ...] = ()
    size: int = 1024
    connections: int = 50
    unit: str = "request"
    unix: bool = False  # listens on a Unix socket instead of a TCP port
    body: bytes | None = None  # what HTTP replies have to hold
    file: bool = False  # the reply is a file of `size` bytes
    needs: tuple[str, ...] = ()  # packages beside the loop

    @property
    def tls(self) -> bool:
        return "-T" in self.load

    @property
    def divisible(self) -> bool:
        """Can it be measured in short windows? wrk takes whole seconds, a file what it takes; idle
        connections are made once."""
        return not (self.body or self.file or "-i" in self.load)


def _http(title: str, server: str, body: bytes, *needs: str) -> Kind:
    return Kind(title, server, ("-m", "http"), 0, body=body, needs=needs)


def _file(title: str, *options: str) -> Kind:
    load = ("-m", "http", *options)
    return Kind(title, "file", load, 100_000_000, 1, unit="file", file=True)


KINDS = {
    "protocol": Kind("asyncio.Protocol", "protocol"),
    "buffered": Kind("asyncio.BufferedProtocol", "buffered"),
    "streams": Kind("StreamReader and StreamWriter", "streams"),
    "raw": Kind("sock_recv and sock_sendall", "raw"),
    "unix-protocol": Kind("Unix socket, asyncio.Protocol", "protocol", unix=True),
    "unix-streams": Kind("Unix socket, streams", "streams", unix=True),
    "pipes": Kind("a pair of pipes", "pipes", connections=1),
    "connect": Kind("connect, echo, close", "protocol", ("-n",), 64, unit="connection"),
    "udp": Kind("datagrams", "udp", ("-u",)),
    "udp-flood": Kind("datagrams received", "udp-count", ("-m", "flood"), 64, 1, unit="datagram"),
    "idle-5000": Kind("beside 5,000 idle connections", "protocol", ("-i", "5000")),
    "idle-15000": Kind("beside 15,000 idle connections", "protocol", ("-i", "15000")),
    "tls": Kind("TLS, asyncio.Protocol", "protocol", TLS),
    "tls-buffered": Kind("TLS, asyncio.BufferedProtocol", "buffered", TLS),
    "tls-streams": Kind("TLS, streams", "streams", TLS),
    "tls-full": Kind("full handshake", "protocol", NEW_SESSION, 16, 10, unit="handshake"),
    "tls-resumed": Kind(
        "resumed handshake", "protocol", (*NEW_SESSION, "-r"), 16, 10, unit="handshake"
    ),
    "tls-idle": Kind("TLS beside 1,000 idle connections", "protocol", (*TLS, "-i", "1000")),
    "http": _http("a small HTTP/1.1 server", "http", HELLO),
    "uvicorn": _http("uvicorn, plain text", "uvicorn", HELLO, "uvicorn"),
    "uvicorn-json": _http("uvicorn, JSON", "uvicorn-json", JSON, "uvicorn"),
    "aiohttp": _http("aiohttp", "aiohttp", HELLO, "aiohttp"),
    "file": _file("download of 100 MB"),
    "tls-file": _file("download of 100 MB in TLS", *TLS),
}

SHORT = (
    "protocol,buffered,streams,raw,unix-protocol,pipes,connect,udp,udp-flood,idle-5000,"
    "tls,tls-full,tls-resumed,tls-idle,http,uvicorn,uvicorn-json,aiohttp,file,tls-file"
)
_SIZES = (1024, 10240, 102400)
_TLS = ("tls", "tls-buffered", "tls-streams")
FULL = ",".join(
    [
        f"{kind}:{size}:{connections}"
        for kind in ("protocol", "buffered", "streams", "raw")
        for size in _SIZES
        for connections in (1, 50)
    ]
    + ["protocol:1024:1000"]
    + [f"{kind}:{size}" for kind in _TLS for size in _SIZES]
    + ["tls-full,tls-resumed,tls-idle,unix-protocol,unix-protocol:102400,unix-streams"]
    + ["pipes,pipes:102400,connect,udp:1024:1,udp:1024:50,udp-flood,idle-5000,idle-15000"]
    + ["http,uvicorn,uvicorn-json,aiohttp,file,tls-file"]
)
# Where all loops are measured primed, not uvloop alone: in other rows they allocate the same way.
PRIMED = {"protocol", "streams", "tls", "uvicorn"}


@dataclass(frozen=True)
class Row:
    """One line of figures: ``kind[:size[:connections]]``."""

    name: str
    size: int
    connections: int

    @classmethod
    def parse(cls, text: str, connections: int | None = None) -> Row:
        name, *numbers = text.split(":")
        if name not in KINDS or not all(map(str.isdigit, numbers)) or len(numbers) > 2:
            raise ValueError(f"not a row: {text!r}; rows are {', '.join(KINDS)}")
        kind = KINDS[name]
        defaults = [kind.size, connections or kind.connections]
        return cls(name, *map(int, numbers), *defaults[len(numbers) :])

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    def __str__(self) -> str:
        return f"{self.name}{f' {self.size} B' * bool(self.size)} x {self.connections}"
