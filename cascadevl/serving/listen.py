"""A port is taken before a model is loaded, so that a mistake is found at once. Works without torch."""

import socket

from cascadevl.core.errors import ConfigError
from cascadevl.serving.config import ServingConfig


def bind(config: ServingConfig) -> socket.socket:
    """Bound, not yet listening: who comes too early is refused instead of kept waiting. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {config.host} port {config.port}: {error}. Take another with --port; 0 finds a free one."
        ) from None
    return listener


def address(listener: socket.socket) -> str:
    """Where clients find it."""
    host, port, *_ = listener.getsockname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
