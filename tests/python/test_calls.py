"""What calls return: shapes, texts and numbers known from the making of the model."""

from __future__ import annotations

import copy
import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dolly_rs
import tiny
from conftest import ANSWER, EURO

Pipe = dolly_rs.Pipeline


def test_one_instruction(chain: Pipe) -> None:
    assert chain("Say hi.") == [{"generated_text": ANSWER}]


def test_several_instructions(chain: Pipe) -> None:
    row = [{"generated_text": ANSWER}]
    assert chain(["a", "b", "c"]) == [row, row, row]
    assert chain(("a",)) == [row]
    assert chain([]) == []


def test_num_return_sequences(chain: Pipe) -> None:
    one = {"generated_text": ANSWER}
    assert chain("a", num_return_sequences=3) == [one] * 3
    assert chain(["a", "b"], num_return_sequences=2) == [[one] * 2] * 2


def test_return_full_text(chain: Pipe) -> None:
    assert chain("Say hi.", return_full_text=True) == [{"generated_text": f"Say hi.\n{ANSWER}"}]


def test_errors_of_rows(chain: Pipe) -> None:
    long = "x" * 2 * tiny.CONTEXT
    with pytest.raises(dolly_rs.ContextOverflowError):
        chain(["a", long, "b"])
    rows = chain(["a", long, "b"], on_error="return")
    good = [{"generated_text": ANSWER}]
    assert rows[0] == rows[2] == good
    assert isinstance(rows[1][0], dolly_rs.ContextOverflowError)
    batch = chain.generate_batch([long, "a"], on_error="return")
    assert isinstance(batch[0], dolly_rs.ContextOverflowError)
    assert isinstance(batch[1], dolly_rs.Generation)
    wrong: Any = "ignore"
    with pytest.raises(dolly_rs.InvalidArgumentError, match="on_error"):
        chain(["a"], on_error=wrong)


def test_generate(chain: Pipe) -> None:
    answer = chain.generate("Say hi.")
    assert answer.text == str(answer) == ANSWER
    assert answer.token_ids == [*tiny.ids_of(ANSWER), tiny.END]
    assert answer.finish_reason == "end"
    assert answer.usage.completion_tokens == len(ANSWER) + 1
    total = answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.total_tokens == total
    assert answer.logprobs is None
    times = answer.timings
    assert len(times.tokens) == len(answer.token_ids)
    assert times.tokens == sorted(times.tokens)
    assert 0 <= times.queue + times.prefill + times.decode <= times.total + 1e-9


def test_prompt_tokens_count_the_context(chain: Pipe) -> None:
    plain = chain.generate("a").usage.prompt_tokens
    assert chain.generate("a", context="").usage.prompt_tokens == plain
    with_context = chain.generate("a", "12345").usage.prompt_tokens
    assert with_context == plain + len("\n\nInput:\n12345")


def test_prompt_is_the_originals(chain: Pipe) -> None:
    intro = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
    )
    framing = [f"{intro}\n\n", "\nSay hi.\n\n"]
    special = 2
    expected = sum(len(part) for part in framing) + special
    assert chain.generate("Say hi.").usage.prompt_tokens == expected


def test_finish_reasons(chain: Pipe, euro: Pipe) -> None:
    assert chain.generate("a", max_new_tokens=2).finish_reason == "length"
    stopped = chain.generate("a", stop=" you")
    assert (stopped.text, stopped.finish_reason) == ("Hi,", "stop")
    assert chain.generate("a", stop=["zzz", "you"]).text == "Hi,"
    late = euro.generate("a", deadline=0.0)
    assert late.finish_reason == "deadline"


def test_ignore_end_and_bias(chain: Pipe) -> None:
    beyond = chain.generate("a", ignore_end=True, max_new_tokens=len(ANSWER) + 4)
    assert len(beyond.token_ids) == len(ANSWER) + 4
    h, j = tiny.byte_id(ord("H")), tiny.byte_id(ord("J"))
    biased = chain.generate("a", logit_bias={h: float("-inf"), j: 100.0}, max_new_tokens=1)
    assert biased.text == "J"


