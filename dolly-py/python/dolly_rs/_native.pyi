"""The native half of dolly_rs; use dolly_rs itself."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from .data import _Reading
from .lora import LoraConfig
from .options import GenerateOptions, Settings
from .runs import Evaluation, HistoryRow
from .training import _Options, _Text

__all__ = [
    "Dataset",
    "Pipeline",
    "Stream",
    "Tokenizer",
    "__version__",
    "check_lora",
    "convert",
    "default_options",
    "evaluate",
    "lineage",
    "load",
    "merge_adapter",
    "read_files",
    "read_rows",
    "tensors",
    "train",
    "train_text",
    "train_tokenizer",
]

_Timings: TypeAlias = tuple[float, float, float, float, list[float]]
_Logprob: TypeAlias = tuple[int, float, list[tuple[int, float]]]
_GenerationParts: TypeAlias = tuple[
    str, list[int], str, tuple[int, int, int, int, int], _Timings, list[_Logprob] | None, int
]

_Callables: TypeAlias = tuple[
    Callable[[HistoryRow, int, float, Evaluation | None], object] | None,
    Callable[[int, int | None, str], object] | None,
]
_Row: TypeAlias = tuple[str, str, str, str | None]
# A model's name, or configuration and tokenizer of a model from nothing: each a path, or bytes.
_Start: TypeAlias = str | tuple[str | bytes, str | bytes]

__version__: str

@final
class Dataset:
    def __len__(self) -> int: ...
    def row(self, index: int) -> _Row | None: ...
    def origin(self, index: int) -> tuple[str, int] | None: ...
    def categories(self) -> list[tuple[str | None, int]]: ...
    def sources(self) -> str: ...
    def summaries(self) -> str: ...
    def select(self, indices: Sequence[int], description: str) -> Dataset: ...
    def filter(self, keep: Sequence[bool], description: str) -> Dataset: ...
    def shuffle(self, seed: int) -> Dataset: ...
    def split(self, test: float, seed: int) -> tuple[Dataset, Dataset]: ...
    def without_duplicates(self, same: str) -> Dataset: ...
    def clean(
        self, footnotes: bool, footnotes_in_responses: bool, trim: bool
    ) -> tuple[Dataset, dict[str, int]]: ...
    def concat(self, other: Dataset) -> Dataset: ...
    def report(self, tokenizer: Tokenizer | None, max_length: int | None) -> tuple[str, str]: ...
    def to_jsonl(self, path: str) -> None: ...

@final
class Pipeline:
    def generate(
        self, instruction: str, context: str | None, options: GenerateOptions
    ) -> _GenerationParts: ...
    def stream(self, instruction: str, context: str | None, options: GenerateOptions) -> Stream: ...
    def generate_batch(
        self, instructions: Sequence[tuple[str, str | None]], options: GenerateOptions
    ) -> list[_GenerationParts | Exception]: ...
    def complete(
        self, prompt: str | Sequence[int], options: GenerateOptions
    ) -> _GenerationParts: ...
    def complete_batch(
        self, prompts: Sequence[str | Sequence[int]], options: GenerateOptions
    ) -> list[_GenerationParts | Exception]: ...
    def score(
        self, instruction: str, context: str | None, response: str, deadline: float | None
    ) -> tuple[list[int], list[float], float, float]: ...
    def classify(
        self,
        instruction: str,
        context: str | None,
        answers: Sequence[str],
        deadline: float | None,
    ) -> list[tuple[str, float, float]]: ...
    def logits(
        self, token_ids: Sequence[int], deadline: float | None
    ) -> npt.NDArray[np.float32]: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def memory(self) -> dict[str, int]: ...
    @property
    def id(self) -> str: ...
    @property
    def weight_format(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    @property
    def is_closed(self) -> bool: ...
    def close(self) -> None: ...

@final
class Stream:
    def next(self) -> str | None: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...
    def generation(self) -> _GenerationParts | None: ...

@final
class Tokenizer:
    def encode(self, text: str, special: bool) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str: ...
    @property
    def vocab_size(self) -> int: ...

def load(
    settings: Settings,
    bundled_dir: str,
    progress: Callable[[int, int, str], object] | None,
    download: Callable[[int, int | None, str], object] | None,
) -> Pipeline: ...
def read_files(paths: Sequence[str], reading: _Reading) -> Dataset: ...
def read_rows(jsonl: bytes, name: str, reading: _Reading) -> Dataset: ...
def default_options() -> dict[str, Any]: ...
def tensors(model: str, bundled_dir: str) -> list[tuple[str, list[int], str, int]]: ...
def convert(
    model: str,
    destination: str,
    form: tuple[str, str],
    bundled_dir: str,
    adapter: str | None,
    progress: Callable[[int, int, str], object] | None,
) -> None: ...
def check_lora(lora: LoraConfig) -> None: ...
def merge_adapter(
    base: str, adapter: str, output_dir: str, dtype: str, bundled_dir: str
) -> None: ...
def lineage(directory: str) -> tuple[str, str, str]: ...
def train(
    start: _Start,
    data: Dataset,
    output_dir: str,
    options: _Options,
    bundled_dir: str,
    callables: _Callables,
) -> dict[str, Any]: ...
def train_text(
    start: _Start,
    text: _Text,
    output_dir: str,
    options: _Options,
    bundled_dir: str,
    callables: _Callables,
) -> dict[str, Any]: ...
def train_tokenizer(texts: Sequence[str], vocab_size: int, threads: int | None) -> bytes: ...
def evaluate(model: str, data: Dataset, options: _Options, bundled_dir: str) -> Evaluation: ...
