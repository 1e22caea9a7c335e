"""Fine-tuning: `train` on instructions, `train_text` on plain text, `evaluate` the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict

from . import _native
from .data import Dataset, load_dataset
from .lora import LoraConfig
from .options import check_names
from .pipelines import BUNDLED
from .progress import reporter, step_reporter
from .runs import Evaluation, StepReport, TrainingRun

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["OnStep", "TrainingNames", "evaluate", "train", "train_text"]

OnStep = Callable[[StepReport], object]
"""Called after every step; False ends the run there, with a checkpoint and a result."""

Data = str | os.PathLike[str] | Dataset | Iterable[Any]
ScheduleName = Literal["constant", "linear", "cosine"]


class TrainingNames(TypedDict, total=False):
    """Keywords of `train_text` that mean what they mean to `train`."""

    lora: LoraConfig | None
    epochs: int
    max_steps: int | None
    batch_size: int
    gradient_accumulation: int
    learning_rate: float
    warmup_steps: int
    schedule: ScheduleName
    max_length: int | None
    eval_size: float
    eval_steps: int
    save_steps: int
    save_total_limit: int
    gradient_checkpointing: bool
    seed: int
    resume: bool
    threads: int | None
    device: str
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    max_grad_norm: float
    dropout: float
    early_stopping_patience: int | None
    logging_steps: int
    memory_limit: int | None


@dataclass(frozen=True)
class _Options:
    """The options of a run, as the native half reads them."""

    lora: LoraConfig | None = None
    epochs: int = 2
    max_steps: int | None = None
    batch_size: int = 8
    gradient_accumulation: int = 1
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    schedule: str = "constant"
    max_length: int | None = None
    eval_size: float = 0.02
    eval_steps: int = 50
    save_steps: int = 200
    save_total_limit: int = 10
    gradient_checkpointing: bool = True
    seed: int = 42
    resume: bool = False
    threads: int | None = None
    device: str = "auto"
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    dropout: float = 0.0
    early_stopping_patience: int | None = None
    logging_steps: int = 10
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.lora, LoraConfig | None):
            raise TypeError(f"lora: expected a LoraConfig or None, got {self.lora!r}")


@dataclass(frozen=True)
class _Text:
    """Plain text: files, or where there are none, texts."""

    files: list[str] | None
    texts: list[str]
    column: str
    name: str | None
    source: str | None
    licence: str | None


_NAMES = [one.name for one in fields(_Options)]


def train(
    model: str | os.PathLike[str],
    data: Data,
    output_dir: str | os.PathLike[str],
    *,
    lora: LoraConfig | None = None,
    epochs: int = 2,
    max_steps: int | None = None,
    batch_size: int = 8,
    gradient_accumulation: int = 1,
    learning_rate: float = 1e-5,
    warmup_steps: int = 0,
    schedule: ScheduleName = "constant",
    max_length: int | None = None,
    eval_size: float = 0.02,
    eval_steps: int = 50,
    save_steps: int = 200,
    save_total_limit: int = 10,
    gradient_checkpointing: bool = True,
    seed: int = 42,
    resume: bool = False,
    threads: int | None = None,
    device: str = "auto",
    on_step: OnStep | None = None,
    weight_decay: float = 0.0,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_epsilon: float = 1e-8,
    max_grad_norm: float = 1.0,
    dropout: float = 0.0,
    early_stopping_patience: int | None = None,
    logging_steps: int = 10,
    memory_limit: int | None = None,
    progress: bool | None = None,
    **unknown: NoReturn,
) -> TrainingRun:
    """Fine-tune a model on instruction data, fully or with low-rank adapters.

    The result is a directory that `dolly_rs.pipeline` and transformers load; with ``lora`` it is
    an adapter, for ``pipeline(model, adapter=output_dir)``. Prompt, masks, order and defaults are
    those of Dolly's trainer. Ctrl-C stops the run within a batch and keeps its checkpoints; the
    same call with ``resume=True`` goes on from the newest, and ends with the same bits as a run
    that was never stopped.

    Parameters
    ----------
    model : str or path
        The model to start from, as of `pipeline`.
    data : Dataset, path or rows
        A `Dataset`, or what `load_dataset` reads.
    output_dir : path
        Where the result, checkpoints and logs are written.
    lora : LoraConfig, optional
        Train low-rank adapters beside frozen weights; every weight is trained without.
    epochs : int
        Times every row is seen.
    max_steps : int, optional
        Steps of the run, whatever ``epochs`` says.
    batch_size, gradient_accumulation : int
        Sequences of a batch; batches of a step.
    learning_rate : float
        The peak rate.
    warmup_steps : int
        Steps over which the rate rises from 0.
    schedule : {"constant", "linear", "cosine"}
        The rate's course after the warm-up.
    max_length : int, optional
        Rows of this many tokens or more are dropped and counted; the model's context unless given.
    eval_size : int or float
        Rows, or share of the rows, kept from training for evaluation; 0 evaluates nothing.
    eval_steps, save_steps, logging_steps : int
        Steps between evaluations, checkpoints and rows of the logs; 0 evaluates or saves at the
        end only.
    save_total_limit : int
        Most checkpoints kept; the newest and the best always stay.
    gradient_checkpointing : bool
        Compute activations again in the backward pass: less memory, same numbers.
    seed : int
        Decides order, initial values and dropout.
    resume : bool
        Go on from the newest sound checkpoint in ``output_dir``, if there is one.
    threads : int, optional
        One per core unless given; the result does not depend on it.
    device : {"auto", "cpu"}
        Where the network runs.
    on_step : callable, optional
        Called after every step, on another thread, with a dict: the row of ``history``,
        ``total_steps``, ``remaining`` (seconds) and ``evaluation``. False ends the run there, with
        a checkpoint and a result. What it raises ends the run and is raised here.
    weight_decay, adam_beta1, adam_beta2, adam_epsilon, max_grad_norm : float
        Of AdamW; gradients are scaled down to a global norm of ``max_grad_norm``, 0 is off.
    dropout : float
        Share of activations dropped while training, in [0, 1).
    early_stopping_patience : int, optional
        Stop after so many evaluations without a new best; the result is then the best checkpoint.
    memory_limit : int, optional
        Bytes the run may take, checked before anything is allocated.
    progress : bool, optional
        True shows downloads and steps on standard error: as bars where tqdm is installed, else as
        a line of the terminal.

    Raises
    ------
    InvalidArgumentError
        Also for a loss that is not finite (the last checkpoint is kept), and for an ``output_dir``
        that holds checkpoints, unless ``resume`` is set.
    ModelNotFoundError, ModelFormatError, DataFormatError, DollyMemoryError, DeviceError

    Examples
    --------
    >>> import dolly_rs, tempfile
    >>> rows = [{"instruction": f"Say {n}.", "response": f"{n}"} for n in range(8)]
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = dolly_rs.train("dolly-nano", rows, out, max_steps=2, batch_size=2, eval_size=2)
    ...     answer = dolly_rs.pipeline(out).generate("Say 3.", max_new_tokens=4)
    >>> len(run.history), run.stopped, run.eval_rows
    (2, 'finished', 2)
    """
    given = dict(locals())
    check_names(unknown, [*_NAMES, "on_step", "progress"], "keyword")
    options = _Options(**{name: given[name] for name in _NAMES})
    rows = _dataset(data)._native
    directory = os.fspath(output_dir)
    with (
        reporter(progress, f"Downloading {model}") as files,
        step_reporter(progress, on_step) as step,
    ):
        run = _native.train(
            os.fspath(model), rows, directory, options, str(BUNDLED), (step, files.download)
        )
    return TrainingRun(**run)


def train_text(
    model: str | os.PathLike[str],
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    output_dir: str | os.PathLike[str],
    *,
    texts: Iterable[str] = (),
    column: str = "text",
    name: str | None = None,
    source: str | None = None,
    licence: str | None = None,
    on_step: OnStep | None = None,
    progress: bool | None = None,
    **options: Unpack[TrainingNames],
) -> TrainingRun:
    """Train on plain text, packed into blocks of ``max_length`` tokens that are all predicted.

    Parameters
    ----------
    model, output_dir, on_step, progress, **options
        As of `train`.
    files : path, sequence of paths or None
        ``.txt`` files, one text each, or files of rows as `load_dataset` reads them.
    texts : iterable of str
        The texts themselves, where ``files`` is None.
    column : str
        The column that holds the text, in files of rows.
    name, source, licence : str, optional
        Carried along to the result's manifest.

    Examples
    --------
    >>> import dolly_rs, tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = dolly_rs.train_text("dolly-nano", None, out, texts=["Sheep graze. "] * 40,
    ...                               max_length=16, max_steps=1, batch_size=2, eval_size=0)
    >>> len(run.history)
    1
    """
    check_names(options, _NAMES, "keyword")
    listed = [files] if isinstance(files, str | os.PathLike) else files
    text = _Text(
        files=None if listed is None else [os.fspath(one) for one in listed],
        texts=[texts] if isinstance(texts, str) else list(texts),
        column=column,
        name=name,
        source=source,
        licence=licence,
    )
    if (text.files is None) != bool(text.texts):
        raise TypeError("give either files or texts")
    paths = os.fspath(model), os.fspath(output_dir)
    with (
        reporter(progress, f"Downloading {model}") as shown,
        step_reporter(progress, on_step) as step,
    ):
        run = _native.train_text(
            paths[0], text, paths[1], _Options(**options), str(BUNDLED), (step, shown.download)
        )
    return TrainingRun(**run)


def evaluate(
    model: str | os.PathLike[str],
    data: Data,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    threads: int | None = None,
) -> Evaluation:
    """Loss and perplexity of a model, or of an adapter's directory, on instruction data.

    Parameters
    ----------
    model : str or path
        As of `pipeline`, or the directory of an adapter that names its base.
    data : Dataset, path or rows
        A `Dataset`, or what `load_dataset` reads.
    batch_size, threads : int
        The result does not depend on them.
    max_length : int, optional
        Rows of this many tokens or more are left out and counted.

    Returns
    -------
    dict
        ``loss`` in nats per response token, ``perplexity``, ``tokens``, ``rows``,
        ``dropped_rows``, and the first four ``by_category``.

    Examples
    --------
    >>> import dolly_rs
    >>> rows = [{"instruction": "Name a colour.", "response": "Red.", "category": "open_qa"}]
    >>> found = dolly_rs.evaluate("dolly-nano", rows)
    >>> found["loss"] == found["by_category"]["open_qa"]["loss"]
    True
    """
    options = _Options(batch_size=batch_size, max_length=max_length, threads=threads)
    return _native.evaluate(os.fspath(model), _dataset(data)._native, options, str(BUNDLED))


def _dataset(data: Data) -> Dataset:
    return data if isinstance(data, Dataset) else load_dataset(data)
