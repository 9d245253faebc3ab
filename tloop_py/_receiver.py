"""What the dispatcher asks of those who receive events of the C core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from contextvars import Context
    from traceback import StackSummary

COPIES: Final = -1  # stands for DATA where that goes into the protocol's buffer


class EventReceiver:
    """One handle's receiver: a transport, a listening socket, or a watched descriptor."""

    __slots__ = ()

    _takes: int = 0  # the kind of event that may take the short way (see Loop._dispatch)
    _source_traceback: StackSummary | None = None  # in debug mode: who made it

    if TYPE_CHECKING:
        _context: Context
        _loop: Any
        _arena: Any
        _protocol: Any
        _name_bytes: int  # of datagrams' addresses
        only: Any  # a Handle, of a descriptor

        def _accepted(self, handle: int, offset: int, context: Context) -> None: ...
        def _copy_in(self, data: bytes, size: int) -> None: ...

    def _event(self, kind: int, result: int, offset: int) -> None:
        """Take one event: see TL_EV_* in tloop.h."""
        raise NotImplementedError

    def _event_failed(self, exc: BaseException) -> None:
        """An exception came out of _event."""
        self._loop.call_exception_handler(
            {"message": f"Exception in callback {type(self).__name__}._event()", "exception": exc}
        )
