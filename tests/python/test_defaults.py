"""Options: their defaults, names and the errors of wrong ones."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

import dolly_rs
from dolly_rs import GenerateOptions, _native
from dolly_rs.options import OptionNames

# InstructionTextGenerationPipeline.__init__ of databrickslabs/dolly at e2d664d for the first five;
# for the others, the value at which transformers' GenerationConfig switches the option off.
ORIGINAL = {
    "do_sample": True,
    "max_new_tokens": 256,
    "top_p": 0.92,
    "top_k": 0,
    "return_full_text": False,
    "temperature": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "seed": None,
    "stop": (),
    "ignore_end": False,
    "logprobs": None,
    "prompt_lookup": None,
    "deadline": None,
    "prompt_overflow": "error",
    "prompt_mode": "safe",
}


@pytest.mark.parametrize(("name", "value"), ORIGINAL.items())
def test_default_is_the_originals(name: str, value: Any) -> None:
    assert getattr(GenerateOptions(), name) == value
    native = _native.default_options()[name]
    assert (tuple(native) if isinstance(native, list) else native) == value


def test_no_option_is_missing() -> None:
    assert set(GenerateOptions.__dataclass_fields__) == set(ORIGINAL)
    assert set(_native.default_options()) == set(ORIGINAL)
    assert set(OptionNames.__annotations__) == set(ORIGINAL)


def test_pipeline_signature() -> None:
    parameters = inspect.signature(dolly_rs.pipeline).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert defaults == {
        "device": "auto",
        "dtype": "auto",
        "threads": None,
        "context_length": None,
        "memory_limit": None,
        "kv_cache": None,
        "prefix_cache": None,
        "revision": None,
        "offline": None,
        "adapter": None,
        "packed_weights": None,
        "progress": None,
    }


def test_none_is_the_default(chain: dolly_rs.Pipeline) -> None:
    nothing: Any = dict.fromkeys(ORIGINAL)
    assert chain.generate("a", **nothing).text == chain.generate("a").text


@pytest.mark.parametrize(
    ("wrong", "close"),
    [
        ("max_tokens", "max_new_tokens"),
        ("max_new_token", "max_new_tokens"),
        ("temprature", "temperature"),
        ("no_repeat_ngram", "no_repeat_ngram_size"),
        ("num_return_sequence", "num_return_sequences"),
    ],
)
def test_unknown_option_names_the_closest(chain: dolly_rs.Pipeline, wrong: str, close: str) -> None:
    given: Any = {wrong: 1}
    calls = [
        lambda: chain("a", **given),
        lambda: chain.generate("a", **given),
        lambda: chain.generate_batch(["a"], **given),
        lambda: chain.stream("a", **given),
        lambda: chain.complete("a", **given),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=rf"unknown option '{wrong}'; did you mean '{close}'\?"):
            call()


def test_unknown_keyword_of_pipeline_names_the_closest() -> None:
    wrong: Any = {"thread": 2}
    with pytest.raises(TypeError, match=r"unknown keyword 'thread'; did you mean 'threads'\?"):
        dolly_rs.pipeline("dolly-nano", **wrong)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 2**80),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", 1e300),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.0),
        ("typical_p", 0.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", 101.0),
        ("no_repeat_ngram_size", -2),
        ("logit_bias", {5: math.nan}),
        ("logit_bias", {-5: 1.0}),
        ("seed", -1),
        ("stop", [""]),
        ("stop", ["x"] * 65),
        ("num_return_sequences", 0),
        ("logprobs", 101),
        ("prompt_lookup", 0),
        ("prompt_lookup", 65),
        ("deadline", -1.0),
        ("deadline", math.nan),
        ("prompt_overflow", "cut"),
        ("prompt_mode", "raw"),
    ],
)
def test_value_out_of_range(chain: dolly_rs.Pipeline, name: str, value: Any) -> None:
    options: Any = {name: value}
    with pytest.raises(dolly_rs.InvalidArgumentError, match=name) as caught:
        chain.generate("a", **options)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, dolly_rs.DollyError)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", "8"), ("temperature", "hot"), ("stop", [1]), ("logit_bias", [1])],
)
def test_value_of_wrong_type(chain: dolly_rs.Pipeline, name: str, value: Any) -> None:
    options: Any = {name: value}
    with pytest.raises(TypeError, match=name):
        chain.generate("a", **options)


def test_settings_out_of_range() -> None:
    for settings in ({"threads": 0}, {"threads": -1}, {"context_length": 1}, {"dtype": "q9"}):
        given: Any = settings
        with pytest.raises(dolly_rs.InvalidArgumentError):
            dolly_rs.pipeline("dolly-nano", **given)


def test_every_public_name_is_documented() -> None:
    for name in dolly_rs.__all__:
        if not name.startswith("__"):
            assert getattr(dolly_rs, name).__doc__, name
