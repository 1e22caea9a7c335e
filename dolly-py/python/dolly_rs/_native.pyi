"""The native half of dolly_rs; use dolly_rs itself."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from .options import GenerateOptions, Settings

__all__ = [
    "Pipeline",
    "Stream",
    "Tokenizer",
    "__version__",
    "convert",
    "default_options",
    "load",
    "tensors",
]

_Timings: TypeAlias = tuple[float, float, float, float, list[float]]
_Logprob: TypeAlias = tuple[int, float, list[tuple[int, float]]]
_GenerationParts: TypeAlias = tuple[
    str, list[int], str, tuple[int, int], _Timings, list[_Logprob] | None, int
]

__version__: str

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
def default_options() -> dict[str, Any]: ...
def tensors(model: str, bundled_dir: str) -> list[tuple[str, list[int], str, int]]: ...
def convert(
    model: str,
    destination: str,
    format: str,
    dtype: str,
    bundled_dir: str,
    progress: Callable[[int, int, str], object] | None,
) -> None: ...
