"""Names and addresses: who resolves them, in which thread, and what of them reaches the socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from loopkit import Echo, Loop, Recorder, end_of, listening, turns

pytestmark = pytest.mark.usefixtures("loop")

STREAM = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")


@pytest.fixture
def no_executor(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"run_in_executor{args}")

    monkeypatch.setattr(loop, "run_in_executor", refuse)


async def end(transport: Any, protocol: Any) -> None:
    transport.abort()
    await end_of(protocol)
    await turns(10)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_numeric_host_needs_no_thread(loop: Loop, host: str, no_executor: None) -> None:
    server = await loop.create_server(Echo, host, 0)
    port = server.sockets[0].getsockname()[1]
    for given in (port, str(port), str(port).encode()):
        transport, client = await loop.create_connection(
            Recorder, host, given, local_addr=(host, 0)
        )
        assert transport.get_extra_info("peername")[:2] == (host, port)
        await end(transport, client)
    endpoint, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=(host, 0), remote_addr=(host, port)
    )
    endpoint.abort()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, (host, port))
    await turns(10)
    server.close()


async def test_a_name_is_resolved_in_the_executor(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    real = socket.getaddrinfo

    def noting(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return real(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", noting)
    async with listening(Echo) as (_, port):
        transport, client = await loop.create_connection(
            Recorder, "localhost", port, family=socket.AF_INET
        )
        await end(transport, client)
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("localhost", port))
        await turns(10)
    server = await loop.create_server(Echo, "localhost", 0)
    server.close()
    endpoint, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=("localhost", 9)
    )
    endpoint.abort()
    assert len(threads) == 4
    assert threading.main_thread() not in threads


async def test_getaddrinfo_and_getnameinfo_give_what_the_socket_module_gives(loop: Loop) -> None:
    options: dict[str, Any] = {
        "family": socket.AF_INET,
        "type": socket.SOCK_STREAM,
        "proto": socket.IPPROTO_TCP,
        "flags": socket.AI_CANONNAME,
    }
    found = await loop.getaddrinfo("localhost", 80, **options)
    assert found == socket.getaddrinfo("localhost", 80, **options)
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    assert await loop.getnameinfo(("127.0.0.1", 80), numeric) == ("127.0.0.1", "80")
    assert await loop.getnameinfo(("::1", 80, 0, 0), numeric) == ("::1", "80")


async def test_failures_of_the_resolver_are_raised(loop: Loop) -> None:
    with pytest.raises(socket.gaierror):
        await loop.getaddrinfo("no.such.host.invalid", 80)
    with pytest.raises(socket.gaierror):
        await loop.getaddrinfo("127.0.0.1", 80, flags=12345678)
    with pytest.raises(TypeError):
        await loop.getnameinfo("127.0.0.1")  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"[Nn]ame|resolution"):
        await loop.getnameinfo(("no.such.host.invalid", 80))


async def test_the_loop_goes_on_while_names_are_resolved(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def slow(*args: Any, **_: Any) -> Any:
        assert go.wait(10)
        return [(*STREAM, ("127.0.0.1", 1))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    resolving = loop.create_task(loop.getaddrinfo("slow.name", 1))
    try:
        await turns(10)
        assert not resolving.done()
    finally:
        go.set()
    assert await resolving == [(*STREAM, ("127.0.0.1", 1))]


@pytest.fixture
def resolver(loop: Loop) -> Iterator[mock.Mock]:
    """loop.getaddrinfo replaced on the instance, as tests of applications do."""
    replaced = mock.AsyncMock()
    loop.getaddrinfo = replaced  # type: ignore[method-assign]
    yield replaced
    del loop.getaddrinfo


async def test_a_replaced_getaddrinfo_is_asked(loop: Loop, resolver: mock.AsyncMock) -> None:
    async with listening(Echo) as address:
        resolver.return_value = [(*STREAM, address)]
        transport, client = await loop.create_connection(
            Recorder, "a.name", "http", family=socket.AF_INET, flags=socket.AI_ADDRCONFIG
        )
        assert transport.get_extra_info("peername") == address
        await end(transport, client)
    resolver.assert_awaited_once_with(
        "a.name",
        "http",
        family=socket.AF_INET,
        type=socket.SOCK_STREAM,
        proto=0,
        flags=socket.AI_ADDRCONFIG,
    )


async def test_family_and_protocol_choose_the_socket(loop: Loop, resolver: mock.AsyncMock) -> None:
    async with listening(Echo) as (host, port):
        resolver.side_effect = LookupError("not for a numeric host")
        transport, client = await loop.create_connection(
            Recorder, host, port, family=socket.AF_INET, proto=socket.IPPROTO_TCP
        )
        sock = transport.get_extra_info("socket")
        assert (sock.family, sock.proto) == (socket.AF_INET, socket.IPPROTO_TCP)
        await end(transport, client)
        with pytest.raises(LookupError):  # the family does not fit: the resolver shall tell
            await loop.create_connection(Recorder, host, port, family=socket.AF_INET6)


async def test_the_zone_of_an_address_is_kept(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop connects through another interface."""
    index = socket.if_nametoindex("lo")
    tried: list[Any] = []

    async def noting(sock: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("far enough")

    monkeypatch.setattr(loop, "sock_connect", noting)
    with pytest.raises(OSError, match="far enough"):
        await loop.create_connection(Recorder, "fe80::1%lo", 80)
    with pytest.raises(OSError, match="far enough"):
        await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=("fe80::1%lo", 80)
        )
    assert tried == [("fe80::1", 80, 0, index)] * 2
