"""curl gets and posts over HTTP/1.1 and HTTP/2, which are spoken behind our server, without TLS."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from interopkit import (
    AUTHORITY,
    HOST,
    PATIENCE,
    Case,
    digest,
    our_server,
    payload,
    payload_file,
    pem,
)

SIZES = (0, 1, 16385, 1 << 20)
MUCH = 64 << 20


class Http1(BaseHTTPRequestHandler):
    """GET /N answers N bytes; POST answers what it gets."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(payload(int(self.path[1:])))

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *unused: object) -> None: ...


class Http2:
    """The same on one HTTP/2 connection."""

    def __init__(self, conn: socket.socket) -> None:
        self.socket = conn
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.paths: dict[int, str] = {}
        self.bodies: dict[int, bytearray] = {}
        self.unsent: dict[int, memoryview] = {}

    def run(self) -> None:
        self.h2.initiate_connection()
        self._flush()
        with suppress(ConnectionError):
            while data := self.socket.recv(65536):
                for event in self.h2.receive_data(data):
                    self._handle(event)
                self._send()
                self._flush()

    def _handle(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            headers = dict(event.headers)
            self.paths[event.stream_id] = headers[b":path"].decode()
            self.bodies[event.stream_id] = bytearray()
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            path, body = self.paths[event.stream_id], bytes(self.bodies[event.stream_id])
            answer = body if path == "/echo" else payload(int(path[1:]))
            self.h2.send_headers(event.stream_id, [(":status", "200")], end_stream=not answer)
            if answer:
                self.unsent[event.stream_id] = memoryview(answer)

    def _send(self) -> None:
        """As much as the client's windows allow."""
        for stream, left in list(self.unsent.items()):
            while left and (window := self.h2.local_flow_control_window(stream)) > 0:
                n = min(window, self.h2.max_outbound_frame_size, len(left))
                self.h2.send_data(stream, bytes(left[:n]), end_stream=n == len(left))
                left = left[n:]
            self.unsent[stream] = left
            if not left:
                del self.unsent[stream]

    def _flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())


@contextmanager
def http1() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Http1)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def accept(listener: socket.socket) -> None:
    with suppress(OSError):  # until it is closed
        while True:
            conn, _ = listener.accept()
            with conn:
                conn.settimeout(PATIENCE)
                Http2(conn).run()


@contextmanager
def http2() -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=accept, args=(listener,))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def curl(
    case: Case, port: int, path: str, *more: str, ca: Path = AUTHORITY
) -> tuple[int, str, bytes]:
    """Exit status, version of HTTP, body."""
    own = ["--cert", pem(case.client_cert)] if case.client_cert else []
    version = ["--tlsv1.2", "--tls-max", "1.2"] if case.version == "1.2" else ["--tlsv1.3"]
    words = ["curl", "--silent", "--max-time", "20", "--cacert", str(ca), *version, *own]
    words += ["--resolve", f"{HOST}:{port}:127.0.0.1", "--write-out", "%{stderr}%{http_version}"]
    words += [f"https://{HOST}:{port}{path}", *more]
    done = subprocess.run(words, capture_output=True, timeout=PATIENCE * 3)
    return done.returncode, done.stderr.decode(), done.stdout


BACKENDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "1.1": ("http/1.1", http1),
    "2": ("h2", http2),
}
CASES = [
    Case("1.2"),
    Case("1.3"),
    Case("1.2", "rsa"),
    Case("1.3", "rsa"),
    Case("1.2", "rsa", "client"),
    Case("1.3", "server", "client"),
]


@pytest.mark.parametrize("http", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_get_and_post(case: Case, http: str) -> None:
    alpn, backend = BACKENDS[http]
    with backend() as behind, our_server(case, backend=behind, alpn=alpn) as ours:
        for nbytes in SIZES:
            status, version, body = curl(case, ours.port, f"/{nbytes}", f"--http{http}")
            assert (status, version) == (0, http), str(ours)
            assert hashlib.sha256(body).hexdigest() == digest(nbytes)
        data = f"@{payload_file(1 << 20)}"
        status, version, body = curl(
            case, ours.port, "/echo", f"--http{http}", "--data-binary", data
        )
        assert (status, version) == (0, http), str(ours)
        assert hashlib.sha256(body).hexdigest() == digest(1 << 20)
        assert {event["alpn"] for event in ours.events() if event["event"] == "tls"} == {alpn}


@pytest.mark.parametrize(
    ("http", "case"), [("1.1", Case("1.3")), ("2", Case("1.2", "rsa"))], ids=str
)
def test_get_much(case: Case, http: str) -> None:
    alpn, backend = BACKENDS[http]
    with backend() as behind, our_server(case, backend=behind, alpn=alpn) as ours:
        status, version, body = curl(case, ours.port, f"/{MUCH}", f"--http{http}")
        assert (status, version) == (0, http), str(ours)
        assert hashlib.sha256(body).hexdigest() == digest(MUCH)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_curl_resumes(case: Case) -> None:
    with http1() as behind, our_server(case, backend=behind) as ours:
        again = f"https://{HOST}:{ours.port}/2"
        assert curl(case, ours.port, "/1", "--header", "Connection: close", again)[0] == 0
        assert [ours.event("tls", number)["resumed"] for number in range(2)] == [0, 1]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl_refuses_who_it_does_not_know(version: str) -> None:
    with http1() as behind, our_server(Case(version, "stranger"), backend=behind) as ours:
        assert curl(Case(version), ours.port, "/1")[0] == 60
        assert ours.event("tls")["alert"] == 48
