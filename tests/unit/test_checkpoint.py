"""Checkpoints are whole or not there, and every damage is seen."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from effcli.engine.runs import checkpoint
from effcli.errors import InputError, ResourceError

MODEL = {"b": torch.randn(3, 4), "a": torch.arange(5.0)}
STATE = {
    "parts": {
        "optimizer": {"b/momentum": torch.randn(3, 4)},
        "meter": {"steps": 7, "flops": 1e300},
    },
    "rng": {"cpu": torch.get_rng_state()},
    "text": "ünïcode",
    "none": None,
    "list": [1, 2.5],
    "empty": {},
}


def test_what_is_saved_is_loaded(place: Path) -> None:
    path = checkpoint.save(place, 7, MODEL, STATE, keep=2)
    assert checkpoint.newest(place) == (path, [])
    weights = checkpoint.load_model(path, torch.device("cpu"))
    assert all(torch.equal(weights[name], MODEL[name]) for name in MODEL)
    state = checkpoint.load_state(path)
    assert torch.equal(
        state["parts"]["optimizer"]["b/momentum"], STATE["parts"]["optimizer"]["b/momentum"]
    )
    assert torch.equal(state["rng"]["cpu"], STATE["rng"]["cpu"])
    assert state["parts"]["meter"] == {"steps": 7, "flops": 1e300}
    assert (state["text"], state["none"], state["list"], state["empty"]) == (
        "ünïcode",
        None,
        [1, 2.5],
        {},
    )


def test_the_same_state_is_the_same_bytes(place: Path) -> None:
    one = checkpoint.save(place / "one", 7, MODEL, STATE, keep=2)
    other = checkpoint.save(place / "other", 7, dict(reversed(MODEL.items())), STATE, keep=2)
    for name in ("model.safetensors", "training.safetensors", "state.json", "manifest.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_old_checkpoints_go_and_the_newest_stay(place: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(place, step, MODEL, {}, keep=2)
    assert [path.name for path in checkpoint.steps(place)] == ["step-000000004", "step-000000005"]
    assert sorted(path.name for path in place.iterdir()) == ["step-000000004", "step-000000005"]


def test_every_flipped_bit_is_noticed(place: Path) -> None:
    path = checkpoint.save(place, 1, MODEL, STATE, keep=2)
    for file in path.iterdir():
        data = file.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 40)):
            for bit in (0, 7):
                changed = bytearray(data)
                changed[at] ^= 1 << bit
                file.write_bytes(changed)
                reason = checkpoint.damage(path)
                if reason is None:
                    assert file.name == "manifest.json", (file.name, at, bit)
                    assert _means_the_same(changed, data), (file.name, at, bit)
        file.write_bytes(data)
    assert checkpoint.damage(path) is None


def _means_the_same(changed: bytearray, data: bytes) -> bool:
    """White space or the step's number in a manifest: nothing that the weights hang on."""
    one, other = json.loads(changed), json.loads(data)
    return bool(one["files"] == other["files"] and one["schema"] == other["schema"])


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_is_noticed(place: Path, name: str) -> None:
    path = checkpoint.save(place, 1, MODEL, STATE, keep=2)
    (path / name).unlink()
    assert checkpoint.damage(path) is not None
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoint.newest(place)


def test_the_one_before_is_used_and_the_bad_one_kept_aside(place: Path) -> None:
    good = checkpoint.save(place, 1, MODEL, STATE, keep=2)
    bad = checkpoint.save(place, 2, MODEL, STATE, keep=2)
    (bad / "model.safetensors").write_bytes(b"")
    found, warnings = checkpoint.newest(place)
    assert found == good
    assert len(warnings) == 1
    assert list(place.glob("damaged-step-000000002-*"))


def test_a_checkpoint_under_another_name_is_damaged(place: Path) -> None:
    """Two that were exchanged are whole, and still not what they say."""
    one, other = (checkpoint.save(place, step, MODEL, STATE, keep=2) for step in (1, 2))
    other.rename(place / "aside")
    one.rename(other)
    assert checkpoint.damage(other) == "it is the one of another step"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_the_number_of_a_failed_write_is_not_lost(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: no (os error {number})")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        checkpoint.save(place, 1, MODEL, STATE, keep=2)
    assert raised.value.errno == number


def test_an_unfinished_draft_is_never_taken_for_a_checkpoint(place: Path) -> None:
    draft = place / ".draft-9-123"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest(place) == (None, [])
    checkpoint.clean(place)
    assert not draft.exists()


def test_a_full_disk_is_said_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    full = shutil._ntuple_diskusage(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(ResourceError, match="a checkpoint needs"):
        checkpoint.save(place, 1, MODEL, STATE, keep=2)
    assert list(place.iterdir()) == []


def test_a_save_that_fails_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(place, 1, MODEL, STATE, keep=2)
    assert list(place.iterdir()) == []


def test_nothing_is_ever_unpickled() -> None:
    """No load path of the package knows pickle."""
    root = Path(checkpoint.__file__).parents[2]
    for path in root.rglob("*.py"):
        text = path.read_text("utf8")
        for word in ("import pickle", "torch.load(", "joblib", "allow_pickle=True", "torch.save("):
            assert word not in text, path
