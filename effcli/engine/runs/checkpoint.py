"""Checkpoints: committed by a rename, verified by hashes, never unpickled.

A checkpoint is written beside its place and renamed into it when every file is safe on
disk with its hash in a manifest. So one that has its name is whole, unless the disk
lied: then its hashes say so, it is set aside, and the one before is used.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from effcli.engine.data.write import describe_file
from effcli.engine.runs.files import read_json, sync_folder, write_json
from effcli.errors import InputError, ResourceError

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL, TRAINING, STATE = "model.safetensors", "training.safetensors", "state.json"
Tree = dict[str, Any]


def save(
    folder: Path,
    step: int,
    model: dict[str, Tensor],
    state: Tree,
    keep: int,
    spared: Iterable[int] = (),
) -> Path:
    """Write the checkpoint of a step into `folder`.

    Of the others all but the newest `keep` and those of `spared` steps are removed.
    """
    folder.mkdir(exist_ok=True)
    place, draft = folder / _name(step), folder / f".draft-{step}-{os.getpid()}"
    if place.exists():
        return place
    tensors: dict[str, Tensor] = {}
    plain = _take_tensors(state, "", tensors)
    _check_space(folder, [*model.values(), *tensors.values()])
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        _write_tensors(draft / MODEL, model)
        _write_tensors(draft / TRAINING, tensors)
        write_json(draft / STATE, plain)
        files = {name: describe_file(draft / name) for name in (MODEL, TRAINING, STATE)}
        write_json(draft / MANIFEST, {"schema": SCHEMA, "step": step, "files": files})
        draft.rename(place)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(folder)
    names = set(map(_name, spared))
    for old in steps(folder)[:-keep]:
        if old.name not in names:
            _remove(old)
    return place


def drop(folder: Path, step: int) -> None:
    """Remove the checkpoint of a step, if there is one."""
    if (place := folder / _name(step)).exists():
        _remove(place)


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    ordered = {name: tensors[name].detach().contiguous().cpu() for name in sorted(tensors)}
    try:
        save_file(ordered, path)
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):  # the library hides the number
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _check_space(folder: Path, tensors: list[Tensor]) -> None:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors) * 21 // 20 + 2**16
    free = shutil.disk_usage(folder).free
    if free < needed:
        sizes = f"{needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"
        hint = "make room, then continue with --resume"
        raise ResourceError(f"a checkpoint needs {sizes} in {folder}", hint)


def _take_tensors(tree: Tree, prefix: str, tensors: dict[str, Tensor]) -> Tree:
    """Move every tensor of a tree into `tensors`, leaving its name in its place."""
    plain: Tree = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Tensor):
            tensors[path] = value
            plain[key] = {"tensor": path}
        elif isinstance(value, dict):
            plain[key] = {"tree": _take_tensors(value, f"{path}|", tensors)}
        else:
            plain[key] = {"value": value}
    return plain


def _put_tensors(plain: Tree, tensors: dict[str, Tensor]) -> Tree:
    tree: Tree = {}
    for key, entry in plain.items():
        if "tensor" in entry:
            tree[key] = tensors[entry["tensor"]]
        elif "tree" in entry:
            tree[key] = _put_tensors(entry["tree"], tensors)
        else:
            tree[key] = entry["value"]
    return tree


def steps(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def damage(place: Path) -> str | None:
    """What is wrong with a checkpoint, if anything."""
    try:
        manifest = read_json(place / MANIFEST)
        if manifest["schema"] != SCHEMA:
            return "it was written by another version"
        if set(manifest["files"]) != {MODEL, TRAINING, STATE}:
            return f"{MANIFEST} does not name its files"
        if place.name != _name(manifest["step"]):
            return "it is the one of another step"
        for name, described in manifest["files"].items():
            if not (place / name).is_file():
                return f"{name} is missing"
            if describe_file(place / name) != described:
                return f"{name} is not what was written"
    except (InputError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


def of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, whole and undamaged."""
    place = folder / _name(step)
    if (reason := damage(place)) is not None:
        raise InputError(f"{place} cannot be used: {reason}")
    return place


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose hashes hold, and a line for each damaged one set aside."""
    warnings: list[str] = []
    for place in reversed(steps(folder)):
        if (reason := damage(place)) is None:
            return place, warnings
        aside = place.with_name(f"damaged-{place.name}-{os.getpid()}")
        place.rename(aside)
        warnings.append(f"{place} is damaged and was set aside: {reason}")
    if warnings:
        raise InputError(f"no checkpoint in {folder} is whole", "; ".join(warnings))
    return None, warnings


def newest_whole(folder: Path, warn: Callable[[str], None] = lambda _: None) -> Path | None:
    """The same for whoever only reads: what is damaged is passed over, and stays where it is."""
    for place in reversed(steps(folder)):
        if (reason := damage(place)) is None:
            return place
        warn(f"{place} is damaged and was not used: {reason}")
    return None


def load_model(place: Path, device: torch.device) -> dict[str, Tensor]:
    """The weights of a checkpoint."""
    return _read_tensors(place / MODEL, device)


def load_state(place: Path) -> Tree:
    """Everything else, as it was given to `save`."""
    tensors = _read_tensors(place / TRAINING, torch.device("cpu"))
    try:
        return _put_tensors(read_json(place / STATE), tensors)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{place / STATE} is damaged: {error}") from None


def load_value(place: Path, key: str) -> Any:
    """One plain value of the state; None if it has no such value."""
    try:
        return read_json(place / STATE).get(key, {}).get("value")
    except AttributeError as error:
        raise InputError(f"{place / STATE} is damaged: {error}") from None


def _read_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from None


def clean(folder: Path) -> None:
    """Remove what an earlier process left unfinished; the run's lock is held."""
    for pattern in (".draft-*", ".trash-*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _remove(place: Path) -> None:
    """First away from its name, so that no half of it can be taken for a checkpoint."""
    trash = place.with_name(f".trash-{place.name}")
    place.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)
