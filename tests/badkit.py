"""Wrong calls and what comes of them: the values, the cases, and how an outcome is observed."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import inspect
import logging
import os
import socket
import ssl
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from loopkit import (
    HERE,
    Loop,
    LoopFactory,
    Recorder,
    collect,
    live_handles,
    tcp_sockets,
    turns,
    until,
)

SHORT = 0.01  # seconds that a wrong call may wait; then it is called pending
LONG = 1.0  # the same, when the loops differ in that


async def coroutine_function(*_: object) -> None:
    """A coroutine where a plain function is wanted."""


def function(*_: object) -> None:
    """What is right where a callback is wanted."""


def closed_socket() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


@functools.cache
def _folder() -> str:
    folder = tempfile.TemporaryDirectory(prefix="tl-")
    atexit.register(folder.cleanup)
    return folder.name


def empty(folder: str) -> None:
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")


class Env:
    """What the arguments of one call are made of. Everything is made while the loop stands still,
    and closed at the end."""

    def __init__(self, factory: LoopFactory) -> None:
        self.factory = factory
        self.loop = factory()
        self.stack = contextlib.ExitStack()
        self.transports: list[Any] = []

    def own(self, transport: Any) -> Any:
        """Have it closed at the end of the test, unless its loop is closed by then."""
        self.transports.append(transport)
        return transport

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    @functools.cached_property
    def pair(self) -> tuple[socket.socket, socket.socket]:
        near, far = tcp_sockets()
        far.send(b"data")
        self.stack.enter_context(near)
        self.stack.enter_context(far)
        return near, far

    @property
    def sock(self) -> socket.socket:
        return self.pair[0]

    @functools.cached_property
    def listener(self) -> socket.socket:
        """A connection waits to be accepted."""
        listener = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        self.stack.enter_context(socket.create_connection(listener.getsockname()))
        return listener

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listener.getsockname()
        return host, port

    @functools.cached_property
    def udp(self) -> socket.socket:
        sock = self.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        sock.sendto(b"data", sock.getsockname())
        return sock

    @functools.cached_property
    def fresh(self) -> socket.socket:
        sock = self.stack.enter_context(socket.socket())
        sock.setblocking(False)
        return sock

    @functools.cached_property
    def folder(self) -> str:
        """Emptied, and not removed, after each call: that would take longer than the call."""
        self.stack.callback(empty, _folder())
        return _folder()

    @functools.cached_property
    def unix_path(self) -> str:
        path = f"{self.folder}/socket"
        listener = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen()
        return path

    @functools.cached_property
    def file(self) -> Any:
        file = self.stack.enter_context(open(f"{self.folder}/file", "w+b"))  # noqa: SIM115
        file.write(b"0123456789")
        file.seek(0)
        return file

    @functools.cached_property
    def pipe(self) -> tuple[Any, Any]:
        ends = os.pipe()
        reader, writer = os.fdopen(ends[0], "rb", 0), os.fdopen(ends[1], "wb", 0)
        for end in (reader, writer):
            self.stack.callback(end.close)
        return reader, writer

    @functools.cached_property
    def transport(self) -> asyncio.Transport:
        transport, _ = self.run(self.loop.create_connection(Recorder, sock=self.sock))
        self.own(transport)
        return transport

    @functools.cached_property
    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(HERE / "tls" / "authority.pem")
        return context

    # -- of another loop --------------------------------------------------------------------------

    @functools.cached_property
    def foreign(self) -> Loop:
        loop = self.factory()
        self.stack.callback(loop.close)
        return loop

    @functools.cached_property
    def foreign_future(self) -> asyncio.Future[None]:
        return self.foreign.create_future()

    @functools.cached_property
    def foreign_task(self) -> asyncio.Task[None]:
        async def wait() -> None:
            await self.foreign_future

        async def end() -> None:
            task.cancel()
            await asyncio.wait([task])

        task = self.foreign.create_task(wait())
        self.foreign.run_until_complete(turns())
        self.stack.callback(lambda: self.foreign.run_until_complete(end()))
        return task

    @functools.cached_property
    def foreign_transport(self) -> asyncio.Transport:
        near, far = tcp_sockets()
        transport, _ = self.foreign.run_until_complete(
            self.foreign.create_connection(Recorder, sock=near)
        )

        def end() -> None:
            transport.abort()
            self.foreign.run_until_complete(turns())
            far.close()

        self.stack.callback(end)
        return transport


def end_transport(transport: Any) -> None:
    if not transport.is_closing():
        (transport.abort if hasattr(transport, "abort") else transport.close)()


# Nothing here is a small number: it would name a descriptor of the test itself.
WRONG: dict[str, Callable[[Env], Any]] = {
    "None": lambda _: None,
    "object": lambda _: object(),
    "text": lambda _: "te\0xt",  # no name that anybody is asked for
    "bytes": lambda _: b"\0bytes",
    "negative": lambda _: -7,
    "large": lambda _: 1 << 20,
    "huge": lambda _: 1 << 70,
    "nan": lambda _: float("nan"),
    "infinite": lambda _: float("inf"),
    "list": lambda _: [],
    "tuple": lambda _: (1, 2, 3, 4, 5),
    "function": lambda _: function,
    "coroutine function": lambda _: coroutine_function,
    "coroutine": lambda _: coroutine_function(),
    "socket": lambda env: env.fresh,
    "closed socket": lambda _: closed_socket(),
    "foreign loop": lambda env: env.foreign,
    "foreign future": lambda env: env.foreign_future,
    "foreign task": lambda env: env.foreign_task,
    "foreign transport": lambda env: env.foreign_transport,
}


@dataclass(frozen=True)
class Case:
    """One call. `arguments` gives what is right; `change` makes it wrong."""

    name: str
    method: str
    arguments: Callable[[Env], dict[str, Any]]
    change: Callable[[Env, dict[str, Any]], None]
    extra: int = 0  # positional arguments too many
    by_keyword: bool = False


@functools.cache
def parameters(function: Any) -> dict[str, inspect.Parameter]:
    """By name, without `self`."""
    try:
        return dict(list(inspect.signature(function).parameters.items())[1:])
    except ValueError:  # built in, without a signature
        return {}


def cases(kind: type, method: str, right: Callable[[Env], dict[str, Any]]) -> Iterator[Case]:
    """The right call, one with each argument wrong in each way, and with one too few or many."""

    def put(parameter: str, wrong: str) -> Callable[[Env, dict[str, Any]], None]:
        return lambda env, given: given.update({parameter: WRONG[wrong](env)})

    def drop(parameter: str) -> Callable[[Env, dict[str, Any]], None]:
        return lambda _, given: given.pop(parameter, None) and None

    def keep(_: Env, __: dict[str, Any]) -> None:
        pass

    known = parameters(getattr(kind, method))
    yield Case("as it should be", method, right, keep)
    yield Case("by keyword", method, right, keep, by_keyword=True)
    yield Case("one too many", method, right, keep, extra=1)
    yield Case("unknown keyword", method, right, lambda _, given: given.update(no_such_option=1))
    for name, parameter in known.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            yield Case(f"without {name}", method, right, drop(name))
        for wrong in WRONG:
            yield Case(f"{name}: {wrong}", method, right, put(name, wrong))


def call(subject: Any, case: Case, given: dict[str, Any]) -> Any:
    """Positional arguments as far as they reach without a gap, then keywords."""
    given = dict(given)
    rest = given.pop("*", ())
    args: list[Any] = []
    if not case.by_keyword:
        for name, parameter in parameters(getattr(type(subject), case.method)).items():
            if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or name not in given:
                break
            args.append(given.pop(name))
        args += [*rest, *[None] * case.extra]
    return getattr(subject, case.method)(*args, **given)


class Universal(Recorder, asyncio.DatagramProtocol, asyncio.SubprocessProtocol):
    """A protocol for any transport."""


def join_waiters() -> None:
    """asyncio may wait for each child in a thread of its own, which goes on after its loop."""
    for thread in threading.enumerate():
        if thread.name.startswith(("waitpid", "asyncio-waitpid")):
            thread.join(LONG)


Told = tuple[str, int | None]


def told(exc: BaseException) -> Told:
    """The type of an exception, and the number of an OSError."""
    return type(exc).__qualname__, exc.errno if isinstance(exc, OSError) else None


@dataclass
class Outcome:
    """What a call has led to; two loops must agree in all of it."""

    call: Told | str = "not made"
    loop: Told | str = "went on"  # how the run of the loop around it ended
    reported: set[Told] = field(default_factory=set)
    logged: set[str] = field(default_factory=set)
    after: Told | str = "not tried"  # something ordinary on the same loop
    left: int = 0  # handles of the C core

    def __str__(self) -> str:
        return ", ".join(str(value) for value in vars(self).values())


class Levels(logging.Handler):
    def __init__(self, outcome: Outcome) -> None:
        super().__init__(logging.ERROR)
        self.outcome = outcome

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().split("\n")[0]
        if "never retrieved" not in text and "was destroyed" not in text:
            self.outcome.logged.add(record.levelname)


async def attempt(outcome: Outcome, make: Callable[[], Any], patience: float) -> Any:
    """Make the call and wait a little for its result."""
    result = None
    try:
        result = make()
        if inspect.isawaitable(result):
            task = asyncio.ensure_future(result)
            if await abandoned(task, patience):
                outcome.call = "pending"
                return None
            result = task.result()
        outcome.call = "returned"
    except BaseException as exc:
        outcome.call = told(exc)
    return result


async def abandoned(task: asyncio.Future[Any], patience: float) -> bool:
    """Wait for a task; cancel it if that takes too long. A broken one may not even end then."""
    done, _ = await asyncio.wait([task], timeout=patience)
    if not done:
        task.cancel()
        await asyncio.wait([task], timeout=patience)
    return not done


@contextlib.contextmanager
def finalizers(owner: str) -> Iterator[list[str]]:
    """What fails in finalizers of that package; asyncio's own fail on what is half made."""
    failed: list[str] = []

    def hook(what: Any) -> None:
        if str(getattr(what.object, "__module__", "")).startswith(owner):
            failed.append(f"{what.object}: {what.exc_value!r}")

    former, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield failed
        for _ in range(3):  # what finalizers have closed leaves garbage of its own
            collect()
    finally:
        sys.unraisablehook = former


