"""What the machine offers: probes that tell a missing facility from a failing loop."""

from __future__ import annotations

import os
import pty
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def has_pty() -> bool:
    """Pseudo-terminals: some containers mount no devpts."""
    try:
        ends = pty.openpty()
    except OSError:
        return False
    for fd in ends:
        os.close(fd)
    return True


def has_services() -> bool:
    """Names of ports, /etc/services: a bare Debian has none."""
    try:
        socket.getservbyname("http", "tcp")
    except OSError:
        return False
    return True


PROBES: dict[str, Callable[[], bool]] = {"pty": has_pty, "services": has_services}
