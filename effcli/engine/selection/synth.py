"""The edge of what is read: text cut at new places, and text that a user's program writes."""

import json
import shlex
import subprocess
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.processes import Processes
from effcli.engine.selection.holdout import Row
from effcli.engine.selection.keys import uniform
from effcli.engine.selection.overlap import Grams
from effcli.engine.selection.passages import Ids, passages_of
from effcli.engine.selection.yardstick import Yardstick
from effcli.errors import InputError

Floats = NDArray[np.floating]
LARGEST_SHARE = 0.1  # of a round's windows, that may be written ones
HARD = 2 / 3  # quantile of the losses under counts
FORBIDDEN, FORBIDDEN_BYTES = 13, 52  # tokens in a row of held-out text; more where they are short
_SHIFT = 6  # salt of the offsets


def shifts(documents: Ids, room: tuple[Ids, Ids], context: int, seed: int, epoch: int) -> Ids:
    """By how many tokens windows are moved: up to half of one, all of a document alike.

    `room` says how far each may go back, and how far on.
    """
    wanted = np.rint((uniform(documents, seed, epoch, _SHIFT) - 0.5) * context).astype(np.int64)
    moved: Ids = wanted.clip(-room[0], room[1])
    return moved


def hard_from(losses: Floats) -> float:
    """The loss that the top third has."""
    return float(np.quantile(losses, HARD)) if len(losses) else np.inf


def forbidden(tokens: int, size: int) -> int:
    """How many tokens in a row no written text may share with one of so many tokens and bytes."""
    return max(FORBIDDEN, round(FORBIDDEN_BYTES * tokens / max(1, size)))


@dataclass(frozen=True)
class Gate:
    """What written text must be like."""

    yardstick: Yardstick
    held_out: Grams
    """Every stretch of validation text."""
    longest: int
    """Passage, in tokens."""

    def passes(self, documents: list[Ids], least: float) -> NDArray[np.bool_]:
        """Which are as much like trusted text as that ratio, and hold no held-out text."""
        if not documents:
            return np.zeros(0, dtype=np.bool_)
        row = Row(documents)
        passages = passages_of(row, self.longest)
        ratios = self.yardstick.columns(row, passages)["ratio"].astype(np.float64)
        sums = np.bincount(passages.documents, ratios * passages.lengths, len(documents))
        means = sums / np.bincount(passages.documents, passages.lengths, len(documents))
        known = self.held_out.passages_with(row, passages_of(row, row.tokens))
        passed: NDArray[np.bool_] = (means >= least) & ~known  # NaN does not pass
        return passed


class Writer:
    """A user's program that writes text like hard text; what is good enough is read, too.

    It gets lines of JSON, {"id", "text"}, and answers with lines {"text"}, or {"id", "text"}
    where it says what an answer was made from.
    """

    def __init__(
        self, command: str, timeout: float, tokenizer: Tokenizer, gate: Gate, processes: Processes
    ) -> None:
        """`timeout` is in seconds, for one round."""
        self._command, self._timeout = shlex.split(command), timeout
        self._tokenizer, self._gate, self._processes = tokenizer, gate, processes
        self.kept = self.refused = 0
        """Answers so far."""

    def write(self, windows: Ids, losses: Floats, ratios: Floats) -> tuple[Ids, Ids]:
        """Written windows, at most a tenth as many, and the place of what each was made from."""
        most, context = int(LARGEST_SHARE * len(windows)), windows.shape[1] - 1
        hard = np.flatnonzero(losses >= hard_from(losses))
        prompts = hard[np.argsort(-losses[hard], kind="stable")][:most]
        nothing = np.empty((0, context + 1), dtype=np.int64), np.empty(0, dtype=np.int64)
        if not len(prompts):
            return nothing
        texts = [self._tokenizer.decode(row) for row in windows[prompts, :-1]]
        answers = self._answers(texts)
        encoded = self._tokenizer.encode_several([text for _, text in answers])
        separator = [self._tokenizer.separator]
        made = [
            (number, np.concatenate([separator, ids]).astype(np.int64))
            for (number, _), ids in zip(answers, encoded, strict=True)
            if ids is not None and len(ids)
        ]
        passed = self._gate.passes([ids for _, ids in made], float(np.median(ratios)))
        kept = [one for one, is_good in zip(made, passed, strict=True) if is_good]
        self.kept, self.refused = self.kept + len(kept), self.refused + len(answers) - len(kept)
        if not kept:
            return nothing
        row = np.concatenate([ids for _, ids in kept])
        starts = np.arange(min(most, (len(row) - 1) // context)) * context
        ends = np.cumsum([len(ids) for _, ids in kept])
        owners = np.array([number for number, _ in kept])
        of = owners[np.searchsorted(ends, starts, side="right")] if len(starts) else nothing[1]
        return row[starts[:, None] + np.arange(context + 1)], prompts[of]

    def _answers(self, texts: list[str]) -> list[tuple[int, str]]:
        """What the program says, once for all processes: numbers of texts, and new texts."""
        first = self._processes.is_first
        said = self._processes.first(self._ask(texts) if first else None)
        if "error" in said:
            hint = "try it on a line of JSON with id and text; synth.timeout is in seconds"
            raise InputError(f"--synth-cmd: {said['error']}", hint)
        return [(number, text) for number, text in said["answers"]]

    def _ask(self, texts: list[str]) -> dict[str, Any]:
        lines = "".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(texts))
        try:
            done = subprocess.run(
                self._command,
                input=lines.encode(),
                capture_output=True,
                timeout=self._timeout,
                start_new_session=True,  # a signal is for us
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no answer within {self._timeout:g} seconds"}
        except OSError as error:
            return {"error": f"cannot be started: {error}"}
        if done.returncode:
            last = done.stderr.decode("utf8", "replace").strip().splitlines()[-1:]
            return {"error": ": ".join([f"ended with code {done.returncode}", *last])}
        try:
            rows = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
            answers = [(row.get("id", n), row["text"]) for n, row in enumerate(rows)]
        except (ValueError, KeyError, AttributeError):
            return {"error": "an answer is not a line of JSON with a text"}
        if not all(isinstance(n, int) and isinstance(text, str) for n, text in answers):
            return {"error": "an answer has a text that is none, or an id that is none"}
        return {"answers": [(n % len(texts), text) for n, text in answers]}

    def state_dict(self) -> dict[str, Any]:
        """How many answers there were."""
        return {"kept": self.kept, "refused": self.refused}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.kept, self.refused = int(state["kept"]), int(state["refused"])
