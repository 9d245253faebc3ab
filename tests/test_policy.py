"""Event loop policies: made on request, as deprecated as asyncio's own, and gone with them."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import threading
import warnings
from asyncio import events
from collections.abc import Iterator
from typing import Any

import pytest
from loopkit import Loop, is_tloop, run_python, until, warnings_seen

import tloop_py
from tloop_py import _compat

DEPRECATED = sys.version_info >= (3, 14)
POLICIES = sys.version_info < (3, 16)

needs_policies = pytest.mark.skipif(not POLICIES, reason="3.16 has no event loop policies")
needs_watchers = pytest.mark.skipif(DEPRECATED, reason="3.14 has no child watchers")


@pytest.fixture
def former_policy() -> Iterator[None]:
    """Puts back what a test has installed, and what that has made."""
    former = events._event_loop_policy  # type: ignore[attr-defined]
    yield
    events._event_loop_policy = former  # type: ignore[attr-defined]


def quiet_policy(loop_name: str) -> Any:
    """The policy that belongs to the loop; what it says of deprecation is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: Any = tloop_py if loop_name == "tloop" else importlib.import_module(loop_name)
        return getattr(module, "EventLoopPolicy", None) or module.DefaultEventLoopPolicy


@pytest.fixture
def policy(loop_name: str) -> Any:
    return quiet_policy(loop_name)()


@needs_policies
def test_a_policy_keeps_a_loop_for_each_thread(policy: Any, loop_name: str) -> None:
    loop = policy.new_event_loop()
    assert is_tloop(loop) == (loop_name == "tloop")
    policy.set_event_loop(loop)
    assert policy.get_event_loop() is loop
    errors: list[str] = []

    def elsewhere() -> None:
        with pytest.raises(RuntimeError) as caught:
            policy.get_event_loop()
        errors.append(str(caught.value))

    thread = threading.Thread(target=elsewhere, name="another")
    thread.start()
    thread.join()
    assert errors == ["There is no current event loop in thread 'another'."]
    policy.set_event_loop(None)
    loop.close()


@needs_policies
@pytest.mark.skipif(sys.version_info < (3, 12), reason="3.11 makes a loop without a word")
@pytest.mark.skipif(DEPRECATED, reason="3.14 makes none")
def test_a_policy_makes_a_loop_in_the_main_thread(policy: Any) -> None:
    with pytest.deprecated_call(match="There is no current event loop"):
        loop = policy.get_event_loop()
    assert policy.get_event_loop() is loop
    loop.close()