async def ordinary(loop: Loop) -> None:
    """What must still work afterwards."""
    called = loop.create_future()
    loop.call_soon(called.set_result, None)
    await called
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.send(b"hello")
        assert await loop.sock_recv(near, 5) == b"hello"
        seen = asyncio.Event()
        loop.add_reader(near, seen.set)
        far.send(b"x")
        await seen.wait()
        loop.remove_reader(near)


def parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def is_child(one: object) -> bool:
    return isinstance(one, asyncio.SubprocessTransport)


def give_back(result: Any) -> None:
    """Close what a call has made."""
    for one in parts(result):
        if isinstance(one, asyncio.Handle):
            one.cancel()
        elif isinstance(one, asyncio.BaseTransport):
            end_transport(one)
        elif isinstance(one, asyncio.AbstractServer | socket.socket) or inspect.iscoroutine(one):
            one.close()


@contextlib.contextmanager
def watched(loop: Loop, outcome: Outcome) -> Iterator[None]:
    """Note what is reported and logged, and nothing else of it."""

    def report(_: Loop, context: dict[str, Any]) -> None:
        if "exception" in context and "never retrieved" not in context["message"]:
            outcome.reported.add(told(context["exception"]))

    handler, logger = Levels(outcome), logging.getLogger("asyncio")
    loop.set_exception_handler(report)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)


