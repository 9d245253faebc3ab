"""CPython's own `test.test_asyncio`, run on tloop (see `run.py`)."""
