"""The same tests again where the kernel gives no pidfd, so that threads wait for the children."""

from __future__ import annotations

import errno

import pytest
import test_subprocess
from test_subprocess import (
    no_child_left_behind,
    reaped_by_the_kernel,
    test_a_grandchild_keeps_the_pipe_open,
    test_a_megabyte_there_and_back,
    test_a_reaped_number_is_never_signalled,
    test_a_signal_to_a_zombie_is_ignored,
    test_an_exit_code_that_somebody_else_took,
    test_cancelling_the_start,
    test_cancelling_the_wait,
    test_closing_does_not_take_the_exit_code,
    test_ended_before_anybody_looks,
    test_ended_by_a_signal,
    test_exit_codes,
    test_gone_before_it_is_watched,
    test_loops_in_several_threads,
    test_many_at_once,
    test_popen_may_take_the_exit_code,
    test_signals,
    test_signals_that_do_not_exist,
)

__all__ = [
    "no_child_left_behind",
    "reaped_by_the_kernel",
    "test_a_grandchild_keeps_the_pipe_open",
    "test_a_megabyte_there_and_back",
    "test_a_reaped_number_is_never_signalled",
    "test_a_signal_to_a_zombie_is_ignored",
    "test_an_exit_code_that_somebody_else_took",
    "test_cancelling_the_start",
    "test_cancelling_the_wait",
    "test_closing_does_not_take_the_exit_code",
    "test_ended_before_anybody_looks",
    "test_ended_by_a_signal",
    "test_exit_codes",
    "test_gone_before_it_is_watched",
    "test_loops_in_several_threads",
    "test_many_at_once",
    "test_popen_may_take_the_exit_code",
    "test_signals",
    "test_signals_that_do_not_exist",
]

pytestmark = pytest.mark.loops("tloop")


@pytest.fixture(autouse=True)
def without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    library = test_subprocess.WithoutPidfd(errno.ENOSYS)
    monkeypatch.setattr(test_subprocess.tloop_subprocess, "lib", library)