@needs_policies
def test_install_leads_all_of_asyncio_to_tloop(former_policy: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tloop_py.install()

    async def running() -> Loop:
        return asyncio.get_running_loop()

    assert is_tloop(asyncio.run(running()))
    loop = asyncio.new_event_loop()
    assert is_tloop(loop)
    loop.close()
    with asyncio.Runner() as runner:
        assert is_tloop(runner.get_loop())


def deprecations(code: str) -> list[tuple[str, str]]:
    """The warnings of a piece of code: which file they blame, and their text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(code, "user.py", "exec"), {"asyncio": asyncio, "tloop_py": tloop_py})
    assert all(warning.category is DeprecationWarning for warning in caught)
    return [(warning.filename, str(warning.message)) for warning in caught]


@needs_policies
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("tloop_py.EventLoopPolicy", "asyncio.DefaultEventLoopPolicy"),
        ("tloop_py.install()", "asyncio.set_event_loop_policy(None)"),
    ],
)
def test_deprecation_is_told_as_asyncio_tells_it(
    ours: str, theirs: str, former_policy: None
) -> None:
    expected = [
        (file, text.replace(theirs.partition("(")[0], ours.partition("(")[0]))
        for file, text in deprecations(theirs)
    ]
    assert len(expected) == DEPRECATED
    told = deprecations(ours)
    assert [(file, text.partition(";")[0]) for file, text in told] == expected
    assert all("tloop_py.new_event_loop" in text for _, text in told)


@needs_policies
def test_looking_for_a_policy_without_using_it_warns_of_nothing() -> None:
    with warnings_seen() as seen:
        assert "EventLoopPolicy" not in vars(tloop_py)
        exec("from tloop_py import *", {})
        assert callable(tloop_py.install)
    assert not seen


@pytest.mark.parametrize("name", ["EventLoopPolicy", "install"])
def test_without_policies_the_error_tells_what_to_use(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(_compat, "DefaultEventLoopPolicy", None)
    with pytest.raises(AttributeError, match=rf"{name} needs .* loop_factory=tloop_py\.new"):
        getattr(tloop_py, name)
    assert not hasattr(tloop_py, name)


def test_what_does_not_exist_is_not_found() -> None:
    with pytest.raises(AttributeError, match="module 'tloop_py' has no attribute 'nothing'"):
        tloop_py.nothing  # type: ignore[attr-defined]  # noqa: B018


# -- child watchers, of 3.11 to 3.13 ---------------------------------------------------------------

WATCHERS = [
    "ThreadedChildWatcher",
    "PidfdChildWatcher",
    "SafeChildWatcher",
    "FastChildWatcher",
    "MultiLoopChildWatcher",
]


def quiet_watcher(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(asyncio, name)()


@needs_watchers
@pytest.mark.filterwarnings("ignore:.*child_watcher.*:DeprecationWarning")
@pytest.mark.parametrize("name", WATCHERS)
def test_a_child_watcher_tells_the_loop_of_an_exit(policy: Any, name: str) -> None:
    if name.startswith("Pidfd") and not hasattr(os, "pidfd_open"):
        pytest.skip("PyPy has no os.pidfd_open")
    loop = policy.new_event_loop()
    watcher = quiet_watcher(name)
    policy.set_child_watcher(watcher)
    assert policy.get_child_watcher() is watcher
    policy.set_event_loop(loop)
    watcher.attach_loop(loop)
    exits: list[tuple[int, int]] = []

    async def watch(child: Any) -> None:
        watcher.add_child_handler(child.pid, lambda *exited: exits.append(exited))
        # Not before: MultiLoopChildWatcher would reap it twice if SIGCHLD came in between.
        child.stdin.close()
        await until(lambda: exits)

    with watcher:
        child = subprocess.Popen(["sh", "-c", "read line; exit 7"], stdin=subprocess.PIPE)
        loop.run_until_complete(watch(child))
    child.returncode = 7  # the watcher has reaped it
    assert exits == [(child.pid, 7)]
    watcher.close()
    policy.set_event_loop(None)
    loop.close()


@needs_watchers
@pytest.mark.filterwarnings("ignore:.*child_watcher.*:DeprecationWarning")
def test_a_policy_makes_its_child_watcher_on_demand(policy: Any) -> None:
    watcher = policy.get_child_watcher()
    assert isinstance(watcher, asyncio.AbstractChildWatcher)  # type: ignore[attr-defined,unused-ignore]
    assert policy.get_child_watcher() is watcher
    policy.set_child_watcher(None)


# -- what an import does ---------------------------------------------------------------------------

SNAPSHOT = """
import asyncio, signal, sys, _cffi_backend

def snapshot():
    seen = {}
    for name, module in list(sys.modules.items()):
        if isinstance(module, type(sys)) and not name.startswith(("tloop_py", "__main__")):
            for key, value in list(vars(module).items()):
                seen[name, key] = id(value)
                if isinstance(value, type) and value.__module__.startswith(("asyncio", "ssl")):
                    for attribute, member in list(vars(value).items()):
                        seen[name, key, attribute] = id(member)
    return seen

modules, before = set(sys.modules), snapshot()
handlers = [signal.getsignal(number) for number in signal.valid_signals()]
import tloop_py
after = snapshot()
"""


def test_nothing_is_patched_or_installed_at_import() -> None:
    out = run_python(
        SNAPSHOT
        + "print([key for key in before if after.get(key) != before[key]])\n"
        + "print(asyncio.events._event_loop_policy, signal.set_wakeup_fd(-1))\n"
        + "print(handlers == [signal.getsignal(number) for number in signal.valid_signals()])\n"
    )
    assert out.split("\n") == ["[]", "None -1", "True", ""]


def test_an_import_brings_only_asyncio_and_cffi() -> None:
    out = run_python(SNAPSHOT + "print(*(set(sys.modules) - modules))\n")
    others = {name for name in out.split() if name.partition(".")[0] != "tloop_py"}
    assert others <= {"__future__", "typing", "_typing", "struct", "_struct"}
    assert "tloop_py._policy" not in out
