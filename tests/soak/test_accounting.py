"""A soak must fail when something is left or grows; these tests leave and grow everything."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import select
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.loopkit import new_tloop
from tests.soak.accounting import Census, growth, slope
from tests.soak.catalogue import ALL
from tests.soak.driver import Plan, soak
from tests.soak.field import Field, Load, Round
from tests.soak.protocols import Echo

SHORT = Plan(seconds=0.5, windows=1)
LONG = Plan(seconds=1.2, windows=30)  # enough to judge memory

kept: list[Any] = []  # what a leak leaves, to be cleared up by the test


def load_of(once: Callable[[Field, random.Random], Any]) -> Load:
    """A load whose rounds do this, and await what it gives."""

    @asynccontextmanager
    async def load(field: Field) -> AsyncIterator[Round]:
        async def one_round(rng: random.Random) -> int:
            result = once(field, rng)
            if asyncio.iscoroutine(result):
                result = await result
            await asyncio.sleep(0.002)
            return 0

        yield one_round

    return load


def first_only(leak: Callable[[], Any]) -> Callable[..., Any]:
    def once(field: Field, rng: random.Random) -> Any:
        if not kept:
            kept.append(None)
            kept.append(leak())

    return once


def problems(once: Callable[[Field, random.Random], Any], plan: Plan = SHORT) -> str:
    kept.clear()
    field, _ = soak(new_tloop, {"leak": load_of(once)}, 1, plan)
    return "\n".join(field.problems)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.soak.driver.SETTLE_LIMIT", 0.05)
    monkeypatch.setattr("tests.soak.driver.ROUND_LIMIT", 0.3)


# -- what is left ----------------------------------------------------------------------------------


def test_a_clean_load_has_no_problems() -> None:
    assert problems(lambda field, rng: None) == ""


def test_a_descriptor_is_found() -> None:
    text = problems(first_only(lambda: os.open("/dev/null", os.O_RDONLY)))
    os.close(kept[1])
    assert "was left open: /dev/null" in text


def test_a_poll_set_is_found() -> None:
    text = problems(first_only(select.epoll))
    kept[1].close()
    assert "1 poll sets were left open" in text


def test_a_poll_set_under_another_number_is_no_other_one() -> None:
    before = Census({"5": "anon_inode:[eventpoll]"}, frozenset(), 1, ())
    after = Census({"9": "anon_inode:[eventpoll]"}, frozenset(), 1, ())
    assert after.complaints(before) == []


def test_a_handle_is_found() -> None:
    def watch() -> Any:
        pair = socket.socketpair()
        asyncio.get_running_loop().add_reader(pair[0], print)
        return pair

    text = problems(first_only(watch))
    for sock in kept[1]:
        sock.close()
    assert "1 handles of the C core left alive" in text


def test_a_thread_is_found() -> None:
    end = threading.Event()

    def start() -> threading.Thread:
        thread = threading.Thread(target=end.wait)
        thread.start()
        return thread

    text = problems(first_only(start))
    end.set()
    kept[1].join()
    assert "thread left running" in text


@pytest.mark.parametrize("seconds", ["0", "100"])  # a zombie by then, or running
def test_a_child_is_found(seconds: str) -> None:
    text = problems(first_only(lambda: subprocess.Popen(["sleep", seconds])))
    kept[1].kill()
    kept[1].wait()
    assert "child left" in text


def test_a_task_is_found() -> None:
    text = problems(first_only(lambda: asyncio.ensure_future(asyncio.sleep(1000))))
    assert "task left" in text


# -- what is said ----------------------------------------------------------------------------------


class FailsInTheEnd:
    def __del__(self) -> None:
        raise ValueError("in __del__")


async def unawaited() -> None:
    pass


def fail_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(int, "no number")


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda: logging.getLogger("asyncio").warning("said"), "logged: said"),
        (lambda: warnings.warn("said", RuntimeWarning, stacklevel=1), "RuntimeWarning: said"),
        (lambda: FailsInTheEnd() and None, "in __del__"),
        (lambda: unawaited() and None, "never awaited"),
        (fail_in_a_callback, "invalid literal for int"),
        (lambda: threading.Thread(target=int, args=("none",)).start(), "invalid literal for int"),
    ],
)
def test_what_is_logged_warned_or_raised_behind_is_found(
    act: Callable[[], Any], expected: str
) -> None:
    assert expected in problems(first_only(act))


def test_a_failing_round_is_told_with_its_seed() -> None:
    def fail(field: Field, rng: random.Random) -> None:
        raise ValueError(f"drew {rng.random()}")

    text = problems(fail)
    seed = int(text.split("round ")[1].split(",")[0])
    assert f"drew {random.Random(seed).random()}" in text


def test_a_hanging_round_is_told_with_its_stack() -> None:
    async def hang(field: Field, rng: random.Random) -> None:
        await asyncio.get_running_loop().create_future()

    text = problems(hang)
    assert "hangs" in text
    assert "in hang\n" in text


def test_wrong_bytes_are_found() -> None:
    field = Field(new_tloop, 1, kept)  # type: ignore[arg-type]  # its folder is not used
    sent, expected = field.patterns(random.Random(1))
    expected.check(sent.take(3_000_000))
    data = bytearray(sent.take(1000))
    data[500] ^= 1
    with pytest.raises(AssertionError, match="within 1000 after 3000000 right ones"):
        expected.check(data)


def test_calls_in_a_wrong_order_are_found() -> None:
    def lose_unmade(field: Field, rng: random.Random) -> None:
        Echo(field).connection_lost(None)

    assert "Echo: connection_lost after new" in problems(lose_unmade)


# -- what grows ------------------------------------------------------------------------------------


def test_the_slope_is_not_moved_by_an_outlier() -> None:
    assert slope([0, 1, 2, 1000, 4, 5, 6]) == 1


@pytest.mark.parametrize(
    "values",
    [
        [5.0] * 12,
        [5.0, 7, 4, 6, 5, 7, 4, 6, 5, 4, 6, 5],  # noise
        [0.0] * 6 + [900.0] * 6,  # a heap that has grown by one step
        [0.0] * 2 + [500.0] * 5 + [900.0] * 5,
        [0.0, 500, 700, 800, 850, 860, 860, 860, 860, 860, 860, 860],  # comes to rest
    ],
)
def test_what_comes_to_rest_is_no_growth(values: list[float]) -> None:
    assert growth(values) < 1


@pytest.mark.parametrize(
    "values",
    [
        [10.0 * number for number in range(12)],
        [10.0 * number + random.Random(number).randrange(8) for number in range(12)],
        [100.0 * (number // 2) for number in range(12)],  # small steps
    ],
)
def test_what_goes_on_is_growth(values: list[float]) -> None:
    assert growth(values) > 5


def test_too_few_windows_are_no_proof() -> None:
    with pytest.raises(ValueError, match="too few"):
        growth([1.0] * 8)


@pytest.mark.slow
def test_growing_memory_is_found_with_its_place() -> None:
    def grow(field: Field, rng: random.Random) -> None:
        kept.append(bytearray(os.urandom(8 << 10)))

    text = problems(grow, LONG)
    kept.clear()
    assert "resident memory grows" in text
    if sys.implementation.name == "cpython":
        assert "traced memory grows" in text
        assert "test_accounting.py" in text


@pytest.mark.slow
def test_memory_that_is_freed_again_is_no_growth() -> None:
    def use(field: Field, rng: random.Random) -> None:
        bytearray(os.urandom(rng.randrange(64 << 10)))

    assert problems(use, LONG) == ""


# -- the loads -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_seed_repeats_the_draws_of_each_worker() -> None:
    def draws(seed: int) -> set[float]:
        drawn: list[float] = []
        field, _ = soak(
            new_tloop, {"draw": load_of(lambda field, rng: drawn.append(rng.random()))}, seed, SHORT
        )
        assert not field.problems
        return set(drawn)

    first, again, other = draws(7), draws(7), draws(8)
    assert len(first & again) > min(len(first), len(again)) // 2
    assert not first & other


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_each_load_can_run_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # patience as in a soak
    field, _ = soak(new_tloop, {name: ALL[name]}, 1, SHORT)
    assert not field.problems
    assert field.rounds[name]
