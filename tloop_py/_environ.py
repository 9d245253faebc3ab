"""What the environment sets, read once; a value that makes no sense fails the import."""

from __future__ import annotations

import logging
import os
from typing import Final

# TLOOP_TLS_VERSION: the least and the most version of a new TLSContext.
_VERSIONS: Final = {"1.2": (0x303, 0x303), "1.2+": (0x303, 0x304), "1.3": (0x304, 0x304)}
_LEVELS: Final = {
    "off": logging.CRITICAL + 1,
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}

logger: Final = logging.getLogger("tloop_py")


def _versions() -> tuple[int, int]:
    text = os.environ.get("TLOOP_TLS_VERSION", "1.2+")
    if text not in _VERSIONS:
        raise ValueError(f"TLOOP_TLS_VERSION={text!r}: must be one of {', '.join(_VERSIONS)}")
    return _VERSIONS[text]


def _close_timeout() -> float:
    text = os.environ.get("TLOOP_SSL_CLOSE_TIMEOUT", "1000")
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 86_400_000):
        raise ValueError(
            f"TLOOP_SSL_CLOSE_TIMEOUT={text!r}: must be milliseconds, from 1 to 86400000 (a day)"
        )
    return int(text) / 1000


def _set_log_level() -> None:
    text = os.environ.get("TLOOP_LOG")
    if text is None:
        return
    if text.lower() not in _LEVELS:
        raise ValueError(f"TLOOP_LOG={text!r}: must be one of {', '.join(_LEVELS)}")
    logger.setLevel(_LEVELS[text.lower()])


TLS_VERSIONS: Final = _versions()
CLOSE_TIMEOUT: Final = _close_timeout()  # seconds
_set_log_level()
