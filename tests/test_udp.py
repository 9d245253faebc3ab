"""UDP over IPv4 and IPv6: sending, receiving, addresses, options, errors, the end."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import weakref
from contextlib import AsyncExitStack
from typing import Any

import pytest
from conftest import AsyncioLog
from datagramkit import Datagrams, EchoDatagrams, address_of, endpoint
from loopkit import Loop, end_of, is_tloop, stats, turns, until, warnings_seen

pytestmark = pytest.mark.usefixtures("loop")


async def test_echo_between_two_endpoints(loop: Loop) -> None:
    async with endpoint(EchoDatagrams()) as (server, _), endpoint() as (client, protocol):
        client.sendto(b"hello", address_of(server))
        assert await protocol.received(1) == [b"hello"]
        assert protocol.got[0][1] == address_of(server)


@pytest.mark.loops("tloop")
async def test_more_peers_than_addresses_are_remembered(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tloop_py import _addr

    monkeypatch.setattr(_addr, "_MOST", 2)
    async with endpoint(EchoDatagrams()) as (server, echo), AsyncExitStack() as alive:
        clients = [await alive.enter_async_context(endpoint()) for _ in range(5)]
        for word in (b"once", b"again"):
            for client, _ in clients:
                client.sendto(word, address_of(server))
        for _, protocol in clients:
            assert await protocol.received(2) == [b"once", b"again"]
        assert {peer for _, peer in echo.got} == {address_of(client) for client, _ in clients}
        known = (_addr.addresses, _addr.targets[socket.AF_INET])
        assert [len(answers) <= 2 for answers in known] == [True, True]


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


async def test_sockname_is_that_of_the_beginning(loop: Loop) -> None:
    async with endpoint(family=socket.AF_INET) as (transport, _):
        transport.sendto(b"this binds the socket", ("127.0.0.1", 9))
        assert transport.get_extra_info("sockname") == ("0.0.0.0", 0)
        assert transport.get_extra_info("socket").getsockname()[1] != 0


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


@pytest.mark.parametrize("connected", [False, True])
async def test_empty_datagrams_are_sent(loop: Loop, connected: bool) -> None:
    if not is_tloop(loop) and sys.version_info < (3, 13):
        pytest.skip("asyncio drops them up to Python 3.12")
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


async def test_a_burst_arrives_in_order_and_complete(loop: Loop) -> None:
    """More than one batch of the C core, of all sizes from nothing on."""
    sent = [bytes([number]) * (number % 7 * 50) for number in range(200)]
    async with endpoint() as (server, protocol):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            for data in sent:
                sock.sendto(data, address_of(server))
            assert await protocol.received(200) == sent
            assert {addr for _, addr in protocol.got} == {sock.getsockname()}


async def test_thousands_of_datagrams_arrive_in_order(loop: Loop) -> None:
    total, window = 5000, 50
    async with endpoint(EchoDatagrams()) as (server, _), endpoint() as (client, protocol):
        for start in range(0, total, window):
            for number in range(start, start + window):
                client.sendto(b"%d" % number, address_of(server))
            await protocol.received(start + window)
        assert [int(data) for data, _ in protocol.got] == list(range(total))


async def test_a_datagram_that_fails_does_not_hold_up_the_others(loop: Loop) -> None:
    async with endpoint() as (server, received), endpoint(family=socket.AF_INET) as (client, own):
        for number in range(100):
            client.sendto(b"%d" % number, address_of(server))
            if number % 40 == 39:
                client.sendto(b"x", ("255.255.255.255", 9))  # broadcasting is not allowed
        assert [int(data) for data in await received.received(100)] == list(range(100))
        assert [type(error) for error in own.errors] == [PermissionError] * 2


async def test_an_exception_of_error_received_does_not_end_the_loop(loop: Loop) -> None:
    class Raising(Datagrams):
        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            raise RuntimeError("from error_received")

    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))
    async with endpoint(Raising(), family=socket.AF_INET) as (client, protocol):
        loop.call_soon(client.sendto, b"x", ("255.255.255.255", 9))
        await until(lambda: protocol.errors)
        assert str(reports[0]["exception"]) == "from error_received"
        assert not client.is_closing()


@pytest.mark.loops("tloop")
async def test_sending_again_when_it_has_failed_leaves_turns_to_others(loop: Loop) -> None:
    loop.set_debug(False)  # else each is sent at once, and error_received is called within sendto

    class Stubborn(Datagrams):
        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            if len(self.errors) < 50:
                self.transport.sendto(b"x", ("255.255.255.255", 9))

    async with endpoint(Stubborn(), family=socket.AF_INET) as (client, protocol):
        client.sendto(b"x", ("255.255.255.255", 9))
        await turns(5)
        assert len(protocol.errors) < 10
        await until(lambda: len(protocol.errors) == 50)


@pytest.mark.loops("tloop")
async def test_datagrams_of_one_tick_are_one_system_call(loop: Loop) -> None:
    loop.set_debug(False)  # else each is sent at once
    async with endpoint() as (server, received), endpoint() as (client, _):
        await turns(2)
        before = stats(loop)["syscalls"]
        for _ in range(60):
            client.sendto(b"x" * 100, address_of(server))
        assert client.get_write_buffer_size() == 0  # asking sends
        assert stats(loop)["syscalls"] == before + 1
        await received.received(60)


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


async def test_sendto_no_host_means_this_machine(loop: Loop) -> None:
    async with endpoint() as (server, protocol), endpoint(family=socket.AF_INET) as (client, _):
        client.sendto(b"here", ("", address_of(server)[1]))
        assert await protocol.received(1) == [b"here"]


async def test_sendto_an_address_of_three_parts(loop: Loop) -> None:
    async with (
        endpoint(local_addr=("::1", 0)) as (server, protocol),
        endpoint(local_addr=("::1", 0)) as (client, _),
    ):
        host, port, _, _ = address_of(server)
        client.sendto(b"three", (host, port, 0))
        assert await protocol.received(1) == [b"three"]


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


async def test_broadcast_by_name(loop: Loop) -> None:
    async with endpoint(family=socket.AF_INET) as (transport, protocol):
        transport.sendto(b"x", ("<broadcast>", 9))
        await until(lambda: protocol.errors)
        assert protocol.errors[0].errno in (errno.EACCES, errno.ENETUNREACH)


async def test_allow_broadcast_leaves_the_socket_unconnected(loop: Loop) -> None:
    """remote_addr is where datagrams go then, but answers may come from anywhere."""
    async with endpoint() as (server, received):
        options: dict[str, Any] = {"remote_addr": address_of(server), "allow_broadcast": True}
        async with endpoint(family=socket.AF_INET, **options) as (client, protocol):
            assert client.get_extra_info("peername") is None
            client.sendto(b"there")
            assert await received.received(1) == [b"there"]
            async with endpoint() as (other, _):
                other.sendto(
                    b"back", ("127.0.0.1", client.get_extra_info("socket").getsockname()[1])
                )
                assert await protocol.received(1) == [b"back"]
            with pytest.raises(ValueError, match="Invalid address"):
                client.sendto(b"x", ("127.0.0.1", 1))


async def test_multicast_on_the_loopback_interface(loop: Loop) -> None:
    group = "239.255.77.1"
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", 0))
    membership = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    async with endpoint(sock=sock) as (member, protocol), endpoint() as (client, _):
        near = client.get_extra_info("socket")
        near.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        client.sendto(b"to all", (group, address_of(member)[1]))
        assert await protocol.received(1) == [b"to all"]
        assert protocol.got[0][1] == address_of(client)


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
        pytest.param(
            {"local_addr": ("127.0.0.1", 0), "remote_addr": ("::1", 9)}, id="two families"
        ),
    ],
)
async def test_contradicting_arguments_are_refused(loop: Loop, options: dict[str, Any]) -> None:
    kinds = {"dgram": socket.SOCK_DGRAM, "stream": socket.SOCK_STREAM}
    with socket.socket(socket.AF_INET, kinds[options.get("sock", "dgram")]) as sock:
        if "sock" in options:
            options = {**options, "sock": sock}
        with pytest.raises((ValueError, OSError)):
            await loop.create_datagram_endpoint(Datagrams, **options)


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


async def test_sendto_after_close(loop: Loop, asyncio_log: AsyncioLog) -> None:
    async with endpoint() as (server, protocol):
        async with endpoint() as (client, _):
            client.close()
            client.sendto(b"until connection_lost", address_of(server))
            assert await protocol.received(1) == [b"until connection_lost"]
        async with endpoint(remote_addr=address_of(server)) as (client, _):
            client.close()
            for _ in range(5):
                client.sendto(b"not any more")
        await turns()
        assert len(protocol.got) == 1
    asyncio_log.expect("socket.send() raised exception")


@pytest.mark.loops("tloop")  # asyncio's raises AttributeError from within itself
async def test_sendto_after_connection_lost_is_harmless(loop: Loop) -> None:
    async with endpoint() as (client, protocol):
        client.close()
        await end_of(protocol)
        client.sendto(b"x", ("127.0.0.1", 9))
        client.sendto(b"x", ("localhost", 9))
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


async def test_a_paused_endpoint_delivers_nothing(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "asyncio")
    loop.set_debug(True)
    async with endpoint() as (server, protocol), endpoint() as (client, _):
        server.pause_reading()
        server.pause_reading()
        assert not server.is_reading()
        for number in range(3):
            client.sendto(b"%d" % number, address_of(server))
        await turns(10)
        assert protocol.got == []
        server.resume_reading()
        server.resume_reading()
        assert server.is_reading()
        assert await protocol.received(3) == [b"0", b"1", b"2"]
        logged = [record.getMessage().split()[-2:] for record in caplog.records]
        assert [words for words in logged if words[-1] == "reading"] == [
            ["pauses", "reading"], ["resumes", "reading"]
        ]  # fmt: skip


async def test_pausing_in_the_middle_of_a_burst_loses_nothing(loop: Loop) -> None:
    class Hesitant(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            assert self.transport.is_reading()
            super().datagram_received(data, addr)
            if data[0] % 3 == 0:
                self.transport.pause_reading()
                loop.call_soon(self.transport.resume_reading)
            elif data[0] % 3 == 1:
                self.transport.pause_reading()
                self.transport.resume_reading()

    async with endpoint(Hesitant()) as (server, protocol), endpoint() as (client, _):
        sent = [bytes([number]) for number in range(150)]
        for data in sent:
            client.sendto(data, address_of(server))
        assert await protocol.received(150) == sent


async def test_another_callback_resumes_within_the_same_tick(loop: Loop) -> None:
    """What is held back goes first, also when there is more in the same batch."""
    async with endpoint() as (first, one), endpoint() as (second, two), endpoint() as (client, _):

        class Pausing(Datagrams):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                one.datagram_received(data, addr)
                first.pause_reading()

        class Resuming(Datagrams):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                two.datagram_received(data, addr)
                first.resume_reading()

        first.set_protocol(Pausing())
        second.set_protocol(Resuming())
        for number in range(20):
            for target in (first, second):
                client.sendto(b"%d" % number, address_of(target))
        await turns(5)
        first.set_protocol(one)
        first.resume_reading()
        assert [int(data) for data in await one.received(20)] == list(range(20))
        await two.received(20)
        second.set_protocol(two)


@pytest.mark.loops("tloop")  # what asyncio has not read yet waits in the kernel
async def test_an_error_does_not_end_what_is_held_back(loop: Loop, asyncio_log: AsyncioLog) -> None:
    class Failing(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"0":
                self.transport.pause_reading()
            elif data == b"3":
                raise LookupError("broken")

    async with endpoint(Failing()) as (server, protocol), endpoint() as (client, _):
        for number in range(6):
            client.sendto(b"%d" % number, address_of(server))
        await protocol.received(1)
        server.resume_reading()
        assert await protocol.received(6) == [b"%d" % number for number in range(6)]
    asyncio_log.expect("Exception in callback")


async def test_closing_while_paused(loop: Loop) -> None:
    async with endpoint() as (server, protocol), endpoint() as (client, _):
        server.pause_reading()
        client.sendto(b"x", address_of(server))
        server.close()
        server.resume_reading()
        await end_of(protocol)
        assert protocol.calls == ["made", "lost"]


async def test_set_protocol_hands_the_datagrams_over(loop: Loop) -> None:
    async with endpoint() as (server, first), endpoint() as (client, _):
        client.sendto(b"one", address_of(server))
        await first.received(1)
        second = Datagrams()
        server.set_protocol(second)
        assert server.get_protocol() is second
        client.sendto(b"two", address_of(server))
        assert await second.received(1) == [b"two"]
        server.set_protocol(first)


async def test_the_descriptor_belongs_to_the_endpoint(loop: Loop) -> None:
    async with endpoint() as (transport, _):
        sock = transport.get_extra_info("socket")
        assert f"fd={sock.fileno()}" in repr(transport)
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.add_reader(sock.fileno(), print)
        transport.close()
        assert "clos" in repr(transport)


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


async def test_cancelling_at_any_moment_leaves_no_socket(loop: Loop) -> None:
    """B4"""
    made: list[Datagrams] = []

    def factory() -> Datagrams:
        made.append(Datagrams())
        return made[-1]

    for passed in range(5):
        addresses: dict[str, Any] = {
            "local_addr": ("127.0.0.1", 0),
            "remote_addr": ("127.0.0.1", 9),
        }
        creating = loop.create_task(loop.create_datagram_endpoint(factory, **addresses))
        await turns(passed)
        cancelled = creating.cancel()
        try:
            transport, _ = await creating
        except asyncio.CancelledError:
            assert cancelled
        else:
            transport.abort()
    await until(lambda: all(protocol.transport is None or protocol.lost for protocol in made))


async def test_a_factory_that_fails_leaves_no_socket(loop: Loop) -> None:
    """B4"""

    def broken() -> Datagrams:
        raise LookupError("no protocol")

    with warnings_seen(), pytest.raises(LookupError, match="no protocol"):
        await loop.create_datagram_endpoint(broken, local_addr=("127.0.0.1", 0))
