"""`--offline`: no connection is made, and whoever tries is told so."""

import os
import socket
from typing import Any


def go_offline() -> None:
    """Refuse every connection of this process, and tell the hub's libraries not to try."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    socket.socket.connect = _refuse  # type: ignore[method-assign]
    socket.socket.connect_ex = _refuse  # type: ignore[method-assign]
    socket.getaddrinfo = _refuse


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError("--offline refuses connections")