def test_seed_is_reported_and_reproduces(nano: Pipe) -> None:
    first = nano.generate("Name three colours.", max_new_tokens=24)
    again = nano.generate("Name three colours.", max_new_tokens=24, seed=first.seed)
    assert again.token_ids == first.token_ids
    assert nano.generate("Name three colours.", max_new_tokens=24).seed != first.seed


def test_logprobs(chain: Pipe) -> None:
    answer = chain.generate("a", logprobs=2)
    assert answer.logprobs is not None
    assert [entry.id for entry in answer.logprobs] == answer.token_ids
    chosen = answer.logprobs[0]
    logits = tiny.chain_logits(tiny.answer_chain(ANSWER), [tiny.RESPONSE])
    expected = tiny.log_softmax(logits)[0, answer.token_ids[0]]
    assert chosen.logprob == pytest.approx(expected, abs=1e-4)
    assert len(chosen.top) == 2
    assert chosen.top[0] == (chosen.id, chosen.logprob)


def test_greedy_batch_is_as_alone(nano: Pipe) -> None:
    instructions = ["Name a colour.", "Why is the sky blue?", "List two birds."]
    contexts = [None, "Light is scattered.", None]
    batch = nano.generate_batch(instructions, contexts, do_sample=False, max_new_tokens=16)
    for instruction, context, row in zip(instructions, contexts, batch, strict=True):
        alone = nano.generate(instruction, context, do_sample=False, max_new_tokens=16)
        assert alone.token_ids == row.token_ids


def test_batch_of_wrong_shape(chain: Pipe) -> None:
    with pytest.raises(dolly_rs.InvalidArgumentError, match="2 instructions, but 1 contexts"):
        chain.generate_batch(["a", "b"], ["c"])
    with pytest.raises(TypeError, match="sequence of texts"):
        chain.generate_batch("ab")


def test_complete(chain: Pipe) -> None:
    key = "H"
    assert chain.complete(key).text == ANSWER[1:]
    assert chain.complete(tiny.ids_of(key)).text == ANSWER[1:]
    assert chain.complete(np.array(tiny.ids_of(key), np.int64)).text == ANSWER[1:]
    assert chain.complete(key, return_full_text=True).text == ANSWER
    both = chain.complete(["H", tiny.ids_of("i"), ","])
    assert [row.text for row in both] == [ANSWER[1:], ANSWER[2:], ANSWER[3:]]
    assert chain.complete([]) == []
    wrong = chain.complete(["H", [10**6]], on_error="return")
    assert isinstance(wrong[0], dolly_rs.Generation)
    assert isinstance(wrong[1], dolly_rs.InvalidArgumentError)
    with pytest.raises(dolly_rs.InvalidArgumentError):
        chain.complete([[]])
    with pytest.raises(dolly_rs.InvalidArgumentError):
        chain.complete([-1])


def test_special_tokens_in_a_prompt_are_text(chain: Pipe) -> None:
    assert chain.generate("### Response:\nNo.\n\n### End").text == ANSWER
    plain = chain.complete("### End", max_new_tokens=1, do_sample=False).usage.prompt_tokens
    assert plain == len("### End")


def test_logits(chain: Pipe) -> None:
    ids = [tiny.RESPONSE, *tiny.ids_of("Hi")]
    logits = chain.logits(ids)
    assert logits.dtype == np.float32
    assert logits.shape == (3, tiny.VOCAB)
    assert logits.flags.c_contiguous
    expected = tiny.chain_logits(tiny.answer_chain(ANSWER), ids)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(logits, chain.logits(np.array(ids)))
    for wrong in ([], [tiny.VOCAB], [-1], [0] * (tiny.CONTEXT + 1)):
        with pytest.raises(ValueError, match=r"token|id|prompt"):
            chain.logits(wrong)


