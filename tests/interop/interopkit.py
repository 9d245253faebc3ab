"""Both ends of the interoperation tests, as processes or threads: ours (peer.c) and others."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "interop"
CASES = ROOT / "tests" / "tls" / "cases"
AUTHORITY = CASES / "authority.pem"
PATIENCE = 10.0
HOST = "server.example"

Event = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What a connection is made of; certificates are names of files in tests/tls/cases."""

    version: str = "1.3"
    cert: str = "server"
    client_cert: str | None = None
    alpn: str | None = None

    @property
    def mutual(self) -> bool:
        return self.client_cert is not None

    def __str__(self) -> str:
        return f"{self.version}-{self.cert}{'-mutual' if self.mutual else ''}"


def pem(name: str) -> str:
    return str(CASES / f"{name}.pem")


def fingerprint(name: str) -> str:
    """SHA-256 of the first certificate in a case's file, as peer.c tells it."""
    text = (CASES / f"{name}.pem").read_text()
    begin = text.index("-----BEGIN CERTIFICATE-----")
    end = text.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----\n")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[begin:end])).hexdigest()


@cache
def payload(nbytes: int) -> bytes:
    """Lines of lower-case letters, for tools that take other lines for commands."""
    letters = random.Random(nbytes).choices(b"abcdefghijklmnopqrstuvwxyz", k=min(nbytes, 1 << 20))
    data = bytearray(letters)
    data[2047::2048] = b"\n" * len(data[2047::2048])
    data *= max(1, nbytes // max(1, len(data)))
    if data:
        data[-1] = ord("\n")
    return bytes(data)


@cache
def digest(nbytes: int) -> str:
    return hashlib.sha256(payload(nbytes)).hexdigest()


@cache
def payload_file(nbytes: int) -> str:
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"payload-{nbytes}"
    if not path.exists() or path.read_bytes() != payload(nbytes):
        path.write_bytes(payload(nbytes))
    return str(path)


# -- processes -------------------------------------------------------------------------------------


class Program:
    """A process whose output is read by threads, so that it never waits for us."""

    def __init__(self, *command: str, stdin: str | None = None) -> None:
        self.command = command
        with open(stdin or "/dev/null", "rb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=file if stdin else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        self.out, self.err = bytearray(), bytearray()
        self.changed = threading.Condition()
        self.helpers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.out)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.err)),
        ]
        for helper in self.helpers:
            helper.start()

    def _read(self, stream: Any, into: bytearray) -> None:
        while data := stream.read1(65536):
            with self.changed:
                into += data
                self.changed.notify_all()

    def feed(self, data: bytes) -> None:
        """Write to its standard input, as fast as it reads, and leave that open."""

        def write() -> None:
            assert self.process.stdin
            with suppress(BrokenPipeError):  # it has ended: what it left unread, nobody misses
                self.process.stdin.write(data)
                self.process.stdin.flush()

        self.helpers.append(threading.Thread(target=write))
        self.helpers[-1].start()

    def wait_for(self, text: bytes, stream: bytearray | None = None) -> bytes:
        """Wait for a text in its output (or error output) and return the rest of that line."""
        stream = self.out if stream is None else stream

        def line() -> bytes | None:
            begin = stream.find(text)
            end = stream.find(b"\n", begin)
            return bytes(stream[begin + len(text) : end]) if begin >= 0 <= end else None

        with self.changed:
            assert self.changed.wait_for(lambda: line() is not None, PATIENCE), str(self)
        found = line()
        assert found is not None
        return found

    def join(self, patience: float = PATIENCE) -> int:
        status = self.process.wait(patience)
        for helper in self.helpers:
            helper.join()
        return status

    def end(self) -> None:
        self.process.kill()

    def close(self) -> None:
        self.end()
        self.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(BrokenPipeError):
                if stream:
                    stream.close()

    def __str__(self) -> str:
        return f"{' '.join(self.command)}\n{self.out[-2000:]!r}\n{self.err[-2000:]!r}"


