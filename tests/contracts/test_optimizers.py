"""The laws that every registered optimizer obeys."""

import math

import pytest
import torch

from effcli.catalog import OPTIMIZERS
from effcli.engine.optim.optimizer import NEWTON_SCHULZ_STEPS, Optimizer, newton_schulz_flops
from effcli.engine.optim.rows import RowAdaGrad
from effcli.engine.protocols import LanguageModel
from effcli.engine.runs.trained import build_model
from effcli.errors import InputError
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve


def _pair(name: str, *assignments: str) -> tuple[LanguageModel, Optimizer]:
    small = ["model.layers=2", "model.width=16", "model.heads=2", "model.context=8"]
    small += ["model.pair_rows=64"]
    settings = resolve(
        BaselineSettings, {}, [f"optim.name={name}", *small, "model.bias=true", *assignments]
    ).settings
    model = build_model(settings.model, 20, 0)
    return model, Optimizer(model, settings.optim)


def _gradients(model: LanguageModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", OPTIMIZERS)
class TestEveryOptimizer:
    def test_moves_every_tensor_once(self, name: str) -> None:
        model, optimizer = _pair(name)
        routed = [tensor for group in optimizer.groups for tensor, _ in group.tensors]
        assert sorted(routed) == sorted(tensor for tensor, _ in model.named_parameters())
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        _gradients(model, 1)
        optimizer.step(1.0)
        assert all(not torch.equal(before[key], p) for key, p in model.named_parameters())

    def test_stands_still_at_rate_zero(self, name: str) -> None:
        model, optimizer = _pair(name, "optim.weight_decay=0.1")
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        _gradients(model, 1)
        optimizer.step(0.0)
        assert all(torch.equal(before[key], p) for key, p in model.named_parameters())

    def test_steps_as_far_as_it_may_without_an_error(self, name: str) -> None:
        """Where no number is finite any more, it is the loop that says so."""
        rates = ("embedding_rate", "head_rate", "scalar_rate", "table_rate", "weight_decay")
        model, optimizer = _pair(name, "optim.lr=1e18", *(f"optim.{one}=1e18" for one in rates))
        for seed in range(2):
            _gradients(model, seed)
            optimizer.clip()
            optimizer.step(10.0)  # the most that a controller puts on a rate
        for one in ("lr", *rates):
            with pytest.raises(InputError, match=r"optim: lr=.* makes steps"):
                _pair(name, f"optim.{one}=1e38", "optim.lr=1" if one != "lr" else "optim.clip=0")

    def test_goes_on_from_its_state_bit_for_bit(self, name: str) -> None:
        model, optimizer = _pair(name)
        for seed in range(3):
            _gradients(model, seed)
            optimizer.step(1.0)
        twin, fresh = _pair(name)
        twin.load_state_dict(model.state_dict())
        fresh.load_state_dict({k: v.clone() for k, v in optimizer.state_dict().items()})
        for pair in ((model, optimizer), (twin, fresh)):
            _gradients(pair[0], 9)
            pair[1].step(0.7)
        assert all(
            torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
        )

    def test_refuses_a_state_of_another_model(self, name: str) -> None:
        _, optimizer = _pair(name)
        with pytest.raises(InputError, match="does not fit"):
            optimizer.load_state_dict({"no.such.tensor/momentum": torch.zeros(1)})

    def test_decays_matrices_only(self, name: str) -> None:
        _, optimizer = _pair(name, "optim.weight_decay=0.3")
        for group in optimizer.groups:
            if any(parameter.ndim < 2 for _, parameter in group.tensors):
                assert group.weight_decay == 0

    def test_clips_the_whole_gradient(self, name: str) -> None:
        model, optimizer = _pair(name, "optim.clip=0.5")
        _gradients(model, 1)
        before = optimizer.clip().item()
        norms = [parameter.grad.square().sum() for parameter in model.parameters()]
        assert before > 0.5
        assert math.isclose(torch.stack(norms).sum().sqrt().item(), 0.5, rel_tol=1e-4)


def test_muon_takes_the_blocks_matrices_and_nothing_else() -> None:
    _, optimizer = _pair("muon")
    rules = {tensor: group.rule for group in optimizer.groups for tensor, _ in group.tensors}
    assert {t for t, rule in rules.items() if rule == "muon"} == {
        t for t in rules if ".blocks." in t and t.endswith("weight")
    }
    described = "12 tensors to Muon, 18 tensors to AdamW, 3 tensors to AdaGrad by rows"
    assert optimizer.describe() == described


def test_a_row_moves_the_same_whether_or_not_the_others_are_there() -> None:
    """AdaGrad forgets nothing, so rows without a gradient may be left out."""
    ends = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = torch.nn.Embedding(9, 4, sparse=sparse)
        rule = RowAdaGrad([table.weight], lr=0.1)
        for ids in ([1, 1, 5], [5, 8], [1]):
            (table(torch.tensor(ids)) * torch.tensor([1.0, 2.0, 0.5, -1.0])).sum().backward()
            rule.step()
            rule.zero_grad()
        ends.append(table.weight.detach())
    assert torch.equal(*ends)


def test_adagrad_by_rows_is_adagrad_where_rows_have_one_number() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5, 1)) for _ in range(2))
    rules = RowAdaGrad([ours], lr=0.1), torch.optim.Adagrad([theirs], lr=0.1)
    for _ in range(4):
        gradient = torch.randn(5, 1)
        for parameter, rule in zip((ours, theirs), rules, strict=True):
            parameter.grad = gradient.clone()
            rule.step()
    assert torch.allclose(ours, theirs)


def test_newton_schulz_is_billed_as_the_products_it_makes() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for shape in ((16, 48), (48, 16), (32, 32)):
        matrix = torch.nn.Parameter(torch.randn(shape))
        matrix.grad = torch.randn(shape)
        muon = torch.optim.Muon([matrix], ns_steps=NEWTON_SCHULZ_STEPS)
        with FlopCounterMode(display=False) as counter:
            muon.step()
        assert newton_schulz_flops(matrix) == counter.get_total_flops()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent_decays_weights_beside_its_momentum(momentum: float) -> None:
    model, optimizer = _pair("sgd", "optim.weight_decay=0.3", f"optim.momentum={momentum}")
    (group,) = [one for one in optimizer.groups if one.weight_decay]
    name, parameter = group.tensors[0]
    weight, mean = parameter.detach().double(), torch.zeros_like(parameter).double()
    for seed, factor in enumerate((1.0, 0.5, 0.2)):
        _gradients(model, seed)
        assert parameter.grad is not None
        mean = momentum * mean + parameter.grad.double()
        rate = group.lr * factor
        weight = (1 - rate * 0.3) * weight - rate * mean
        optimizer.step(factor)
    assert torch.allclose(parameter.double(), weight, atol=1e-5), name
