"""How far a call has come, shown or passed on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from .runs import Evaluation, HistoryRow, StepReport

__all__ = ["Reports", "reporter", "step_reporter", "step_text"]

Report = Callable[[int, int, str], object]
Show = Callable[[StepReport], object]
Step = Callable[[HistoryRow, int, float, Evaluation | None], object]


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

    def download(received: int, total: int | None, file: str) -> None:
        of = "" if total is None else f" of {total / 1e6:.1f}"
        _show(f"{file}: {received / 1e6:.1f}{of} MB")

    try:
        yield Reports(download=download)
    finally:
        _show("")


def _show(text: str) -> None:
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


@contextmanager
def step_reporter(
    progress: bool | None, on_step: Callable[[StepReport], object] | None
) -> Iterator[Step | None]:
    """What the native half calls after every step; None where nobody listens."""
    with _steps(progress) as show:
        if show is None and on_step is None:
            yield None
            return

        def step(
            row: HistoryRow, total: int, remaining: float, evaluation: Evaluation | None
        ) -> object:
            report = StepReport(
                **row, total_steps=total, remaining=remaining, evaluation=evaluation
            )
            if show is not None:
                show(report)
            # The callback may keep or change its dict; nobody reads it afterwards.
            return None if on_step is None else on_step(report)

        yield step


@contextmanager
def _steps(progress: bool | None) -> Iterator[Show | None]:
    """A bar of steps; a line of a terminal where tqdm is not installed."""
    if not progress:
        yield None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        with _step_line() as show:
            yield show
        return
    bars: list[Any] = []
    shown: dict[str, str] = {}

    def bar(report: StepReport) -> None:
        if not bars:
            done, total = report["step"] - 1, report["total_steps"]
            bars.append(tqdm(desc="Training", total=total, initial=done, unit=" steps"))
        shown["loss"] = f"{report['loss']:.4f}"
        if report["eval_loss"] is not None:
            shown["eval loss"] = f"{report['eval_loss']:.4f}"
        shown["tokens/s"] = f"{report['tokens_per_second']:.0f}"
        bars[0].set_postfix(shown, refresh=False)
        bars[0].update(report["step"] - bars[0].n)

    try:
        yield bar
    finally:
        for one in bars:
            one.close()


@contextmanager
def _step_line() -> Iterator[Show | None]:
    if not sys.stderr.isatty():
        yield None
        return
    try:
        yield lambda report: _show(step_text(report))
    finally:
        sys.stderr.write("\n")


def step_text(report: StepReport) -> str:
    """One line about a step."""
    eval_loss = report["eval_loss"]
    evaluated = "" if eval_loss is None else f", eval loss {eval_loss:.4f}"
    return (
        f"step {report['step']} of {report['total_steps']}: loss {report['loss']:.4f}{evaluated}, "
        f"{report['tokens_per_second']:.0f} tokens/s, "
        f"{timedelta(seconds=round(report['remaining']))} left"
    )
