"""Every public method, called wrongly in every way: what comes of it is the same as on asyncio.

The cases are made by introspection: each argument of each method is replaced by each of the values
of `badkit.WRONG`, left out, or given too much, on objects that are open, closing, closed, and whose
loop is closed. Compared are the exception (with errno), how the loop's run ended, what was reported
and logged, and whether the loop still works; no handle of the C core may be left.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import signal
import socket
import warnings
from asyncio import base_events
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest
from badkit import (
    LONG,
    SHORT,
    Case,
    Env,
    Outcome,
    Subject,
    Universal,
    cases,
    coroutine_function,
    finalizers,
    function,
    join_waiters,
    observe,
)
from conftest import AsyncioLog
from loopkit import FACTORIES, LoopFactory, Recorder, new_asyncio_loop, tcp_sockets

Right = Callable[[Env], dict[str, Any]]


def nothing(_: Env) -> dict[str, Any]:
    return {}


FACTORY: dict[str, Any] = {"protocol_factory": Recorder}
LOCAL = "127.0.0.1"

# The right arguments; "*" are those behind the named ones.
LOOP: dict[str, Right] = {
    "add_reader": lambda env: {"fd": env.sock, "callback": function},
    "add_signal_handler": lambda _: {"sig": signal.SIGUSR1, "callback": function},
    "add_writer": lambda env: {"fd": env.sock, "callback": function},
    "call_at": lambda env: {"when": env.loop.time(), "callback": function},
    "call_exception_handler": lambda _: {"context": {"message": "wrong"}},
    "call_later": lambda _: {"delay": 0, "callback": function},
    "call_soon": lambda _: {"callback": function},
    "call_soon_threadsafe": lambda _: {"callback": function},
    "close": nothing,
    "connect_accepted_socket": lambda env: {**FACTORY, "sock": env.sock},
    "connect_read_pipe": lambda env: {**FACTORY, "pipe": env.pipe[0]},
    "connect_write_pipe": lambda env: {**FACTORY, "pipe": env.pipe[1]},
    "create_connection": lambda env: {**FACTORY, "host": LOCAL, "port": env.address[1]},
    "create_datagram_endpoint": lambda _: {
        "protocol_factory": asyncio.DatagramProtocol,
        "local_addr": (LOCAL, 0),
    },
    "create_future": nothing,
    "create_server": lambda _: {**FACTORY, "host": LOCAL, "port": 0},
    "create_task": lambda _: {"coro": coroutine_function()},
    "create_unix_connection": lambda env: {**FACTORY, "path": env.unix_path},
    "create_unix_server": lambda env: {**FACTORY, "path": f"{env.folder}/server"},
    "default_exception_handler": lambda _: {"context": {"message": "wrong"}},
    "get_debug": nothing,
    "get_exception_handler": nothing,
    "get_task_factory": nothing,
    "getaddrinfo": lambda _: {"host": LOCAL, "port": 80},
    "getnameinfo": lambda _: {
        "sockaddr": (LOCAL, 80),
        "flags": socket.NI_NUMERICHOST | socket.NI_NUMERICSERV,
    },
    "is_closed": nothing,
    "is_running": nothing,
    "remove_reader": lambda env: {"fd": env.sock},
    "remove_signal_handler": lambda _: {"sig": signal.SIGUSR1},
    "remove_writer": lambda env: {"fd": env.sock},
    "run_forever": nothing,
    "run_in_executor": lambda _: {"executor": None, "func": function},
    "run_until_complete": lambda _: {"future": coroutine_function()},
    "sendfile": lambda env: {"transport": env.transport, "file": env.file},
    "set_debug": lambda _: {"enabled": False},
    "set_default_executor": lambda _: {"executor": None},
    "set_exception_handler": lambda _: {"handler": None},
    "set_task_factory": lambda _: {"factory": None},
    "shutdown_asyncgens": nothing,
    "shutdown_default_executor": nothing,
    "sock_accept": lambda env: {"sock": env.listener},
    "sock_connect": lambda env: {"sock": env.fresh, "address": env.address},
    "sock_recv": lambda env: {"sock": env.sock, "n": 4},
    "sock_recv_into": lambda env: {"sock": env.sock, "buf": bytearray(4)},
    "sock_recvfrom": lambda env: {"sock": env.udp, "bufsize": 4},
    "sock_recvfrom_into": lambda env: {"sock": env.udp, "buf": bytearray(4)},
    "sock_sendall": lambda env: {"sock": env.sock, "data": b"data"},
    "sock_sendfile": lambda env: {"sock": env.sock, "file": env.file},
    "sock_sendto": lambda env: {
        "sock": env.udp,
        "data": b"data",
        "address": env.udp.getsockname(),
    },
    "start_tls": lambda env: {
        "transport": env.transport,
        "protocol": Recorder(),
        "sslcontext": env.tls,
        "server_hostname": "server.example",
    },
    "stop": nothing,
    "subprocess_exec": lambda _: {
        "protocol_factory": asyncio.SubprocessProtocol,
        "program": "true",
    },
    "subprocess_shell": lambda _: {
        "protocol_factory": asyncio.SubprocessProtocol,
        "cmd": "true",
    },
    "time": nothing,
}

HANDLE: dict[str, Right] = {
    "cancel": nothing,
    "cancelled": nothing,
    "get_context": nothing,
    "when": nothing,
}

TRANSPORT: dict[str, Right] = {
    "abort": nothing,
    "can_write_eof": nothing,
    "close": nothing,
    "get_extra_info": lambda _: {"name": "sockname"},
    "get_protocol": nothing,
    "get_write_buffer_limits": nothing,
    "get_write_buffer_size": nothing,
    "is_closing": nothing,
    "is_reading": nothing,
    "pause_reading": nothing,
    "resume_reading": nothing,
    "sendto": lambda env: {"data": b"data", "addr": env.udp.getsockname()},
    "set_protocol": lambda _: {"protocol": Universal()},
    "set_write_buffer_limits": lambda _: {"high": 10, "low": 1},
    "write": lambda _: {"data": b"data"},
    "write_eof": nothing,
    "writelines": lambda _: {"list_of_data": [b"data"]},
    # of subprocesses
    "get_pid": nothing,
    "get_pipe_transport": lambda _: {"fd": 1},
    "get_returncode": nothing,
    "kill": nothing,
    "send_signal": lambda _: {"signal": signal.SIGTERM},
    "terminate": nothing,
}

SERVER: dict[str, Right] = {
    "abort_clients": nothing,
    "close": nothing,
    "close_clients": nothing,
    "get_loop": nothing,
    "is_serving": nothing,
    "serve_forever": nothing,
    "start_serving": nothing,
    "wait_closed": nothing,
}

READER: dict[str, Right] = {
    "at_eof": nothing,
    "exception": nothing,
    "feed_data": lambda _: {"data": b"data"},
    "feed_eof": nothing,
    "read": lambda _: {"n": 4},
    "readexactly": lambda _: {"n": 4},
    "readline": nothing,
    "readuntil": lambda _: {"separator": b"a"},
    "set_exception": lambda _: {"exc": LookupError()},
    "set_transport": lambda env: {"transport": env.transport},
}

WRITER: dict[str, Right] = {
    "can_write_eof": nothing,
    "close": nothing,
    "drain": nothing,
    "get_extra_info": lambda _: {"name": "sockname"},
    "is_closing": nothing,
    "start_tls": lambda env: {"sslcontext": env.tls, "server_hostname": "server.example"},
    "wait_closed": nothing,
    "write": lambda _: {"data": b"data"},
    "write_eof": nothing,
    "writelines": lambda _: {"data": [b"data"]},
}


# -- the objects -----------------------------------------------------------------------------------


def own_sockets(env: Env) -> socket.socket:
    """One end for a transport, besides those that serve as arguments."""
    near, far = tcp_sockets()
    env.stack.enter_context(far)
    far.send(b"data")
    return near


def stream(env: Env) -> Any:
    return env.run(env.loop.create_connection(Recorder, sock=own_sockets(env)))[0]


def unconnected(env: Env) -> Any:
    endpoint = env.loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(LOCAL, 0))
    return env.run(endpoint)[0]


def datagram(env: Env) -> Any:
    address = env.udp.getsockname()
    endpoint = env.loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=address)
    return env.run(endpoint)[0]


def read_pipe(env: Env) -> Any:
    return env.run(env.loop.connect_read_pipe(Recorder, env.pipe[0]))[0]


def write_pipe(env: Env) -> Any:
    return env.run(env.loop.connect_write_pipe(Recorder, env.pipe[1]))[0]


def process(env: Env) -> Any:
    return env.run(env.loop.subprocess_exec(asyncio.SubprocessProtocol, "cat"))[0]


def server(env: Env) -> Any:
    return env.run(env.loop.create_server(Recorder, LOCAL, 0))


def streams(env: Env) -> Any:
    reader, writer = env.run(asyncio.open_connection(sock=own_sockets(env)))
    env.own(writer.transport)
    return reader, writer


Table = dict[str, Right]
# name: (how it is made, the class whose public methods are called, right arguments)
OBJECTS: dict[str, tuple[Subject, type, Table]] = {
    "loop": (lambda env: env.loop, asyncio.AbstractEventLoop, LOOP),
    "handle": (lambda env: env.loop.call_later(9, function), asyncio.TimerHandle, HANDLE),
    "stream": (stream, asyncio.Transport, TRANSPORT),
    "datagram": (datagram, asyncio.DatagramTransport, TRANSPORT),
    "unconnected datagram": (unconnected, asyncio.DatagramTransport, TRANSPORT),
    "read pipe": (read_pipe, asyncio.ReadTransport, TRANSPORT),
    "write pipe": (write_pipe, asyncio.WriteTransport, TRANSPORT),
    "process": (process, asyncio.SubprocessTransport, TRANSPORT),
    "server": (server, base_events.Server, SERVER),
    "reader": (lambda env: streams(env)[0], asyncio.StreamReader, READER),
    "writer": (lambda env: streams(env)[1], asyncio.StreamWriter, WRITER),
}


# Not in each version of Python.
LATER = {"abort_clients", "close_clients", "get_context"}


def methods(kind: type) -> list[str]:
    return [
        name
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and callable(member)
    ]


ALL = [(name, method) for name, (_, kind, _) in OBJECTS.items() for method in methods(kind)]


def all_cases(name: str, method: str) -> list[tuple[str, Case]]:
    """With the state in which the object is."""
    _, kind, table = OBJECTS[name]
    real = asyncio.SelectorEventLoop if name == "loop" else kind
    every = list(cases(real, method, table[method]))
    child = method.startswith("subprocess_")
    if child:  # without a protocol it is lost, on asyncio, too
        every = [case for case in every if not re.match("protocol_factory: .*function", case.name)]
    plain = [case for case in every if case.name in ("as it should be", "by keyword")]
    found = [("open", case) for case in every]
    if name not in ("loop", "reader", "process"):
        found += [(state, case) for state in ("closing", "closed") for case in every]
    # Which mistake is told first, where there are two, is not compared. asyncio starts a child even
    # though it is closed, and forgets its pipes.
    if name != "process" and not child:
        found += [("loop closed", case) for case in plain]
    return found


# (object, state, method, case pattern): (what tloop does, what asyncio does, why)
Decision = tuple[str, str, str]
CLOSED = "RuntimeError", "returned", "nothing can be queued: it says so, and sends no first part"
INSIDE = "returned", "[AT]*Error", "asyncio stumbles over what it has set to None"
DECIDED: dict[tuple[str, str, str, str], Decision] = {
    ("stream", "loop closed", "write*", "*"): CLOSED,
    ("write pipe", "loop closed", "write*", "*"): CLOSED,
    ("writer", "loop closed", "write*", "*"): CLOSED,
    ("datagram", "loop closed", "sendto", "*"): CLOSED,
    ("unconnected datagram", "loop closed", "sendto", "*"): CLOSED,
    ("unconnected datagram", "clos*", "sendto", "*"): INSIDE,
    ("write pipe", "clos*", "abort", "*"): INSIDE,
    ("loop", "open", "run_forever", "*"): (
        "RuntimeError",
        "RuntimeError",
        "what 3.13.0 refuses also ends the run that goes on",
    ),
    # From 3.14 on asyncio does not look at what a lost connection cannot send, and what is left of
    # a connection without a protocol fails later.
    ("stream", "clos*", "writelines", "list_of_data: *"): (
        "*Error",
        "returned",
        "a mistake is one",
    ),
    ("writer", "clos*", "writelines", "data: *"): ("*Error", "returned", "a mistake is one"),
    ("loop", "open", "create_*connection", "protocol_factory: *function"): (
        "AttributeError",
        "AttributeError",
        "nothing may be left behind",
    ),
    # From 3.12 or 3.13 on asyncio differs from itself.
    ("stream", "clos*", "writelines", "*"): INSIDE,
    ("writer", "clos*", "writelines", "*"): INSIDE,
    ("*", "*", "writelines", "*: None"): ("TypeError", "returned", "3.12 hides the mistake"),
    ("*", "*", "writelines", "*: foreign *"): ("RuntimeError", "TypeError", "both refuse it"),
    ("loop", "open", "call_at", "when: *"): (
        "TypeError",
        "returned",
        "asyncio's loop ends with that error when it comes to the timer",
    ),
    ("loop", "open", "call_*", "*: nan"): ("returned", "returned", "a run that fails helps no one"),
    ("loop", "open", "*sendfile", "count: huge"): ("returned", "OverflowError", "as 3.13"),
    ("loop", "open", "sock_sendall", "sock: coroutine"): (
        "AttributeError",
        "TypeError",
        "a coroutine has a send(), but no fileno()",
    ),
}


def decided(name: str, state: str, case: Case, ours: Outcome, theirs: Outcome) -> bool:
    """Is that a difference that was decided? docs/design.md lists those that anyone may meet."""
    what = (name, state, case.method, case.name)
    calls = [one.call if isinstance(one.call, str) else one.call[0] for one in (ours, theirs)]
    return any(
        all(map(fnmatchcase, [*what, *calls], [*patterns, *decision[:2]]))
        for patterns, decision in DECIDED.items()
    )


def differences(factory: LoopFactory, name: str, state: str, case: Case) -> list[str]:
    make = OBJECTS[name][0]
    for patience in (SHORT, LONG):  # a loaded machine may take longer
        ours = observe(factory, make, state, case, patience)
        theirs = observe(new_asyncio_loop, make, state, case, patience)
        if ours == theirs or decided(name, state, case, ours, theirs):
            return []
    return [f"{state}, {case.name}:\n  tloop   {ours}\n  asyncio {theirs}"]


@pytest.mark.slow
@pytest.mark.loops("tloop")
@pytest.mark.parametrize(("name", "method"), ALL, ids=[" ".join(pair) for pair in ALL])
def test_a_wrong_call_ends_as_on_asyncio(
    loop_factory: LoopFactory, name: str, method: str, asyncio_log: AsyncioLog
) -> None:
    found: list[str] = []
    with warnings.catch_warnings(), finalizers("tloop_py") as broken:
        warnings.simplefilter("ignore")  # of what is not closed, not awaited, deprecated
        for state, case in all_cases(name, method):
            found += differences(loop_factory, name, state, case)
        join_waiters()
    asyncio_log.records.clear()
    assert not broken
    assert not found, "\n".join([f"{len(found)} differences", *found])


@pytest.mark.parametrize("name", OBJECTS)
def test_every_public_method_has_its_row(name: str) -> None:
    """And no row is of a method that nothing has."""
    _, kind, table = OBJECTS[name]
    assert set(methods(kind)) <= set(table)
    kinds = [kind for _, kind, other in OBJECTS.values() if other is table]
    everywhere = {method for kind in kinds for method in methods(kind)}
    assert set(table) - everywhere <= LATER


def test_the_loops_under_test_are_what_they_are_called(loop_name: str) -> None:
    loop = FACTORIES[loop_name]()
    loop.close()
    assert type(loop).__module__.split(".")[0] == {"tloop": "tloop_py"}.get(loop_name, "asyncio")
