"""`eff export`: what is in a GGUF file is what `eff` computes with, or there is no file."""

import errno
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch
import torch.nn.functional as F
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

from effcli.engine.data import bpe
from effcli.engine.data.tokenizers import PATTERNS, SEPARATOR, Tokenizer, byte_tokenizer
from effcli.engine.export.architectures import ARCHITECTURES, architecture_of
from effcli.engine.export.blocks import restored, stored
from effcli.engine.export.gguf import write
from effcli.engine.export.vocabulary import vocabulary_of
from effcli.engine.models.gpt import GPT
from effcli.engine.quant import packed
from effcli.engine.quant.bitlinear import bit_layers, quantize
from effcli.engine.quant.codes import Codes, encode, rounded_tokens
from effcli.engine.quant.packed import round_the_rest
from effcli.errors import CheckError, InputError
from effcli.methods import baseline
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from effcli.settings.model import GPTSettings

gguf: Any = pytest.importorskip("gguf")

Eff = Callable[..., tuple[int, str, str]]
PLAIN = {"embedding_norm": False, "soft_cap": 0.0, "shift": 0, "pair_rows": 0}
PLAIN |= {"value_tables": False, "qk_norm": False}
GPT2 = PLAIN | {"positions": "learned", "norm": "layer", "activation": "gelu"}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "textbook": ("gpt2", GPT2 | {"bias": True, "tied": True}),
    "textbook, no biases": ("gpt2", GPT2),
    "llama": ("llama", PLAIN | {"activation": "swiglu"}),
    "llama, biases": ("llama", PLAIN | {"activation": "swiglu", "bias": True, "tied": True}),
    "squared ReLU": ("arcee", PLAIN),
    "normed queries": ("qwen3", PLAIN | {"activation": "swiglu", "qk_norm": True}),
    "sub-norms": ("bitnet", PLAIN | {"activation": "swiglu", "tied": True}),
}
EXPORTABLE = [f"model.{name}={str(value).lower()}" for name, value in PLAIN.items()]


def _model(name: str, bits: float = 1.58, group: int = 0, width: int = 64) -> GPT:
    """A model of no symmetry, so that no two tensors or rows can be taken for each other."""
    of, shape = SHAPES[name]
    model = GPT(GPTSettings(layers=2, width=width, heads=2, context=24, **shape), 257)
    if bits != 16:
        quantize(model, bits, group, subnorm=of == "bitnet")
    generator = torch.Generator().manual_seed(5)
    for key, parameter in model.named_parameters():
        mean = 1.0 if parameter.ndim == 1 and key.endswith(("weight", "gain")) else 0.0
        torch.nn.init.normal_(parameter, mean, 0.2, generator=generator)
    return model


