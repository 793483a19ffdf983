"""How the shares of the arms are tilted; an arm is a group of passages of like difficulty.

A policy adds a number to the key of every passage of an arm: its tilt. Shares are then
proportional to the default share times e^tilt, so zeros are the default.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from effcli.engine.selection.scales import standardized
from effcli.errors import InputError
from effcli.settings.layers import read_toml

Floats = NDArray[np.float64]
Evaluate = Callable[[Floats], float]
WEIGHTS = ("excess", "uncertainty", "used", "alignment", "progress", "default")
"""What the numbers of a learned policy weigh, in their order."""
LARGEST_WEIGHT = 100.0
LARGEST_DIVERGENCE = 0.5  # in nats, of the shares from the default
_KEPT = 0.95  # of what is known of rewards, at every new one


@dataclass(frozen=True)
class Arms:
    """What a policy knows of the arms; NaN where an arm was never measured."""

    excess: Floats
    """Mean excess of the static scores."""
    uncertainty: Floats
    """Mean normalized uncertainty."""
    used: Floats
    """Share of the tokens so far."""
    alignment: Floats
    """Alignment with the gradient of trusted text, a running mean."""
    progress: float
    """Of the run, 0..1."""
    default: Floats
    """Shares without a policy; their sum is 1. An arm without any has nothing to draw from."""

    def features(self) -> Floats:
        """Five columns: four z-scores over the arms, weighted by default share, and progress.

        Progress is the same for all arms, which alone moves no share: it enters as
        (2 progress - 1) times uncertainty, which may so be worth more late than early.
        Z-scores are clipped at ±3; the unknown is average.
        """
        columns = (self.excess, self.uncertainty, self.used, self.alignment)
        scored = [standardized(column, self.default) for column in columns]
        return np.stack([*scored, (2 * self.progress - 1) * scored[1]], axis=1)


def _log_ratios(default: Floats, tilts: Floats) -> Floats:
    """Logarithm of share over default share; arms without a default share take no part."""
    return tilts - float(logsumexp(tilts, b=default))


def _ratios(default: Floats, tilts: Floats) -> Floats:
    return np.exp(np.minimum(_log_ratios(default, tilts), 700.0))


def shares(default: Floats, tilts: Floats) -> Floats:
    """The shares that tilts ask for; their sum is 1."""
    return default * _ratios(default, tilts)


def divergence(default: Floats, tilts: Floats) -> float:
    """Kullback-Leibler divergence of the tilted shares from the default, in nats."""
    return float(shares(default, tilts) @ _log_ratios(default, tilts))


def bounded(default: Floats, tilts: Floats, limit: float = LARGEST_DIVERGENCE) -> Floats:
    """The tilts, made smaller by one factor if the divergence would exceed the limit."""
    if divergence(default, tilts) <= limit:
        return tilts
    low, high = 0.0, 1.0  # the divergence grows with the factor
    for _ in range(60):
        middle = (low + high) / 2
        is_within = divergence(default, middle * tilts) <= limit
        low, high = (middle, high) if is_within else (low, middle)
    return low * tilts


def _centered(default: Floats, tilts: Floats) -> Floats:
    """Tilts whose mean under the default is zero; the shares are the same."""
    return tilts - default @ tilts


@runtime_checkable
class Policy(Protocol):
    """Decides how the shares of the arms differ from the default; the state alone decides."""

    def tilts(self, state: Arms) -> Floats:
        """What is added to the keys of each arm; the mean under the default is zero."""
        ...

    def hear(self, used: Floats, reward: Floats) -> None:
        """Hear each arm's share of the tokens since the last tilts, and its reward.

        The reward of an arm that was not used is NaN.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly: numbers and lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...


