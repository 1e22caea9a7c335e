"""Training: `train` on instructions, `train_text` on plain text, `evaluate` the result.

Each starts from a model, or from nothing with a configuration and a tokenizer, for which
`train_tokenizer` learns a vocabulary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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

__all__ = ["OnStep", "TrainingNames", "evaluate", "train", "train_text", "train_tokenizer"]

OnStep = Callable[[StepReport], object]
"""Called after every step; False ends the run there, with a checkpoint and a result."""

Data = str | os.PathLike[str] | Dataset | Iterable[Any]
Config = Mapping[str, Any] | str | os.PathLike[str]
TokenizerJson = bytes | bytearray | memoryview | str | os.PathLike[str]
ScheduleName = Literal["constant", "linear", "cosine"]
PrecisionName = Literal["f32", "bf16"]


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
    precision: PrecisionName
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
    precision: str = "f32"
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
    model: str | os.PathLike[str] | None,
    data: Data,
    output_dir: str | os.PathLike[str],
    *,
    config: Config | None = None,
    tokenizer: TokenizerJson | None = None,
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
    precision: PrecisionName = "f32",
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
    model : str, path or None
        The model to start from, as of `pipeline`; None for one from nothing.
    data : Dataset, path or rows
        A `Dataset`, or what `load_dataset` reads.
    output_dir : path
        Where the result, checkpoints and logs are written.
    config : dict or path, optional
        Where ``model`` is None, the shape of the model from nothing: the keys of ``config.json``,
        or such a file. Its weights are random; the vocabulary is that of ``tokenizer``.
    tokenizer : bytes or path, optional
        Where ``model`` is None, a ``tokenizer.json``, such as `train_tokenizer` makes. Dolly's
        special tokens are added where it lacks them.
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
    device : str
        Where the network runs: ``"auto"`` (a GPU where this build and this machine have one),
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. Devices differ in rounding; a run can be resumed on
        another.
    precision : {"f32", "bf16"}
        What products are formed in: ``"bf16"`` on a GPU alone. Weights and moments are f32 always.
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
        Bytes the run may take: weights, gradients, moments, and an upper bound of the activations
        of the longest batch; checked before any of them is allocated.
    progress : bool, optional
        True shows downloads and steps on standard error: as bars where tqdm is installed, else as
        a line of the terminal.

    Raises
    ------
    DivergedError
        A loss or gradient that is not finite; the last checkpoint before it is kept.
    InvalidArgumentError
        Also for an ``output_dir`` that holds checkpoints, unless ``resume`` is set.
    TypeError
        Also for neither a model nor both ``config`` and ``tokenizer``, and for more than that.
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

    From nothing: a vocabulary of its own, and a shape.

    >>> vocabulary = dolly_rs.train_tokenizer((row["instruction"] for row in rows), 270)
    >>> shape = dict(model_type="gpt_neox", vocab_size=270, hidden_size=16, num_hidden_layers=2,
    ...              num_attention_heads=2, intermediate_size=64, max_position_embeddings=256)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = dolly_rs.train(None, rows, out, config=shape, tokenizer=vocabulary, max_steps=2)
    ...     dolly_rs.pipeline(out).config["hidden_size"]
    16
    """
    given = dict(locals())
    check_names(unknown, [*_NAMES, "config", "tokenizer", "on_step", "progress"], "keyword")
    start = _start(model, config, tokenizer)
    options = _Options(**{name: given[name] for name in _NAMES})
    rows = _dataset(data)._native
    directory = os.fspath(output_dir)
    with (
        reporter(progress, f"Downloading {model}") as files,
        step_reporter(progress, on_step) as step,
    ):
        run = _native.train(start, rows, directory, options, str(BUNDLED), (step, files.download))
    return TrainingRun(**run)


def train_text(
    model: str | os.PathLike[str] | None,
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    output_dir: str | os.PathLike[str],
    *,
    config: Config | None = None,
    tokenizer: TokenizerJson | None = None,
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
    model, output_dir, config, tokenizer, on_step, progress, **options
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
    check_names(options, [*_NAMES, "config", "tokenizer"], "keyword")
    start = _start(model, config, tokenizer)
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
    directory = os.fspath(output_dir)
    with (
        reporter(progress, f"Downloading {model}") as shown,
        step_reporter(progress, on_step) as step,
    ):
        run = _native.train_text(
            start, text, directory, _Options(**options), str(BUNDLED), (step, shown.download)
        )
    return TrainingRun(**run)


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, threads: int | None = None) -> bytes:
    """Learn a vocabulary for a model from nothing: byte-level BPE as GPT-NeoX has.

    Parameters
    ----------
    texts : iterable of str
        What the most frequent words are learned from.
    vocab_size : int
        Number of ids, 261 or more: two special tokens, the 256 bytes, the merges, and Dolly's three
        tokens. Texts that hold fewer give a smaller vocabulary.
    threads : int, optional
        One per core unless given; the result does not depend on it.

    Returns
    -------
    bytes
        A ``tokenizer.json``: for ``tokenizer`` of `train` and `train_text`, or to be written to a
        file. Ctrl-C is heard while texts are read, not while merges are learned.

    Raises
    ------
    InvalidArgumentError, TypeError

    Examples
    --------
    >>> import dolly_rs, json
    >>> tokenizer = json.loads(dolly_rs.train_tokenizer(["low lower lowest"], 264))
    >>> tokenizer["model"]["merges"]
    ['l o', 'lo w', 'Ġ low']
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    return _native.train_tokenizer(listed, vocab_size, threads)


def evaluate(
    model: str | os.PathLike[str],
    data: Data,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    threads: int | None = None,
    device: str = "auto",
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
    device : str
        As of `train`.

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
    options = _Options(batch_size=batch_size, max_length=max_length, threads=threads, device=device)
    return _native.evaluate(os.fspath(model), _dataset(data)._native, options, str(BUNDLED))


def _start(
    model: str | os.PathLike[str] | None, config: Config | None, tokenizer: TokenizerJson | None
) -> str | tuple[str | bytes, str | bytes]:
    """What a run starts from: a model's name, or the parts of a model from nothing."""
    parts = {"config": config, "tokenizer": tokenizer}
    given = [name for name, part in parts.items() if part is not None]
    if model is not None:
        if given:
            raise TypeError(
                f"{' and '.join(given)}: for a model from nothing, where model is None; "
                f"model is {os.fspath(model)!r}"
            )
        return os.fspath(model)
    if config is None or tokenizer is None:
        raise TypeError(
            "model is None: a model from nothing needs config and tokenizer; "
            f"{given[0] + ' alone' if given else 'neither'} was given"
        )
    return _config(config), _tokenizer(tokenizer)


def _config(config: Config) -> str | bytes:
    """A file, or the text of one."""
    if isinstance(config, str | os.PathLike):
        return os.fspath(config)
    if isinstance(config, Mapping):
        return json.dumps(dict(config)).encode()
    raise TypeError(f"config: expected a dict or a path, got {type(config).__name__}")


def _tokenizer(tokenizer: TokenizerJson) -> str | bytes:
    """A file, or the bytes of one."""
    if isinstance(tokenizer, bytes | bytearray | memoryview):
        return bytes(tokenizer)
    if isinstance(tokenizer, str | os.PathLike):
        return os.fspath(tokenizer)
    raise TypeError(
        f"tokenizer: expected the bytes or the path of a tokenizer.json, got "
        f"{type(tokenizer).__name__}"
    )


def _dataset(data: Data) -> Dataset:
    return data if isinstance(data, Dataset) else load_dataset(data)