class Reference:
    """What llama.cpp computes with a file, written down anew from its graphs; float32."""

    def __init__(self, path: Path, int8: bool) -> None:
        reader = gguf.GGUFReader(path)
        self.name = reader.get_field("general.architecture").contents()
        self.facts = {
            key.removeprefix(f"{self.name}."): field.contents()
            for key, field in reader.fields.items()
            if not key.startswith(("GGUF", "tokenizer"))
        }
        self.of = {
            t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy())
            for t in reader.tensors
        }
        self.int8 = int8
        self.heads = self.facts["attention.head_count"]

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.of[f"{name}.weight"], self.of.get(f"{name}.bias")
        if bias is not None:
            epsilon = self.facts["attention.layer_norm_epsilon"]
            return F.layer_norm(x, weight.shape, weight, bias, epsilon)
        return F.rms_norm(x, weight.shape, weight, self.facts["attention.layer_norm_rms_epsilon"])

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        x = rounded_tokens(x) if self.int8 else x
        return F.linear(x, self.of[f"{name}.weight"], self.of.get(f"{name}.bias"))

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary positions of (time, heads, channels)."""
        size = self.facts["rope.dimension_count"]
        speeds = self.facts["rope.freq_base"] ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(len(x)).float(), speeds)[:, None]
        apart = self.name in ("qwen3", "bitnet")  # else neighbors
        one, two = x.chunk(2, -1) if apart else (x[..., ::2], x[..., 1::2])
        pairs = (
            one * angles.cos() - two * angles.sin(),
            one * angles.sin() + two * angles.cos(),
        )
        return torch.cat(pairs, -1) if apart else torch.stack(pairs, -1).flatten(-2)

    def attention(self, x: torch.Tensor, at: str) -> torch.Tensor:
        if f"{at}.attn_qkv.weight" in self.of:
            q, k, v = self.linear(x, f"{at}.attn_qkv").chunk(3, -1)
        else:
            q, k, v = (self.linear(x, f"{at}.attn_{one}") for one in "qkv")
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        if self.name == "qwen3":
            q, k = self.norm(q, f"{at}.attn_q_norm"), self.norm(k, f"{at}.attn_k_norm")
        if self.name != "gpt2":
            q, k = self.turned(q), self.turned(k)
        scores = torch.einsum("qhc,khc->hqk", q, k) / q.shape[-1] ** 0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        y = torch.einsum("hqk,khc->qhc", scores.masked_fill(future, -torch.inf).softmax(-1), v)
        y = y.flatten(1)
        y = self.norm(y, f"{at}.attn_sub_norm") if self.name == "bitnet" else y
        return self.linear(y, f"{at}.attn_output")

    def feed_forward(self, x: torch.Tensor, at: str) -> torch.Tensor:
        h = self.linear(x, f"{at}.ffn_up")
        if self.name == "gpt2":
            h = F.gelu(h)
        elif self.name == "arcee":
            h = F.relu(h).square()
        else:
            h = F.silu(self.linear(x, f"{at}.ffn_gate")) * h
        h = self.norm(h, f"{at}.ffn_sub_norm") if self.name == "bitnet" else h
        return self.linear(h, f"{at}.ffn_down")

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.of["token_embd.weight"][tokens]
        if self.name == "gpt2":
            x = x + self.of["position_embd.weight"][: len(tokens)]
        for number in range(self.facts["block_count"]):
            at = f"blk.{number}"
            x = x + self.attention(self.norm(x, f"{at}.attn_norm"), at)
            x = x + self.feed_forward(self.norm(x, f"{at}.ffn_norm"), at)
        head = self.of.get("output.weight", self.of["token_embd.weight"])
        return self.norm(x, "output_norm") @ head.T


class TestAModel:
    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize("bits", [1.58, 16])
    def test_computes_the_same_from_its_file(self, place: Path, name: str, bits: float) -> None:
        if name == "sub-norms" and bits == 16:
            bits = 8  # only layers of few bits have them
        model = _model(name, bits)
        found = write(place / "a.gguf", model, byte_tokenizer(""), "a")
        assert found["architecture"] == SHAPES[name][0]
        assert found["file_bytes"] == (place / "a.gguf").stat().st_size
        round_the_rest(model)
        tokens = torch.randint(0, 257, (20,), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model.eval()(tokens[None])[0]
        logits = Reference(place / "a.gguf", int8=bits != 16).logits(tokens)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("name", SHAPES)
    def test_has_the_tensors_that_its_architecture_has(self, place: Path, name: str) -> None:
        found = write(place / "a.gguf", _model(name), byte_tokenizer(""), "a")
        known = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
        names = {gguf.TENSOR_NAMES[one] for one in gguf.MODEL_TENSORS[known[found["architecture"]]]}
        for tensor in gguf.GGUFReader(place / "a.gguf").tensors:
            place_, _, kind = tensor.name.rpartition(".")
            assert kind in ("weight", "bias")
            assert regex.sub(r"blk\.\d+", "blk.{bid}", place_) in names

    def test_is_the_same_file_twice(self, place: Path) -> None:
        for name in "ab":
            write(place / name, _model("llama"), byte_tokenizer(""), "same")
        assert (place / "a").read_bytes() == (place / "b").read_bytes()

    def test_of_wide_rows_has_the_smallest_types(self, place: Path) -> None:
        kinds = {1: "TQ1_0", 1.58: "TQ1_0", 2: "Q2_K", 4: "Q4_0", 8: "Q8_0", 16: "F16"}
        for bits, kind in kinds.items():
            model = _model("squared ReLU", bits, width=256)
            found = write(place / kind, model, byte_tokenizer(""), "a")
            assert set(found["types"]) == {kind, "Q8_0", "F32"}
            assert found["linear_bits_per_weight"] <= {1: 1.6875, 2: 2.625}.get(bits, bits + 0.5)

    @pytest.mark.parametrize("value", [float("nan"), 1e5])
    def test_that_no_packed_file_could_hold_is_refused(self, place: Path, value: float) -> None:
        model = _model("llama", 16)
        with torch.no_grad():
            model.trunk.blocks[0].mlp.up.weight[3, 4] = value  # type: ignore[union-attr,index]
        with pytest.raises(InputError, match="not finite"):
            write(place / "a.gguf", model, byte_tokenizer(""), "a")
        assert not list(place.iterdir())

    def test_of_parts_that_llama_cpp_lacks_is_refused_with_all_of_them(self) -> None:
        modern = GPTSettings(layers=1, width=16, heads=2, context=8, pair_rows=5)
        with pytest.raises(InputError, match="no architecture with") as told:
            architecture_of(GPT(modern, 257))
        hint = told.value.hint or ""
        for name in ("embedding_norm", "soft_cap", "shift", "pair_rows", "value_tables"):
            assert f"model.{name}=" in told.value.message
            assert f"--set model.{name}=" in hint
        # What the hint says is exported.
        sets = [part for part in hint.split() if part.startswith("model.")]
        flags = {"data": "x", "recipe": "modern"}
        shape = resolve(BaselineSettings, flags, [*sets, *TINY]).settings.model
        assert architecture_of(GPT(shape, 257)) in ARCHITECTURES  # type: ignore[arg-type]

    def test_with_sub_norms_in_some_layers_is_refused(self) -> None:
        model = _model("sub-norms")
        layers = [layer for layer in bit_layers(model).values() if layer.gain is not None]
        layers[0].gain = None
        with pytest.raises(InputError, match="subnorm=some"):
            architecture_of(model)


@st.composite
def _codes(draw: st.DrawFn) -> Codes:
    bits = draw(st.sampled_from([1, 1.58, 2, 4, 8]))
    inputs = draw(st.sampled_from([3, 24, 32, 96, 128, 256, 512]))
    group = draw(st.sampled_from([0, *(n for n in (8, 32, 128, 256) if inputs % n == 0)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    w = torch.randn(draw(st.integers(1, 5)), inputs, generator=generator)
    w *= draw(st.sampled_from([1e-6, 1e-3, 1.0, 1e5]))
    w[torch.rand(w.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0
    return encode(w, bits, group)


class TestATensor:
    @given(_codes())
    def test_is_read_again_as_it_is_computed_with(self, codes: Codes) -> None:
        tensor = stored([codes, codes])
        whole = codes.weight().numpy()
        assert np.array_equal(restored(tensor), np.concatenate([whole, whole]))
        if (codes.group or codes.codes.shape[1]) % 32 == 0 and codes.scales.min() > 1e-4:
            assert tensor.data.dtype == np.uint8  # no floats where there are blocks

    def test_of_different_widths_has_a_type_for_both(self) -> None:
        w = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
        few, many = encode(w, 1.58), encode(w, 4)
        assert stored([few]).kind == "TQ1_0"
        assert stored([few, many]).kind == "Q4_0"
        assert stored([few, w.half().float().numpy()]).kind == "F16"
        assert stored([few, w.numpy()]).kind == "F32"

    def test_of_floats_keeps_them(self) -> None:
        large = np.array([[1e30, 1.0]], np.float32)
        assert np.array_equal(restored(stored([large])), large)
        assert stored([np.ones(3, np.float32)]).kind == "F32"
        assert stored([np.ones((1, 3), np.float32)]).kind == "F16"


def _encoded(text: str, pattern: str, tokens: list[str], merges: list[str]) -> Iterator[int]:
    """Byte-pair encoding by a list of merges, as llama.cpp does it."""
    letters = {value: letter for letter, value in bpe.byte_of_letter().items()}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    ids = {token: number for number, token in enumerate(tokens)}
    for piece in regex.findall(pattern, text):
        parts = [letters[value] for value in piece.encode()]
        while found := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
            at = list(itertools.pairwise(parts)).index(min(found, key=ranks.__getitem__))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        yield from (ids[part] for part in parts)


TEXT = "the cat's hats, the thin man; that then is 1234 x'LL\r\n\t  and\n\n ünïcode 日本 the end  "


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return bpe.train([TEXT * 3, "aaaa aaaaaaaa  " * 9, Path(__file__).read_text("utf8")], 700)


class TestATokenizer:
    @given(st.text() | st.text("the an'12 \n", max_size=60))
    def test_merges_as_its_ranks_do(self, trained: Tokenizer, text: str) -> None:
        kept = vocabulary_of(trained)
        pattern = PATTERNS[trained.pattern]
        for one in (text, TEXT):
            ids = list(_encoded(one, pattern, kept.tokens, kept.merges))
            assert ids == trained.encode(one).tolist()

    def test_of_bytes_merges_nothing(self) -> None:
        kept = vocabulary_of(byte_tokenizer(""))
        assert list(_encoded(TEXT, r"(?s).+", kept.tokens, kept.merges)) == list(TEXT.encode())
        assert (kept.tokens[256], kept.kinds[256], kept.differences) == (SEPARATOR, 3, ())

    def test_says_what_llama_cpp_does_otherwise(self, trained: Tokenizer) -> None:
        assert ["digits" in one for one in vocabulary_of(trained).differences] == [True]
        ranks = {bytes([value]): value for value in range(256)} | {b"abc": 256}
        odd = vocabulary_of(Tokenizer("odd", "gpt2", ranks, 260))
        assert odd.differences == ("cannot reach 1 tokens of its vocabulary",)
        assert odd.kinds[256:] == [1, 5, 5, 5, 3]

    def test_with_a_token_that_reads_as_its_separator_is_refused(self) -> None:
        ranks = {bytes([value]): value for value in range(256)} | {SEPARATOR.encode(): 256}
        with pytest.raises(InputError, match="reads as another one"):
            vocabulary_of(Tokenizer("odd", "gpt2", ranks, 257))


def _one_line(told: tuple[int, str, str], message: str, code: int = 2) -> None:
    assert (told[0], told[2].count("error: ")) == (code, 1), told[2]
    assert message in " ".join(told[2].split())
    assert "Traceback" not in told[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> Path:
    """A tiny run that llama.cpp has an architecture for."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    flags = {"data": str(corpus_folder), "steps": 3, "out": folder, "page": False}
    small = [*TINY, *EXPORTABLE, "evaluation.floors=false"]
    baseline.run(resolve(BaselineSettings, {**flags, "eval_every": 0}, small).settings)
    return folder


