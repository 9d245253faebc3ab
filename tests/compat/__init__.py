"""docs/compatibility.md: what asyncio offers, and whether tloop, asyncio and uvloop pass its tests.

`make compatibility` runs the tests that rows.toml names on each loop and writes the table.
test_compatibility.py, which is fast, proves that rows, tests and table are in step.
"""
