"""Ports of the local broker: which one, and whether it is free."""

from __future__ import annotations

import socket
from collections.abc import Container, Iterator

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import Busy
from esper.core.rng import derive_seed

#: Below the range (32768 and up) from which systems take the near ends of outgoing connections, so that no
#: such connection holds a remembered port when the broker comes back.
_FIRST, _COUNT = 20_000, 12_000
_PROBES = 64
#: A broker that was killed a moment ago holds its port until its last thread is gone.
_GRACE_SECONDS = 2.0
_POLL_SECONDS = 0.05


def is_free(port: int) -> bool:
    """Whether a server can listen on `port` of loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        # As Java does: without it the closed connections of a broker that just stopped would hold its port.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
            server.listen()
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    """Whether a server accepts connections on `port` of loopback now."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def choose_port(home_id: str, use: str, *, avoid: Container[int] = ()) -> int:
    """Return a free port for `use`; each home has its own sequence, so that two homes rarely meet.

    Raises:
        Busy: none of the first ports of the sequence is free.
    """
    for port in _candidates(home_id, use):
        if port not in avoid and is_free(port):
            return port
    raise Busy(
        "no free port was found for the local broker",
        cause=f"{_PROBES} ports between {_FIRST} and {_FIRST + _COUNT - 1} are taken",
        next_step="Set ESPER_BROKER_PORT to a free port",
    )


def require_free(port: int) -> int:
    """Return `port`; raises Busy when another process listens on it and keeps doing so."""
    deadline = Deadline(_GRACE_SECONDS)
    while not is_free(port):
        if deadline.expired:
            raise Busy(
                f"port {port} of the local broker is taken",
                cause=f"another process listens on 127.0.0.1:{port}",
                next_step="Stop that process, or set ESPER_BROKER_PORT to a free port",
            )
        SYSTEM_CLOCK.sleep(_POLL_SECONDS)
    return port


def _candidates(home_id: str, use: str) -> Iterator[int]:
    return (_FIRST + derive_seed(0, home_id, use, probe) % _COUNT for probe in range(_PROBES))