class TestACommand:
    def test_writes_a_file_and_says_what_it_holds(self, eff: Eff, run: Path, place: Path) -> None:
        flags = ["--to", "gguf", "--bits", "1.58", "--out", "a.gguf"]
        code, out, err = eff("export", run, *flags, "--json")
        assert code == 0, err
        told = json.loads(out)
        assert told["status"] == "format-verified, not executed"
        assert (told["architecture"], told["is_trained_in_low_bits"]) == ("arcee", False)
        assert told["file_bytes"] == (place / "a.gguf").stat().st_size
        fields = gguf.GGUFReader(place / "a.gguf").fields
        assert fields["general.name"].contents() == "plain"
        assert fields["eff.differences"].contents() == told["differences"]
        assert fields["tokenizer.ggml.bos_token_id"].contents() == 256
        _one_line(eff("export", run, *flags), "a.gguf exists")
        code, out, err = eff("export", run, "--to", "gguf")
        assert code == 0, err
        assert "format-verified, not executed" in out
        assert (run / "student.gguf").exists()

    def test_packs_as_distill_pack_does(self, eff: Eff, run: Path, place: Path) -> None:
        for name, command in (("a", ["distill", "pack"]), ("b", ["export", "--to", "packed"])):
            told = eff(*command, run, "--bits", "4", "--out", f"{name}.eff")
            assert told[0] == 0, told[2]
        assert (place / "a.eff").read_bytes() == (place / "b.eff").read_bytes()

    def test_without_the_extra_says_how_to_get_it(
        self, eff: Eff, run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("gguf", "gguf.quants"):
            monkeypatch.setitem(sys.modules, name, None)
        _one_line(eff("export", run, "--to", "gguf"), "pip install 'effcli[gguf]'")
        assert eff("export", run, "--to", "packed", "--out", "a.eff")[0] == 0

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--to", "onnx"], "'packed' or 'gguf'"),
            ([], "TO is missing"),
            (["--to", "gguf", "--bits", "3"], "bits: should be one of"),
            (["--to", "gguf", "--bits", "4", "--group", "5"], "does not divide"),
            (["--to", "gguf", "--group", "8"], "group has no effect"),
            (["--to", "gguf", "--out", "no/where.gguf"], "no such file or directory"),
        ],
    )
    def test_refuses_what_cannot_be(
        self, eff: Eff, run: Path, place: Path, flags: list[str], message: str
    ) -> None:
        _one_line(eff("export", run, *flags), message)
        assert not list(place.iterdir())

    def test_refuses_what_is_no_whole_run(self, eff: Eff, run: Path, place: Path) -> None:
        _one_line(eff("export", "nowhere", "--to", "gguf"), "there is no run in nowhere")
        for name in ("config.toml", "env.json", "tokenizer.json"):
            (place / "half").mkdir(exist_ok=True)
            (place / "half" / name).write_bytes((run / name).read_bytes())
        _one_line(eff("export", "half", "--to", "gguf"), "no whole checkpoint")

    def test_leaves_nothing_when_the_disk_is_full(
        self, eff: Eff, run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("gguf.GGUFWriter.write_tensors_to_file", full)
        _one_line(eff("export", run, "--to", "gguf", "--out", "a.gguf"), "a.gguf", 3)
        assert not list(place.iterdir())


def test_a_file_that_does_not_hold_the_model_is_none(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(parts: Any) -> Any:
        tensor = stored(parts)
        return tensor._replace(data=np.ascontiguousarray(np.flip(tensor.data, -1)))

    monkeypatch.setattr("effcli.engine.export.gguf.stored", wrong)
    with pytest.raises(CheckError, match="is not what was written"):
        write(place / "a.gguf", _model("llama"), byte_tokenizer(""), "a")
    assert not list(place.iterdir())


def test_a_run_of_few_bits_keeps_its_sub_norms(eff: Eff, corpus_folder: Path, place: Path) -> None:
    shape = ["model.name=low-bit", "model.bits=1.58", "model.activation=swiglu", "model.tied=true"]
    flags = {"data": str(corpus_folder), "steps": 2, "out": place / "run", "page": False}
    small = [*TINY, *EXPORTABLE, *shape, "evaluation.floors=false"]
    baseline.run(resolve(BaselineSettings, {**flags, "eval_every": 0}, small).settings)
    code, out, err = eff("export", "run", "--to", "gguf", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["architecture"], told["is_trained_in_low_bits"]) == ("bitnet", True)
    for to in ("gguf", "packed"):
        assert eff("export", "run", "--to", to, "--bits", "4", "--out", to)[0] == 0
        _one_line(eff("export", "run", "--to", to, "--bits", "16"), "have no sub-norms")
    model = packed.read(place / "packed").model()
    gains = [layer.gain for layer in bit_layers(model).values() if layer.gain is not None]
    assert len(gains) == 4
    assert {layer.bits for layer in bit_layers(model).values()} == {4}
