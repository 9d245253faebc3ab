"""dnspython's asynchronous resolver, over UDP and TCP, against a small name server of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncbackend
import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import pytest

Reply = Callable[[dns.message.Message, bool], dns.message.Message | None]


def answer(query: dns.message.Message, by_tcp: bool) -> dns.message.Message:
    """hostN.test has the address 10.0.0.N; long.test has a text that takes TCP."""
    name = query.question[0].name
    label = name.labels[0].decode()
    response = dns.message.make_response(query)
    if label.startswith("host"):
        address = f"10.0.0.{label.removeprefix('host')}"
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", address))
    elif label == "long" and not by_tcp:
        response.flags |= dns.flags.TC
    elif label == "long":
        texts = [f'"{number:03}{"x" * 200}"' for number in range(100)]
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", *texts))
    else:
        response.set_rcode(dns.rcode.NXDOMAIN)
    return response


class NameServer(asyncio.DatagramProtocol):
    """Answers datagrams, and TCP on the same port."""

    transport: Any = None

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[Any, ...]) -> None:
        if response := self.reply(dns.message.from_wire(data), False):
            self.transport.sendto(response.to_wire(), address)

    async def serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        query = dns.message.from_wire(await reader.readexactly(size))
        if response := self.reply(query, True):
            writer.write(response.to_wire(max_size=65_535, prepend_length=True))
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def name_server(reply: Reply = answer) -> AsyncIterator[dns.asyncresolver.Resolver]:
    """A name server on this loop; gives a resolver that asks it."""
    loop = asyncio.get_running_loop()
    server = NameServer(reply)
    tcp = await asyncio.start_server(server.serve_tcp, "127.0.0.1", 0)
    address = tcp.sockets[0].getsockname()
    await loop.create_datagram_endpoint(lambda: server, local_addr=address)
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], address[1]
    try:
        yield resolver
    finally:
        server.transport.close()
        tcp.close()


def addresses(found: dns.resolver.Answer) -> list[str]:
    return [record.to_text() for record in found]


async def test_name_is_resolved() -> None:
    async with name_server() as resolver:
        assert addresses(await resolver.resolve("host7.test")) == ["10.0.0.7"]
        assert dns.asyncbackend.sniff() == "asyncio"


async def test_many_names_at_once() -> None:
    async with name_server() as resolver:
        names = [f"host{number}.test" for number in range(250)]
        found = await asyncio.gather(*(resolver.resolve(name) for name in names))
    assert [addresses(one) for one in found] == [[f"10.0.0.{number}"] for number in range(250)]


async def test_unknown_name() -> None:
    async with name_server() as resolver:
        with pytest.raises(dns.resolver.NXDOMAIN):
            await resolver.resolve("nobody.test")


async def test_truncated_answer_is_asked_for_again_by_tcp() -> None:
    async with name_server() as resolver:
        found = await resolver.resolve("long.test", "TXT")
    assert len(found.rrset or ()) == 100


async def test_queries_by_tcp() -> None:
    async with name_server() as resolver:
        found = await asyncio.gather(
            *(resolver.resolve(f"host{number}.test", tcp=True) for number in range(50))
        )
    assert [addresses(one) for one in found] == [[f"10.0.0.{number}"] for number in range(50)]


async def test_lost_query_is_sent_again() -> None:
    asked = []

    def forgetful(query: dns.message.Message, by_tcp: bool) -> dns.message.Message | None:
        asked.append(query.id)
        return answer(query, by_tcp) if len(asked) > 2 else None

    async with name_server(forgetful) as resolver:
        resolver.timeout = 0.02
        assert addresses(await resolver.resolve("host1.test")) == ["10.0.0.1"]
    assert len(asked) >= 3


async def test_silent_server() -> None:
    async with name_server(lambda query, by_tcp: None) as resolver:
        resolver.timeout = 0.01
        with pytest.raises(dns.resolver.LifetimeTimeout):
            await resolver.resolve("host1.test", lifetime=0.05)


async def test_cancelled_query() -> None:
    async with name_server(lambda query, by_tcp: None) as resolver:
        query = asyncio.create_task(resolver.resolve("host1.test"))
        await asyncio.sleep(0.005)
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query


async def test_no_server() -> None:
    """The port is closed: the kernel's answer ends the query at once."""
    async with name_server() as resolver:
        pass
    query = dns.message.make_query("host1.test", "A")
    with pytest.raises((ConnectionRefusedError, dns.exception.Timeout)):
        await dns.asyncquery.udp(query, "127.0.0.1", port=resolver.port, timeout=0.2)
