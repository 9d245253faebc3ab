"""Connecting: addresses in turn and at once, local addresses, sockets given, cancellation."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from loopkit import (
    Echo,
    Loop,
    Recorder,
    collect,
    connected,
    end_of,
    is_tloop,
    listening,
    tcp_sockets,
    turns,
    until,
    warnings_seen,
)

pytestmark = pytest.mark.usefixtures("loop")


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def stream_info(family: int, address: tuple[Any, ...]) -> tuple[Any, ...]:
    """As an entry of getaddrinfo."""
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address


def resolve_to(*infos: tuple[Any, ...]) -> Callable[..., Any]:
    async def resolve(*_: object, **__: object) -> list[Any]:
        return list(infos)

    return resolve


def inet(*ports: int) -> list[tuple[Any, ...]]:
    return [stream_info(socket.AF_INET, ("127.0.0.1", port)) for port in ports]


async def test_a_refused_connection_raises(loop: Loop) -> None:
    with pytest.raises(ConnectionRefusedError) as caught:
        await loop.create_connection(Recorder, "127.0.0.1", unused_port())
    assert caught.value.errno == errno.ECONNREFUSED
    assert "Connect call failed" in str(caught.value)


async def test_an_unknown_host_raises(loop: Loop) -> None:
    with pytest.raises(socket.gaierror):
        await loop.create_connection(Recorder, "no.such.host.invalid", 80)


async def test_a_port_out_of_range_raises(loop: Loop) -> None:
    with pytest.raises(OverflowError, match="0-65535"):
        await loop.create_connection(Recorder, "127.0.0.1", 65536)


async def test_local_addr_binds_the_client(loop: Loop) -> None:
    port = unused_port()
    async with listening(Echo) as address:
        transport, client = await loop.create_connection(
            Recorder, *address, local_addr=("127.0.0.1", port)
        )
        assert transport.get_extra_info("sockname") == ("127.0.0.1", port)
        transport.abort()
        await until(lambda: client.lost)
        await turns(10)


async def test_a_local_addr_in_use_raises(loop: Loop) -> None:
    async with listening(Echo) as address:
        with pytest.raises(OSError, match=r"address already in use|attempting to bind") as caught:
            await loop.create_connection(Recorder, *address, local_addr=address)
        assert caught.value.errno == errno.EADDRINUSE


async def test_an_existing_socket_can_be_used(loop: Loop) -> None:
    async with connected() as (transport, _, _):
        assert transport.get_extra_info("peername")


# --- several addresses --------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [None, 0.05])
async def test_the_address_that_answers_is_taken(
    loop: Loop, delay: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(Recorder) as (host, port):
        monkeypatch.setattr(loop, "getaddrinfo", resolve_to(*inet(unused_port(), port)))
        transport, client = await loop.create_connection(
            Recorder, "two.addresses", port, happy_eyeballs_delay=delay
        )
        assert transport.get_extra_info("peername") == (host, port)
        transport.abort()
        await end_of(client)
        await turns(10)


async def test_happy_eyeballs_does_not_wait_for_a_silent_address(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt starts after the delay; the first one is cancelled when it has won."""
    connect, tried, ended = loop.sock_connect, [], []

    async def hanging(sock: socket.socket, address: Any) -> None:
        tried.append(address[1])
        if len(tried) == 1:
            try:
                await loop.create_future()
            finally:
                ended.append(sock)
        await connect(sock, address)

    async with listening(Recorder) as (_, port):
        monkeypatch.setattr(loop, "getaddrinfo", resolve_to(*inet(1, port)))
        monkeypatch.setattr(loop, "sock_connect", hanging)
        transport, client = await loop.create_connection(
            Recorder, "two.addresses", port, happy_eyeballs_delay=0.001
        )
        assert tried == [1, port]
        assert [sock.fileno() for sock in ended] == [-1]
        transport.abort()
        await end_of(client)
        await turns(10)


FOUR, SIX = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, [6, 6, 6, 4, 4], id="in order"),
        pytest.param({"interleave": 1}, [6, 4, 6, 4, 6], id="interleaved"),
        pytest.param({"interleave": 2}, [6, 6, 4, 6, 4], id="two of the first family"),
        pytest.param({"happy_eyeballs_delay": 9}, [6, 4, 6, 4, 6], id="happy eyeballs interleave"),
        pytest.param(
            {"happy_eyeballs_delay": 9, "interleave": 0}, [6, 6, 6, 4, 4], id="unless told not to"
        ),
    ],
)
async def test_the_order_in_which_addresses_are_tried(
    loop: Loop, options: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    async def refuse(sock: socket.socket, address: Any) -> None:
        tried.append(4 if sock.family == FOUR else 6)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "no")

    infos = [stream_info(SIX, ("::1", port, 0, 0)) for port in (1, 2, 3)]
    monkeypatch.setattr(loop, "getaddrinfo", resolve_to(*infos, *inet(4, 5)))
    monkeypatch.setattr(loop, "sock_connect", refuse)
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(Recorder, "five.addresses", 1, **options)
    assert tried == expected


