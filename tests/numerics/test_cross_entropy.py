"""Head and loss in chunks are what the textbook says, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from headonly import HeadOnly

from effcli.engine.objectives.cross_entropy import head_loss


def _model(vocab: int, rows: int, width: int, soft_cap: float) -> HeadOnly:
    return HeadOnly(torch.randn(rows, width, dtype=torch.float64), soft_cap, vocab)


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("soft_cap", [0.0, 3.0])
def test_chunks_equal_the_whole(rows: int, soft_cap: float) -> None:
    model = _model(vocab=11, rows=16, width=5, soft_cap=soft_cap)
    x = torch.randn(3, 8, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (3, 8))
    mean, each = head_loss(model, x, targets, rows)
    (mean * 2.5).backward()
    found = x.grad.clone(), model.table.grad.clone()
    x.grad = model.table.grad = None

    logits = (x @ model.table.T)[..., :11]
    logits = soft_cap * (logits / soft_cap).tanh() if soft_cap else logits
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    (expected.mean() * 2.5).backward()
    assert torch.allclose(mean, expected.mean().float(), atol=1e-6)
    assert torch.allclose(each.flatten(), expected.float(), atol=1e-6)
    assert torch.allclose(found[0], x.grad, atol=1e-6)
    assert torch.allclose(found[1], model.table.grad, atol=1e-6)
    assert not found[1][11:].any()  # rows that pad the table are never trained


def test_nothing_is_kept_without_a_gradient() -> None:
    model = _model(vocab=11, rows=16, width=5, soft_cap=0.0)
    with torch.no_grad():
        mean, each = head_loss(model, torch.randn(2, 8, 5).double(), torch.zeros(2, 8).long())
    assert not mean.requires_grad
    assert each.shape == (2, 8)


def test_a_large_vocabulary_never_has_all_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(vocab=5000, rows=5000, width=4, soft_cap=0.0).float()
    sizes = []
    original = torch.Tensor.exp_

    def spy(self: torch.Tensor) -> torch.Tensor:
        sizes.append(self.shape[0])
        return original(self)

    monkeypatch.setattr(torch.Tensor, "exp_", spy)
    x = torch.randn(4, 1000, 4, requires_grad=True)
    head_loss(model, x, torch.zeros(4, 1000).long())
    assert sum(sizes) == 4000
    assert max(sizes) <= 2**21 // 5000


def test_an_evaluation_makes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight needs its gradient even where none is recorded: the mode decides, not the weight."""
    model = _model(vocab=11, rows=16, width=5, soft_cap=0.0)
    made = []
    monkeypatch.setattr(torch, "zeros_like", lambda *_: made.append(1))
    with torch.no_grad():
        head_loss(model, torch.randn(2, 8, 5).double(), torch.zeros(2, 8).long())
    assert not made
