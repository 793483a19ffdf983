"""The laws that every registered model obeys, in every shape it can take."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effcli.catalog import MODELS
from effcli.engine.device import Device
from effcli.engine.models.tables import hashed
from effcli.engine.objectives.next_token import NextToken
from effcli.engine.optim.optimizer import Optimizer
from effcli.engine.protocols import Batch, LanguageModel
from effcli.engine.runs.trained import build_model
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from effcli.settings.train import DeviceSettings

VOCAB = 77
SHAPES = {
    "modern": [],
    "textbook": [],
    "swiglu": ["model.activation=swiglu"],
    "tied": ["model.tied=true"],
    "learned": ["model.positions=learned", "model.norm=layer", "model.bias=true"],
    "bare": ["model.shift=0", "model.pair_rows=0", "model.value_tables=false"],
    "far": ["model.shift=3", "model.pair_rows=5"],
    "plain": ["model.zero_init=false", "model.qk_norm=false", "model.soft_cap=0"],
}
FAR = ["model.shift=3", "model.states=2"]
OF_ONE = {
    "ternary": ("low-bit", ["model.bits=1.58"]),
    "two-bit": ("low-bit", ["model.bits=2", "model.group=16", "model.subnorm=off"]),
    "eight-bit": ("low-bit", ["model.bits=8", "model.activation=swiglu", "model.bias=true"]),
    "hybrid": ("phase", ["model.hybrid=2", "model.window=5"]),
    "chunks": ("phase", ["model.chunk=8", "model.states=3"]),
    "delta": ("phase", ["model.chunk=10", "model.write=delta"]),
    "complex": ("phase", ["model.chunk=8", "model.score=complex", "model.phase=rope"]),
    "algebra": ("phase", ["model.chunk=8", "model.algebra=complex"]),
    "modulus": ("phase", ["model.algebra=complex", "model.activation=swiglu", "model.hybrid=2"]),
    "still": ("phase", ["model.phase=none"]),
    "tracker": ("phase", ["model.tracker=true"]),
    "resets": ("phase", ["model.resets=true", "model.hybrid=2", "model.window=5", *FAR]),
    "languages": ("phase", ["model.languages=3", "model.concepts=9", "model.prior=true"]),
}
UNPHASED = ("learned", "textbook", "plain")  # positions, or keys that are not phasors
CASES = [(n, s) for n in MODELS for s in SHAPES if n != "phase" or s not in UNPHASED]
CASES += [(name, shape) for shape, (name, _) in OF_ONE.items()]


def _model(name: str, shape: str, *, seed: int = 0, spread: float = 0.0) -> LanguageModel:
    recipe = shape if shape in ("modern", "textbook") else "modern"
    small = ["model.layers=2", "model.width=32", "model.heads=4", "model.context=24"]
    own = SHAPES[shape] if shape in SHAPES else OF_ONE[shape][1]
    assignments = [f"model.name={name}", *small, *own]
    settings = resolve(BaselineSettings, {"recipe": recipe}, assignments).settings
    model = build_model(settings.model, VOCAB, seed)
    if spread:  # zero-initialized parts would hide mistakes
        generator = torch.Generator().manual_seed(2)
        for place, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=spread, generator=generator)
            if place.endswith("decay.bias"):  # a memory that forgets hides mistakes, too
                torch.nn.init.constant_(parameter, -5.0)
    return model


def _solved(model: LanguageModel) -> float:
    """FLOPs of triangular solves, which torch does not count."""
    s, chunks = model.settings, 3
    if getattr(s, "write", "add") == "add":
        return 0
    assert (s.context, s.chunk) == (24, 10)
    return 3 * s.layers * chunks * s.chunk**2 * 2 * s.width


def _tokens(rows: int = 3, time: int = 24) -> torch.Tensor:
    tokens = torch.randint(0, VOCAB, (rows, time), generator=torch.Generator().manual_seed(1))
    tokens[0, :3] = torch.arange(VOCAB - 3, VOCAB)  # marks of languages, where there are
    return tokens


@pytest.mark.parametrize(("name", "shape"), CASES)
class TestEveryModel:
    def test_never_looks_ahead(self, name: str, shape: str) -> None:
        model, tokens = _model(name, shape, spread=0.3).eval(), _tokens()
        before = model(tokens)
        for position in (1, 11, 23):
            changed = tokens.clone()
            changed[:, position:] = (changed[:, position:] + 1) % VOCAB
            after = model(changed)
            assert torch.equal(before[:, :position], after[:, :position])
            assert not torch.equal(before[:, position], after[:, position])

    def test_uses_everything_behind(self, name: str, shape: str) -> None:
        model, tokens = _model(name, shape, spread=0.3).eval(), _tokens(1)
        tokens[:, 3:] = tokens[:, 3:].clamp(max=VOCAB - 2)  # one document, from the third on
        changed, first = tokens.clone(), 3 if shape == "resets" else 0
        changed[:, first] = (changed[:, first] + 1) % VOCAB
        assert (model(tokens) - model(changed))[:, -1].abs().max() > 1e-5

    def test_gives_one_logit_for_each_id(self, name: str, shape: str) -> None:
        model = _model(name, shape)
        assert model(_tokens()).shape == (3, 24, VOCAB)
        assert len(model.head) >= VOCAB

    def test_counts_flops_as_torch_does(self, name: str, shape: str) -> None:
        model, tokens = _model(name, shape, spread=0.1), _tokens()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss = (model.features(tokens).float() @ model.head.T).sum()
        forward = counter.get_total_flops()
        assert model.forward_flops(3, 24, dense=True) == forward + _solved(model)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss.backward()
        assert counter.get_total_flops() == 2 * forward or _solved(model)
        assert model.backward_flops(3, 24) == 2 * model.forward_flops(3, 24)
        assert model.forward_flops(3, 24) < forward  # the headline leaves out what is masked

    def test_starts_at_the_loss_of_a_guess(self, name: str, shape: str) -> None:
        batch = Batch(_tokens(), _tokens().roll(-1, 1), torch.arange(3))
        loss = NextToken()(_model(name, shape), batch).mean
        assert abs(loss.item() - torch.tensor(float(VOCAB)).log().item()) < 0.2

    def test_learns_one_batch_by_heart(self, name: str, shape: str) -> None:
        model, tokens = _model(name, shape), _tokens()
        recipe = shape if shape == "textbook" else "modern"
        settings = resolve(BaselineSettings, {"recipe": recipe, "optim.lr": "0.01"}).settings
        optimizer = Optimizer(model, settings.optim)
        batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(3))
        for _ in range(60):
            loss = NextToken()(model, batch).mean
            loss.backward()
            optimizer.step(1.0)
            optimizer.zero_grad()
        assert loss.item() < 0.5

    def test_starts_the_same_from_the_same_seed(self, name: str, shape: str) -> None:
        first, second = _model(name, shape).state_dict(), _model(name, shape).state_dict()
        other = _model(name, shape, seed=1).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)

    def test_writes_the_same_with_and_without_a_cache(self, name: str, shape: str) -> None:
        model, tokens = _model(name, shape, spread=0.3).eval(), _tokens()
        cache = model.new_cache(3)
        parts = [tokens[:, :7], *tokens[:, 7:].split(1, dim=1)]
        with torch.no_grad():
            cached = torch.cat([model.logits(model.features(p, cache)) for p in parts], dim=1)
            whole = model(tokens)
        assert (cached - whole).abs().max() < 1e-4

    def test_every_weight_matters(self, name: str, shape: str) -> None:
        model = _model(name, shape, spread=0.1)
        batch = Batch(_tokens()[:, :-1], _tokens()[:, 1:], torch.arange(3))
        NextToken()(model, batch).mean.backward()
        idle = {}
        for place, parameter in model.named_parameters():
            assert parameter.grad is not None
            if (size := parameter.grad.to_dense().norm().item()) < 1e-6:
                idle[place] = size
        if shape == "textbook":  # softmax does not see what all keys have in common
            idle = {place: size for place, size in idle.items() if not place.endswith("key.bias")}
        assert not idle

    def test_computes_the_same_with_less_memory(self, name: str, shape: str) -> None:
        gradients = []
        for recompute in (False, True):
            model = _model(name, shape, spread=0.1)
            Device(DeviceSettings(name="cpu", precision="float32", recompute=recompute)).adopt(
                model
            )
            batch = Batch(_tokens()[:, :-1], _tokens()[:, 1:], torch.arange(3))
            NextToken(rows=7 if recompute else None)(model, batch).mean.backward()
            gradients.append([p.grad.to_dense() for p in model.parameters()])
        for one, other in zip(*gradients, strict=True):
            assert torch.allclose(one, other, atol=1e-6)

    def test_is_close_to_itself_in_bfloat16(self, name: str, shape: str) -> None:
        batch = Batch(_tokens()[:, :-1], _tokens()[:, 1:], torch.arange(3))
        losses = []
        for precision in ("float32", "bfloat16"):
            model = _model(name, shape, spread=0.1)
            Device(DeviceSettings(name="cpu", precision=precision)).adopt(model)
            losses.append(NextToken()(model, batch).mean.item())
        assert abs(losses[0] - losses[1]) < 0.03


def test_a_pair_of_tokens_is_looked_up_in_a_row_of_its_own() -> None:
    pairs = torch.cartesian_prod(torch.arange(257), torch.arange(257))
    rows = hashed(pairs[:, 0], pairs[:, 1], 2**14)
    counts = torch.bincount(rows, minlength=2**14)
    spread = (len(pairs) / 2**14) ** 0.5  # of a Poisson distribution: rows as good as random
    assert 0.9 < counts.double().std().item() / spread < 1.1
    one, other = torch.tensor(3), torch.tensor(4)
    assert hashed(one, other, 2**20) != hashed(other, one, 2**20)


def test_tables_cost_no_products_and_are_counted() -> None:
    with_them, bare = _model("gpt", "modern"), _model("gpt", "bare")
    assert with_them.forward_flops(3, 24) == bare.forward_flops(3, 24)
    more = with_them.parameter_count() - bare.parameter_count()
    # two shifts in each layer, two tables of values, and the pairs
    assert more == 32 * (2 * 2 + 2 * VOCAB + with_them.settings.pair_rows)


def test_a_step_touches_only_the_rows_that_it_read() -> None:
    model = _model("gpt", "modern", spread=0.1)
    optimizer = Optimizer(model, resolve(BaselineSettings, {}).settings.optim)
    batch = Batch(_tokens()[:, :-1] % 7, _tokens()[:, 1:], torch.arange(3))
    before = model.trunk.tables.value_tables[0].weight.detach().clone()
    NextToken()(model, batch).mean.backward()
    assert all(g.is_sparse == (g.shape[0] in (VOCAB, 65536)) for g in optimizer.gradients())
    whole = torch.stack([p.grad.to_dense().norm() for p in model.parameters()]).norm()
    assert torch.allclose(optimizer.clip(), whole)
    assert torch.stack([g.norm() for g in optimizer.gradients()]).norm() < 1.001
    optimizer.step(1.0)
    moved = (model.trunk.tables.value_tables[0].weight != before).any(1)
    assert moved.nonzero().flatten().tolist() == list(range(7))


def test_shapes_share_the_start_of_the_tensors_they_have_in_common() -> None:
    tied, untied = _model("gpt", "tied"), _model("gpt", "modern")
    common = tied.state_dict().keys() & untied.state_dict().keys() - {"trunk.embedding.weight"}
    assert len(common) > 8
    for key in common:
        assert torch.equal(tied.state_dict()[key], untied.state_dict()[key])


def test_the_modern_recipe_starts_as_the_identity() -> None:
    model = _model("gpt", "modern").eval()
    tokens = _tokens()
    embedded = model.trunk.embedding(tokens)
    expected = embedded / embedded.square().mean(-1, keepdim=True).sqrt()
    assert torch.allclose(model.features(tokens), expected, atol=1e-5)


@pytest.mark.parametrize(("preset", "count"), [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168)])
def test_the_textbook_shape_is_that_of_gpt2(preset: str, count: int) -> None:
    settings = resolve(BaselineSettings, {"preset": preset}).settings
    with torch.device("meta"):
        model = build_model(settings.model, 50257, 0)
    assert model.parameter_count() == count
    assert len(model.head) % 64 == 0
