"""How the program was started: alone, or by torchrun as one of several processes."""

import os


def is_alone() -> bool:
    """Whether there are no other processes in this run."""
    return world() == 1


def world() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if _is_launched() else 1


def rank() -> int:
    """The number of this one. The first, 0, writes and speaks for all."""
    return int(os.environ["RANK"]) if _is_launched() else 0


def local_rank() -> int:
    """The number of this one on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _is_launched() else 0


def local_world() -> int:
    """How many processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _is_launched() else 1


def _is_launched() -> bool:
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
