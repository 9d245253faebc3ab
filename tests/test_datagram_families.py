"""Datagrams of other families: Unix paths and names, netlink, packet and raw sockets."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from datagramkit import Datagrams, EchoDatagrams, address_of, endpoint
from loopkit import Loop, end_of, turns, until

pytestmark = pytest.mark.usefixtures("loop")

UNIX: dict[str, Any] = {"family": socket.AF_UNIX}

# --- Unix -------------------------------------------------------------------------------------


async def test_unix_datagrams(loop: Loop, folder: Path) -> None:
    here, there = str(folder / "here"), str(folder / "there")
    async with (
        endpoint(EchoDatagrams(), local_addr=there, **UNIX) as (_, echo),
        endpoint(local_addr=here, remote_addr=there, **UNIX) as (client, protocol),
    ):
        client.sendto(b"hello")
        assert await protocol.received(1) == [b"hello"]
        assert protocol.got[0][1] == there
        assert echo.got == [(b"hello", here)]


async def test_a_stale_unix_socket_file_is_replaced(loop: Loop, folder: Path) -> None:
    path = str(folder / "stale")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as old:
        old.bind(path)
    async with endpoint(local_addr=path, **UNIX) as (transport, _):
        assert address_of(transport) == path


async def test_unix_names_without_a_file(loop: Loop) -> None:
    """Abstract names come as bytes, as the socket module gives them, and go as either."""
    here, there = f"\0tl-{os.getpid()}-here", f"\0tl-{os.getpid()}-there"
    async with (
        endpoint(EchoDatagrams(), local_addr=there, **UNIX) as (server, echo),
        endpoint(local_addr=here, **UNIX) as (client, protocol),
    ):
        assert address_of(server) == there.encode()
        client.sendto(b"text", there)
        client.sendto(b"bytes", there.encode())
        assert await protocol.received(2) == [b"text", b"bytes"]
        assert protocol.got[0][1] == there.encode()
        assert echo.got[0][1] == here.encode()


async def test_a_unix_sender_without_a_name(loop: Loop, folder: Path) -> None:
    async with endpoint(local_addr=str(folder / "there"), **UNIX) as (_, protocol):
        async with endpoint(remote_addr=str(folder / "there"), **UNIX) as (client, _):
            assert address_of(client) == ""
            assert client.get_extra_info("peername") == str(folder / "there")
            client.sendto(b"who is it?")
            await protocol.received(1)
        assert protocol.got == [(b"who is it?", None)]


async def test_a_path_that_is_not_text(loop: Loop, folder: Path) -> None:
    path = os.fsdecode(bytes(folder) + b"/\xff")
    async with (
        endpoint(local_addr=path, **UNIX) as (server, protocol),
        endpoint(**UNIX) as (
            client,
            _,
        ),
    ):
        client.sendto(b"text", path)
        client.sendto(b"bytes", os.fsencode(path))
        assert await protocol.received(2) == [b"text", b"bytes"]
        assert address_of(server) == path


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("nobody", errno.ENOENT, id="no such path"),
        pytest.param("file", errno.ECONNREFUSED, id="no socket"),
        pytest.param("x" * 200, None, id="too long"),
        pytest.param("", errno.ECONNREFUSED, id="a folder"),
    ],
)
async def test_a_unix_datagram_that_goes_nowhere(
    loop: Loop, folder: Path, name: str, code: int | None
) -> None:
    (folder / "file").write_text("")
    async with endpoint(**UNIX) as (client, protocol):
        client.sendto(b"x", f"{folder}/{name}")
        await until(lambda: protocol.errors)
        assert protocol.errors[0].errno == code  # type: ignore[attr-defined]
        assert not client.is_closing()


@pytest.mark.parametrize("address", [Path("/tmp"), ("127.0.0.1", 1), 7, None])
async def test_no_address_of_a_unix_socket(loop: Loop, address: Any, asyncio_log: Any) -> None:
    async with endpoint(**UNIX) as (client, protocol):
        client.sendto(b"x", address)
        await end_of(protocol)
        assert isinstance(protocol.error, TypeError)
    asyncio_log.expect("Fatal write error on datagram transport")


@pytest.mark.parametrize("address", [b"/tmp/bytes", Path("/tmp/path"), ("127.0.0.1", 1)])
async def test_endpoints_take_unix_addresses_as_text_only(loop: Loop, address: Any) -> None:
    for side in ("local_addr", "remote_addr"):
        with pytest.raises(TypeError, match="string is expected"):
            await loop.create_datagram_endpoint(Datagrams, **{side: address}, **UNIX)


async def test_a_unix_datagram_larger_than_any_of_ip(loop: Loop, folder: Path) -> None:
    data = bytes(range(256)) * 600
    path = str(folder / "there")
    async with endpoint(local_addr=path, **UNIX) as (_, protocol), endpoint(**UNIX) as (client, _):
        for _ in range(3):
            client.sendto(data, path)
            client.sendto(b"small", path)
        assert await protocol.received(6) == [data, b"small"] * 3


async def test_a_pair_of_unix_sockets(loop: Loop) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with far:
        async with endpoint(sock=near) as (_, protocol):
            for data in (b"one", b"", b"three"):
                far.send(data)
            assert await protocol.received(3) == [b"one", b"", b"three"]
            assert {addr for _, addr in protocol.got} == {None}


# --- families by sock= ----------------------------------------------------------------------------

RTM_NEWLINK, RTM_GETLINK = 16, 18
NLM_F_REQUEST, NLM_F_DUMP, NLMSG_DONE = 0x1, 0x300, 3


def netlink_messages(data: bytes) -> list[tuple[int, int, int]]:
    """Type, sequence number and interface index of each message."""
    found = []
    while data:
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
        found.append(
            (kind, sequence, struct.unpack_from("=4xi", data, 16)[0] if length > 20 else 0)
        )
        data = data[(length + 3) & ~3 :]
    return found


@pytest.mark.parametrize("addressed", [False, True])
async def test_netlink_lists_the_interfaces(loop: Loop, addressed: bool) -> None:
    """What pyroute2 needs; no peer but asyncio and rsloop can."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
    sock.bind((0, 0))
    async with endpoint(sock=sock) as (transport, protocol):
        request = struct.pack(
            "=IHHIIB3xiII", 32, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 7, 0, 0, 0, 0, 0
        )
        transport.sendto(request, (0, 0) if addressed else None)
        got: list[tuple[int, int, int]] = []
        while not got or got[-1][0] != NLMSG_DONE:
            seen = len(protocol.got)
            await protocol.received(seen + 1)
            got = [message for data, _ in protocol.got for message in netlink_messages(data)]
        assert {addr for _, addr in protocol.got} == {(0, 0)}
        assert address_of(transport) == transport.get_extra_info("socket").getsockname()
        indexes = {index for kind, sequence, index in got if (kind, sequence) == (RTM_NEWLINK, 7)}
        assert indexes == {index for index, _ in socket.if_nameindex()}