class Fixed:
    """The default shares, always."""

    def tilts(self, state: Arms) -> Floats:
        """Zeros."""
        return np.zeros_like(state.default)

    def hear(self, used: Floats, reward: Floats) -> None:
        """Rewards change nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


@dataclass
class _Rewards:
    """Puts rewards on a common scale: less their running mean, over their running size.

    The size is of the rewards themselves and not of their spread, or else arms that are
    all alike would be told apart by noise.
    """

    count: int = 0
    mean: float = 0.0
    size: float = 0.0

    def normalized(self, used: Floats, reward: Floats) -> Floats:
        """Rewards within ±2; 0 for an arm that was not used."""
        is_heard = np.isfinite(reward) & (used > 0)
        if not is_heard.any():
            return np.zeros_like(used)
        mean = float(np.average(reward[is_heard], weights=used[is_heard]))
        before = self.mean if self.count else mean  # a reward is not measured by itself
        self.count += 1
        self.mean = before + (mean - before) * max(1 / self.count, 1 - _KEPT)
        largest = float(np.abs(reward[is_heard]).max())
        self.size = max(_KEPT * self.size, largest, abs(before))
        return np.where(is_heard, reward - before, 0.0) / (self.size or 1.0)


class Exp3:
    """Exponential weights of the rewards so far, mixed with the default (Auer et al. 2002).

    The weights start at the default shares. A reward counts by how much its arm was used
    over how much was asked for, which is unbiased however few arms were drawn: one arm at a
    time is EXP3, all arms in their shares is full information.
    """

    def __init__(self, arms: int, *, rate: float = 0.1, mix: float = 0.1) -> None:
        self._rate, self._mix = rate, mix
        self._log_weights, self._asked = np.zeros(arms), np.zeros(arms)
        self._rewards = _Rewards()

    def tilts(self, state: Arms) -> Floats:
        """Never below log(mix), against the shares' logarithms at the default."""
        ratios = (1 - self._mix) * _ratios(state.default, self._log_weights) + self._mix
        self._asked = state.default * ratios
        return _centered(state.default, np.log(ratios))

    def hear(self, used: Floats, reward: Floats) -> None:
        """Learn from rewards; of an arm that was never asked for, they count once."""
        weights = np.divide(used, self._asked, out=np.ones_like(used), where=self._asked > 0)
        steps = self._rate * weights * self._rewards.normalized(used, reward)
        # The bound on EXP3's regret holds for steps up to 1.
        self._log_weights = self._log_weights + steps.clip(-1.0, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The weights, the shares last asked for, and the scale of rewards."""
        return {
            "log_weights": self._log_weights.tolist(),
            "asked": self._asked.tolist(),
            "rewards": asdict(self._rewards),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._log_weights, self._asked = np.array(state["log_weights"]), np.array(state["asked"])
        self._rewards = _Rewards(**state["rewards"])


class Learned:
    """A softmax that is linear in the features of the arms, near the default.

    share ∝ default^(1 + w_6) exp(w · features), with the six weights shared by all arms, so
    that they fit any corpus; the divergence from the default is at most 0.5 nats. With a
    rate, the weights follow the rewards (Williams 1992); the bound's own slope is ignored.
    """

    def __init__(self, weights: Floats, *, rate: float = 0.0) -> None:
        self.weights, self._rate = np.array(weights, dtype=np.float64), rate
        self._scores = np.zeros((0, len(WEIGHTS)))  # slopes of the log shares last asked for
        self._rewards = _Rewards()

    def tilts(self, state: Arms) -> Floats:
        """Zeros where all weights are zero."""
        default = state.default
        log_default = np.log(np.where(default > 0, default, 1.0))
        slopes = np.column_stack([state.features(), log_default])
        tilts = bounded(default, _centered(default, slopes @ self.weights))
        self._scores = slopes - shares(default, tilts) @ slopes
        return tilts

    def hear(self, used: Floats, reward: Floats) -> None:
        """Follow the rewards, if there is a rate."""
        if self._rate and len(self._scores):
            gains = used * self._rewards.normalized(used, reward)
            self.weights = self.weights + self._rate * (gains @ self._scores)

    def state_dict(self) -> dict[str, Any]:
        """The weights, the slopes of the last shares, and the scale of rewards."""
        return {
            "weights": self.weights.tolist(),
            "scores": self._scores.tolist(),
            "rewards": asdict(self._rewards),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.weights = np.array(state["weights"])
        self._scores = np.array(state["scores"]).reshape(-1, len(WEIGHTS))
        self._rewards = _Rewards(**state["rewards"])


def weights(path: Path | None = None) -> Floats:
    """The weights of a learned policy from a TOML file, by default the ones that come along.

    Raises InputError unless the file holds exactly the names in `WEIGHTS`, each a number
    within ±100.
    """
    path = path or Path(str(files("effcli.settings.policies").joinpath("default.toml")))
    tree = read_toml(path)
    hint = f"a policy has the numbers {', '.join(WEIGHTS)}"
    for name in sorted(tree.keys() ^ set(WEIGHTS)):
        raise InputError(f"{path}: {name!r} is {'unknown' if name in tree else 'missing'}", hint)
    for name, value in tree.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= LARGEST_WEIGHT:
            raise InputError(f"{path}: {name} is not a number within ±{LARGEST_WEIGHT:g}", hint)
    return np.array([float(tree[name]) for name in WEIGHTS])


def meta_train(
    evaluate: Evaluate, start: Floats, *, sigma: float, rate: float, rounds: int, seed: int
) -> Floats:
    """Weights that make `evaluate` larger, by antithetic evolution strategies.

    Each round looks at start ± sigma ε and goes along (R⁺ - R⁻) ε / 2 sigma (Salimans et al.
    2017), over the root of the sum of squares of all such differences (AdaGrad), so that
    steps become shorter and the scale of rewards does not matter; `rate` is the length of
    the first along each ε. The noise within a round should be the same for both looks. A
    round with a reward that is not finite is ignored.
    """
    random = np.random.default_rng(seed)
    weights, squares = np.array(start, dtype=np.float64), 0.0
    for _ in range(rounds):
        direction = random.standard_normal(weights.shape)
        above, below = (evaluate(weights + sign * sigma * direction) for sign in (1, -1))
        slope = (above - below) / (2 * sigma)
        if math.isfinite(slope) and slope:
            squares += slope**2
            weights = weights + rate * slope / math.sqrt(squares) * direction
    return weights
