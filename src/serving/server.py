"""Runs the HTTP server until a signal, and finishes requests under way before it stops."""

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
    """Make a socket that listens on an address.

    Args:
        host: A host name or IP address.
        port: The port; 0 for any free one.

    Raises:
        ParleyError: The address does not exist or is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen()  # some systems let two processes bind as long as neither listens
    except OSError as error:
        raise ParleyError(
            f"{host}:{port} cannot be listened at ({error.strerror or error}); give another --host or --port."
        ) from error
    return taken


class _Server(uvicorn.Server):
    """uvicorn's server, except that it does not raise the signal again after it has stopped.

    Args:
        config: uvicorn's configuration.
        ready: Called once the server accepts requests.
    """

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the server and call `ready`."""
        await super().startup(sockets=sockets)
        if self.started:
            self.ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals: the first stops the server gracefully, a second Ctrl-C at once."""
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
        """Log that the server is stopping, and stop it."""
        if not self.should_exit:
            log.info("%s: no more requests are taken; those under way are finished.", signal.Signals(sig).name)
        super().handle_exit(sig, frame)


def make_server(app: Any, ready: Callable[[], object]) -> uvicorn.Server:
    """Make a server for an ASGI application; see `_Server`."""
    config = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, server_header=False)
    return _Server(config, ready)


def serve(app: Any, listening: socket.socket, ready: Callable[[], object]) -> None:
    """Serve requests until SIGINT or SIGTERM, and finish those under way.

    Args:
        app: An ASGI application.
        listening: The socket from `bound`.
        ready: Called once the server accepts requests.
    """
    asyncio.run(make_server(app, ready).serve(sockets=[listening]))
