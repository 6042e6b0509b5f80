"""A server on a port, until it is told to stop; what is under way then is finished."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from src.errors import ParleyError

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address that nobody else has.

    Args:
        host: A name or a number.
        port: 0 for any that is free.

    Raises:
        ParleyError: There is no such address, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen()  # some systems let two bind as long as neither listens
    except OSError as error:
        raise ParleyError(
            f"{host}:{port} cannot be listened at ({error.strerror or error}); give another --host or --port."
        ) from error
    return taken


class _Server(uvicorn.Server):
    """uvicorn's, which having finished would kill itself by the signal that it was stopped with.

    Args:
        config: uvicorn's.
        ready: Called once it answers.
    """

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self.ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Finish at the first signal; a second Ctrl-C ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Say what happens now."""
        if not self.should_exit:
            log.info("%s: no more requests are taken; those under way are finished.", signal.Signals(sig).name)
        super().handle_exit(sig, frame)


def make_server(app: Any, ready: Callable[[], object]) -> uvicorn.Server:
    """A server of an ASGI application; see `_Server`."""
    config = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, server_header=False)
    return _Server(config, ready)


def serve(app: Any, listening: socket.socket, ready: Callable[[], object]) -> None:
    """Answer requests until SIGINT or SIGTERM, and then those that are under way.

    Args:
        app: An ASGI application.
        listening: What `bound` gave.
        ready: Called once it answers.
    """
    asyncio.run(make_server(app, ready).serve(sockets=[listening]))
