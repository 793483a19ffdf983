"""Memories by the kernels of fla (flash-linear-attention), where they are there and right.

They compute the same sum, with what passes between their chunks in the type of the keys. Before
they are used they are compared, once for each type and shape of a head, with the plain form in
float64: what is read, the last state, and the gradients of all that they are told. Whatever goes
wrong is no error: the plain form is then used, and `refusal` says why.

A compiled model has the plain form: kernels would break its graph in every layer.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from effcli.engine.models import interference
from effcli.engine.models.interference import SMALLEST, State, Told

CHUNK = 64  # positions, those of the kernels: of other chunks a model's FLOPs would not be theirs
ALLOWED = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest difference over the largest number: a few times what rounding to a type does."""
OUTPUTS, INPUTS = ("reads", "states"), ("queries", "keys", "values", "decays", "states")
_Form = Callable[..., tuple[Tensor, State | None]]


def interfere(
    told: Told,
    chunk: int,
    blend: Float[Tensor, "heads states"] | None = None,
    state: State | None = None,
    *,
    keeps: bool = False,
) -> tuple[Float[Tensor, "batch heads time value"], State | None]:
    """What `interference.interfere` says, by kernels where they can say it."""
    q, v = told.q, told.v
    if _serves(told, chunk, blend) and (
        refusal(q.device, v.dtype, q.shape[-1], v.shape[-1]) is None
    ):
        return _by_kernels(told, state, keeps=keeps)
    return interference.interfere(told, chunk, blend, state, keeps=keeps)


def _serves(told: Told, chunk: int, blend: Tensor | None) -> bool:
    """Whether kernels know this sum: one state, and nothing is taken back."""
    if torch.compiler.is_compiling() or not _is_gpu(told.q.device):
        return False
    is_plain = blend is None and told.strength is None and told.decays.shape[2] == 1
    is_one_type = told.q.dtype == told.k.dtype == told.v.dtype
    return is_plain and is_one_type and told.decays.dtype == torch.float32 and chunk == CHUNK


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _by_kernels(
    told: Told, state: State | None, *, keeps: bool
) -> tuple[Float[Tensor, "batch heads time value"], State | None]:
    from fla.ops.simple_gla import chunk_simple_gla

    q, k, v = (x.transpose(1, 2) for x in (told.q, told.k, told.v))
    reads, last = chunk_simple_gla(
        q,
        k,
        v,
        g=told.decays[:, :, 0].transpose(1, 2),
        scale=1.0,
        initial_state=None if state is None else state[:, :, 0].float(),
        output_final_state=keeps,
    )
    return reads.transpose(1, 2), last.unsqueeze(2) if keeps else None


@cache
def refusal(device: torch.device, dtype: torch.dtype, keys: int, values: int) -> str | None:
    """Why kernels are not used for heads with so many channels; none if they are.

    It is an empty text where there is no GPU or no fla, of which nobody has to hear.
    """
    if not _is_gpu(device) or dtype not in ALLOWED:
        return ""
    try:
        import fla.ops.simple_gla  # noqa: F401

        # In a thread of its own nobody keeps, counts or forbids what gradients are made of.
        with ThreadPoolExecutor(1) as room:
            apart = room.submit(differences, device, dtype, keys, values).result()
    except ModuleNotFoundError as error:
        return "" if (error.name or "").partition(".")[0] == "fla" else _refused(str(error))
    except Exception as error:  # a compiler's, or that of a GPU that is too old
        return _refused((str(error).strip() or type(error).__name__).splitlines()[0])
    name = max(apart, key=lambda name: apart[name])
    if apart[name] <= ALLOWED[dtype]:
        return None
    heads = f"heads of {keys} and {values} channels in {str(dtype).removeprefix('torch.')}"
    rounding = f"rounding would be less than {ALLOWED[dtype]:.0e}"
    return _refused(f"with {heads}, {name} are {apart[name]:.1e} apart, and {rounding}")


def _refused(why: str) -> str:
    return f"fla's kernels are there and not used: {why}"


def differences(
    device: torch.device, dtype: torch.dtype, keys: int, values: int
) -> dict[str, float]:
    """How far kernels are from the plain form in float64, over the largest number.

    A text from its start, and one that goes on; three chunks, the last not whole, with some
    positions that forget all.
    """
    found: dict[str, float] = {}
    for goes_on in (False, True):
        drawn, pulls = _trial(dtype, keys, values, goes_on=goes_on)
        rough = _said(_by_kernels, [x.to(device) for x in drawn], pulls)
        exact = _said(_plainly, [x.to(device, torch.float64) for x in drawn], pulls)
        for name, one in rough.items():
            found[name] = max(found.get(name, 0.0), _apart(one, exact[name]))
    return found


def _trial(
    dtype: torch.dtype, keys: int, values: int, *, goes_on: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """What is told, and which way outputs are pulled."""
    generator, time = torch.Generator().manual_seed(0), 2 * CHUNK + 13

    def normal(*sizes: int) -> Tensor:
        return torch.randn(2, 3, *sizes, generator=generator)

    q, k = (F.normalize(normal(time, keys), dim=-1) for _ in range(2))
    decays = torch.where(normal(1, time) > 1.6, SMALLEST, -normal(1, time).exp() / 10)
    drawn = [*(x.to(dtype) for x in (q, k, normal(time, values))), decays]
    pulls = [normal(time, values)]
    if goes_on:
        drawn.append(normal(1, keys, values))
        pulls.append(normal(1, keys, values))
    return drawn, pulls


def _said(form: _Form, drawn: list[Tensor], pulls: list[Tensor]) -> dict[str, Tensor]:
    """All that a form says, by name."""
    inputs = [x.detach().requires_grad_() for x in drawn]
    state = inputs[4] if len(inputs) > 4 else None
    reads, last = form(Told(*inputs[:4]), state, keeps=state is not None)
    outputs = [reads] if last is None or state is None else [reads, last]
    pulls = [pull.to(x) for pull, x in zip(pulls, outputs, strict=True)]
    slopes = torch.autograd.grad(outputs, inputs, pulls)
    named = dict(zip((f"gradients of {name}" for name in INPUTS), slopes, strict=False))
    return {**dict(zip(OUTPUTS, outputs, strict=False)), **named}


def _plainly(told: Told, state: State | None, *, keeps: bool) -> tuple[Tensor, State | None]:
    return interference.interfere(told, CHUNK, None, state, keeps=keeps)


def _apart(rough: Tensor, exact: Tensor) -> float:
    if rough.shape != exact.shape:
        return float("inf")
    apart = ((rough.double() - exact).abs().max() / exact.abs().max()).item()
    return float("inf") if math.isnan(apart) else apart
