"""What training gives back: numbers of every step, and where the result is."""

from __future__ import annotations

import html
import importlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

__all__ = ["BestLoss", "Evaluation", "HistoryRow", "MeanLoss", "StepReport", "TrainingRun"]


class MeanLoss(TypedDict):
    """Mean loss in nats over the predicted tokens of some rows; perplexity is its exponential."""

    loss: float
    perplexity: float
    tokens: int
    rows: int


class Evaluation(MeanLoss):
    """Loss over all rows and by category; rows that were too long are counted, not evaluated."""

    by_category: dict[str, MeanLoss]
    dropped_rows: int


class HistoryRow(TypedDict):
    """One step; ``eval_loss`` is None where no evaluation followed it."""

    step: int
    epoch: float
    loss: float
    eval_loss: float | None
    learning_rate: float
    grad_norm: float
    tokens_per_second: float


class StepReport(HistoryRow):
    """What ``on_step`` gets: the step, and how far the run is; ``remaining`` is in seconds."""

    total_steps: int
    remaining: float
    evaluation: Evaluation | None


class BestLoss(TypedDict):
    """The lowest evaluation loss, and the step it followed."""

    step: int
    eval_loss: float


@dataclass(frozen=True, repr=False)
class TrainingRun:
    """A finished run; made by `dolly_rs.train`.

    Attributes
    ----------
    output_dir : Path
        The result, its card and manifest, the logs and the checkpoints.
    history : list of dict
        Every step in order, those before a resume included: ``step``, ``epoch``, ``loss``,
        ``eval_loss`` (or None), ``learning_rate``, ``grad_norm`` and ``tokens_per_second``.
    total_steps : int
        Steps that all epochs would have.
    stopped : {"finished", "early_stopping", "callback"}
        Why the run ended.
    evaluation : dict or None
        The last evaluation, as `dolly_rs.evaluate` gives it.
    best : dict or None
        ``step`` and ``eval_loss`` of the lowest evaluation loss.
    best_checkpoint : Path or None
        The checkpoint with the lowest evaluation loss.
    train_rows, eval_rows, dropped_rows : int
        Rows trained on, evaluated on, and left out because they were too long.
    resumed_from : int or None
        The step of the checkpoint that the run went on from.
    warnings : list of str
        Such as damaged checkpoints that were passed over.
    """

    output_dir: Path
    history: list[HistoryRow]
    total_steps: int
    stopped: str
    evaluation: Evaluation | None = None
    best: BestLoss | None = None
    best_checkpoint: Path | None = None
    train_rows: int = 0
    eval_rows: int = 0
    dropped_rows: int = 0
    resumed_from: int | None = None
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the history, ready for JSON; ``steps`` and ``loss`` are of its end."""
        values = asdict(self)
        history = values.pop("history")
        last = {"steps": len(history), "loss": history[-1]["loss"] if history else None}
        copy: dict[str, Any] = json.loads(json.dumps({**last, **values}, default=str))
        return copy

    def plot(self) -> Any:
        """A matplotlib figure: loss and evaluation loss by step.

        Raises
        ------
        ImportError
            Where matplotlib is not installed.
        """
        try:
            figures = importlib.import_module("matplotlib.figure")
        except ImportError as error:
            raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
        figure = figures.Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot([row["step"] for row in self.history], [row["loss"] for row in self.history])
        evaluated = [row for row in self.history if row["eval_loss"] is not None]
        if evaluated:
            losses = [row["eval_loss"] for row in evaluated]
            axes.plot([row["step"] for row in evaluated], losses, marker="o")
        axes.legend(["training", "evaluation"][: len(axes.lines)])
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        return figure

    def __repr__(self) -> str:
        loss = f", loss {self.history[-1]['loss']:.4f}" if self.history else ""
        evaluated = "" if self.evaluation is None else f", eval loss {self.evaluation['loss']:.4f}"
        return (
            f"<dolly_rs.TrainingRun in {str(self.output_dir)!r}: {len(self.history)} of "
            f"{self.total_steps} steps, {self.stopped}{loss}{evaluated}>"
        )

    def _repr_html_(self) -> str:
        """A table of the run's numbers; its last evaluation by category."""
        rows: list[tuple[str, object]] = [
            ("result", self.output_dir),
            ("steps", f"{len(self.history)} of {self.total_steps}, {self.stopped}"),
            ("rows trained on", self.train_rows),
            ("rows evaluated on", self.eval_rows),
            ("rows too long", self.dropped_rows),
        ]
        if self.history:
            rows.append(("loss", f"{self.history[-1]['loss']:.4f}"))
        if self.evaluation is not None:
            rows.append(("evaluation loss", _loss(self.evaluation)))
            categories = self.evaluation["by_category"].items()
            rows.extend((f"- {name}", _loss(mean)) for name, mean in categories)
        rows.extend(("warning", warning) for warning in self.warnings)
        cells = (f"<td>{html.escape(n)}</td><td>{html.escape(str(v))}</td>" for n, v in rows)
        return f"<table><tbody>{''.join(f'<tr>{one}</tr>' for one in cells)}</tbody></table>"


def _loss(mean: MeanLoss) -> str:
    return f"{mean['loss']:.4f} (perplexity {mean['perplexity']:.2f}, {mean['tokens']} tokens)"
