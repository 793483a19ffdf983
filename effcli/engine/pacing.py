"""Numbers that move: plain functions of the share of the budget that is spent."""

import math

from effcli.settings.schedule import ConstantSettings, CosineSettings, WsdSettings


def _climb(progress: float, warmup: float) -> float:
    """A straight line from just above zero to 1."""
    return min(1.0, max(progress, 1e-3) / warmup) if warmup else 1.0


def constant(progress: float, settings: ConstantSettings) -> float:
    """1 after the warm-up."""
    return _climb(progress, settings.warmup)


def cosine(progress: float, settings: CosineSettings) -> float:
    """A climb to 1, then half a cosine down to the floor (Loshchilov & Hutter 2017)."""
    if progress < settings.warmup:
        return _climb(progress, settings.warmup)
    falling = (progress - settings.warmup) / (1 - settings.warmup) if settings.warmup < 1 else 1.0
    return settings.floor + (1 - settings.floor) * (1 + math.cos(math.pi * falling)) / 2


def wsd(progress: float, settings: WsdSettings) -> float:
    """A climb, a plain, and a straight fall to the floor (Hu et al. 2024)."""
    left = 1 - progress
    if settings.cooldown and left < settings.cooldown:
        return settings.floor + (1 - settings.floor) * left / settings.cooldown
    return _climb(progress, settings.warmup)
