"""Instruction data: `load_dataset` reads it, `Dataset` describes, splits and extends it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, overload

from . import _native
from .errors import InvalidArgumentError
from .pipelines import Pipeline, Tokenizer
from .reports import Report

__all__ = ["Dataset", "Report", "Row", "SetInfo", "load_dataset"]

OnBadRow = Literal["error", "skip"]

_FIELDS = ("instruction", "context", "response", "category")


class Row(TypedDict):
    """One example; ``context`` may be empty, ``category`` unknown."""

    instruction: str
    context: str
    response: str
    category: str | None


@dataclass(frozen=True)
class SetInfo:
    """Where a set of rows came from, and what was done to it.

    Attributes
    ----------
    name : str
        Its name, by default the file's.
    source, licence : str or None
        Where it was had from; its licence, as an SPDX expression where one exists.
    sha256 : str
        Of the file's bytes.
    rows : int
        Rows that are left of it.
    steps : list of str
        Filters, cleaning and splits in their order, in words.
    """

    name: str
    source: str | None
    licence: str | None
    sha256: str
    rows: int
    steps: list[str]


@dataclass(frozen=True)
class _Reading:
    """How rows are read, as the native half takes it."""

    columns: tuple[str, str | None, str, str | None]
    on_bad_row: str
    max_line_bytes: int | None
    name: str | None
    source: str | None
    licence: str | None


def load_dataset(
    data: str | os.PathLike[str] | Iterable[Any],
    *,
    columns: Mapping[str, str | None] | None = None,
    on_bad_row: OnBadRow = "error",
    name: str | None = None,
    source: str | None = None,
    licence: str | None = None,
    max_line_bytes: int | None = None,
) -> Dataset:
    """Read instruction data in the form of databricks-dolly-15k.

    Parameters
    ----------
    data : str, path, sequence of either, or rows
        Files that end in ``.jsonl``, ``.ndjson``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet``;
        or rows: dicts, a pandas or polars frame, a pyarrow table, a Hugging Face dataset.
    columns : mapping, optional
        Which column holds ``"instruction"``, ``"context"``, ``"response"``, ``"category"``, where
        their names differ; None for context or category reads none.
    on_bad_row : {"error", "skip"}
        Raise at the first row that cannot be used, or leave such rows out: `Dataset.report` then
        counts and lists them.
    name, source, licence : str, optional
        Carried along to what is trained on the set. The published databricks-dolly-15k is known by
        its hash.
    max_line_bytes : int, optional
        Longest row in bytes; 16 MiB unless given.

    Raises
    ------
    DataFormatError
        A row that cannot be used: ``file``, ``line``, ``field`` and ``reason`` say which and why.
    ModelFormatError, DollyIOError

    Examples
    --------
    >>> import dolly_rs
    >>> rows = [{"instruction": "Name a colour.", "input": "", "output": "Blue."}]
    >>> data = dolly_rs.load_dataset(rows, columns={"context": "input", "response": "output"})
    >>> data[0]["response"]
    'Blue.'
    """
    reading = _Reading(_columns(columns), on_bad_row, max_line_bytes, name, source, licence)
    if isinstance(data, str | os.PathLike):
        return Dataset(_native.read_files([os.fspath(data)], reading))
    rows = _rows(data)
    if rows and all(isinstance(row, str | os.PathLike) for row in rows):
        return Dataset(_native.read_files([os.fspath(row) for row in rows], reading))
    jsonl = "".join(f"{json.dumps(_plain(row), default=_no_text)}\n" for row in rows)
    return Dataset(_native.read_rows(jsonl.encode(), name or "rows", reading))


class Dataset(Sequence[Row]):
    """Instruction data that never changes: every method gives a new set; made by `load_dataset`.

    Examples
    --------
    >>> import dolly_rs
    >>> row = {"instruction": "Add.", "context": "1 and 2", "response": "3", "category": "maths"}
    >>> data = dolly_rs.Dataset.from_records([row] * 10, licence="MIT")
    >>> train, test = data.split(0.2, seed=1)
    >>> len(train), len(test), test.sources[0].licence
    (8, 2, 'MIT')
    >>> len(data + data), data.categories()
    (20, {'maths': 10})
    """

    def __init__(self, native: _native.Dataset) -> None:
        self._native = native

    @classmethod
    def from_records(
        cls,
        rows: Iterable[Mapping[str, Any]],
        *,
        columns: Mapping[str, str | None] | None = None,
        on_bad_row: OnBadRow = "error",
        name: str | None = None,
        source: str | None = None,
        licence: str | None = None,
    ) -> Dataset:
        """A set of rows made here; see `load_dataset`."""
        return load_dataset(
            list(_rows(rows)),
            columns=columns,
            on_bad_row=on_bad_row,
            name=name,
            source=source,
            licence=licence,
        )

    def __len__(self) -> int:
        return len(self._native)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Row | Dataset:
        if isinstance(index, slice):
            words = f"rows {index.start}:{index.stop}:{index.step}"
            return self.select(range(*index.indices(len(self))), words)
        place = index + len(self) if index < 0 else index
        found = self._native.row(place) if place >= 0 else None
        if found is None:
            raise IndexError(f"row {index} of a set of {len(self)} rows")
        return _row(found)

    def __iter__(self) -> Iterator[Row]:
        for index in range(len(self)):
            yield self[index]

    def __add__(self, other: Dataset) -> Dataset:
        return self.concat(other) if isinstance(other, Dataset) else NotImplemented

    @property
    def sources(self) -> list[SetInfo]:
        """The sets the rows came from: names, licences, hashes, and what was done to them."""
        return [SetInfo(**one) for one in json.loads(self._native.sources())]

    @property
    def skipped(self) -> int:
        """Rows that were left out while reading, with ``on_bad_row="skip"``."""
        return sum(one["skipped"] for one in json.loads(self._native.summaries()))

    def origin(self, index: int) -> tuple[str, int]:
        """Name of the set that a row came from, and its line there."""
        found = self._native.origin(index) if index >= 0 else None
        if found is None:
            raise IndexError(f"row {index} of a set of {len(self)} rows")
        return found

    def categories(self) -> dict[str | None, int]:
        """Rows per category, most first; None stands for rows without one."""
        return dict(self._native.categories())

    def select(self, indices: Iterable[int], description: str = "some rows") -> Dataset:
        """The rows at these places, in that order."""
        return Dataset(self._native.select(list(indices), description))

    def filter(self, keep: Callable[[Row], object], description: str | None = None) -> Dataset:
        """The rows for which ``keep`` gives true; the description stands in `SetInfo.steps`.

        Examples
        --------
        >>> import dolly_rs
        >>> rows = [{"instruction": c, "response": c} for c in "abc"]
        >>> data = dolly_rs.load_dataset(rows).filter(lambda row: row["response"] > "a", "late")
        >>> len(data), data.sources[0].steps
        (2, ['filter: late; kept 2 of 3 rows'])
        """
        words = description or str(getattr(keep, "__name__", "a function"))
        return Dataset(self._native.filter([bool(keep(row)) for row in self], words))

    def shuffle(self, seed: int = 42) -> Dataset:
        """The rows in an order that the seed decides, the same on every machine."""
        return Dataset(self._native.shuffle(seed))

    def split(self, test: float = 0.02, seed: int = 42) -> tuple[Dataset, Dataset]:
        """Training and testing rows: a number of rows or a fraction is set apart for testing."""
        train, apart = self._native.split(test, seed)
        return Dataset(train), Dataset(apart)

    def without_duplicates(self, same: Literal["question", "whole"] = "question") -> Dataset:
        """The first of rows that are equal in instruction and context, or in all fields."""
        return Dataset(self._native.without_duplicates(same))

    def clean(
        self,
        *,
        footnotes: bool = True,
        footnotes_in_responses: bool = False,
        trim: bool = True,
    ) -> Dataset:
        """Remove footnote marks such as ``[5]`` from contexts, and blank space around fields.

        What was changed is counted in `SetInfo.steps`.
        """
        return Dataset(self._native.clean(footnotes, footnotes_in_responses, trim)[0])

    def concat(self, *others: Dataset) -> Dataset:
        """These rows, then those of the others; each set keeps its licence and source."""
        native = self._native
        for other in others:
            native = native.concat(other._native)
        return Dataset(native)

    def report(
        self,
        tokenizer: Pipeline | Tokenizer | None = None,
        *,
        max_length: int | None = None,
    ) -> Report:
        """Describe the set: categories, lengths, empties, duplicates, footnote marks.

        Parameters
        ----------
        tokenizer : Pipeline or Tokenizer, optional
            Lengths are in its tokens, as in training; in characters without.
        max_length : int, optional
            Rows of this length or more are counted: training drops them.
        """
        inner = tokenizer.tokenizer if isinstance(tokenizer, Pipeline) else tokenizer
        native = None if inner is None else inner._native
        return Report(*self._native.report(native, max_length))

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON object a line; the file appears whole or not at all."""
        self._native.to_jsonl(os.fspath(path))

    def __repr__(self) -> str:
        names = ", ".join(f"{one.name} ({one.licence or 'no licence'})" for one in self.sources)
        return f"<dolly_rs.Dataset of {len(self)} rows: {names}>"


