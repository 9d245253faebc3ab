"""Subprocesses: talk to one, end one, and run many at a time; every child has its own pipes."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE

import tloop_py


async def talk() -> None:
    """Line by line; both ends are real pipes."""
    child = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    assert child.stdin
    assert child.stdout
    for word in (b"hello\n", b"again\n"):
        child.stdin.write(word)
        print("cat says", (await child.stdout.readline()).decode().strip())
    child.stdin.close()
    print("cat ended with", await child.wait())


async def end() -> None:
    """A signal, and what wait() gives then: the negative number."""
    child = await asyncio.create_subprocess_exec("sleep", "1000")
    child.terminate()
    print("sleep ended with", await child.wait())


async def square(number: int) -> int:
    command = f"echo $(({number} * {number}))"
    child = await asyncio.create_subprocess_shell(command, stdout=PIPE)
    output, _ = await child.communicate()
    return int(output)


async def main() -> None:
    await talk()
    await end()
    print("squares", *await asyncio.gather(*map(square, range(20))))


if __name__ == "__main__":
    tloop_py.run(main())
