"""Named corpora, read from the Hugging Face hub with `datasets`."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from effcli.engine.data.source import Row
from effcli.errors import EffError, InputError, ResourceError
from effcli.settings.corpora import CORPORA

_HUB_NAMES = {"train": "train", "val": "validation", "test": "test"}
_TITLE = re.compile(r" = [^=]")  # the first line of a WikiText article


class Hub:
    """A corpus of the table in `effcli/settings/corpora.py`."""

    used: ClassVar[frozenset[str]] = frozenset({"text_column"})

    def __init__(
        self,
        name: str,
        text_column: str | None = None,
        *,
        streaming: bool = False,
        revision: str | None = None,
    ) -> None:
        """The newest revision by default; `streaming` keeps nothing of what is downloaded."""
        self.entry = CORPORA[name]
        self._is_streamed = streaming or self.entry.streaming
        self.name = name
        self.tokenizer = self.entry.tokenizer
        self.held_out_share = self.entry.held_out_share
        self._column = text_column or self.entry.column
        self._revision = revision or self._newest_revision()
        self._splits = self._open()
        self.splits = frozenset(
            ours for ours, theirs in _HUB_NAMES.items() if theirs in self._splits
        )
        self._rows_read = 0
        self._rows_total: int | None = None

    def _newest_revision(self) -> str | None:
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE:
            return None  # whatever is in the local cache
        with _HubErrors(self.entry.hub_id):
            return HfApi().dataset_info(self.entry.hub_id).sha

    def _open(self) -> dict[str, Any]:
        import datasets

        datasets.disable_progress_bars()
        with _HubErrors(self.entry.hub_id):
            return dict(
                datasets.load_dataset(
                    self.entry.hub_id,
                    self.entry.config,
                    revision=self._revision,
                    streaming=self._is_streamed,
                )
            )

    def rows(self, split: str) -> Iterator[Row]:
        """The split's documents; lines of WikiText are put together to articles again."""
        data = self._splits[_HUB_NAMES[split]]
        if data.column_names is not None and self._column not in data.column_names:
            raise InputError(
                f"{self.name}: there is no column {self._column!r}",
                f"--text-column is one of: {', '.join(data.column_names)}",
            )
        self._rows_read = 0
        self._rows_total = None if self._is_streamed else len(data)
        texts = self._texts(data)
        yield from map(Row, _articles(texts) if self.entry.rows == "wikitext" else texts)

    def _texts(self, data: Iterable[dict[str, Any]]) -> Iterator[object]:
        with _HubErrors(self.entry.hub_id):
            for row in data:
                self._rows_read += 1
                yield row.get(self._column)

    def share_read(self) -> float | None:
        """Known only where the corpus is not streamed."""
        return self._rows_read / self._rows_total if self._rows_total else None

    def stamp(self) -> str | None:
        """The revision."""
        return self._revision

    def describe(self) -> dict[str, Any]:
        """Hub id, configuration and the exact revision."""
        return {
            "kind": "hub",
            "hub_id": self.entry.hub_id,
            "config": self.entry.config,
            "revision": self._revision,
            "column": self._column,
            "license": self.entry.license,
        }


def _articles(lines: Iterable[object]) -> Iterator[object]:
    article: list[str] = []
    for line in lines:
        if not isinstance(line, str):
            yield line  # to be counted as what it is
            continue
        if _TITLE.match(line) and article:
            yield "".join(article)
            article = []
        article.append(line)
    if article:
        yield "".join(article)


class _HubErrors:
    """Says what went wrong with the hub in one line."""

    def __init__(self, hub_id: str) -> None:
        self._hub_id = hub_id

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, EffError):
            return
        from datasets.exceptions import DatasetsError
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, RepositoryNotFoundError):
            raise InputError(f"the hub has no data set {self._hub_id}: {first}") from error
        if isinstance(error, HfHubHTTPError | OSError) or library.startswith("http"):
            hint = "check the network (or HF_ENDPOINT), or prepare a local file, or `python`"
            raise ResourceError(
                f"cannot read {self._hub_id} from the hub: {first}", hint
            ) from error
        if isinstance(error, DatasetsError | ValueError | RuntimeError) or library == "pyarrow":
            raise InputError(f"{self._hub_id} is not what was expected: {first}") from error
