"""What of asyncio's private surface tloop relies on, named and typed in one place.

CPython's own loops extend the same class in the same way; CPython's test-suite, run on tloop with
each interpreter version, tells when something here changes.
"""

from __future__ import annotations

import asyncio
from asyncio import sslproto, transports
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import collections
    import socket
    from collections.abc import Callable, Iterator
    from contextvars import Context


class BaseLoop(asyncio.BaseEventLoop):
    """asyncio.BaseEventLoop, and what the parts of `Loop` know of each other."""

    if TYPE_CHECKING:
        # -- of asyncio
        _debug: bool
        _closed: bool
        _stopping: bool
        _ready: collections.deque[Any]
        _clock_resolution: float
        _timer_cancelled_count: int
        _current_handle: Any
        _task_factory: Any
        slow_callback_duration: float

        def _check_closed(self) -> None: ...
        def _check_running(self) -> None: ...
        def _check_thread(self) -> None: ...
        def _check_callback(self, callback: object, method: str) -> None: ...
        def _add_callback_signalsafe(self, handle: asyncio.Handle) -> None: ...
        async def _ensure_resolved(self, address: Any, **kwargs: Any) -> list[Any]: ...
        async def _create_connection_transport(
            self, *args: Any, **kwargs: Any
        ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]: ...

        # -- of tloop
        _c: Any  # tl_loop *
        _arena: Any
        _names: Any
        _names_bytes: Any
        _handlers: dict[int, Any]
        _transports: dict[int, Any]
        _outbox: Any
        _woken: bool

        def call_soon(  # type: ignore[override]
            self, callback: Callable[..., object], *args: Any, context: Context | None = None
        ) -> Any: ...

        _append: Callable[[tuple[Context, Callable[..., object], object]], None]

        def _run_handle(self, handle: asyncio.Handle) -> None: ...
        def _dispatch(self, rest: Iterator[Any]) -> None: ...
        def _ensure_fd_no_transport(self, fd: Any) -> int: ...
        def _forget_descriptor(self, fd: int) -> None: ...
        async def sock_connect(self, sock: socket.socket, address: Any) -> None: ...
        def _make_socket_transport(self, *args: Any, **kwargs: Any) -> asyncio.Transport: ...


class FlowControl(transports._FlowControlMixin):
    """asyncio's rules of when a protocol is paused."""

    __slots__ = ()

    if TYPE_CHECKING:
        _extra: dict[str, Any]
        _high_water: int
        _low_water: int
        _protocol: Any
        _protocol_paused: bool

        def _set_write_buffer_limits(
            self, high: int | None = None, low: int | None = None
        ) -> None: ...
        def _maybe_pause_protocol(self) -> None: ...
        def _maybe_resume_protocol(self) -> None: ...


# Untyped parts of asyncio's modules.
base_events: Any = asyncio.base_events
selector_events: Any = asyncio.selector_events


class SSLTransportBase(sslproto._SSLProtocolTransport):
    """What SSLTransport uses of asyncio's."""

    if TYPE_CHECKING:
        _ssl_protocol: Any


class SSLProtocolBase(sslproto.SSLProtocol):
    """What SSLProtocol uses of asyncio's."""

    if TYPE_CHECKING:
        _loop: Any
        _state: Any
        _sslobj: Any
        _incoming: Any
        _outgoing: Any
        _ssl_buffer: bytearray
        _ssl_buffer_view: memoryview
        _app_transport: Any
        _app_transport_created: bool
        _app_protocol: Any
        _app_protocol_buffer_updated: Callable[[int], None]
        _app_protocol_get_buffer: Callable[[int], Any]
        _app_protocol_is_buffer: bool
        _app_reading_paused: bool
        _app_writing_paused: bool
        _ssl_reading_paused: bool
        _ssl_writing_paused: bool
        _outgoing_high_water: int
        _ssl_shutdown_timeout: float
        _write_backlog: Any
        _transport: Any

        def _get_app_transport(self) -> Any: ...
        def _set_app_protocol(self, app_protocol: Any) -> None: ...
        def _do_read__buffered(self) -> None: ...
        def _do_write(self) -> None: ...
        def _process_outgoing(self) -> None: ...
        def _control_ssl_reading(self) -> None: ...
        def _call_eof_received(self) -> None: ...
        def _set_state(self, new_state: Any) -> None: ...
        def _on_handshake_complete(self, handshake_exc: BaseException | None) -> None: ...
        def _do_flush(self) -> None: ...
        def _check_shutdown_timeout(self) -> None: ...
        def _on_shutdown_complete(self, shutdown_exc: BaseException | None) -> None: ...
