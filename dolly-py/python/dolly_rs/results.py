"""What calls return: plain values that print, compare and pickle."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._native import _GenerationParts

__all__ = ["Classification", "Generation", "Record", "Score", "Timings", "TokenLogprob", "Usage"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one request.

    Attributes
    ----------
    prompt_tokens : int
        Of the rendered prompt.
    completion_tokens : int
        Generated, the end token included.
    cached_tokens : int
        Prompt tokens that were not run: an earlier request, or one of the same batch, began with
        them.
    drafted_tokens : int
        Tokens that `prompt_lookup` guessed.
    accepted_tokens : int
        Those of them that were right and saved a step.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Of prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Where the time of one request went, in seconds.

    Attributes
    ----------
    queue : float
        From the call to the first step that worked on it.
    prefill : float
        From there to the first token.
    decode : float
        From the first token to the last.
    total : float
        From the call to the result.
    tokens : list of float
        Time of each generated token since the call.
    """

    queue: float
    prefill: float
    decode: float
    total: float
    tokens: list[float]


@dataclass(frozen=True)
class TokenLogprob:
    """A generated id, its natural log-probability, and the likeliest ids with theirs."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Generation:
    """The answer to one request.

    Attributes
    ----------
    text : str
        The answer, without surrounding whitespace (raw for `complete`).
    token_ids : list of int
        Every generated id, the end token included.
    finish_reason : {"end", "length", "stop", "cancelled", "deadline"}
        Why it ended.
    usage : Usage
        Token counts.
    timings : Timings
        Seconds.
    logprobs : list of TokenLogprob or None
        One entry per generated token when asked for.
    seed : int
        The seed that reproduces this answer.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: Usage
    timings: Timings
    logprobs: list[TokenLogprob] | None
    seed: int

    @classmethod
    def of(cls, parts: _GenerationParts) -> Self:
        """A generation from the tuple of the native half."""
        text, ids, reason, usage, timings, logprobs, seed = parts
        entries = None if logprobs is None else [TokenLogprob(*entry) for entry in logprobs]
        return cls(text, ids, reason, Usage(*usage), Timings(*timings), entries, seed)

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts and lists, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text

    def _summary(self) -> str:
        speed = ""
        if self.timings.decode > 0 and len(self.token_ids) > 1:
            speed = f", {(len(self.token_ids) - 1) / self.timings.decode:.1f} tokens/s"
        reason, total = self.finish_reason, self.timings.total
        return f"{self.usage.completion_tokens} tokens ({reason}), {total:.2f} s{speed}"

    def _repr_markdown_(self) -> str:
        """The answer in a code block that no answer can close: model output is never markup."""
        longest = max((len(run) for run in re.findall("`+", self.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{fence}text\n{self.text}\n{fence}\n\n*{self._summary()}*"

    def _repr_html_(self) -> str:
        """The answer with its line breaks, escaped."""
        text = html.escape(self.text)
        style = "white-space: pre-wrap; font-family: inherit"
        return f'<div style="{style}">{text}</div><small>{html.escape(self._summary())}</small>'


@dataclass(frozen=True)
class Score:
    """Log-probabilities of a given response.

    Attributes
    ----------
    token_ids : list of int
        The response's ids, the end token included where the model has one.
    logprobs : list of float
        Natural log-probability of each of them, given all before.
    sum : float
        Their sum.
    perplexity : float
        ``exp(-sum / tokens)``.
    """

    token_ids: list[int]
    logprobs: list[float]
    sum: float
    perplexity: float


class Classification(dict[str, float]):
    """Probability of each answer, in the order given; they add up to 1.

    Attributes
    ----------
    logprobs : dict of str to float
        Natural log-probability of each answer as a whole response.

    Examples
    --------
    >>> found = Classification({"yes": 0.75, "no": 0.25}, {"yes": -1.5, "no": -2.6})
    >>> found.best
    'yes'
    """

    logprobs: dict[str, float]

    def __init__(self, probabilities: Mapping[str, float], logprobs: Mapping[str, float]) -> None:
        super().__init__(probabilities)
        self.logprobs = dict(logprobs)

    @property
    def best(self) -> str:
        """The likeliest answer; the first of equals."""
        return max(self, key=self.__getitem__)

    def __reduce__(self) -> tuple[type[Classification], tuple[dict[str, float], dict[str, float]]]:
        return Classification, (dict(self), self.logprobs)


class Record(Mapping[str, Any]):
    """Read-only values by key or attribute: `Pipeline.config` and `Pipeline.memory`.

    Examples
    --------
    >>> memory = Record({"weights": 20123936, "cache": 0})
    >>> memory.weights == memory["weights"]
    True
    >>> memory
    Record(weights=20123936, cache=0)
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        return self._values[name]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is read-only")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"{type(self).__name__}({values})"

    def __reduce__(self) -> tuple[type[Record], tuple[dict[str, Any]]]:
        return Record, (dict(self._values),)
