"""Datagrams: UDP over IPv4 and IPv6, Unix datagrams, errors, flow control."""

from __future__ import annotations

import asyncio
import errno
import socket
import tempfile
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import Loop, end_of, is_tloop, turns, until, warnings_seen

pytestmark = pytest.mark.usefixtures("loop")


class Datagrams(asyncio.DatagramProtocol):
    """Writes down every call it gets."""

    transport: Any = None

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.got: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.calls.append("made")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.calls.append("datagram")
        self.got.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.calls.append("error")
        self.errors.append(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.error = exc

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    @property
    def lost(self) -> bool:
        return "lost" in self.calls

    async def received(self, count: int) -> list[bytes]:
        await until(lambda: len(self.got) >= count)
        return [data for data, _ in self.got]


class EchoDatagrams(Datagrams):
    def datagram_received(self, data: bytes, addr: Any) -> None:
        super().datagram_received(data, addr)
        self.transport.sendto(data, addr)


@asynccontextmanager
async def endpoint(
    protocol: Datagrams | None = None, **options: Any
) -> AsyncIterator[tuple[Any, Any]]:
    """A datagram transport (bound to loopback unless told otherwise) and its protocol."""
    chosen = protocol or Datagrams()
    if not options:
        options = {"local_addr": ("127.0.0.1", 0)}
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: chosen, **options)
    try:
        yield transport, chosen
    finally:
        if not transport.is_closing():
            transport.abort()
        await until(lambda: chosen.lost)


def address_of(transport: asyncio.BaseTransport) -> Any:
    return transport.get_extra_info("sockname")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tl-") as path:
        yield Path(path)


async def test_echo_between_two_endpoints(loop: Loop) -> None:
    async with endpoint(EchoDatagrams()) as (server, _), endpoint() as (client, protocol):
        client.sendto(b"hello", address_of(server))
        assert await protocol.received(1) == [b"hello"]
        assert protocol.got[0][1] == address_of(server)


async def test_a_connected_endpoint_needs_no_address(loop: Loop) -> None:
    async with endpoint(EchoDatagrams()) as (server, _):
        remote = address_of(server)
        async with endpoint(remote_addr=remote) as (client, protocol):
            client.sendto(b"one")
            client.sendto(b"two", None)
            client.sendto(b"three", remote)
            assert await protocol.received(3) == [b"one", b"two", b"three"]
            assert client.get_extra_info("peername") == remote


async def test_a_connected_endpoint_refuses_another_address(loop: Loop) -> None:
    async with endpoint(remote_addr=("127.0.0.1", 9)) as (client, _):
        with pytest.raises(ValueError, match="Invalid address"):
            client.sendto(b"x", ("127.0.0.1", 10))


async def test_extra_info_describes_the_socket(loop: Loop) -> None:
    async with endpoint() as (transport, _):
        assert isinstance(transport, asyncio.BaseTransport)
        sock = transport.get_extra_info("socket")
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        assert sock.type == socket.SOCK_DGRAM
        assert sock.getsockname() == transport.get_extra_info("sockname")
        assert transport.get_extra_info("peername") is None
        assert not transport.is_closing()


async def test_ipv6_addresses_have_four_parts(loop: Loop) -> None:
    async with (
        endpoint(EchoDatagrams(), local_addr=("::1", 0)) as (server, _),
        endpoint(local_addr=("::1", 0)) as (client, protocol),
    ):
        client.sendto(b"six", address_of(server)[:2])
        await protocol.received(1)
        assert protocol.got == [(b"six", address_of(server))]
        assert len(address_of(server)) == 4


async def test_empty_datagrams_are_received(loop: Loop) -> None:
    async with endpoint() as (server, protocol):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for data in (b"", b"between", b""):
                sock.sendto(data, address_of(server))
        assert await protocol.received(3) == [b"", b"between", b""]


