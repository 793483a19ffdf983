"""Records are whole lines, whatever the disk takes at a time."""

import json
from pathlib import Path
from typing import IO

import pytest

from effcli.engine.records import Notice
from effcli.engine.runs.rundir import RunDir


def test_a_write_that_falls_short_is_continued(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        def __init__(self, stream: IO[bytes]) -> None:
            self._stream = stream

        def write(self, data: bytes) -> int:
            return self._stream.write(data[:7])

    run = RunDir(place)
    with (place / "records.jsonl").open("ab", buffering=0) as stream:
        monkeypatch.setattr(run, "_records", Slow(stream))
        for number in range(3):
            run.append(Notice(f"number {number}"))
    rows = [json.loads(line) for line in (place / "records.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["number 0", "number 1", "number 2"]
