"""Put the loop under test where asyncio and its tests look for their own, and count who gets made.

Runs in the child process only, before a test module is imported: nothing here may leak into a
process that does anything else.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import unittest
from asyncio import base_events, selector_events, unix_events
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.stdlib._stand_ins import Selector, stepping, with_generator, without_sendfile

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]

# Names under which asyncio hands out its own loop class; not every version has each.
_STOCK_NAMES = ("SelectorEventLoop", "EventLoop", "_UnixSelectorEventLoop")

_STOCK_LOOP = selector_events.BaseSelectorEventLoop

# One class per selector in the original. One loop has no selector to choose, so one class replaces
# all; the last is the one that exists on every platform.
_PER_SELECTOR = (
    "KqueueEventLoopTests",
    "EPollEventLoopTests",
    "PollEventLoopTests",
    "SelectEventLoopTests",
)


# Where the loop under test looks up what a test replaces in the module of asyncio's own loop.
_LOOKED_UP_IN = {"asyncio.unix_events.socket": "tloop_py._server.socket"}


def redirected(patch: Any) -> Any:
    """`mock.patch`, for targets named as asyncio names them."""

    @functools.wraps(patch)
    def wrapper(target: str, *args: Any, **kwargs: Any) -> Any:
        return patch(_LOOKED_UP_IN.get(target, target), *args, **kwargs)

    return wrapper


def resolve(spec: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Turn "module:attribute" into the factory that it names."""
    module, _, attribute = spec.partition(":")
    factory: Callable[[], asyncio.AbstractEventLoop] = getattr(import_module(module), attribute)
    return factory


class Substitution:
    """The installed replacement: what it is, and how many loops of each kind were made.

    Kinds: "tested" is the loop under test, "stock" a real selector loop, "simulated" one that
    polls nothing.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.factory = resolve(spec)
        loop = self.factory()
        loop.close()
        self.loop_class: Any = type(loop)
        self.backend = str(getattr(loop, "backend", ""))
        self.stock = issubclass(self.loop_class, _STOCK_LOOP)
        self.census: Counter[str] = Counter()

    def install(self) -> None:
        """Make every public way to a new loop lead to the loop under test."""
        for namespace in (asyncio, unix_events):
            for name in _STOCK_NAMES:
                if name in vars(namespace):
                    vars(namespace)[name] = self.loop_class
        for thing in list(vars(unix_events).values()):
            if isinstance(thing, type) and "_loop_factory" in vars(thing):
                setattr(thing, "_loop_factory", staticmethod(self.factory))  # noqa: B010
        if not self.stock:
            # Tests that make a bare base loop want any loop that does not poll.
            vars(asyncio)["BaseEventLoop"] = self.loop_class
            vars(selector_events)["BaseSelectorEventLoop"] = self.loop_class
        if sys.implementation.name == "pypy":
            # PyPy compiles this module when it is imported, from a source that Debian leaves out;
            # the suite can do without.
            sys.modules["_testcapi"] = None  # type: ignore[assignment]
        if self.backend:
            mock.patch = redirected(mock.patch)  # type: ignore[assignment]
            test_utils = import_module("test.test_asyncio.utils")
            vars(test_utils)["TestLoop"] = with_generator(self.loop_class)
        self._count(self.loop_class)
        self._count(base_events.BaseEventLoop)

    def adapt(self, module: ModuleType) -> None:
        """Rewire what a test module decided by itself when it was imported."""
        namespace = vars(module)
        if "SelectEventLoopTests" in namespace:
            namespace["LoopTests"] = self._one_class(module, namespace["SelectEventLoopTests"])
            for name in _PER_SELECTOR:
                namespace.pop(name, None)
        # The tests of sendfile mean asyncio's base loop: the one that has no native sendfile.
        if "base_events" in namespace and "SendfileMixin" not in namespace and not self.stock:
            namespace["base_events"] = self._base_events()
        if "SelectorEventLoopUnixSockSendfileTests" in namespace and not self.stock:
            self.loop_class._selector = Selector()
        if "BaseLoopSockSendfileTests" in namespace and not self.stock:
            vars(selector_events)["BaseSelectorEventLoop"] = without_sendfile(self.loop_class)
        if "assert_python_ok" in namespace:
            namespace["assert_python_ok"] = self._in_children(namespace["assert_python_ok"])

    def _one_class(self, module: ModuleType, original: type) -> type:
        factory = self.factory

        def create_event_loop(_self: unittest.TestCase) -> asyncio.AbstractEventLoop:
            return factory()

        body = {"create_event_loop": create_event_loop, "__module__": module.__name__}
        return type("LoopTests", (original,), body)

    def _base_events(self) -> ModuleType:
        """A view of asyncio's module in which the base loop is the loop under test."""
        view = ModuleType(base_events.__name__)
        vars(view).update(vars(base_events), BaseEventLoop=stepping(self.loop_class))
        return view

    def _in_children(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Substitute in the interpreters, too, that a test starts with `-c`."""
        prelude = (
            f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n"
            "from tests.stdlib._substitute import Substitution\n"
            f"Substitution({self.spec!r}).install()\n"
        )

        @functools.wraps(run)
        def wrapper(*args: str, **env: str) -> Any:
            code = args.index("-c") + 1
            return run(*args[:code], prelude + args[code], *args[code + 1 :], **env)

        return wrapper

    def _count(self, cls: Any) -> None:
        original = cls.__init__

        @functools.wraps(original)
        def __init__(loop: Any, *args: Any, **kwargs: Any) -> None:
            original(loop, *args, **kwargs)
            if cls is self.loop_class or not isinstance(loop, self.loop_class):
                self.census[self._kind(loop)] += 1

        cls.__init__ = __init__

    def _kind(self, loop: object) -> str:
        if isinstance(loop, self.loop_class):
            return "tested"
        return "stock" if isinstance(loop, _STOCK_LOOP) else "simulated"
