"""`--offline`: no connection is made, and whoever tries is told so."""

import os
import socket
from typing import Any

_MARK = "EFF_OFFLINE"
_connect = socket.socket.connect


def go_offline() -> None:
    """Refuse every connection of this process, and tell libraries and children not to try."""
    os.environ[_MARK] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    if os.environ.get("WANDB_MODE") != "disabled":
        os.environ["WANDB_MODE"] = "offline"
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        os.environ.pop(name, None)
    socket.socket.connect = _connect_here  # type: ignore[method-assign, assignment]
    socket.socket.connect_ex = _refuse  # type: ignore[method-assign]
    socket.getaddrinfo = _refuse


def is_offline() -> bool:
    """Whether this process, or the one that started it, was told to be."""
    return _MARK in os.environ


def _connect_here(self: socket.socket, address: Any) -> None:
    """Programs on this machine may talk to each other, by a file."""
    if self.family != getattr(socket, "AF_UNIX", None):
        _refuse()
    _connect(self, address)


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError("--offline refuses connections")
