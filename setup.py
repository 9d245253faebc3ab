"""What pyproject.toml cannot say: the cffi module, the version in tloop.h and the abi3 tag."""

from __future__ import annotations

import runpy

from setuptools import setup

build = runpy.run_path("cffi_build.py")

setup(
    version=build["version"](),
    cffi_modules=["cffi_build.py:make_ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if build["ABI3"] else {},
)
