"""Event loop policies, for programs that make loops by asyncio's own functions.

Imported only when asked for: asyncio deprecates policies from Python 3.14 on, and 3.16 has none.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from tloop_py import _compat
from tloop_py._loop import Loop

if TYPE_CHECKING:
    import asyncio

    _Base = asyncio.DefaultEventLoopPolicy
else:
    _Base = _compat.DefaultEventLoopPolicy


class EventLoopPolicy(_Base):
    """asyncio's default policy, whose new loops are tloop's: for asyncio.set_event_loop_policy."""

    def new_event_loop(self) -> Loop:
        return Loop()


def install() -> None:
    """Let `asyncio.new_event_loop()`, `asyncio.run()` and the like make tloop's loops from now on.

    Warns of deprecation where asyncio.set_event_loop_policy does, from Python 3.14 on.
    """
    warn_deprecated("install")
    _compat.set_event_loop_policy(EventLoopPolicy())


def warn_deprecated(name: str) -> None:
    """In the words of asyncio, about the line that uses the module's attribute of that name."""
    if _compat.POLICIES_DEPRECATED:
        warnings.warn(
            f"'tloop_py.{name}' is deprecated and slated for removal in Python 3.16; "
            "use tloop_py.run(), or loop_factory=tloop_py.new_event_loop",
            DeprecationWarning,
            stacklevel=3,
        )
