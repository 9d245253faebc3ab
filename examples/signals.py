"""Signals: kill -USR1, -USR2, -HUP this program; INT (Ctrl-C) or TERM ends it."""

from __future__ import annotations

import asyncio
import os
import signal

import tloop_py

ENDS = (signal.SIGINT, signal.SIGTERM)
WATCHED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, *ENDS)


async def main() -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        """An ordinary callback, not a signal handler: everything is allowed here."""
        print(f"got {number.name}", flush=True)
        if number in ENDS:
            stop.set()

    for number in WATCHED:
        loop.add_signal_handler(number, on_signal, number)
    print(f"pid {os.getpid()}", flush=True)
    await stop.wait()
    print("bye")


if __name__ == "__main__":
    tloop_py.run(main())