def _row(parts: tuple[str, str, str, str | None]) -> Row:
    instruction, context, response, category = parts
    return Row(instruction=instruction, context=context, response=response, category=category)


def _columns(given: Mapping[str, str | None] | None) -> tuple[str, str | None, str, str | None]:
    named: dict[str, str | None] = {name: name for name in _FIELDS}
    for name, column in (given or {}).items():
        if name not in _FIELDS:
            raise InvalidArgumentError(f"columns: {name!r} is none of {', '.join(_FIELDS)}")
        named[name] = column
    instruction, response = named["instruction"], named["response"]
    if instruction is None or response is None:
        raise InvalidArgumentError("columns: instruction and response cannot be None")
    return instruction, named["context"], response, named["category"]


def _rows(data: Any) -> list[Any]:
    """Rows of what holds rows: frames and tables by their own methods."""
    for method in ("to_pylist", "to_dicts"):
        if hasattr(data, method):
            return list(getattr(data, method)())
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        return list(data.to_dict("records"))
    return list(data)


def _plain(row: Any) -> Any:
    """The row as it is to be written; a frame's NaN says that there is no value."""
    if not isinstance(row, Mapping):
        return row
    return {
        str(key): None if isinstance(value, float) and value != value else value
        for key, value in row.items()
    }


def _no_text(value: object) -> dict[str, None] | None:
    """What stands for a value that JSON does not have: the core then names the field."""
    kind = type(value).__name__
    return None if kind in ("NAType", "NaTType") else {kind: None}
