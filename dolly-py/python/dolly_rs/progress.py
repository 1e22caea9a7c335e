"""How far loading has come, shown or passed on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

__all__ = ["Reports", "reporter"]

Report = Callable[[int, int, str], object]


class Reports(NamedTuple):
    """What the native half calls: for each tensor, and while files are downloaded."""

    tensor: Report | None = None
    download: Callable[[int, int | None, str], object] | None = None


@contextmanager
def reporter(progress: bool | Report | None, title: str) -> Iterator[Reports]:
    """The callables to give to the native half; what is shown is gone or complete at the end."""
    if progress is None or progress is False:
        yield Reports()
    elif callable(progress):
        yield Reports(progress)
    else:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            with _line() as reports:
                yield reports
        else:
            with _bars(tqdm, title) as reports:
                yield reports


@contextmanager
def _bars(tqdm: Any, title: str) -> Iterator[Reports]:
    """A bar for the weights, and one for each file that is downloaded."""
    bars: dict[str, Any] = {}

    def bar(name: str, total: int | None, unit: str) -> Any:
        if name not in bars:
            bars[name] = tqdm(desc=name, total=total, unit=unit, unit_scale=True)
        return bars[name]

    def tensor(loaded: int, total: int, _: str) -> None:
        shown = bar(title, total, " weights")
        shown.update(loaded - shown.n)

    def download(received: int, total: int | None, file: str) -> None:
        shown = bar(file, total, "B")
        shown.update(received - shown.n)

    try:
        yield Reports(tensor, download)
    finally:
        for shown in bars.values():
            shown.close()


@contextmanager
def _line() -> Iterator[Reports]:
    """One line of a terminal for downloads, where tqdm is not installed."""
    if not sys.stderr.isatty():
        yield Reports()
        return

    def show(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    def download(received: int, total: int | None, file: str) -> None:
        of = "" if total is None else f" of {total / 1e6:.1f}"
        show(f"{file}: {received / 1e6:.1f}{of} MB")

    try:
        yield Reports(download=download)
    finally:
        show("")
