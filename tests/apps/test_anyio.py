"""anyio's own entry point, streams and task groups with `loop_factory` in its backend options."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from signal import SIGTERM, raise_signal

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream, SocketAttribute, SocketStream, TaskStatus
from anyio.streams.tls import TLSListener, TLSStream
from appkit import MB, Certificates, blocks, digest_of, same_loop, type_of_loop
from loopkit import LoopFactory

Run = Callable[[Callable[[], Awaitable[object]]], None]


@pytest.fixture
def run(loop_factory: LoopFactory, app_loop: str) -> Run:
    """anyio.run on the loop under test."""

    def run(main: Callable[[], Awaitable[object]]) -> None:
        async def checked() -> None:
            assert same_loop(type_of_loop(asyncio.get_running_loop()), app_loop)
            with anyio.fail_after(30):
                await main()

        anyio.run(checked, backend="asyncio", backend_options={"loop_factory": loop_factory})

    return run


async def echo(stream: ByteStream) -> None:
    async with stream:
        async for piece in stream:
            await stream.send(piece)


async def talk(stream: ByteStream) -> None:
    """Send all blocks, then the end of the stream; all must come back."""
    digest = hashlib.blake2b()

    async def send() -> None:
        for block in blocks(10):
            await stream.send(block)
        if not isinstance(stream, TLSStream):  # which cannot close one direction
            await stream.send_eof()

    async with stream, anyio.create_task_group() as group:
        group.start_soon(send)
        received = 0
        while received < 10 * MB:
            piece = await stream.receive()
            received += len(piece)
            digest.update(piece)
        if not isinstance(stream, TLSStream):
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
    assert digest.hexdigest() == digest_of(10)


def test_tcp(run: Run) -> None:
    async def main() -> None:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, echo)
            port = listener.extra(SocketAttribute.local_port)
            async with anyio.create_task_group() as clients:
                for _ in range(5):
                    clients.start_soon(talk, await anyio.connect_tcp("127.0.0.1", port))
            group.cancel_scope.cancel()

    run(main)


def test_happy_eyeballs(run: Run) -> None:
    """localhost has two addresses as a rule; the listener only one of them."""

    async def main() -> None:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, echo)
            port = listener.extra(SocketAttribute.local_port)
            await talk(await anyio.connect_tcp("localhost", port))
            group.cancel_scope.cancel()

    run(main)


def test_unix(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"

    async def main() -> None:
        async with (
            await anyio.create_unix_listener(path) as listener,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, echo)
            async with anyio.create_task_group() as clients:
                for _ in range(5):
                    clients.start_soon(talk, await anyio.connect_unix(path))
            group.cancel_scope.cancel()

    run(main)


def test_unix_stream_passes_descriptors(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "fds.sock"
    note = tmp_path / "note"
    note.write_text("from afar")

    async def hand_over(stream: SocketStream) -> None:
        async with stream:
            with note.open() as file:
                await stream.send_fds(b"here", [file])  # type: ignore[attr-defined]

    async def main() -> None:
        async with (
            await anyio.create_unix_listener(path) as listener,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, hand_over)
            async with await anyio.connect_unix(path) as stream:
                message, fds = await stream.receive_fds(10, 1)
            with open(fds[0]) as file:  # noqa: ASYNC230 - it is open already
                assert (message, file.read()) == (b"here", "from afar")
            group.cancel_scope.cancel()

    run(main)


def test_tls(run: Run, certificates: Certificates) -> None:
    async def main() -> None:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            # A client may just close; that is not worth an error to the server here.
            tls = TLSListener(listener, certificates.server(), standard_compatible=False)
            group.start_soon(tls.serve, echo)
            port = listener.extra(SocketAttribute.local_port)
            context = certificates.client()
            await talk(
                await anyio.connect_tcp(
                    "127.0.0.1", port, ssl_context=context, tls_standard_compatible=False
                )
            )
            group.cancel_scope.cancel()

    run(main)


def test_udp(run: Run) -> None:
    async def serve(*, task_status: TaskStatus[int]) -> None:
        async with await anyio.create_udp_socket(local_host="127.0.0.1") as udp:
            task_status.started(udp.extra(SocketAttribute.local_port))
            async for data, (host, port) in udp:
                await udp.sendto(data[::-1], host, port)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            port = await group.start(serve)
            async with await anyio.create_connected_udp_socket("127.0.0.1", port) as client:
                for data in (b"a", b"abc", bytes(range(256)) * 200):
                    await client.send(data)
                    assert await client.receive() == data[::-1]
            group.cancel_scope.cancel()

    run(main)


def test_failing_task_cancels_its_group(run: Run) -> None:
    ended = []

    async def wait(stream: ByteStream) -> None:
        try:
            await stream.receive()
        finally:
            ended.append(stream)

    async def main() -> None:
        near, far = socket.socketpair()
        with far:
            stream = await anyio.abc.UNIXSocketStream.from_socket(near)
            with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="on purpose")):
                async with stream, anyio.create_task_group() as group:
                    group.start_soon(wait, stream)
                    await anyio.sleep(0.005)
                    raise ValueError("on purpose")

    run(main)
    assert len(ended) == 1


def test_cancel_scopes(run: Run) -> None:
    async def main() -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            with anyio.move_on_after(0.005) as scope:
                await listener.serve(echo)
            assert scope.cancelled_caught
            with anyio.move_on_after(0.005) as scope, anyio.CancelScope(shield=True):
                await anyio.sleep(0.009)
            assert scope.cancel_called
            assert not scope.cancelled_caught

    run(main)


def test_threads(run: Run) -> None:
    async def main() -> None:
        event = anyio.Event()

        def in_thread(number: int) -> int:
            if number == 99:
                anyio.from_thread.run_sync(event.set)
            return anyio.from_thread.run(double, number)

        async def double(number: int) -> int:
            await anyio.lowlevel.checkpoint()
            return 2 * number

        assert [await anyio.to_thread.run_sync(in_thread, n) for n in range(100)] == [
            2 * n for n in range(100)
        ]
        await event.wait()

    run(main)


def test_loop_in_another_thread(loop_factory: LoopFactory, app_loop: str) -> None:
    async def which() -> str:
        return type_of_loop(asyncio.get_running_loop())

    options = {"loop_factory": loop_factory}
    with anyio.from_thread.start_blocking_portal("asyncio", options) as portal:
        assert same_loop(portal.call(which), app_loop)
        assert portal.start_task_soon(anyio.sleep, 0.001).result() is None


def test_signals(run: Run) -> None:
    async def main() -> None:
        with anyio.open_signal_receiver(SIGTERM) as signals:
            for _ in range(20):
                raise_signal(SIGTERM)
                async for number in signals:
                    assert number is SIGTERM
                    break

    run(main)


def test_wait_readable(run: Run) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        with near, far:
            await anyio.wait_writable(near)
            with anyio.move_on_after(0.005) as scope:
                await anyio.wait_readable(near)
            assert scope.cancelled_caught
            far.send(b"x")
            await anyio.wait_readable(near)
            assert near.recv(1) == b"x"

    run(main)