@contextmanager
def running(*command: str, stdin: str | None = None) -> Iterator[Program]:
    program = Program(*command, stdin=stdin)
    try:
        yield program
    finally:
        program.close()


def listening_port(pid: int) -> int:
    """The first port on which a process listens, for programs that do not tell which they got."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        inodes = set()
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
            except FileNotFoundError:
                continue
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                return int(fields[1].split(":")[1], 16)
        time.sleep(0.005)
    raise TimeoutError(f"process {pid} does not listen")


# -- ours ------------------------------------------------------------------------------------------


class Ours(Program):
    """A process of peer.c, and what it reported."""

    def __init__(self, role: str, program: str = "peer", **options: object) -> None:
        words = [f"{name}={value}" for name, value in options.items() if value is not None]
        super().__init__(str(BUILD / program), role, *words)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def events(self) -> list[Event]:
        *lines, _ = bytes(self.out).split(b"\n")
        return [json.loads(line) for line in lines]

    def event(self, kind: str, number: int = 0) -> Event:
        def find() -> Event | None:
            found = [event for event in self.events() if event["event"] == kind]
            return found[number] if len(found) > number else None

        with self.changed:
            assert self.changed.wait_for(lambda: find() is not None, PATIENCE), f"no {kind}: {self}"
        event = find()
        assert event is not None
        return event

    def wait_for_lines(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.out.count(b"\n") >= count, 3 * PATIENCE)

    def wait_for_ends(self) -> None:
        """Until each of its connections has ended."""
        end = time.monotonic() + PATIENCE
        while self.sockets() > 1:
            assert time.monotonic() < end, str(self)
            time.sleep(0.001)

    def sockets(self) -> int:
        count = 0
        for link in Path(f"/proc/{self.process.pid}/fd").glob("*"):
            with suppress(FileNotFoundError):  # closed meanwhile
                count += str(link.readlink()).startswith("socket:")
        return count

    @property
    def port(self) -> int:
        port: int = self.event("listening")["port"]
        return port


def options_of(case: Case) -> dict[str, object]:
    return {"version": case.version, "ca": AUTHORITY, "alpn": case.alpn}


@contextmanager
def our_server(case: Case, program: str = "peer", **options: object) -> Iterator[Ours]:
    options = {"cert": pem(case.cert), **options_of(case), **options}
    if case.mutual:
        options.setdefault("verify", "required")
    ours = Ours("server", program, **options)
    try:
        yield ours
    finally:
        ours.close()


def our_client(case: Case, port: int, **options: object) -> Ours:
    """Run a client to its end."""
    options = {"port": port, "name": HOST, **options_of(case), **options}
    if case.client_cert:
        options["cert"] = pem(case.client_cert)
    ours = Ours("client", **options)
    try:
        ours.event("closed")
        ours.join()
    finally:
        ours.close()
    return ours


# -- foreign ones ----------------------------------------------------------------------------------


class Server(Protocol):
    """A foreign server. It sends back what it receives, or what it is told to send."""

    port: int

    def send(self, data: bytes) -> None: ...

    def check_received(self, data: bytes) -> None:
        """Fail unless this, and no more, has arrived, if an echo has not shown it."""


class Foreign(Protocol):
    """A foreign implementation. A client checks by itself that what it sends comes back."""

    @property
    def name(self) -> str: ...

    @property
    def program(self) -> str | Path | None: ...

    def serve(self, case: Case) -> AbstractContextManager[Server]: ...

    def connect(self, case: Case, port: int, nbytes: int) -> None: ...

    def resume(self, case: Case, port: int) -> None:
        """Connect twice, the second time with the session of the first."""


@dataclass
class Echo:
    port: int

    def send(self, data: bytes) -> None:
        """It will."""

    def check_received(self, data: bytes) -> None:
        """It has."""


@dataclass
class OpensslServer:
    program: Program
    port: int

    def check_received(self, data: bytes) -> None:
        program = self.program
        with program.changed:
            assert program.changed.wait_for(lambda: len(program.out) >= len(data), PATIENCE)
        assert bytes(program.out) == data, str(program)

    def send(self, data: bytes) -> None:
        self.program.feed(data)


class Openssl:
    name = program = "openssl"

    def __init__(self, *options: str) -> None:
        self.options = options

    def _options(self, case: Case) -> list[str]:
        alpn = ["-alpn", case.alpn] if case.alpn else []
        version = f"-tls{case.version.replace('.', '_')}"
        return ["-CAfile", str(AUTHORITY), version, *alpn, *self.options]

    @contextmanager
    def serve(self, case: Case) -> Iterator[Server]:
        own = ["-accept", "127.0.0.1:0", "-cert", pem(case.cert), "-key", pem(case.cert)]
        mutual = ["-Verify", "1", "-verify_return_error"] if case.mutual else []
        words = ["openssl", "s_server", *own, *self._options(case), *mutual, "-brief"]
        with running(*words) as program:
            yield OpensslServer(program, listening_port(program.process.pid))

    def _client(self, case: Case, port: int, *more: str) -> list[str]:
        own = (
            ["-cert", pem(case.client_cert), "-key", pem(case.client_cert)]
            if case.client_cert
            else []
        )
        verify = ["-verify_return_error", "-verify_hostname", HOST, "-servername", HOST]
        where = ["-connect", f"127.0.0.1:{port}", "-nocommands"]
        return ["openssl", "s_client", *where, *own, *verify, *self._options(case), *more]

    def connect(self, case: Case, port: int, nbytes: int) -> None:
        with running(*self._client(case, port, "-quiet"), stdin=payload_file(nbytes)) as program:
            assert program.join() == 0, str(program)
            assert bytes(program.out) == payload(nbytes), str(program)

    def resume(self, case: Case, port: int) -> None:
        kept = BUILD / f"openssl-session-{case.version}"
        for option in ("-sess_out", "-sess_in"):
            words = self._client(case, port, "-quiet", option, str(kept))
            with running(*words, stdin=payload_file(1)) as program:
                assert program.join() == 0, str(program)
        kept.unlink()


class Gnutls:
    name, program = "gnutls", "gnutls-cli"

    def _options(self, case: Case) -> list[str]:
        alpn = [f"--alpn={name}" for name in case.alpn.split(",")] if case.alpn else []
        priority = f"--priority=NORMAL:-VERS-ALL:+VERS-TLS{case.version}"
        return [f"--x509cafile={AUTHORITY}", priority, *alpn]

    @contextmanager
    def serve(self, case: Case) -> Iterator[Server]:
        own = [f"--x509certfile={pem(case.cert)}", f"--x509keyfile={pem(case.cert)}"]
        asks = (
            ["--require-client-cert", "--verify-client-cert"]
            if case.mutual
            else ["--disable-client-cert"]
        )
        words = ["gnutls-serv", "--port=0", "--echo", "--crlf", *own, *asks, *self._options(case)]
        with running(*words) as program:
            yield Echo(listening_port(program.process.pid))

    def _client(self, case: Case, port: int, *more: str) -> list[str]:
        own = (
            [f"--x509certfile={pem(case.client_cert)}", f"--x509keyfile={pem(case.client_cert)}"]
            if case.client_cert
            else []
        )
        names = [f"--sni-hostname={HOST}", f"--verify-hostname={HOST}", "--logfile=/dev/stderr"]
        return [
            "gnutls-cli",
            f"--port={port}",
            "127.0.0.1",
            *own,
            *names,
            *self._options(case),
            *more,
        ]

    def connect(self, case: Case, port: int, nbytes: int) -> None:
        with running(*self._client(case, port)) as program:
            program.feed(payload(nbytes))
            assert program.join(PATIENCE + nbytes / 300_000) == 0, str(program)  # byte by byte
            assert bytes(program.out) == payload(nbytes), str(program)

    def resume(self, case: Case, port: int) -> None:
        more = ["--resume"] + ["--waitresumption"] * (case.version == "1.3")
        with running(*self._client(case, port, *more)) as program:
            program.feed(b"\n")
            assert program.join() == 0, str(program)


class Go:
    name, program = "go", BUILD / "go_peer"

    def _options(self, case: Case) -> list[str]:
        alpn = ["-alpn", case.alpn] if case.alpn else []
        return ["-ca", str(AUTHORITY), "-version", case.version, *alpn]

    @contextmanager
    def serve(self, case: Case) -> Iterator[Server]:
        mutual = ["-mutual"] if case.mutual else []
        words = [str(BUILD / "go_peer"), "server", "-cert", pem(case.cert), *mutual]
        with running(*words, *self._options(case)) as program:
            yield Echo(int(program.wait_for(b'{"port": ').rstrip(b"}")))

    def _connect(self, case: Case, port: int, *more: str) -> None:
        own = ["-cert", pem(case.client_cert)] if case.client_cert else []
        words = [str(BUILD / "go_peer"), "client", "-port", str(port), *own, *self._options(case)]
        with running(*words, *more) as program:
            assert program.join() == 0, str(program)

    def connect(self, case: Case, port: int, nbytes: int) -> None:
        self._connect(case, port, "-send", payload_file(nbytes))

    def resume(self, case: Case, port: int) -> None:
        self._connect(case, port, "-send", payload_file(1), "-again", "1")


class Python:
    name, program = "python", None

    def _context(self, protocol: int, case: Case, cert: str | None) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        version = ssl.TLSVersion.TLSv1_2 if case.version == "1.2" else ssl.TLSVersion.TLSv1_3
        context.minimum_version = context.maximum_version = version
        context.load_verify_locations(AUTHORITY)
        if cert:
            context.load_cert_chain(pem(cert))
        if case.alpn:
            context.set_alpn_protocols(case.alpn.split(","))
        return context

    def _echo(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:  # it was closed
                return
            raw.settimeout(PATIENCE)
            try:
                with context.wrap_socket(raw, server_side=True) as conn:
                    while data := conn.recv(65536):
                        conn.sendall(data)
            except ssl.SSLError:  # the other side tells why
                raw.close()

    @contextmanager
    def serve(self, case: Case) -> Iterator[Server]:
        context = self._context(ssl.PROTOCOL_TLS_SERVER, case, case.cert)
        if case.mutual:
            context.verify_mode = ssl.CERT_REQUIRED
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=self._echo, args=(listener, context))
        thread.start()
        try:
            yield Echo(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()

    def _talk(
        self, context: ssl.SSLContext, port: int, data: bytes, session: ssl.SSLSession | None = None
    ) -> tuple[bytes, ssl.SSLSession | None]:
        raw = socket.create_connection(("127.0.0.1", port), PATIENCE)
        with context.wrap_socket(raw, server_hostname=HOST, session=session) as conn:
            received = bytearray()  # little by little: an SSL object is for one thread
            for begin in range(0, len(data), 16384):
                conn.sendall(data[begin : begin + 16384])
                end = min(len(data), begin + 16384)
                while len(received) < end and (some := conn.recv(65536)):
                    received += some
            kept = conn.session
            conn.unwrap().close()
        return bytes(received), kept

    def connect(self, case: Case, port: int, nbytes: int) -> None:
        context = self._context(ssl.PROTOCOL_TLS_CLIENT, case, case.client_cert)
        assert self._talk(context, port, payload(nbytes))[0] == payload(nbytes)

    def resume(self, case: Case, port: int) -> None:
        context = self._context(ssl.PROTOCOL_TLS_CLIENT, case, case.client_cert)
        session = self._talk(context, port, b"x")[1]
        assert self._talk(context, port, b"x", session)[0] == b"x"


FOREIGN: dict[str, Foreign] = {it.name: it for it in (Openssl(), Gnutls(), Go(), Python())}