def test_score(chain: Pipe) -> None:
    score = chain.score("Say hi.", "Hi")
    assert score.token_ids == [*tiny.ids_of("Hi\n\n"), tiny.END]
    logits = tiny.chain_logits(tiny.answer_chain(ANSWER), [tiny.RESPONSE, *score.token_ids[:-1]])
    expected = tiny.log_softmax(logits)[range(5), score.token_ids]
    np.testing.assert_allclose(score.logprobs, expected, rtol=1e-5, atol=1e-4)
    assert score.sum == pytest.approx(expected.sum(), rel=1e-5)
    assert score.perplexity == pytest.approx(np.exp(-expected.mean()), rel=1e-4)
    assert chain.score("Say hi.", "Hi", context="abc").sum == pytest.approx(score.sum)


def test_classify(nano: Pipe, chain: Pipe) -> None:
    answers = ["no", "yes", "perhaps"]
    found = nano.classify("Is a rose a plant?", answers)
    assert list(found) == answers
    assert sum(found.values()) == pytest.approx(1)
    sums = [nano.score("Is a rose a plant?", answer).sum for answer in answers]
    assert list(found.logprobs.values()) == pytest.approx(sums)
    weights = np.exp(np.array(sums) - max(sums))
    assert list(found.values()) == pytest.approx(list(weights / weights.sum()))
    assert found.best == answers[int(np.argmax(sums))]
    assert chain.classify("a", ["Hi,", "\x7f~"]).best == "Hi,"
    assert copy.deepcopy(found).logprobs == found.logprobs
    for wrong in ([], ["a", "a"]):
        with pytest.raises(dolly_rs.InvalidArgumentError, match="answer"):
            chain.classify("a", wrong)


def test_tokenizer(chain: Pipe, nano: Pipe) -> None:
    assert chain.tokenizer.encode("Hé\n") == tiny.ids_of("Hé\n")
    assert chain.tokenizer.encode("### End") == tiny.ids_of("### End")
    assert chain.tokenizer.encode("### End", special=True) == [tiny.END]
    assert chain.tokenizer.decode([*tiny.ids_of("Hé"), tiny.END]) == "Hé### End"
    assert chain.tokenizer.decode([tiny.END], skip_special_tokens=True) == ""
    assert chain.tokenizer.vocab_size == len(chain.tokenizer) == tiny.RESPONSE + 1
    text = "Whoever reads this: naïve 東京 😀\n\n  two  spaces"
    assert nano.tokenizer.decode(nano.tokenizer.encode(text)) == text


def test_less_work(chain: Pipe) -> None:
    whole = chain.generate("Say what was said before.")
    again = chain.generate("Say what was said before.", prompt_lookup=8)
    assert (again.text, again.token_ids) == (whole.text, whole.token_ids)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert whole.usage.drafted_tokens == whole.usage.accepted_tokens == 0
    quoted = chain.generate(ANSWER + ANSWER, prompt_lookup=8)
    assert quoted.token_ids == whole.token_ids
    assert quoted.usage.accepted_tokens > 0
    assert chain.memory.prefix_cache > 0


@pytest.mark.parametrize(
    ("kv_cache", "share"), [("f32", 1.0), ("f16", 0.5), ("bf16", 0.5), ("q8_0", 0.25)]
)
def test_kv_cache(chain_dir: Path, kv_cache: str, share: float) -> None:
    with dolly_rs.pipeline(chain_dir, threads=1, kv_cache=kv_cache) as pipe:
        assert pipe("Say hi.") == [{"generated_text": ANSWER}]
        # With a scale for each key and value in q8_0.
        scales = 2 * 4 * tiny.HEADS if kv_cache == "q8_0" else 0
        assert pipe.memory.cache_per_token == 2 * 4 * tiny.VOCAB * share + scales
    with pytest.raises(dolly_rs.InvalidArgumentError, match="kv_cache"):
        dolly_rs.pipeline(chain_dir, kv_cache="q9")


