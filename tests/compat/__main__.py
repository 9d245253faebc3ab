"""`python -m tests.compat`: run the tests of all rows on each loop, and write the page."""

from __future__ import annotations

import signal
import sys
import time

from tests.compat.outcomes import LOOPS, WRONG, Outcome, run_all
from tests.compat.page import PAGE, render
from tests.compat.rows import all_tests


def run(loop: str) -> dict[str, Outcome]:
    began = time.monotonic()
    outcomes = run_all(loop, all_tests())
    wrong = {test: outcome for test, outcome in outcomes.items() if outcome.kind in WRONG}
    print(f"{loop}: {len(outcomes)} tests, {time.monotonic() - began:.0f} s, {len(wrong)} fail")
    for test, outcome in wrong.items():
        print(f"  {test} {outcome.kind}: {outcome.reason}")
    sys.stdout.flush()
    return outcomes


def main() -> None:
    # What a shell starts in the background ignores these, and the tests would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    PAGE.write_text(render({loop: run(loop) for loop in LOOPS}))


main()
