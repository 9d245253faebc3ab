"""The loads by name. A new one is an entry here."""

from __future__ import annotations

from tests.soak import faults
from tests.soak.field import Load
from tests.soak.loads import datagrams, files, processes, scheduling, sockets, streams, threads

ALL: dict[str, Load] = {
    "protocols": streams.protocols,
    "streams": streams.lines_and_blocks,
    "start_tls": streams.start_tls,
    "servers": streams.servers,
    "datagrams": datagrams.datagrams,
    "unix datagrams": datagrams.unix_datagrams,
    "sock stream": sockets.stream_operations,
    "sock datagram": sockets.datagram_operations,
    "readiness": sockets.readers_and_writers,
    "sendfile": files.sendfile,
    "sock_sendfile": files.sock_sendfile,
    "subprocesses": processes.subprocesses,
    "pipes": processes.pipes,
    "timers": scheduling.timers,
    "signals": scheduling.signals,
    "threads": threads.threads,
    "executor": threads.executor,
    "resets": faults.resets,
    "half-closes": faults.half_closes,
    "refused": faults.refused,
    "raising": faults.raising,
    "other loops": faults.other_loops,
    "forks": faults.forks,
}
