"""A packed file is the trained model, or it is refused."""

import copy
import json
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from exactness import differences

from effcli.engine.data.tokenizers import Tokenizer, byte_tokenizer
from effcli.engine.device import Device
from effcli.engine.models.gpt import GPT, Attention
from effcli.engine.quant import document as documents
from effcli.engine.quant import running
from effcli.engine.quant.bitlinear import bit_layers, linear_layers, quantize
from effcli.engine.quant.codes import rounded
from effcli.engine.quant.packed import Packed, read, round_the_rest, sizes, write
from effcli.engine.quant.running import runnable
from effcli.engine.quant.verify import verify
from effcli.errors import InputError
from effcli.settings.model import GPTSettings
from effcli.settings.train import DeviceSettings

SHAPES: dict[str, dict[str, Any]] = {
    "modern": {},
    "tied": {"tied": True},
    "textbook": {"positions": "learned", "norm": "layer", "bias": True, "activation": "gelu"},
    "swiglu": {"activation": "swiglu", "value_tables": False},
}
FACTS = {"run": "runs/ünï", "loss": 1.25, "of": {"teacher": None}}


def _gpt(spread: float = 0.2, **shape: Any) -> GPT:
    small = {"layers": 1, "width": 24, "heads": 2, "context": 16, "pair_rows": 7}
    model = GPT(GPTSettings(**{**small, **shape}), 257)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():  # zero-initialized parts would hide mistakes
        torch.nn.init.normal_(parameter, std=spread, generator=generator)
    return model


def _student(bits: Any = 1.58, group: int = 0, **shape: Any) -> GPT:
    model = _gpt(**shape)
    quantize(model, bits, group)
    for layer in bit_layers(model).values():
        if layer.gain is not None:
            torch.nn.init.constant_(layer.gain, 0.7)
    return model