def privileged(family: int, kind: int, protocol: int) -> socket.socket:
    try:
        return socket.socket(family, kind, protocol)
    except PermissionError:
        pytest.skip("needs CAP_NET_RAW")


EXPERIMENTAL = 0x88B5  # an Ethernet type that nobody uses


async def test_packets_of_an_interface(loop: Loop) -> None:
    """A family whose addresses only the socket module understands."""
    receiving = privileged(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    receiving.bind(("lo", EXPERIMENTAL))
    sending = privileged(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    async with (
        endpoint(sock=receiving) as (server, protocol),
        endpoint(sock=sending) as (client, _),
    ):
        assert address_of(server)[:2] == ("lo", EXPERIMENTAL)
        for data in (b"one", b"two"):
            client.sendto(data, ("lo", EXPERIMENTAL, 0, 0, bytes(6)))
        await until(lambda: {b"one", b"two"} <= {data for data, _ in protocol.got})
        assert {addr[:2] for _, addr in protocol.got} == {("lo", EXPERIMENTAL)}


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 2) or sys.version_info < (3, 11, 8),
    reason="asyncio took SOCK_DGRAM only until 3.11.8 and 3.12.2",
)
async def test_raw_sockets(loop: Loop) -> None:
    raw = privileged(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    ident = os.getpid() & 0xFFFF
    echo = bytearray(struct.pack("!BBHHH", 8, 0, 0, ident, 1))
    total = sum(struct.unpack("!4H", echo))
    echo[2:4] = struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
    async with endpoint(sock=raw) as (transport, protocol):
        transport.sendto(echo, ("127.0.0.1", 0))
        answer = struct.pack("!BBxxHH", 0, 0, ident, 1)
        await until(lambda: any(masked(data[20:]) == answer for data, _ in protocol.got))
        assert {addr for _, addr in protocol.got} == {("127.0.0.1", 0)}


def masked(message: bytes) -> bytes:
    """Without the checksum."""
    return message[:2] + bytes(2) + message[4:]


# --- families that the C core does not know -----------------------------------------------------


@pytest.fixture
def unknown_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """UDP as if it were one of them, for the exotic ones need privileges or hardware."""
    from tloop_py import _addr

    monkeypatch.setattr(_addr, "targets", {})


@pytest.mark.loops("tloop")
async def test_any_family_works(loop: Loop, unknown_family: None) -> None:
    async with endpoint(EchoDatagrams()) as (server, echo), endpoint() as (client, protocol):
        assert type(server).__name__ == "SocketDatagramTransport"
        assert f"open fd={server.get_extra_info('socket').fileno()}" in repr(server)
        for number in range(100):
            client.sendto(b"%d" % number, address_of(server))
        assert await protocol.received(100) == [b"%d" % number for number in range(100)]
        server.pause_reading()
        client.sendto(b"later", address_of(server))
        await turns(10)
        assert len(echo.got) == 100
        server.resume_reading()
        assert (await protocol.received(101))[100] == b"later"
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.add_reader(server.get_extra_info("socket"), print)
        server.close()
        assert "closing" in repr(server)
    assert "closed" in repr(server)
    assert protocol.calls.count("lost") == echo.calls.count("lost") == 1


@pytest.mark.loops("tloop")
async def test_any_family_waits_for_room(loop: Loop, unknown_family: None, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.bind(str(folder / "far"))
        far.setblocking(False)
        async with endpoint(remote_addr=str(folder / "far"), **UNIX) as (transport, protocol):
            sent = 0
            while "pause" not in protocol.calls:
                transport.sendto(b"%d " % sent * 500)
                sent += 1
            got: list[bytes] = []

            def drained() -> bool:
                try:
                    got.append(far.recv(1 << 16))
                except BlockingIOError:
                    return False
                return len(got) == sent

            transport.close()
            await until(drained)
            assert [int(data.split(b" ")[0]) for data in got] == list(range(sent))
            await end_of(protocol)
            assert protocol.error is None
