"""asyncio inside Tk's main loop, with neither a thread nor polling. Needs python3-tk.

python examples/guest_tk.py [PORT], then: nc 127.0.0.1 PORT
The window shows each line that arrives, and the button answers. "quit" ends the program.
"""

from __future__ import annotations

import asyncio
import sys
import tkinter

from tloop_py import GuestLoop

root = tkinter.Tk()
label = tkinter.Label(root, text="nothing yet", width=40)
writers: list[asyncio.StreamWriter] = []


def answer() -> None:
    """Called by Tk, not by asyncio: streams can be used all the same."""
    for writer in writers:
        writer.write(f"shown: {label['text']}\n".encode())


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writers.append(writer)
    async for line in reader:
        label["text"] = line.decode().strip()
        root.after(50, answer)  # a timer of Tk's
        await asyncio.sleep(0.1)  # and one of asyncio's
        if line == b"quit\n":
            root.quit()


def attach(loop: GuestLoop) -> None:
    """Have Tk step the loop when its descriptor is readable, and when its next timer is due."""
    planned = ""

    def step(*_: object) -> None:
        nonlocal planned
        root.after_cancel(planned or "none")
        delay = loop.step()
        planned = "" if delay is None else root.after(int(delay * 1000 + 0.999), step)

    root.createfilehandler(loop.fileno(), tkinter.READABLE, step)
    step()


with asyncio.Runner(loop_factory=GuestLoop) as runner:
    loop = runner.get_loop()
    label.pack()
    tkinter.Button(root, text="answer", command=answer).pack()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", *sys.argv[1:] or [0]))
    print("listening on {}:{}".format(*server.sockets[0].getsockname()), flush=True)
    attach(loop)
    root.mainloop()
    root.deletefilehandler(loop.fileno())