@pytest.mark.parametrize("delay", [None, 0.01])
async def test_several_failures_are_told_together(
    loop: Loop, delay: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = unused_port(), unused_port()
    monkeypatch.setattr(loop, "getaddrinfo", resolve_to(*inet(one, two)))
    with pytest.raises(OSError, match="Multiple exceptions: ") as caught:
        await loop.create_connection(Recorder, "two.addresses", 1, happy_eyeballs_delay=delay)
    failures = [f"Connect call failed ('127.0.0.1', {port})" for port in (one, two)]
    refused = f"[Errno {errno.ECONNREFUSED}] "
    assert str(caught.value) == f"Multiple exceptions: {', '.join(refused + t for t in failures)}"


async def test_equal_failures_are_told_once(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    port = unused_port()
    monkeypatch.setattr(loop, "getaddrinfo", resolve_to(*inet(port, port)))
    with pytest.raises(ConnectionRefusedError, match="Connect call failed"):
        await loop.create_connection(Recorder, "two.addresses", port)


async def test_a_name_without_addresses(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "getaddrinfo", resolve_to())
    with pytest.raises(OSError, match=r"getaddrinfo\(\) returned empty list"):
        await loop.create_connection(Recorder, "no.address", 1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="all_errors came with Python 3.12")
@pytest.mark.parametrize("delay", [None, 0.01])
async def test_all_errors_gives_a_group_of_each(
    loop: Loop, delay: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = unused_port(), unused_port()
    monkeypatch.setattr(loop, "getaddrinfo", resolve_to(*inet(*ports)))
    options: dict[str, Any] = {"all_errors": True, "happy_eyeballs_delay": delay}
    with pytest.raises(ExceptionGroup, match="create_connection failed") as caught:
        await loop.create_connection(Recorder, "two.addresses", 1, **options)
    for port, exc in zip(ports, caught.value.exceptions, strict=True):
        assert str(port) in str(exc)
    assert {type(exc) for exc in caught.value.exceptions} == {ConnectionRefusedError}


# --- the near side --------------------------------------------------------------------------------


async def test_local_addresses_are_tried_in_turn(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(Echo) as (host, port):
        free = unused_port()
        infos = {"near": inet(port, free), host: inet(port)}

        async def resolve(name: str, *_: object, **__: object) -> list[Any]:
            return infos[name]

        monkeypatch.setattr(loop, "_ensure_resolved", lambda address, **_: resolve(*address))
        transport, client = await loop.create_connection(
            Recorder, host, port, local_addr=("near", 0)
        )
        assert transport.get_extra_info("sockname") == (host, free)
        transport.abort()
        await end_of(client)
        await turns(10)


async def test_a_local_address_of_another_family(loop: Loop) -> None:
    async with listening(Echo) as address:
        with pytest.raises(OSError, match=r"no matching local address|list index"):
            await loop.create_connection(Recorder, *address, local_addr=("::1", 0))


async def test_a_local_address_of_another_machine(loop: Loop) -> None:
    async with listening(Echo) as address:
        with pytest.raises(OSError, match=r"\('203\.0\.113\.1', 0\): .*cannot assign") as caught:
            await loop.create_connection(Recorder, *address, local_addr=("203.0.113.1", 0))
        assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_a_socket_that_has_a_transport_is_refused(loop: Loop) -> None:
    if not is_tloop(loop) and sys.version_info < (3, 12):
        pytest.skip("asyncio looks since Python 3.12")
    async with connected() as (transport, _, far):
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.create_connection(Recorder, sock=transport.get_extra_info("socket")._sock)
        if sys.version_info < (3, 14):  # from then on asyncio closes the socket that it was given
            transport.write(b"still mine")
            assert await loop.sock_recv(far, 100) == b"still mine"


# --- accepted elsewhere ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_an_accepted_socket_becomes_a_transport(loop: Loop, family: int) -> None:
    near, far = tcp_sockets() if family == socket.AF_INET else socket.socketpair()
    near.setblocking(True)
    far.setblocking(False)
    with far:
        transport, echo = await loop.connect_accepted_socket(Echo, near)
        assert transport.get_extra_info("peername") == far.getsockname()
        assert near.gettimeout() == 0
        await loop.sock_sendall(far, b"hello")
        assert await loop.sock_recv(far, 100) == b"hello"
        transport.close()
        await end_of(echo)
    assert echo.calls == ["made", "data", "lost"]


async def test_only_stream_sockets_can_be_accepted(loop: Loop) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(ValueError, match="Stream Socket"),
    ):
        await loop.connect_accepted_socket(Echo, sock)


async def test_time_outs_of_an_accepted_socket_need_tls(loop: Loop) -> None:
    with socket.socket() as sock:
        for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
            with pytest.raises(ValueError, match="only meaningful with ssl"):
                await loop.connect_accepted_socket(Echo, sock, **{name: 1})


# --- cancellation ---------------------------------------------------------------------------------

Connect = Callable[[Callable[[], Recorder]], Any]


async def cancel_at_any_moment(loop: Loop, connect: Connect) -> None:
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    for passed in range(8):
        connecting = loop.create_task(connect(factory))
        await turns(passed)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
    await turns(10)
    collect()
    assert all(protocol.transport is None or protocol.lost for protocol in made)


async def test_cancelling_a_connect_leaves_nothing(loop: Loop) -> None:
    """B4, B6: neither the socket nor the protocol stays."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        address = listener.getsockname()
        await cancel_at_any_moment(loop, lambda factory: loop.create_connection(factory, *address))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="staggered_race of 3.11 leaves its tasks")
async def test_cancelling_happy_eyeballs_leaves_nothing(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        _, port = listener.getsockname()
        monkeypatch.setattr(loop, "getaddrinfo", resolve_to(*inet(unused_port(), port)))
        await cancel_at_any_moment(
            loop,
            lambda factory: loop.create_connection(
                factory, "two.addresses", port, happy_eyeballs_delay=0.001
            ),
        )


async def test_cancelling_an_accepted_socket_leaves_nothing(loop: Loop) -> None:
    for passed in range(2):
        near, far = tcp_sockets()
        protocol = Recorder()
        connecting = loop.create_task(loop.connect_accepted_socket(lambda p=protocol: p, near))
        await turns(passed)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        near.close() if passed == 0 else await end_of(protocol)
        far.close()


async def test_cancelling_while_resolving(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving: list[asyncio.Future[Any]] = []

    async def resolve(*_: object, **__: object) -> Any:
        resolving.append(loop.create_future())
        return await resolving[-1]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    for attempt in (
        lambda: loop.create_connection(Recorder, "a.name", 1),
        lambda: loop.create_server(Recorder, "a.name", 1),
        lambda: loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("a.name", 1)),
    ):
        task = loop.create_task(attempt())
        await until(lambda: resolving)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert resolving.pop().cancelled()


async def test_cancelling_while_the_peer_does_not_answer(loop: Loop) -> None:
    """A TCP listener whose backlog is full drops what comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        queued = [socket.socket() for _ in range(2)]
        for sock in queued:
            sock.setblocking(False)
            sock.connect_ex(address)
        connecting = loop.create_task(loop.create_connection(Recorder, *address))
        await turns(10)
        assert not connecting.done()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connecting
        for sock in queued:
            sock.close()


# --- what goes wrong ------------------------------------------------------------------------------


async def test_a_factory_that_fails_fails_the_connect(loop: Loop) -> None:
    """B4: the socket is closed."""

    def broken() -> Recorder:
        raise LookupError("no protocol")

    with socket.create_server(("127.0.0.1", 0)) as listener, warnings_seen():
        with pytest.raises(LookupError, match="no protocol"):
            await loop.create_connection(broken, *listener.getsockname())
        far, _ = listener.accept()
        collect()  # asyncio leaves the socket to the collector, with a warning
        with far:
            assert far.recv(1) == b""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="neither host nor socket"),
        pytest.param({"host": "127.0.0.1", "port": 1, "sock": ...}, id="host and socket"),
        pytest.param({"host": "127.0.0.1", "port": 1, "server_hostname": "x"}, id="no ssl"),
        pytest.param({"host": "127.0.0.1", "port": 1, "ssl_handshake_timeout": 1}, id="time-out"),
    ],
)
async def test_contradicting_arguments_are_refused(loop: Loop, options: dict[str, Any]) -> None:
    with socket.socket() as sock:
        if "sock" in options:
            options = {**options, "sock": sock}
        with pytest.raises(ValueError, match=r"host|ssl"):
            await loop.create_connection(Recorder, **options)


async def test_a_datagram_socket_is_refused(loop: Loop) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match="Stream Socket"):
            await loop.create_connection(Recorder, sock=sock)
        with pytest.raises(ValueError, match="Stream Socket"):
            await loop.create_server(Recorder, sock=sock)
