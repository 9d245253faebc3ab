"""Tasks are asyncio's own: factories, eager start, keywords, and what tells of running tasks."""

from __future__ import annotations

import asyncio
import contextvars
import io
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from conftest import AsyncioLog
from loopkit import PATIENCE, REFCOUNTS, Loop, LoopFactory, collect, finish, python, turns

V12 = sys.version_info >= (3, 12)
V14 = sys.version_info >= (3, 14)

eager_tasks = pytest.mark.skipif(not V12, reason="eager tasks came with Python 3.12")
call_graphs = pytest.mark.skipif(not V14, reason="call graphs came with Python 3.14")
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Factory:
    """A task factory that writes down what it is given."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, loop: Loop, coro: Coroutine[Any, Any, Any], **kwargs: Any
    ) -> asyncio.Task[Any]:
        self.calls.append(kwargs)
        return asyncio.Task(coro, loop=loop, **kwargs)


@pytest.fixture
def eager(loop: Loop) -> Loop:
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    return loop


# -- factories -------------------------------------------------------------------------------------


async def test_a_factory_is_given_all_keywords(loop: Loop) -> None:
    factory = Factory()
    loop.set_task_factory(factory)
    context = contextvars.copy_context()
    task = loop.create_task(asyncio.sleep(0), name="named", context=context)
    assert task.get_name() == "named"
    await task
    [given] = factory.calls
    # Up to 3.13.2 the loop names the task itself.
    assert given in ({"context": context}, {"context": context, "name": "named"})


@pytest.mark.skipif(not V14, reason="any keyword since 3.14")
async def test_a_factory_may_have_keywords_of_its_own(loop: Loop) -> None:
    seen: list[dict[str, Any]] = []

    def factory(loop: Loop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        seen.append({key: kwargs.pop(key) for key in ("priority",)})
        return asyncio.Task(coro, loop=loop, **kwargs)

    loop.set_task_factory(factory)
    await loop.create_task(asyncio.sleep(0), name="named", priority=7)  # type: ignore[call-arg,unused-ignore]
    assert seen == [{"priority": 7}]
    loop.set_task_factory(None)
    coro = asyncio.sleep(0)
    with pytest.raises(TypeError, match="priority"):
        loop.create_task(coro, priority=7)  # type: ignore[call-arg,unused-ignore]
    coro.close()


async def test_a_factory_makes_the_tasks_of_groups_and_gathers(loop: Loop) -> None:
    factory = Factory()
    loop.set_task_factory(factory)
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0))
    await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))
    await asyncio.wait_for(asyncio.sleep(0), 1)
    assert len(factory.calls) >= 3


async def test_a_factory_may_make_a_subclass(loop: Loop) -> None:
    class Task(asyncio.Task[Any]):
        pass

    loop.set_task_factory(lambda loop, coro, **kwargs: Task(coro, loop=loop, **kwargs))
    task = loop.create_task(asyncio.sleep(0, "done"))
    assert type(task) is Task
    assert await task == "done"


def test_a_closed_loop_makes_no_task(loop: Loop) -> None:
    loop.close()
    coro = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.create_task(coro)
    coro.close()


# -- eager tasks -----------------------------------------------------------------------------------


@eager_tasks
async def test_an_eager_task_runs_up_to_its_first_wait(eager: Loop) -> None:
    order: list[str] = []

    async def work() -> str:
        order.append("started")
        await asyncio.sleep(0)
        order.append("went on")
        return "result"

    task = eager.create_task(work(), name="eager")
    assert order == ["started"]
    assert task.get_name() == "eager"
    assert await task == "result"
    assert order == ["started", "went on"]


@eager_tasks
async def test_an_eager_task_that_never_waits_is_done_at_once(eager: Loop) -> None:
    async def work() -> int:
        return 42

    async def fail() -> None:
        raise LookupError("at once")

    done = eager.create_task(work())
    assert done.done()
    assert done.result() == 42
    failed = eager.create_task(fail())
    assert isinstance(failed.exception(), LookupError)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@eager_tasks
async def test_an_eager_task_is_the_current_task_while_it_starts(eager: Loop) -> None:
    seen: list[Any] = []

    async def work() -> None:
        seen.append(asyncio.current_task())

    outer = asyncio.current_task()
    task = eager.create_task(work())
    assert seen == [task]
    assert asyncio.current_task() is outer


@eager_tasks
async def test_an_eager_task_runs_in_its_context(eager: Loop) -> None:
    context = contextvars.copy_context()

    async def work() -> None:
        variable.set("within")
        await asyncio.sleep(0)

    await eager.create_task(work(), context=context)
    assert context[variable] == "within"
    assert variable.get() == "unset"


@eager_tasks
async def test_an_eager_task_can_be_cancelled_after_its_start(eager: Loop) -> None:
    task = eager.create_task(asyncio.sleep(1000))
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@eager_tasks
def test_outside_of_a_run_an_eager_task_starts_with_the_loop(eager: Loop) -> None:
    order: list[str] = []

    async def work() -> None:
        order.append("ran")

    task = eager.create_task(work())
    assert order == []
    eager.run_until_complete(task)
    assert order == ["ran"]


@pytest.mark.skipif(not V14, reason="eager_start= came with Python 3.14")
@pytest.mark.parametrize("start", [True, False])
async def test_eager_start_decides_for_one_task(loop: Loop, start: bool) -> None:
    order: list[str] = []

    async def work() -> None:
        order.append("started")

    create: Callable[..., asyncio.Task[None]] = asyncio.create_task
    task = create(work(), eager_start=start)
    assert order == (["started"] if start else [])
    await task
    async with asyncio.TaskGroup() as group:
        make: Callable[..., asyncio.Task[None]] = group.create_task
        make(work(), eager_start=start)
        assert len(order) == 1 + start


# -- the life of a task ----------------------------------------------------------------------------


def test_a_pending_task_that_is_destroyed_is_reported(
    loop_factory: LoopFactory, asyncio_log: AsyncioLog
) -> None:
    loop = loop_factory()
    loop.create_task(asyncio.sleep(1000), name="forgotten")
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del loop
    collect()
    assert "forgotten" in asyncio_log.expect("Task was destroyed but it is pending!").getMessage()


async def test_an_exception_nobody_asked_for_is_reported(
    loop: Loop, asyncio_log: AsyncioLog
) -> None:
    async def fail() -> None:
        raise LookupError("nobody asks")

    task = loop.create_task(fail())
    await turns()
    del task
    collect()
    asyncio_log.expect("Task exception was never retrieved")


@pytest.mark.skipif(not REFCOUNTS, reason="PyPy frees when it likes")
async def test_a_finished_task_is_freed(loop: Loop) -> None:
    class Result:
        pass

    async def work() -> Result:
        await asyncio.sleep(0)
        return Result()

    task = loop.create_task(work())
    result = weakref.ref(await task)
    del task
    collect()
    await turns()
    assert result() is None


# -- which tasks there are -------------------------------------------------------------------------


async def test_all_tasks_are_those_of_this_loop(loop: Loop, loop_factory: LoopFactory) -> None:
    inside: list[set[asyncio.Task[Any]]] = []

    async def elsewhere() -> None:
        inside.append(asyncio.all_tasks() - {asyncio.current_task()})

    def run() -> None:
        other = loop_factory()
        other.run_until_complete(elsewhere())
        other.close()

    mine = {loop.create_task(asyncio.sleep(1000)) for _ in range(3)}
    await asyncio.to_thread(run)
    assert inside == [set()]
    assert asyncio.all_tasks() == {*mine, asyncio.current_task()}
    for task in mine:
        task.cancel()
    await asyncio.wait(mine)


def test_another_thread_sees_the_tasks_of_a_loop(loop: Loop) -> None:
    ready, release = threading.Event(), asyncio.Event()
    names: set[str] = set()

    async def main() -> None:
        tasks = [asyncio.create_task(release.wait(), name=name) for name in ("a", "b")]
        await turns()
        ready.set()
        await asyncio.wait(tasks)

    def look() -> None:
        ready.wait(PATIENCE)
        names.update(task.get_name() for task in asyncio.all_tasks(loop))
        loop.call_soon_threadsafe(release.set)

    thread = threading.Thread(target=look)
    thread.start()
    loop.run_until_complete(main())
    thread.join()
    assert names >= {"a", "b"}


async def test_the_current_task_is_known_by_its_loop(loop: Loop) -> None:
    seen: list[Any] = []
    loop.call_soon(lambda: seen.append(asyncio.current_task()))
    await turns()
    assert seen == [None]
    task = asyncio.current_task()
    assert task
    assert asyncio.current_task(loop) is task
    assert task.get_loop() is loop


# -- call graphs -----------------------------------------------------------------------------------


async def waits_for(future: asyncio.Future[None]) -> None:
    await future


@call_graphs
async def test_a_call_graph_shows_who_waits_for_whom(loop: Loop) -> None:
    tools: Any = asyncio
    future = loop.create_future()

    async def outer() -> None:
        await inner

    inner = loop.create_task(waits_for(future), name="inner")
    waiting = loop.create_task(outer(), name="outer")
    await turns()
    graph = tools.capture_call_graph(inner)
    assert graph.future is inner
    assert [entry.frame.f_code.co_name for entry in graph.call_stack] == ["waits_for"]
    assert [above.future for above in graph.awaited_by] == [waiting]
    text = tools.format_call_graph(inner)
    assert "inner" in text
    assert "outer" in text
    out = io.StringIO()
    tools.print_call_graph(inner, file=out)
    assert out.getvalue().rstrip() == text.rstrip()
    future.set_result(None)
    await waiting


@call_graphs
async def test_a_task_can_print_its_own_call_graph(loop: Loop) -> None:
    tools: Any = asyncio

    async def show() -> str:
        text: str = tools.format_call_graph()
        return text

    async with asyncio.TaskGroup() as group:
        shown = group.create_task(show(), name="shower")
    assert "shower" in shown.result()
    assert "test_a_task_can_print_its_own_call_graph" in shown.result()


PROGRAM = """
import asyncio, sys, loopkit

async def wait_for_ever():
    await asyncio.sleep(1000)

async def main():
    async with asyncio.TaskGroup() as group:
        for name in ("first", "second"):
            group.create_task(wait_for_ever(), name=name)
        await asyncio.sleep(0)
        print("ready")

with asyncio.Runner(loop_factory=loopkit.FACTORIES[sys.argv[1]]) as runner:
    runner.run(main())
"""


@call_graphs
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["ps", "pstree"])
def test_the_tools_show_the_tasks_of_a_running_program(loop_name: str, tool: str) -> None:
    program = python(PROGRAM, loop_name)
    try:
        assert program.stdout
        assert program.stdout.readline() == "ready\n"
        shown = subprocess.run(
            [sys.executable, "-m", "asyncio", tool, str(program.pid)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, "PYTHON_COLORS": "0"},
        )
    finally:
        program.kill()
        finish(program)
    if "ermission" in shown.stderr:
        pytest.skip(f"this machine lets no process look into another: {shown.stderr}")
    assert shown.returncode == 0, shown.stderr
    for text in ("first", "second", "wait_for_ever", "main"):
        assert text in shown.stdout
