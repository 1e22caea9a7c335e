"""Options of a request and settings of a pipeline, by the names Hugging Face gives them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GenerateOptions", "OptionNames", "Settings"]


class OptionNames(TypedDict, total=False):
    """Keywords of every call that generates; None stands for the default."""

    max_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_end: bool | None
    num_return_sequences: int | None
    logprobs: int | None
    prompt_lookup: int | None
    deadline: float | None
    return_full_text: bool | None
    prompt_overflow: Literal["error", "truncate_context"] | None
    prompt_mode: Literal["safe", "hf"] | None


@dataclass(frozen=True)
class GenerateOptions:
    """Options of one request; the defaults are those of Dolly's original pipeline.

    Every call that generates takes these as keywords. Ranges are checked when the request is
    made, with `InvalidArgumentError`.

    Attributes
    ----------
    max_new_tokens : int
        Most tokens to generate; less when the context ends first.
    do_sample : bool
        Draw from the distribution, or take the likeliest token.
    temperature : float
        Divides the logits; in [0, 100], 0 means greedy.
    top_p : float
        Smallest set of likeliest tokens whose probability reaches this; in (0, 1], 1 is off.
    top_k : int
        The k likeliest tokens; 0 is off.
    min_p : float
        Tokens at least this fraction as likely as the likeliest; in [0, 1), 0 is off.
    typical_p : float
        Locally typical sampling; in (0, 1], 1 is off.
    repetition_penalty : float
        Divides positive and multiplies negative logits of tokens seen; above 0, 1 is off.
    presence_penalty, frequency_penalty : float
        Subtracted from the logits of generated tokens, once or per occurrence; in [-100, 100].
    no_repeat_ngram_size : int
        No n-gram of this length occurs twice; 0 is off.
    logit_bias : dict of int to float
        Added to the logits of single ids; ``-inf`` forbids an id.
    seed : int or None
        Seed of the draws; None takes a fresh one, reported in the result.
    stop : tuple of str
        Texts that end the answer; they are not part of it. At most 64.
    ignore_end : bool
        Generate on past the end token until the length limit.
    num_return_sequences : int
        Answers per instruction for the pipeline call and `generate_batch`, 1 to 1024.
    logprobs : int or None
        Report log-probabilities, with this many alternatives per token (0 to 100).
    prompt_lookup : int or None
        Guess up to this many tokens of each step from prompt and answer, 1 to 64. The answer is
        the same, token for token; where it quotes its prompt it takes fewer steps.
    deadline : float or None
        Seconds allowed from the call on; the text so far is returned.
    return_full_text : bool
        Put the instruction and a newline before the answer.
    prompt_overflow : {"error", "truncate_context"}
        What to do when the prompt is longer than the context.
    prompt_mode : {"safe", "hf"}
        User text is data, or special tokens in it take effect as in the original.

    Examples
    --------
    >>> GenerateOptions().top_p
    0.92
    >>> GenerateOptions.of({"max_new_tokens": 8, "temperature": None}).max_new_tokens
    8
    >>> GenerateOptions.of({"max_tokens": 8})
    Traceback (most recent call last):
    TypeError: unknown option 'max_tokens'; did you mean 'max_new_tokens'?
    """

    max_new_tokens: int = 256
    do_sample: bool = True
    temperature: float = 1.0
    top_p: float = 0.92
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: Sequence[str] = ()
    ignore_end: bool = False
    num_return_sequences: int = 1
    logprobs: int | None = None
    prompt_lookup: int | None = None
    deadline: float | None = None
    return_full_text: bool = False
    prompt_overflow: str = "error"
    prompt_mode: str = "safe"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Options from keywords: None is the default, an unknown name a TypeError."""
        check_names(given, (one.name for one in fields(cls)), "option")
        chosen = {name: value for name, value in given.items() if value is not None}
        if isinstance(chosen.get("stop"), str):
            chosen["stop"] = (chosen["stop"],)
        return cls(**chosen)


@dataclass(frozen=True)
class Settings:
    """What a pipeline is loaded from: all that pickling one carries.

    Examples
    --------
    >>> Settings("dolly-nano", threads=2).device
    'auto'
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    context_length: int | None = None
    memory_limit: int | None = None
    kv_cache: str | None = None
    prefix_cache: int | None = None
    revision: str | None = None
    offline: bool | None = None
    adapter: str | None = None
    packed_weights: str | None = None

    def given(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        defaults = {one.name: one.default for one in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise a TypeError for the first name that is not known, naming the closest that is."""
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
            raise TypeError(f"unknown {what} {name!r}{hint}")
