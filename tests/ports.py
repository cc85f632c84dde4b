"""Ports of loopback on which nobody listens."""

import socket


def free_port() -> int:
    """One that was free a moment ago: for programs that take a number, and not a socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
