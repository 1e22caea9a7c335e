"""How far loading has come, shown or passed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["reporter"]

_Report = Callable[[int, int, str], object]


@contextmanager
def reporter(progress: bool | _Report | None, model: str) -> Iterator[_Report | None]:
    """The callable to give to the native half; a bar is closed at the end."""
    if progress is None or progress is False:
        yield None
    elif callable(progress):
        yield progress
    else:
        with _bar(model) as report:
            yield report


@contextmanager
def _bar(model: str) -> Iterator[_Report | None]:
    """A tqdm bar, where tqdm is installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield None
        return
    with tqdm(desc=f"Loading {model}", unit=" weights", unit_scale=True) as bar:

        def report(loaded: int, total: int, tensor: str) -> None:
            bar.total = total
            bar.update(loaded - bar.n)

        yield report