@pytest.mark.loops("tloop")  # asyncio drops them up to Python 3.13
@pytest.mark.parametrize("connected", [False, True])
async def test_empty_datagrams_are_sent(loop: Loop, connected: bool) -> None:
    async with endpoint() as (server, protocol):
        options = {"remote_addr": address_of(server)} if connected else {}
        async with endpoint(**options) as (client, _):
            for data in (b"", b"between", b""):
                client.sendto(data, None if connected else address_of(server))
            assert await protocol.received(3) == [b"", b"between", b""]


@pytest.mark.parametrize(
    "data", [b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview")[1:5]]
)
async def test_every_bytes_like_type_is_sent(loop: Loop, data: Any) -> None:
    async with endpoint() as (server, protocol), endpoint() as (client, _):
        client.sendto(data, address_of(server))
        assert await protocol.received(1) == [bytes(data)]


@pytest.mark.parametrize("data", ["text", None, 1, [b"x"]])
async def test_other_types_are_refused(loop: Loop, data: Any) -> None:
    async with endpoint() as (server, protocol), endpoint() as (client, _):
        with pytest.raises(TypeError, match=r"bytes-like|data argument"):
            client.sendto(data, address_of(server))
        client.sendto(b"fine", address_of(server))
        assert await protocol.received(1) == [b"fine"]


async def test_the_largest_datagram_arrives_whole(loop: Loop) -> None:
    data = bytes(range(256)) * 255 + b"x" * 227  # 65507 bytes, all that IPv4 allows
    async with endpoint(EchoDatagrams()) as (server, _), endpoint() as (client, protocol):
        client.sendto(data, address_of(server))
        assert await protocol.received(1) == [data]


async def test_a_datagram_that_is_too_large_is_reported(loop: Loop) -> None:
    async with endpoint() as (server, _), endpoint() as (client, protocol):
        client.sendto(b"x" * 65_508, address_of(server))
        await until(lambda: protocol.errors or protocol.lost)
        assert protocol.errors[0].errno == errno.EMSGSIZE
        assert not client.is_closing()


async def test_thousands_of_datagrams_arrive_in_order(loop: Loop) -> None:
    total, window = 5000, 50
    async with endpoint(EchoDatagrams()) as (server, _), endpoint() as (client, protocol):
        for start in range(0, total, window):
            for number in range(start, start + window):
                client.sendto(b"%d" % number, address_of(server))
            await protocol.received(start + window)
        assert [int(data) for data, _ in protocol.got] == list(range(total))


async def test_a_refused_datagram_is_reported(loop: Loop) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = sock.getsockname()
    async with endpoint(remote_addr=nobody) as (client, protocol):
        client.sendto(b"anyone there?")
        await until(lambda: protocol.errors)
        assert isinstance(protocol.errors[0], ConnectionRefusedError)
        assert not client.is_closing()
        client.sendto(b"still there?")
        await until(lambda: len(protocol.errors) >= 2)


async def test_sendto_a_host_name(loop: Loop) -> None:
    """B14: asyncio resolves it in place; no input may end the process."""
    async with endpoint() as (server, protocol), endpoint() as (client, _):
        client.sendto(b"by name", ("localhost", address_of(server)[1]))
        assert await protocol.received(1) == [b"by name"]


async def test_sendto_an_unknown_host_is_an_error(loop: Loop, asyncio_log: AsyncioLog) -> None:
    """B14"""
    async with endpoint() as (client, protocol):
        client.sendto(b"x", ("no.such.host.invalid", 9))
        await until(lambda: protocol.errors or protocol.lost)
        assert isinstance([*protocol.errors, protocol.error][0], OSError)


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("text", id="text"),
        pytest.param(("127.0.0.1",), id="no port"),
        pytest.param(("127.0.0.1", "80"), id="port as text"),
        pytest.param(("127.0.0.1", 70_000), id="port out of range"),
        pytest.param((1, 2), id="host as number"),
        pytest.param(42, id="number"),
    ],
)
async def test_a_senseless_address_ends_the_endpoint_and_nothing_else(
    loop: Loop, asyncio_log: AsyncioLog, address: Any
) -> None:
    """B14: asyncio treats it as a fatal error of the transport."""
    async with endpoint() as (client, protocol):
        client.sendto(b"x", address)
        await until(lambda: protocol.lost)
        assert isinstance(protocol.error, TypeError | ValueError | OverflowError)
    asyncio_log.expect("Fatal write error on datagram transport")


