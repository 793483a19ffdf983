"""What is measured is right: floors, entropy, held-out loss, energy, ledger."""

import hashlib
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Settings

from effcli.engine.data import grammar
from effcli.engine.data.corpus import Corpus
from effcli.engine.measure import energy, floors
from effcli.engine.measure.evaluate import HeldOut, held_out_loss
from effcli.engine.measure.floors import ngram_floors
from effcli.engine.measure.meter import Budget, Meter
from effcli.engine.measure.tail import tail_losses
from effcli.engine.records import never
from effcli.engine.session import Session
from effcli.methods import baseline
from effcli.settings.train import EnergySettings


class Row:
    """A split made of one list."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = np.array(tokens)
        self.tokens = len(tokens)

    def stretches(self, tokens: int) -> list[tuple[int, int]]:
        return [(0, tokens)]

    def read(self, starts: list[int], count: int) -> Any:
        return np.stack([self._tokens[start : start + count] for start in starts])


def test_floors_are_what_counting_by_hand_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        floors, "CHUNK", 500
    )  # several chunks; pairs across their ends are not seen
    random = Random(1)
    text = [random.choice([0, 0, 0, 1, 2, 3]) if random.random() < 0.5 else 4 for _ in range(900)]
    windows = np.array(text[100:130]).reshape(3, 10)
    found = floors.ngram_floors(Row(text), windows, 6)

    counted = text[: 900 - 90]
    chunks = [counted[:405], counted[405:]]
    ones = Counter(counted)
    twos = Counter(pair for c in chunks for pair in pairwise(c))
    threes = Counter(t for c in chunks for t in zip(c, c[1:], c[2:], strict=False))

    def p1(w: int) -> float:
        return (ones[w] + 1) / (len(counted) + 6)

    def p2(k: float, a: int, w: int) -> float:
        return (twos[a, w] + k * p1(w)) / (ones[a] + k)

    def p3(k2: float, k: float, a: int, b: int, w: int) -> float:
        return (threes[a, b, w] + k * p2(k2, b, w)) / (twos[a, b] + k)

    def bigrams(row: list[int], k: float) -> list[float]:
        return [-math.log(p2(k, a, w)) for a, w in pairwise(row)]

    def trigrams(row: list[int], k2: float, k: float) -> list[float]:
        rest = zip(row, row[1:], row[2:], strict=False)
        return bigrams(row[:2], k2) + [-math.log(p3(k2, k, a, b, w)) for a, b, w in rest]

    tuning = text[-90:]
    two = min(floors.STRENGTHS, key=lambda k: sum(bigrams(tuning, k)))
    three = min(floors.STRENGTHS, key=lambda k: sum(trigrams(tuning, two, k)))
    rows = [list(map(int, row)) for row in windows]
    assert found["unigram"] == pytest.approx(
        np.mean([-math.log(p1(w)) for row in rows for w in row[1:]])
    )
    assert found["bigram"] == pytest.approx(np.mean([x for row in rows for x in bigrams(row, two)]))
    assert found["trigram"] == pytest.approx(
        np.mean([x for row in rows for x in trigrams(row, two, three)])
    )


def test_higher_orders_are_not_worse_on_real_structure(corpus: Corpus) -> None:
    held_out = HeldOut.of(corpus.val, corpus.tokenizer.token_bytes, 64, 20_000)
    found = floors.ngram_floors(corpus.train, held_out.tokens, corpus.tokenizer.vocab_size)
    assert found["trigram"] < found["bigram"] < found["unigram"] < math.log(257)


@pytest.mark.parametrize("symbol", ["sentence", "hard"])
def test_the_grammars_entropy_is_what_its_sentences_have(symbol: str) -> None:
    """Average surprise of many sentences, each derived again from its own text."""
    bits, size = grammar.document_entropy(symbol)
    documents = [grammar.write(symbol, Random(seed)) for seed in range(700)]
    surprises = [_surprise(symbol, document) for document in documents]
    error = np.std(surprises) / math.sqrt(len(surprises))
    assert np.mean(surprises) == pytest.approx(bits, abs=4 * error)
    sizes = list(map(len, documents))
    assert np.mean(sizes) == pytest.approx(size, abs=4 * np.std(sizes) / math.sqrt(len(sizes)))


def _surprise(symbol: str, document: str) -> float:
    """Bits of the only derivation of a document; finding two would be an ambiguity."""
    sentences = document.split("\n")[:-1]
    total = -math.log2(grammar.STOP) - (len(sentences) - 1) * math.log2(1 - grammar.STOP)
    for sentence in sentences:
        ways = [bits for rest, bits in _parse(symbol, f"{sentence}\n") if not rest]
        assert len(ways) == 1
        total += ways[0]
    return total


def _parse(symbol: str, text: str) -> list[tuple[str, float]]:
    """All ways to read a symbol at the start of a text: what is left, and the bits."""
    if symbol not in grammar._GRAMMAR:
        return [(text[len(symbol) :], 0.0)] if text.startswith(symbol) else []
    ways = []
    for probability, parts in grammar._GRAMMAR[symbol]:
        states = [(text, -math.log2(probability))]
        for part in parts:
            states = [(rest, b + more) for t, b in states for rest, more in _parse(part, t)]
        ways += states
    return ways


def test_the_noisy_grammars_entropy_counts_the_choice_once() -> None:
    noisy, easy = grammar.NoisyGrammar("1"), grammar.Grammar("1")
    hard_bits, hard_size = grammar.document_entropy("hard")
    assert hard_bits / hard_size < noisy.entropy_bits_per_byte() < easy.entropy_bits_per_byte()


def test_noise_is_labeled_and_never_held_out() -> None:
    noisy = grammar.NoisyGrammar("1")
    assert {row.label for row in noisy.rows("val")} == {0, 1}
    labels = Counter(noisy.LABELS[row.label] for row in noisy.rows("train"))
    total = sum(labels.values())
    for name, share in zip(noisy.LABELS, noisy.SHARES, strict=True):
        assert labels[name] / total == pytest.approx(share, abs=0.02)


def test_a_grammar_is_the_same_bytes_everywhere() -> None:
    text = "".join(str(grammar.Grammar("7").row("train", index).text) for index in range(50))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GRAMMAR_7


GRAMMAR_7 = "92f353bc1e90f77c"


def test_held_out_windows_are_the_same_for_everybody(corpus: Corpus) -> None:
    one = HeldOut.of(corpus.val, corpus.tokenizer.token_bytes, 32, 3200)
    assert one.tokens.shape == (100, 33)
    tokens = corpus.val.read([0], corpus.val.tokens)[0]
    for row in (0, 57, 99):
        start = corpus.val.windows(32) * row // 100 * 32
        assert one.tokens[row].tolist() == tokens[start : start + 33].tolist()
    separators = int((one.tokens[:, 1:] == 256).sum())
    assert one.bytes == one.predicted - separators  # every id but the separator is one byte
    assert one.bits_per_byte(math.log(2)) == pytest.approx(one.predicted / one.bytes)


def test_the_held_out_loss_does_not_depend_on_the_batch(tiny: Settings) -> None:
    with Session("baseline", tiny(), lambda _: None, never) as session:
        parts = session.parts
        torch.nn.init.normal_(parts.model.head, std=0.1)
        losses = [
            held_out_loss(parts.model, session.held_out, parts.device, batch, never)
            for batch in (1, 3, 20, 64)
        ]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-6)


def test_the_tenths_of_a_tail_are_what_sorting_by_hand_gives() -> None:
    text = [token for token in range(7) for _ in range(token)]  # token n occurs n times
    targets = np.array([[6, 5, 4, 6, 1, 6], [2, 3, 3, 0, 6, 6]])
    losses = np.arange(12, dtype=np.float32).reshape(2, 6)
    by_hand = [(9 + 4) / 2, (6 + 7) / 2, 8, 2, 1, 0, 3, 5, 10, 11]  # 0 1, 2 3, 3, 4, 5, 6 6 6 6 6
    assert tail_losses(Row(text), targets, losses, 7) == by_hand


def test_the_tenths_together_are_the_held_out_loss(tiny: Settings, place: Path) -> None:
    report = baseline.run(tiny("evaluation.tokens=650", steps=20, out=place / "r"))
    assert report.held_out is not None
    assert report.tail is not None
    positions = np.array_split(np.arange(report.held_out.windows * 32), 10)
    sizes = [len(part) for part in positions]
    assert np.average(report.tail, weights=sizes) == pytest.approx(report.held_out.loss, rel=1e-9)
    assert report.tail[0] > report.tail[-1]  # what is frequent is learned first


def test_a_held_out_loss_below_the_entropy_would_be_a_leak(tiny: Settings) -> None:
    report = baseline.run(tiny("evaluation.tokens=20000", recipe="modern", steps=150))
    assert report.held_out is not None
    entropy = report.held_out.entropy_bits_per_byte
    assert entropy == pytest.approx(0.4962, abs=1e-4)
    assert report.held_out.bits_per_byte > entropy
    assert report.held_out.bits_per_byte < 4  # and yet it has learned


def test_a_model_that_has_seen_the_held_out_text_is_caught_by_the_entropy(corpus: Corpus) -> None:
    """The yardstick works: knowing the text beats its entropy."""
    held_out = HeldOut.of(corpus.val, corpus.tokenizer.token_bytes, 32, 3200)
    leaked = 0.1  # nats per token, as after learning these windows by heart
    assert held_out.bits_per_byte(leaked) < corpus.manifest["entropy_bits_per_byte"]


def test_the_ledger_adds_up(tiny: Settings) -> None:
    settings = tiny(steps=4, eval_every=2)
    with Session("baseline", settings, lambda _: None, never) as session:
        report = session.train()
        model, optimizer = session.parts.model, session.parts.optimizer
        step = 3 * model.forward_flops(4, 32) + optimizer.flops
        windows = session.held_out.computed(session.parts.micro)
        assert windows % session.parts.micro == 0
    assert report.flops["train"] == 4 * step
    assert report.flops["eval"] == 3 * model.forward_flops(windows, 32)
    assert report.cost_flops == 4 * step
    assert report.tokens == 4 * 4 * 32
    assert sum(v for k, v in report.seconds.items() if k != "total") <= report.seconds["total"]
    assert report.mfu == pytest.approx(
        report.flops["train"] / report.seconds["train"] / report.peak_flops_per_second
    )


def test_recomputing_is_billed(tiny: Settings) -> None:
    plain, again = (
        baseline.run(tiny(f"device.recompute={flag}")).flops["train"] for flag in ("false", "true")
    )
    assert 1.1 * plain < again < 1.4 * plain


def test_every_account_but_eval_is_paid_by_the_budget(tiny: Settings) -> None:
    meter, budget = Meter(), Budget(tiny(flops=100.0))
    meter.charge("eval", 1e6)
    assert budget.progress(meter) == 0
    meter.charge("select", 30.0)
    meter.charge("teacher", 20.0)
    assert budget.progress(meter) == 0.5
    with pytest.raises(KeyError):
        meter.charge("magic", 1.0)


def test_rapl_counters_may_wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("999999\n")
    (zone / "energy_uj").write_text("900000\n")
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    counter = energy.open_counter("cpu", EnergySettings())
    assert counter.source == "measured:rapl"
    (zone / "energy_uj").write_text("400000\n")
    assert counter.read() == pytest.approx(0.5)


def test_without_a_counter_energy_is_called_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    counter = energy.open_counter("cpu", EnergySettings(watts_per_core=20))
    assert counter.source == "estimated:tdp"
    before = counter.read()
    sum(range(10**6))
    assert 0 < counter.read() - before < 20


def test_joules_of_two_kinds_are_never_added(tiny: Settings) -> None:
    from effcli.engine.runs.report import _energy

    mixed = _energy({"measured:rapl": 5.0, "estimated:tdp": 2.0})
    assert mixed.joules is None
    assert "several" in mixed.source
    assert _energy({"estimated:tdp": 2.0}).joules == 2.0


def test_measuring_the_peak_leaves_no_trace_in_the_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcli.engine.device import Device
    from effcli.engine.measure.peak import peak_flops
    from effcli.settings.train import DeviceSettings

    monkeypatch.setenv("EFF_CACHE", str(tmp_path))
    device = Device(DeviceSettings(name="cpu", threads=1))
    before = torch.get_rng_state()
    measured = peak_flops(device)
    assert torch.equal(before, torch.get_rng_state())
    assert measured > 1e9
    assert peak_flops(device) == measured  # kept, not measured again
    faster = 10 * measured
    assert peak_flops(device, seen=faster) == faster  # others computed while it was measured
    assert peak_flops(device) == faster


def test_the_counter_of_a_whole_board_is_not_added_to_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("package-0", "psys")):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text("999999999\n")
        (zone / "energy_uj").write_text("0\n")
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    counter = energy.open_counter("cpu", EnergySettings())
    for number, joules in enumerate((10, 14)):
        (tmp_path / f"intel-rapl:{number}" / "energy_uj").write_text(f"{joules}000000\n")
    assert counter.read() == pytest.approx(10)


def test_joules_are_booked_to_the_end(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counter:
        source = "measured:rapl"
        joules = 0.0

        def read(self) -> float:
            return self.joules

    counter = Counter()

    def floors(*_: Any) -> dict[str, float]:
        counter.joules += 1000
        return {"unigram": 1.0, "bigram": 1.0, "trigram": 1.0}

    monkeypatch.setattr("effcli.engine.session.open_counter", lambda *_: counter)
    monkeypatch.setattr("effcli.engine.closing.floors_of", floors)
    assert baseline.run(tiny()).energy.joules == 1000


def test_floors_of_hardly_any_text_are_numbers() -> None:
    class Text:
        tokens = 4

        def stretches(self, tokens: int) -> list[tuple[int, int]]:
            return [(0, tokens)]

        def read(self, starts: Any, count: int) -> Any:
            return np.arange(count)[None] + np.array(starts)[:, None]

    found = ngram_floors(Text(), np.array([[0, 1, 2]]), 5)  # type: ignore[arg-type]
    assert all(math.isfinite(value) for value in found.values())


def test_every_shape_of_a_run_is_compiled_before_its_clock_starts(
    tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a compiled trunk is made for: shape, layout, and whether gradients are recorded."""
    seen: set[tuple[Any, ...]] = set()

    def look(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        tokens = inputs[0]
        seen.add((tuple(tokens.shape), tokens.stride(), torch.is_grad_enabled()))

    settings = tiny("batch.sequences=6", "batch.micro=4", eval_every=1, steps=2)
    with Session("baseline", settings, lambda _: None, never) as session:
        trunk = session.parts.model.trunk
        trunk.register_forward_pre_hook(look)
        monkeypatch.setattr(trunk, "compile", lambda **_: None)
        session.parts.compile(settings.batch.sequences)
        compiled = set(seen)
        session.train()
    assert len(compiled) == 3
    assert seen == compiled
