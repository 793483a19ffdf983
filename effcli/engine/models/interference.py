"""Memory by interference: linear attention whose keys and queries turn.

    S_t = e^{g_t} S_{t-1} + k_t w_tᵀ,    o_t = S_tᵀ q_t = Σ_{s≤t} e^{G_t - G_s} ⟨k_s, q_t⟩ w_s

Keys and queries are phasors, turned by angles Φ that add up along the text, so that ⟨k_s, q_t⟩ is
Re(k_s* q_t e^{i(Φ_t - Φ_s)}) summed over pairs: memories whose phases agree add up, the others
cancel. Phasors are real tensors, [re | im] in two halves of the last axis.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SMALLEST = -30.0  # log of a decay: what is left of 1 is forgotten, and nothing is infinite


@dataclass(frozen=True)
class Told:
    """What positions say to a memory, by head; time may be of any length."""

    q: Float[Tensor, "batch heads time key"]
    k: Float[Tensor, "batch heads time key"]
    v: Float[Tensor, "batch heads time value"]
    """Values; with a strength, times that."""
    decays: Float[Tensor, "batch heads states time"]
    """Logarithms, not above 0, in float32."""
    strength: Float[Tensor, "batch heads time"] | None = None
    """With it, what the memory says of a key is taken back to this share before writing."""

    def padded(self, count: int) -> "Told":
        """With so many positions more, which change nothing."""
        q, k, v = (F.pad(x, (0, 0, 0, count)) for x in (self.q, self.k, self.v))
        strength = None if self.strength is None else F.pad(self.strength, (0, count))
        return Told(q, k, v, F.pad(self.decays, (0, count)), strength)


State = Float[Tensor, "batch heads states key value"]


def interfere(
    told: Told,
    chunk: int,
    blend: Float[Tensor, "heads states"] | None = None,
    state: State | None = None,
    *,
    keeps: bool = False,
) -> tuple[Float[Tensor, "batch heads time value"], State | None]:
    """What each position reads, and the state after the last, if it `keeps` that.

    Within chunks everything is a product of matrices; states pass from chunk to chunk in
    the type of the decays. `blend` weighs the states of a head, where it has several.
    """
    time = told.q.shape[2]
    size = min(chunk, time)
    if rest := -time % size:
        told = told.padded(rest)
    q, k, v = (_chunked(x, 2, size) for x in (told.q, told.k, told.v))
    sums = _chunked(told.decays, 3, size).cumsum(4)  # batch heads states chunks size
    scores, inner = _weights(sums, blend), None
    if told.strength is not None:
        inner = _solved(k, v, sums, scores, _chunked(told.strength, 2, size))
    scores = (q @ k.mT) * scores.to(q.dtype)
    reads = []
    for n in range(scores.shape[2]):
        written = v[:, :, n] if inner is None else inner[0][:, :, n]
        if inner is not None and state is not None:
            written = written - inner[1][:, :, n] @ state[:, :, 0].to(v.dtype)
        read = scores[:, :, n] @ written
        if state is not None:
            read = read + _read(q[:, :, n], sums[..., n, :], state, blend)
        reads.append(read)
        if keeps or n < scores.shape[2] - 1:
            state = _after(k[:, :, n], written, sums[..., n, :], state)
    return torch.stack(reads, dim=2).flatten(2, 3)[:, :, :time], state


def one_more(
    told: Told, state: State, blend: Float[Tensor, "heads states"] | None, *, is_complex: bool
) -> tuple[Float[Tensor, "batch heads 1 value"], State]:
    """What one more position reads, and the state after it: the recurrence as it is written."""
    state = told.decays.exp().unsqueeze(-1) * state
    q, k, v = (x.to(state.dtype) for x in (told.q, told.k, told.v))
    if told.strength is not None:
        v = v - told.strength.unsqueeze(-1) * (k @ state[:, :, 0])
    state = state + (k.mT @ v).unsqueeze(2)
    seen = state[:, :, 0] if blend is None else (state * blend[..., None, None]).sum(2)
    read = q @ seen
    return (read + times_i(-times_i(q) @ seen) if is_complex else read), state


def retrieval(
    told: Told, blend: Float[Tensor, "heads states"] | None = None
) -> Float[Tensor, "batch heads time time"]:
    """What each position (rows) reads of what each was written as: e^{G_t - G_s} ⟨k_s, q_t⟩.

    Positive where their phases agree, negative where they cancel, 0 for later positions.
    """
    left = _weights(told.decays.unsqueeze(3).cumsum(4), blend).squeeze(2)
    return (told.q @ told.k.mT) * left.to(told.q.dtype)


def _chunked(x: Tensor, axis: int, size: int) -> Tensor:
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])


def _weights(sums: Tensor, blend: Tensor | None) -> Float[Tensor, "batch heads chunks size size"]:
    """What is left at a position of what was written at another one, 0 for later ones."""
    size = sums.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=sums.device).triu(1)
    # Masked before the exponential: a difference of later positions may be anything.
    left = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()
    return left[:, :, 0] if blend is None else (left * blend[:, :, None, None, None]).sum(2)


def _solved(
    k: Tensor, v: Tensor, sums: Tensor, weights: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor]:
    """What is written in place of values, and how much of the state before is taken from it.

    w_t = β_t (v_t - e^{g_t} S_{t-1}ᵀ k_t) is (I + L) w = β (v - e^G S_0ᵀ k), with L strictly lower.
    """
    share, keys = strength.unsqueeze(-1), k.to(sums.dtype)
    lower = (share * weights * (keys @ keys.mT)).tril(-1)
    right = torch.cat((v.to(sums.dtype), share * sums[:, :, 0].exp().unsqueeze(-1) * keys), dim=-1)
    solved = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    written, taken = solved.to(v.dtype).split([v.shape[-1], k.shape[-1]], dim=-1)
    return written, taken


def _read(q: Tensor, sums: Tensor, state: Tensor, blend: Tensor | None) -> Tensor:
    scale = sums.exp() if blend is None else sums.exp() * blend[:, :, None]
    turned = q.unsqueeze(2) * scale.to(q.dtype).unsqueeze(-1)
    return (turned @ state.to(q.dtype)).sum(2)


def _after(k: Tensor, written: Tensor, sums: Tensor, state: Tensor | None) -> Tensor:
    last = sums[..., -1:]
    kept = k.unsqueeze(2) * (last - sums).exp().to(k.dtype).unsqueeze(-1)
    added = (kept.mT @ written.unsqueeze(2)).to(sums.dtype)
    return added if state is None else last.exp().unsqueeze(-1) * state + added


def interfere_flops(time: int, chunk: int, *, dense: bool) -> tuple[float, float, float]:
    """Of a sequence: pairs of positions, the same where all are solved, positions with states."""
    size = min(chunk, time)
    chunks = -(-time // size)
    pairs = size * size if dense else size * (size + 1) // 2
    return float(chunks * pairs), float(chunks * size * size), float((chunks - 1) * size)


def times_i(x: Tensor) -> Tensor:
    """Phasors turned by a quarter."""
    re, im = x.chunk(2, dim=-1)
    return torch.cat((-im, re), dim=-1)
