from __future__ import annotations

import shutil
import warnings

import pytest
from interopkit import FOREIGN, PATIENCE, Foreign

with warnings.catch_warnings(action="ignore"):  # it uses asyncore, which was to go
    import tlslite  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "interop":
            item.add_marker(pytest.mark.timeout(4 * PATIENCE))


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest) -> Foreign:
    foreign = FOREIGN[request.param]
    if foreign.program and not shutil.which(foreign.program):
        pytest.skip(f"{foreign.program} is not there")
    return foreign