async def test_broadcast_must_be_allowed(loop: Loop) -> None:
    async with endpoint(family=socket.AF_INET, allow_broadcast=True) as (transport, _):
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
    async with endpoint(family=socket.AF_INET) as (transport, protocol):
        sock = transport.get_extra_info("socket")
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
        transport.sendto(b"x", ("127.255.255.255", 9))
        await until(lambda: protocol.errors)
        assert isinstance(protocol.errors[0], PermissionError)


async def test_reuse_port_lets_two_endpoints_share(loop: Loop) -> None:
    async with endpoint(local_addr=("127.0.0.1", 0), reuse_port=True) as (first, _):
        local = address_of(first)
        async with endpoint(local_addr=local, reuse_port=True) as (second, _):
            assert address_of(second) == local


async def test_an_address_in_use_is_refused(loop: Loop) -> None:
    async with endpoint() as (transport, _):
        with pytest.raises(OSError, match="in use") as caught:
            await loop.create_datagram_endpoint(Datagrams, local_addr=address_of(transport))
        assert caught.value.errno == errno.EADDRINUSE


async def test_an_existing_socket_can_be_used(loop: Loop) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    async with endpoint(sock=sock) as (server, protocol), endpoint() as (client, _):
        client.sendto(b"x", address_of(server))
        assert await protocol.received(1) == [b"x"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="no family"),
        pytest.param({"local_addr": ("127.0.0.1", 0), "sock": "dgram"}, id="address and socket"),
        pytest.param({"sock": "stream"}, id="stream socket"),
        pytest.param({"family": socket.AF_INET, "local_addr": ("::1", 0)}, id="other family"),
    ],
)
async def test_contradicting_arguments_are_refused(loop: Loop, options: dict[str, Any]) -> None:
    kinds = {"dgram": socket.SOCK_DGRAM, "stream": socket.SOCK_STREAM}
    with socket.socket(socket.AF_INET, kinds[options.get("sock", "dgram")]) as sock:
        if "sock" in options:
            options = {**options, "sock": sock}
        with pytest.raises((ValueError, OSError)):
            await loop.create_datagram_endpoint(Datagrams, **options)


async def test_unix_datagrams(loop: Loop, folder: Path) -> None:
    here, there = str(folder / "here"), str(folder / "there")
    options: dict[str, Any] = {"family": socket.AF_UNIX}
    async with (
        endpoint(EchoDatagrams(), local_addr=there, **options) as (_, echo),
        endpoint(local_addr=here, remote_addr=there, **options) as (client, protocol),
    ):
        client.sendto(b"hello")
        assert await protocol.received(1) == [b"hello"]
        assert protocol.got[0][1] == there
        assert echo.got == [(b"hello", here)]


async def test_a_stale_unix_socket_file_is_replaced(loop: Loop, folder: Path) -> None:
    path = str(folder / "stale")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as old:
        old.bind(path)
    async with endpoint(local_addr=path, family=socket.AF_UNIX) as (transport, _):
        assert address_of(transport) == path


@asynccontextmanager
async def full_pipe() -> AsyncIterator[tuple[Any, Any, socket.socket]]:
    """An endpoint and its peer: a Unix datagram socket is full after a few datagrams."""
    with (
        tempfile.TemporaryDirectory(prefix="tl-") as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far,
    ):
        far.bind(f"{name}/far")
        far.setblocking(False)
        options: dict[str, Any] = {"family": socket.AF_UNIX, "remote_addr": f"{name}/far"}
        async with endpoint(**options) as (transport, protocol):
            yield transport, protocol, far


async def read_datagrams(sock: socket.socket, count: int) -> list[bytes]:
    got: list[bytes] = []

    def readable() -> bool:
        try:
            while len(got) < count:
                got.append(sock.recv(1 << 16))
        except BlockingIOError:
            return False
        return True

    await until(readable)
    return got