Subject = Callable[[Env], Any]


def observe(
    factory: LoopFactory, subject_of: Subject, state: str, case: Case, patience: float = SHORT
) -> Outcome:
    """Make one call on a loop of its own."""
    outcome = Outcome()
    env = Env(factory)
    loop = env.loop
    idle = live_handles(loop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with watched(loop, outcome):
            subject = subject_of(env)
            given = case.arguments(env)
            case.change(env, given)
            bring_into(state, subject, env)
            make = functools.partial(call, subject, case, given)
            result = (
                call_on_closed_loop(outcome, loop, make)
                if loop.is_closed()
                else call_on_loop(outcome, loop, make, patience)
            )
            finish(env, outcome, subject, result, [*given.values()])
            if not loop.is_closed():
                children = [one for one in (subject, *parts(result)) if is_child(one)]
                outcome.left = close(loop, idle if outcome.after == "works" else None, children)
            env.stack.close()
    return outcome


def bring_into(state: str, subject: Any, env: Env) -> None:
    if state in ("closing", "closed"):
        (subject.cancel if isinstance(subject, asyncio.Handle) else subject.close)()
    if state == "closed" and subject is not env.loop:
        env.run(turns(5))
    if state == "loop closed":
        env.run(turns(2))
        env.loop.close()


def call_on_loop(outcome: Outcome, loop: Loop, make: Callable[[], Any], patience: float) -> Any:
    results: list[Any] = []

    async def within() -> None:
        results.append(await attempt(outcome, make, patience))
        await asyncio.sleep(1e-9)  # callbacks and timers that it has scheduled run
        await turns(5)

    try:
        loop.run_until_complete(within())
    except BaseException as exc:
        outcome.loop = told(exc)
    return results[0] if results else None


def call_on_closed_loop(outcome: Outcome, loop: Loop, make: Callable[[], Any]) -> Any:
    """Nothing can wait there: only the first step of a coroutine is made."""
    result = None
    asyncio._set_running_loop(loop)
    try:
        result = make()
        if inspect.iscoroutine(result):
            result.send(None)
        outcome.call = "returned"
    except BaseException as exc:
        outcome.call = told(exc)
    finally:
        asyncio._set_running_loop(None)
    return result


def finish(env: Env, outcome: Outcome, subject: Any, result: Any, given: list[Any]) -> None:
    """Close what is open and use the loop once more."""
    loop = env.loop
    give_back(result)
    for value in given:
        if inspect.iscoroutine(value):
            value.close()
        elif isinstance(value, socket.socket):
            with contextlib.suppress(ValueError, RuntimeError):
                loop.remove_reader(value), loop.remove_writer(value)
    if loop.is_closed():
        return
    give_back(subject)
    give_back(tuple(env.transports))
    with contextlib.suppress(BaseException):
        loop.set_task_factory(None)
    try:
        loop.run_until_complete(asyncio.wait_for(ordinary(loop), LONG))
        outcome.after = "works"
    except BaseException as exc:
        # A loop that failed before may fail in another way now.
        outcome.after = told(exc) if outcome.loop == "went on" else "fails"


def close(loop: Loop, idle: int | None, children: list[Any]) -> int:
    """Returns the handles of the C core that are left; idle: how many an unused loop has, or None
    for a loop that is past use."""

    async def settle() -> None:
        await turns(5)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            await abandoned(task, 0)
        await until(lambda: all(one.get_returncode() is not None for one in children))
        await turns(5)
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()

    if idle is None:
        loop.close()
        return 0
    loop.run_until_complete(settle())
    left = live_handles(loop) - idle
    loop.close()
    return max(left, 0)