def _windows() -> torch.Tensor:
    return torch.randint(0, 257, (6, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer("")


@pytest.fixture
def file(place: Path, tokenizer: Tokenizer) -> Path:
    """A small packed file."""
    write(place / "student.eff", _student(), tokenizer, FACTS)
    return place / "student.eff"


class TestAFile:
    @pytest.mark.parametrize("bits", [1, 1.58, 2, 4, 8, 16])
    @pytest.mark.parametrize("group", [0, 8])
    def test_is_the_model(self, place: Path, tokenizer: Tokenizer, bits: float, group: int) -> None:
        model = _student(bits, group)
        write(place / "a.eff", model, tokenizer, FACTS)
        found = verify(place / "a.eff", model, _windows())
        assert found.holds
        assert (found.wrong_codes, found.logit_gap, found.agreement) == (0, 0.0, 1.0)
        assert abs(found.roundtrip_gap) < 0.02  # what 8 bits for the tables cost

    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_a_model_of_any_shape(self, place: Path, tokenizer: Tokenizer, shape: str) -> None:
        model = _student(**SHAPES[shape])
        write(place / "a.eff", model, tokenizer, {})
        assert verify(place / "a.eff", model, _windows()).logit_gap == 0

    def test_is_checked_in_float32_however_the_model_was_trained(
        self, place: Path, tokenizer: Tokenizer
    ) -> None:
        model = _student()
        write(place / "a.eff", model, tokenizer, {})
        expected = verify(place / "a.eff", model, _windows())
        Device(DeviceSettings(name="cpu", precision="bfloat16", threads=1)).adopt(model)
        assert verify(place / "a.eff", model, _windows()) == expected
        assert model.dtype == torch.bfloat16

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("bits", [1.58, 2, 16])
    def test_writes_as_fast_as_it_can_and_the_same(
        self, file: Path, tokenizer: Tokenizer, shape: str, bits: float
    ) -> None:
        write(file, _student(bits, **SHAPES[shape]), tokenizer, {})
        found, tokens = runnable(read(file)), _windows()[:, :9]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running, "_join", lambda *_: None)
            apart = runnable(read(file))
        joined = [module.joined for module in found.modules() if isinstance(module, Attention)]
        assert all((product is None) == (bits == 16) for product in joined)
        with torch.inference_mode():
            features = found.features(tokens)
            assert torch.equal(features, apart.features(tokens))
            cache = found.new_cache(len(tokens))
            steps = [found.features(token, cache) for token in tokens.split(1, dim=1)]
            # Another order of sums may move an activation over the half of a level.
            assert (torch.cat(steps, dim=1) - features).abs().mean() < 0.01

    def test_writes_with_other_bits_in_every_layer(self, file: Path, tokenizer: Tokenizer) -> None:
        model = _student(dict(zip(linear_layers(_gpt()), [1, 1.58, 2, 4, 8, 16], strict=True)))
        write(file, model, tokenizer, {})
        packed, tokens = read(file), _windows()[:, :16]
        gap = runnable(packed).features(tokens) - packed.model().features(tokens)
        assert gap.abs().mean() < 0.01

    def test_may_have_other_bits_in_every_layer(self, place: Path, tokenizer: Tokenizer) -> None:
        names = list(linear_layers(_gpt()))
        widths = dict(zip(names, [1, 1.58, 2, 4, 8, 16], strict=True))
        model = _student(widths)
        write(place / "a.eff", model, tokenizer, {})
        assert verify(place / "a.eff", model, _windows()).logit_gap == 0
        kept = read(place / "a.eff").layers
        assert list(kept) == names[:5]
        assert {name: kept[name].offset for name in kept} == {
            name: 0.5 if widths[name] == 2 else 0 for name in kept
        }

    def test_holds_all_that_was_given(self, file: Path, tokenizer: Tokenizer) -> None:
        packed, model = read(file), _student()
        assert packed.settings == model.settings
        assert packed.tokenizer.hash == tokenizer.hash
        assert packed.document.facts == FACTS
        for name, layer in bit_layers(model).items():
            assert all(
                torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
                for a, b in zip(packed.layers[name], layer.encode(), strict=True)
            )
        embedding = packed.tables["trunk.embedding.weight"]
        assert torch.equal(embedding.weight(), rounded(model.trunk.embedding.weight[:257], 8))
        kept = packed.layers.keys() | packed.tables.keys() | packed.floats.keys()
        names = {name.removesuffix(".weight") for name in dict(model.named_parameters())}
        assert {name.removesuffix(".weight") for name in kept} == names

    def test_gives_a_model_to_be_used(self, file: Path) -> None:
        model = read(file).model()
        assert not model.training
        assert all(layer.is_settled for layer in bit_layers(model).values())
        assert not model.trunk.embedding.weight[257:].any()
        with pytest.raises(AssertionError, match="are gone"):
            next(iter(bit_layers(model).values())).encode()

    def test_is_the_same_bytes_again(self, file: Path, place: Path, tokenizer: Tokenizer) -> None:
        write(place / "again.eff", _student(), tokenizer, FACTS)
        assert file.read_bytes() == (place / "again.eff").read_bytes()

    def test_that_was_rounded_is_not_rounded_again(self, place: Path, tokenizer: Tokenizer) -> None:
        model = _student(4)
        round_the_rest(model)
        before = copy.deepcopy(model.state_dict())
        round_the_rest(model)
        assert not differences(before, model.state_dict())
        write(place / "a.eff", model, tokenizer, {})
        assert verify(place / "a.eff", model, _windows()).roundtrip_gap == 0

    def test_of_another_model_is_told_apart(self, file: Path) -> None:
        other = _student()
        other.trunk.blocks[0].mlp.up.weight.data[3, 4] *= -1
        found = verify(file, other, _windows())
        assert found.wrong_codes == 1
        assert found.logit_gap > 1e-4
        assert not found.holds
        with pytest.raises(InputError, match="is not what its model has"):
            verify(file, _student(2), _windows())

    @pytest.mark.parametrize("bits", [1.58, 8, 16])
    def test_is_as_large_as_it_says(self, place: Path, tokenizer: Tokenizer, bits: float) -> None:
        model = _student(bits)
        found = write(place / "a.eff", model, tokenizer, FACTS)
        data = (place / "a.eff").read_bytes()
        assert sizes(place / "a.eff") == found
        assert found.total == len(data)
        parts = safetensors.numpy.load(data)
        linear = sum(part.nbytes for name, part in parts.items() if _is_linear(name))
        embedding = sum(part.nbytes for name, part in parts.items() if "embedding" in name)
        tables = sum(part.nbytes for name, part in parts.items() if ".tables." in name)
        assert (found.linear, found.embedding, found.tables) == (linear, embedding, tables)
        assert found.tokenizer == parts["tokenizer"].nbytes
        assert found.linear_weights == 12 * 24**2
        assert found.weights == model.parameter_count()
        assert found.linear_bits_per_weight == 8 * linear / found.linear_weights
        assert found.ratio_linear() == pytest.approx(4 * found.linear_weights / linear)
        assert found.ratio_total(16) == pytest.approx(2 * found.weights / len(data))
        assert found.embedding == 2 * 257 * (24 + 2)
        codes = {1.58: 4 * 116 + 2 * 461, 8: 12 * 576, 16: 2 * 12 * 576}[bits]
        assert found.linear == codes + (0 if bits == 16 else 2 * (4 * 24 + 96 + 24))


def _is_linear(name: str) -> bool:
    return ".blocks." in name and ".gain" not in name and "shift" not in name


class TestWriting:
    def test_leaves_nothing_when_it_fails(
        self, place: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            write(place / "a.eff", _student(), tokenizer, {})
        assert list(place.iterdir()) == []

    @pytest.mark.parametrize("name", ["mlp.up.weight", "mlp.down.gain", "shift1.weights.0"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_refuses_what_is_not_finite(
        self, place: Path, tokenizer: Tokenizer, name: str, value: float
    ) -> None:
        model = _student()
        model.get_parameter(f"trunk.blocks.0.{name}").data.view(-1)[5] = value
        with pytest.raises(InputError, match=f"{name} holds what is not finite"):
            write(place / "a.eff", model, tokenizer, {})
        assert list(place.iterdir()) == []

    def test_refuses_what_does_not_fit_its_type(self, place: Path, tokenizer: Tokenizer) -> None:
        model = _gpt()
        model.trunk.blocks[0].mlp.up.weight.data[0, 0] = 1e5
        with pytest.raises(InputError, match="not finite"):
            write(place / "a.eff", model, tokenizer, {})

    def test_refuses_another_tokenizer(self, place: Path) -> None:
        ranks = {bytes([value]): value for value in range(256)} | {b"ab": 256}
        with pytest.raises(InputError, match="embedding"):
            write(place / "a.eff", _student(), Tokenizer("more", "eff", ranks, 257), {})


def _forged(file: Path, change: Callable[[Any, dict[str, Any]], None]) -> Path:
    """A file with another document and other arrays, and all the right hashes."""
    with safetensors.safe_open(file, "np") as opened:
        tree = json.loads(opened.metadata()[documents.DOCUMENT])
    arrays = safetensors.numpy.load_file(file)
    change(tree, arrays)
    tensors = tree["tensors"] if isinstance(tree.get("tensors"), dict) else {}
    for name, entry in tensors.items():
        parts = [
            arrays[f"{name}{end}"] for end in ("", ".codes", ".scales") if f"{name}{end}" in arrays
        ]
        if isinstance(entry, dict) and "sha256" in entry:
            entry["sha256"] = documents.digest(*parts)
    if documents.TOKENIZER in arrays:
        tree["tokenizer"] = documents.digest(arrays[documents.TOKENIZER])
    text = json.dumps(tree)
    arrays[documents.SEAL] = np.frombuffer(sha256(text.encode()).digest(), np.uint8)
    forged = file.with_name("forged.eff")
    safetensors.numpy.save_file(arrays, forged, {documents.DOCUMENT: text})
    return forged


UP = "trunk.blocks.0.mlp.up.weight"


def _of_model(**values: Any) -> Callable[[Any, dict[str, Any]], None]:
    return lambda tree, _: tree["model"].update(values)


def _of_entry(**values: Any) -> Callable[[Any, dict[str, Any]], None]:
    return lambda tree, _: tree["tensors"][UP].update(values)


def _array(name: str, change: Callable[[Any], Any]) -> Callable[[Any, dict[str, Any]], None]:
    return lambda _, arrays: arrays.update({name: change(arrays[name])})


def _with(at: int, value: float) -> Callable[[Any], Any]:
    def put(array: Any) -> Any:
        array.ravel()[at] = value
        return array

    return put


def _as_bytes(content: Any) -> Any:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


FORGERIES: dict[str, tuple[Callable[[Any, dict[str, Any]], None], str]] = {
    "schema": (lambda tree, _: tree.update(schema_number=2), "schema_number: Input should be 1"),
    "more": (lambda tree, _: tree.update(more=1), "more: Extra inputs"),
    "less": (lambda tree, _: tree.pop("layers"), "layers: Field required"),
    "width": (_of_model(width=48), "is not what its model has"),
    "layers": (_of_model(layers=2), "no bits are given"),
    "norm": (_of_model(norm="layer"), "is not what its model has"),
    "unknown": (_of_model(name="mamba"), "there is no model called 'mamba'"),
    "heads": (_of_model(heads=7), "cannot be built"),
    "endless": (_of_model(width=1e400), "cannot be built|JSON"),
    "rows": (_of_model(pair_rows=2**24), "is not what its model has"),
    "memory": (_of_model(context=2**17), "more memory than"),
    "sub-norm": (lambda tree, _: tree["layers"].update(subnorm=False), "is not what its model"),
    "activations": (lambda tree, _: tree["layers"].update(act_bits=4), "act_bits"),
    "groups": (lambda tree, _: tree["layers"].update(group=5), "a group of 5 does not divide"),
    "no bits": (_of_entry(bits=3), "no weights of 3 bits"),
    "other bits": (_of_entry(bits=2), "is not what its model has"),
    "true": (_of_entry(bits=True), "bits: Input should be"),
    "codec": (_of_entry(codec="i8"), "is not what its model has"),
    "no codec": (_of_entry(codec="zip"), "codec: Input should be"),
    "huge": (_of_entry(shape=[2**40, 2**40]), "is not what its model has"),
    "negative": (_of_entry(shape=[-96, -24]), "shape.0: Input should be greater"),
    "role": (_of_entry(role="table"), "is given|are given|is not what"),
    "trits": (_array(f"{UP}.codes", _with(7, 250)), "a byte of 250 does not hold 5 trits"),
    "padding": (_array(f"{UP}.codes", _with(-1, 242)), "the last byte holds more"),
    "short": (_array(f"{UP}.codes", lambda a: a[:-1]), "460 bytes do not hold 2304 codes"),
    "type": (_array(f"{UP}.codes", lambda a: a.astype(np.float32)), "of another type"),
    "scale": (_array(f"{UP}.scales", _with(0, np.nan)), "a scale that is none"),
    "minus": (_array(f"{UP}.scales", _with(0, -1)), "a scale that is none"),
    "few": (_array(f"{UP}.scales", lambda a: a[:5]), "of another type or shape"),
    "double": (_array(f"{UP}.scales", lambda a: a.astype(np.float64)), "F64"),
    "gain": (_array("trunk.blocks.0.mlp.down.gain", _with(1, np.inf)), "not finite"),
    "more arrays": (lambda _, arrays: arrays.update(x=np.zeros(3, np.uint8)), "nothing asks for x"),
    "fewer arrays": (lambda _, arrays: arrays.pop(f"{UP}.scales"), "KeyError"),
    "no tokenizer": (lambda _, arrays: arrays.pop("tokenizer"), "KeyError 'tokenizer'"),
    "text": (_array("tokenizer", lambda a: a[:-9]), "cannot be built"),
    "list": (_array("tokenizer", lambda _: _as_bytes([1])), "not a tokenizer"),
    "deep": (_array("tokenizer", lambda _: np.frombuffer(b"[" * 10**5, np.uint8)), "cannot be"),
}


class TestReading:
    @pytest.mark.parametrize("kind", FORGERIES)
    def test_refuses_what_is_sealed_and_wrong(
        self, file: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("effcli.engine.quant.packed.BUFFERS", 2**20)
        change, message = FORGERIES[kind]
        with pytest.raises(InputError, match=message) as refused:
            read(_forged(file, change))
        assert "\n" not in refused.value.message
        assert "forged.eff is damaged, or no packed model" in refused.value.message

    def test_refuses_another_document(self, file: Path) -> None:
        data = file.read_bytes()
        assert data.count(b'soft_cap\\":30.0') == 1
        file.write_bytes(data.replace(b'soft_cap\\":30.0', b'soft_cap\\":31.0'))
        with pytest.raises(InputError, match="metadata are not those that were written"):
            read(file)

    def test_takes_what_is_sealed_and_right(self, file: Path) -> None:
        forged = _forged(file, lambda tree, _: tree["facts"].update(more=None))
        assert read(forged).document.facts == FACTS | {"more": None}

    def test_refuses_more_ids_than_bytes(self, file: Path, tokenizer: Tokenizer) -> None:
        content = Tokenizer("bytes", "", tokenizer.ranks, 10**15).content()
        with pytest.raises(InputError, match="more ids than bytes"):
            read(_forged(file, _array("tokenizer", lambda _: _as_bytes(content))))

    def test_refuses_what_is_no_file(self, place: Path, file: Path) -> None:
        with pytest.raises(InputError, match="cannot read"):
            read(place)
        with pytest.raises(InputError, match="cannot read"):
            read(place / "missing.eff")
        for data in (b"", b"text", b"\x80\x04.", file.read_bytes()[:100]):
            (place / "other.eff").write_bytes(data)
            with pytest.raises(InputError, match="is damaged"):
                read(place / "other.eff")
        safetensors.numpy.save_file({"a": np.zeros(3)}, place / "other.eff")
        with pytest.raises(InputError, match="is damaged"):
            read(place / "other.eff")

    def test_takes_nothing_else(self, file: Path) -> None:
        assert _survivors(file, range(500)) < 50

    def test_never_breaks_on_a_forged_document(self, file: Path) -> None:
        _read_forgeries(file, range(100))

    @pytest.mark.slow
    def test_takes_nothing_else_in_ten_thousand(self, file: Path) -> None:
        assert _survivors(file, range(10_000)) < 1000
        _read_forgeries(file, range(3000))


def _survivors(file: Path, seeds: Iterable[int]) -> int:
    """How many mutations are not refused; what is read of them is what was written."""
    data, expected, survivors = file.read_bytes(), _content(read(file)), 0
    mutant = file.with_name("mutant.eff")
    for seed in seeds:
        mutant.write_bytes(_mutated(data, random.Random(seed)))
        try:
            found = read(mutant)
        except InputError:
            continue
        survivors += 1
        assert not differences(_content(found), expected), seed
    return survivors


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """Bits, bytes and stretches changed, doubled, moved, cut out, put in; mostly in the header."""
    mutant, end = bytearray(data), chance.choice([16, 300, 8000, len(data)])
    for _ in range(chance.choice([1, 1, 1, 3])):
        at, size = chance.randrange(min(end, len(mutant))), chance.choice([1, 1, 2, 8, 100])
        kind = chance.randrange(6)
        if kind == 0:
            mutant[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            mutant[at : at + size] = chance.randbytes(size)
        elif kind == 2:
            del mutant[at : at + size]
        elif kind == 3:
            mutant[at:at] = mutant[at : at + size]
        elif kind == 4:
            other = chance.randrange(len(mutant))
            mutant[at : at + size] = mutant[other : other + size]
        else:
            mutant[at:at] = chance.choice([b" ", b"0", b"9", b"-", b'"', b"}", b"\xff", b"\0" * 8])
    return bytes(mutant)


def _read_forgeries(file: Path, seeds: Iterable[int]) -> None:
    for seed in seeds:
        chance = random.Random(seed)
        forged = _forged(file, lambda tree, _, c=chance: _disturb(tree, c))
        with suppress(InputError):
            read(forged).model()


def _disturb(tree: Any, chance: random.Random) -> None:
    """Put something else in some place of a document."""
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = chance.choice(keys)
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.1:
            break
        node = inner
    others = [None, True, -1, 0, 1, 3, 2**31, 2**63, 2**80, 1e300, 0.5, "", "i8", "f32", [], {}]
    node[key] = chance.choice([*others, [2**62] * 2, [[]], {"name": "gpt"}])
    if isinstance(node, dict) and chance.random() < 0.2:
        del node[key]


def _content(packed: Packed) -> dict[str, Any]:
    codes = packed.layers | packed.tables
    return {
        "codes": {name: matrix._asdict() for name, matrix in codes.items()},
        "floats": packed.floats,
        "settings": packed.settings,
        "tokenizer": packed.tokenizer.hash,
        "document": packed.document,
    }