async def test_datagrams_wait_when_the_socket_is_full(loop: Loop) -> None:
    async with full_pipe() as (transport, protocol, far):
        sent = [b"%d " % number * 200 for number in range(1000)]
        for data in sent:
            transport.sendto(data)
        assert transport.get_write_buffer_size() > 0
        assert protocol.calls == ["made", "pause"]
        assert await read_datagrams(far, 1000) == sent
        await until(lambda: protocol.calls[-1] == "resume")
        if is_tloop(loop):  # asyncio of 3.12 and 3.13 miscounts
            assert transport.get_write_buffer_size() == 0


async def test_close_sends_what_is_waiting_and_abort_does_not(loop: Loop) -> None:
    for action, complete in (("close", True), ("abort", False)):
        async with full_pipe() as (transport, protocol, far):
            for number in range(1000):
                transport.sendto(b"%d " % number * 200)
            getattr(transport, action)()
            assert transport.is_closing()
            await turns()
            assert protocol.lost is not complete
            if complete:
                assert len(await read_datagrams(far, 1000)) == 1000
            await end_of(protocol)
            assert protocol.error is None
            assert protocol.calls == ["made", "pause", "lost"] or complete


async def test_limits_of_the_write_buffer_can_be_set(loop: Loop) -> None:
    async with full_pipe() as (transport, protocol, far):
        assert transport.get_write_buffer_limits() == (16384, 65536)
        transport.set_write_buffer_limits(high=1 << 20)
        for number in range(100):
            transport.sendto(b"%d " % number * 200)
        assert protocol.calls == ["made"]
        await read_datagrams(far, 100)


@pytest.mark.parametrize("action", ["close", "abort"])
async def test_connection_lost_comes_once_and_later(loop: Loop, action: str) -> None:
    """B12"""
    async with endpoint() as (transport, protocol):
        getattr(transport, action)()
        transport.close()
        transport.abort()
        assert protocol.calls == ["made"]
        await turns()
        assert protocol.calls == ["made", "lost"]
        assert protocol.error is None


async def test_nothing_is_received_after_close(loop: Loop) -> None:
    async with endpoint() as (server, protocol), endpoint() as (client, _):
        client.sendto(b"too late", address_of(server))
        server.close()
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "lost"]


@pytest.mark.parametrize("action", ["close", "abort"])
async def test_closing_inside_datagram_received_stops_the_batch(loop: Loop, action: str) -> None:
    class Closing(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            getattr(self.transport, action)()

    async with endpoint(Closing()) as (server, protocol), endpoint() as (client, _):
        for _ in range(10):
            client.sendto(b"x", address_of(server))
        await until(lambda: protocol.lost)
        assert protocol.calls == ["made", "datagram", "lost"]


async def test_an_error_in_datagram_received_ends_the_endpoint_or_is_reported(
    loop: Loop, asyncio_log: AsyncioLog
) -> None:
    class Broken(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            raise LookupError("broken")

    async with endpoint(Broken()) as (server, protocol), endpoint() as (client, _):
        client.sendto(b"x", address_of(server))
        await until(lambda: protocol.got and asyncio_log.messages)
        record = asyncio_log.expect("")
        assert record.exc_info
        assert isinstance(record.exc_info[1], LookupError)


async def test_the_protocol_dies_with_the_endpoint(loop: Loop) -> None:
    """B6, B15"""
    async with endpoint() as (transport, protocol):
        transport.close()
        await end_of(protocol)
        gone = weakref.ref(protocol)
        protocol.transport = None
        assert gone() is not None
    del transport, protocol
    await turns()
    with warnings_seen():  # collects the garbage, which PyPy needs
        pass
    assert gone() is None


async def test_a_factory_that_fails_leaves_no_socket(loop: Loop) -> None:
    """B4"""

    def broken() -> Datagrams:
        raise LookupError("no protocol")

    with warnings_seen(), pytest.raises(LookupError, match="no protocol"):
        await loop.create_datagram_endpoint(broken, local_addr=("127.0.0.1", 0))