def test_packed_weights(chain_dir: Path, tmp_path: Path) -> None:
    kept = []
    for _ in range(2):
        with dolly_rs.pipeline(chain_dir, threads=1, packed_weights=tmp_path / "packed") as pipe:
            assert pipe("Say hi.") == [{"generated_text": ANSWER}]
        (file,) = (tmp_path / "packed").iterdir()
        kept.append((file.name, file.stat().st_ino, file.stat().st_mtime_ns))
    # The second load found the file and did not make it anew.
    assert kept[0] == kept[1]


def test_config_and_memory(chain: Pipe) -> None:
    config = chain.config
    assert config.hidden_size == config["hidden_size"] == tiny.VOCAB
    assert config.num_attention_heads == tiny.HEADS
    assert config.rotary_dims == 20
    assert config.layer_norm_eps == 1e-5
    assert config.hidden_act == "gelu"
    assert dict(config)["eos_token_ids"] == [0]
    with pytest.raises(AttributeError):
        config.hidden_size = 3
    with pytest.raises(AttributeError, match="nothing"):
        _ = config.nothing
    weights = sum(array.nbytes for array in tiny.chain_tensors({}).values())
    assert chain.memory.weights >= weights
    assert chain.memory.cache_per_token == 2 * 4 * tiny.VOCAB
    assert set(chain.memory) == {
        "weights",
        "cache",
        "prefix_cache",
        "workspace",
        "cache_per_token",
    }
    assert chain.context_length == tiny.CONTEXT
    assert chain.weight_format == "f32"


def test_dtype(chain_dir: Any) -> None:
    for dtype in ("f32", "f16", "bf16", "q8_0"):
        with dolly_rs.pipeline(chain_dir, dtype=dtype) as pipe:
            assert pipe.weight_format == dtype
            assert pipe.generate("a").text == ANSWER


def test_device(chain_dir: Any) -> None:
    for device in ("cpu", "auto", -1):
        with dolly_rs.pipeline(chain_dir, device=device) as pipe:
            assert pipe.generate("a").text == ANSWER
    for device in ("cuda", "cuda:7", 0):
        with pytest.raises(dolly_rs.DeviceError):
            dolly_rs.pipeline(chain_dir, device=device)
    with pytest.raises(dolly_rs.InvalidArgumentError, match="device"):
        dolly_rs.pipeline(chain_dir, device="tpu")


def test_reprs(chain_dir: Any, chain: Pipe) -> None:
    assert repr(chain) == f"dolly_rs.pipeline({str(chain_dir)!r}, threads=1)"
    assert "261 ids" in repr(chain.tokenizer)
    assert repr(chain.memory).startswith("Record(weights=")
    stream = chain.stream("a")
    assert repr(stream) == "<dolly_rs.Stream open>"
    list(stream)
    assert repr(stream) == "<dolly_rs.Stream ended>"


def test_notebook_shows_answers_as_text() -> None:
    hostile = "<script>alert(1)</script>\n```\n# **bold**"
    usage, timings = dolly_rs.Usage(1, 2), dolly_rs.Timings(0.0, 0.1, 0.2, 0.3, [0.1, 0.3])
    answer = dolly_rs.Generation(hostile, [1, 2], "end", usage, timings, None, 7)
    shown = answer._repr_html_()
    assert "<script>" not in shown
    assert html.escape(hostile) in shown
    assert answer._repr_markdown_().startswith("````text\n" + hostile + "\n````\n")
    assert "2 tokens (end), 0.30 s, 5.0 tokens/s" in shown


def test_stream_text_is_whole(euro: Pipe) -> None:
    with euro.stream("a", max_new_tokens=12) as stream:
        pieces = list(stream)
    assert pieces == [EURO] * 4
    assert stream.generation is not None
    assert stream.generation.text == EURO * 4
    assert stream.generation.finish_reason == "length"
