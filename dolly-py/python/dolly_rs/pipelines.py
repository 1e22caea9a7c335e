"""The front door: `pipeline` loads a model, `Pipeline` answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict, overload

from . import _native
from .errors import InvalidArgumentError
from .options import GenerateOptions, OptionNames, Settings, check_names
from .progress import reporter
from .results import Classification, Generation, Record, Score
from .streaming import Stream

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self, Unpack

__all__ = ["GeneratedText", "Pipeline", "Progress", "Tokenizer", "pipeline"]

Progress = Callable[[int, int, str], object]
"""Called with the weights loaded so far, all weights, and the tensor loaded last."""

OnError = Literal["raise", "return"]
Prompt = str | Sequence[int]

#: Holds the bundled model; looked in before the usual places.
BUNDLED = Path(__file__).parent / "models"


class GeneratedText(TypedDict):
    """One answer as transformers returns it."""

    generated_text: str


def pipeline(
    model: str | os.PathLike[str],
    *,
    device: str | int = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    context_length: int | None = None,
    memory_limit: int | None = None,
    kv_cache: str | None = None,
    prefix_cache: int | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    adapter: str | os.PathLike[str] | None = None,
    packed_weights: str | os.PathLike[str] | None = None,
    progress: bool | Progress | None = None,
    **unknown: NoReturn,
) -> Pipeline:
    """Load a model.

    Parameters
    ----------
    model : str or path
        A hub id such as ``"databricks/dolly-v2-3b"``, a directory, a ``.gguf`` file, or
        ``"dolly-nano"``, which is bundled.
    device : str or int
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; a number is a GPU's, -1 the CPU. A GPU
        needs a build with the feature ``cuda`` and a driver; ``"auto"`` takes it where both are.
    dtype : {"auto", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"}
        How weights are held in memory; ``"auto"`` is as stored, matrix by matrix. GGUF's Q4_K and
        Q6_K are kept as they are; its Q4_1, Q5_0, Q5_1 and Q5_K are held as ``"q8_0"``. Asked for
        by name, ``"q4_k"`` and ``"q6_k"`` round weights of other types; matrices whose rows are no
        multiple of 256 long are then held as ``"q8_0"``.
    threads : int, optional
        Threads of this pipeline; one per core unless given.
    context_length : int, optional
        Longest sequence in tokens; the checkpoint's own unless given.
    memory_limit : int, optional
        Bytes that weights and caches may take together, checked before they are taken.
    kv_cache : {"f32", "f16", "bf16", "q8_0"}, optional
        How keys and values of running sequences are held; unless given, ``"f32"`` with weights in
        f32, ``"f16"`` with f16, and with others ``"bf16"`` where the CPU multiplies bf16, else
        ``"f16"``.
    prefix_cache : int, optional
        Bytes for the cache rows of prompts that were read, from which requests that begin alike
        copy; 0 is off; a sixteenth of the weights, at least 64 MiB, unless given. Results do not
        depend on it.
    revision : str, optional
        Branch, tag or commit of a hub id.
    offline : bool, optional
        Whether the network must not be asked; ``HF_HUB_OFFLINE`` unless given.
    adapter : path, optional
        A directory with a low-rank adapter, as PEFT writes it, that is merged into the weights
        while they are loaded, whatever the dtype.
    packed_weights : path, optional
        A directory for packed weights: the first load of a model in a dtype leaves a file there, as
        large as the weights in memory, and later loads read that instead of converting. It is
        checked against the model's files, and must be as trusted as they are.
    progress : bool or callable, optional
        True shows downloads and loading on standard error: as bars where tqdm is installed, else
        downloads as a line of the terminal. A callable gets
        ``(loaded, total, tensor)`` after every tensor, on another thread; what it raises stops
        the load.

    Raises
    ------
    ModelNotFoundError, ModelFormatError, DollyMemoryError, DeviceError, InvalidArgumentError

    Examples
    --------
    >>> import dolly_rs
    >>> pipe = dolly_rs.pipeline("dolly-nano")
    >>> answers = pipe("Name three colours.", seed=7, max_new_tokens=8)
    >>> list(answers[0])
    ['generated_text']
    """
    known = [one.name for one in fields(Settings)] + ["progress"]
    check_names(unknown, known, "keyword")
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    settings = Settings(
        os.fspath(model),
        device=device,
        dtype=dtype,
        threads=threads,
        context_length=context_length,
        memory_limit=memory_limit,
        kv_cache=kv_cache,
        prefix_cache=prefix_cache,
        revision=revision,
        offline=offline,
        adapter=None if adapter is None else os.fspath(adapter),
        packed_weights=None if packed_weights is None else os.fspath(packed_weights),
    )
    return Pipeline(settings, progress=progress)


class Pipeline:
    """A loaded model that answers instructions; made by `dolly_rs.pipeline`.

    Any number of threads may call it at once: requests share the engine's steps, and each gets
    the answer it would get alone. The interpreter is free while it works, and Ctrl-C stops the
    call and leaves the pipeline usable. Use it as a context manager, or call `close`, to free
    the weights. Pickling carries the settings, never the weights: the other side loads again.

    Examples
    --------
    >>> import dolly_rs
    >>> with dolly_rs.pipeline("dolly-nano") as pipe:
    ...     answer = pipe.generate("Name a colour.", do_sample=False, max_new_tokens=8)
    >>> answer.finish_reason in ("end", "length")
    True
    """

    def __init__(self, settings: Settings, *, progress: bool | Progress | None = None) -> None:
        self._settings = settings
        with reporter(progress, f"Loading {settings.model}") as reports:
            self._native = _native.load(settings, str(BUNDLED), *reports)
        self._tokenizer = Tokenizer(self._native.tokenizer)

    # A text is a sequence of texts to the type checker: it takes the first overload that fits.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        instructions: str,
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[OptionNames],
    ) -> list[GeneratedText]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        instructions: str,
        *,
        on_error: Literal["return"],
        **options: Unpack[OptionNames],
    ) -> list[GeneratedText | Exception]: ...
    @overload
    def __call__(
        self,
        instructions: Sequence[str],
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[OptionNames],
    ) -> list[list[GeneratedText]]: ...
    @overload
    def __call__(
        self,
        instructions: Sequence[str],
        *,
        on_error: Literal["return"],
        **options: Unpack[OptionNames],
    ) -> list[list[GeneratedText | Exception]]: ...
    def __call__(
        self,
        instructions: str | Sequence[str],
        *,
        on_error: OnError = "raise",
        **options: Unpack[OptionNames],
    ) -> Any:
        """Answer one or several instructions, as the text-generation pipeline of transformers.

        Parameters
        ----------
        instructions : str or sequence of str
            One instruction gives a list of dicts, one per returned sequence; a sequence of
            instructions gives a list of such lists.
        on_error : {"raise", "return"}
            Raise the first error after all rows have finished, or put the exception object in
            the place of the answer.
        **options
            See `GenerateOptions`.

        Returns
        -------
        list of {"generated_text": str}, or list of such lists
        """
        single = isinstance(instructions, str)
        rows = [instructions] if isinstance(instructions, str) else _texts(instructions)
        chosen = GenerateOptions.of(options)
        answers = self._batch([(row, None) for row in rows], chosen, on_error)
        dicts = [
            {"generated_text": answer.text} if isinstance(answer, Generation) else answer
            for answer in answers
        ]
        n = len(dicts) // max(len(rows), 1)
        groups = [dicts[row * n : (row + 1) * n] for row in range(len(rows))]
        return groups[0] if single else groups

    def generate(
        self, instruction: str, context: str | None = None, **options: Unpack[OptionNames]
    ) -> Generation:
        """Answer an instruction, with the passage it speaks of if there is one.

        Examples
        --------
        >>> import dolly_rs
        >>> pipe = dolly_rs.pipeline("dolly-nano")
        >>> answer = pipe.generate("When was Dolly born?", context="Dolly was born in 1996.")
        >>> answer.usage.completion_tokens <= 256
        True
        """
        chosen = GenerateOptions.of(options)
        return Generation.of(self._native.generate(instruction, context, chosen))

    @overload
    def generate_batch(
        self,
        instructions: Sequence[str],
        contexts: Sequence[str | None] | None = ...,
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[OptionNames],
    ) -> list[Generation]: ...
    @overload
    def generate_batch(
        self,
        instructions: Sequence[str],
        contexts: Sequence[str | None] | None = ...,
        *,
        on_error: Literal["return"],
        **options: Unpack[OptionNames],
    ) -> list[Generation | Exception]: ...
    def generate_batch(
        self,
        instructions: Sequence[str],
        contexts: Sequence[str | None] | None = None,
        *,
        on_error: OnError = "raise",
        **options: Unpack[OptionNames],
    ) -> Any:
        """Answer many instructions at once, sharing every pass over the weights.

        Gives one answer per row, or ``num_return_sequences`` of the first row, then those of the
        next. An error in one row leaves the others untouched: see ``on_error`` of the call.
        """
        texts = _texts(instructions)
        passages = [None] * len(texts) if contexts is None else list(contexts)
        if len(passages) != len(texts):
            raise InvalidArgumentError(f"{len(texts)} instructions, but {len(passages)} contexts")
        rows = list(zip(texts, passages, strict=True))
        return self._batch(rows, GenerateOptions.of(options), on_error)

    def stream(
        self, instruction: str, context: str | None = None, **options: Unpack[OptionNames]
    ) -> Stream:
        """Answer an instruction piece by piece; see `Stream`."""
        chosen = GenerateOptions.of(options)
        return Stream(self._native.stream(instruction, context, chosen))

    @overload
    def complete(  # type: ignore[overload-overlap]
        self,
        prompt: str | Sequence[int],
        *,
        on_error: OnError = ...,
        **options: Unpack[OptionNames],
    ) -> Generation: ...
    @overload
    def complete(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]] | Sequence[Prompt],
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[OptionNames],
    ) -> list[Generation]: ...
    @overload
    def complete(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]] | Sequence[Prompt],
        *,
        on_error: Literal["return"],
        **options: Unpack[OptionNames],
    ) -> list[Generation | Exception]: ...
    def complete(
        self,
        prompt: Any,
        *,
        on_error: OnError = "raise",
        **options: Unpack[OptionNames],
    ) -> Any:
        """Continue a text or ids as they are, without Dolly's prompt: for base models.

        Parameters
        ----------
        prompt : str, sequence of int, or a sequence of either
            A sequence of prompts gives a list of generations.

        Examples
        --------
        >>> import dolly_rs
        >>> pipe = dolly_rs.pipeline("dolly-nano")
        >>> len(pipe.complete(["Once upon a time", [1, 2, 3]], max_new_tokens=4))
        2
        """
        chosen = GenerateOptions.of(options)
        if isinstance(prompt, str) or not _is_batch(prompt):
            return Generation.of(self._native.complete(prompt, chosen))
        return _rows(self._native.complete_batch(list(prompt), chosen), on_error)

    def score(
        self,
        instruction: str,
        response: str,
        *,
        context: str | None = None,
        deadline: float | None = None,
    ) -> Score:
        """How likely the model finds ``response``, token by token, its end included."""
        return Score(*self._native.score(instruction, context, response, deadline))

    def classify(
        self,
        instruction: str,
        answers: Sequence[str],
        *,
        context: str | None = None,
        deadline: float | None = None,
    ) -> Classification:
        """Probability of each of the given answers, as whole responses.

        Examples
        --------
        >>> import dolly_rs
        >>> pipe = dolly_rs.pipeline("dolly-nano")
        >>> found = pipe.classify("Is a rose a plant?", ["yes", "no"])
        >>> list(found), round(sum(found.values()), 6)
        (['yes', 'no'], 1.0)
        """
        texts = _texts(answers)
        if len(set(texts)) != len(texts):
            raise InvalidArgumentError("the answers must differ from each other")
        found = self._native.classify(instruction, context, texts, deadline)
        probabilities = {answer: probability for answer, probability, _ in found}
        return Classification(probabilities, {answer: logprob for answer, _, logprob in found})

    def logits(
        self, token_ids: Sequence[int], *, deadline: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits after each of the ids: float32 of shape (tokens, vocab)."""
        return self._native.logits(token_ids, deadline)

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self._tokenizer

    @property
    def config(self) -> Record:
        """Hyper-parameters of the checkpoint, read-only, by key or attribute."""
        return Record(self._native.config)

    @property
    def memory(self) -> Record:
        """Bytes held: ``weights cache prefix_cache workspace``; and ``cache_per_token``."""
        return Record(self._native.memory)

    @property
    def id(self) -> str:
        """What was named when loading."""
        return self._native.id

    @property
    def weight_format(self) -> str:
        """How the weights are held, such as ``"f16"``; never ``"auto"``."""
        return self._native.weight_format

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens, prompt and answer together."""
        return self._native.context_length

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._native.is_closed

    def close(self) -> None:
        """End running requests with `ClosedError` and free the weights; a second call is none."""
        self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Pipeline], tuple[Settings]]:
        return type(self), (self._settings,)

    def __repr__(self) -> str:
        given = self._settings.given()
        given.pop("model", None)
        rest = "".join(f", {name}={value!r}" for name, value in given.items())
        closed = " (closed)" if self.closed else ""
        return f"dolly_rs.pipeline({self._settings.model!r}{rest}){closed}"

    def _batch(
        self, rows: list[tuple[str, str | None]], options: GenerateOptions, on_error: OnError
    ) -> list[Any]:
        return _rows(self._native.generate_batch(rows, options), on_error)


class Tokenizer:
    """Text to ids and back, as the checkpoint does it; `Pipeline.tokenizer`.

    Examples
    --------
    >>> import dolly_rs
    >>> tokenizer = dolly_rs.pipeline("dolly-nano").tokenizer
    >>> tokenizer.decode(tokenizer.encode("Hello, world."))
    'Hello, world.'
    """

    def __init__(self, native: _native.Tokenizer) -> None:
        self._native = native

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; special tokens written in it are matched only with ``special``."""
        return self._native.encode(text, special)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self._native.decode(token_ids, skip_special_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._native.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"<dolly_rs.Tokenizer of {self.vocab_size} ids>"


def _texts(texts: Sequence[str]) -> list[str]:
    """The rows of a batch; a lone string among sequences is the common slip."""
    if isinstance(texts, str):
        raise TypeError("expected a sequence of texts, got one text")
    return list(texts)


def _is_batch(prompt: Sequence[Any]) -> bool:
    """Whether a prompt that is no text holds prompts, and not ids."""
    return len(prompt) == 0 or isinstance(prompt[0], str) or hasattr(prompt[0], "__len__")


def _rows(rows: list[_native._GenerationParts | Exception], on_error: OnError) -> list[Any]:
    """Generations; the first exception is raised unless it is to be returned in its place."""
    if on_error not in ("raise", "return"):
        raise InvalidArgumentError(f"on_error {on_error!r}; expected 'raise' or 'return'")
    failed = next((row for row in rows if isinstance(row, Exception)), None)
    if failed is not None and on_error == "raise":
        raise failed
    return [row if isinstance(row, Exception) else Generation.of(row) for row in rows]
