"""Training from nothing: a vocabulary, a shape and data in, a directory that loads out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from test_cli import dolly
from test_threads import progress_meanwhile
from test_train import ROWS, numbers, weights

import dolly_rs
import tiny

TEXTS = [row["instruction"] for row in ROWS]
SHAPE: dict[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "max_position_embeddings": 256,
}
SMALL: Any = {
    "batch_size": 2,
    "eval_size": 4,
    "learning_rate": 1e-2,
    "max_steps": 20,
    "threads": 1,
}


@pytest.fixture(scope="module")
def vocabulary() -> bytes:
    """A vocabulary of the rows' own."""
    return dolly_rs.train_tokenizer(TEXTS, 270)


def test_vocabulary(vocabulary: bytes) -> None:
    assert isinstance(vocabulary, bytes)
    file = json.loads(vocabulary)
    ids = {entry["content"]: entry["id"] for entry in file["added_tokens"]}
    assert ids["<|endoftext|>"] == 0
    assert [ids[key] for key in ("### End", "### Instruction:", "### Response:\n")] == [
        267,
        268,
        269,
    ]
    few = json.loads(dolly_rs.train_tokenizer(["ab ab ab cd"], 262))
    assert few["model"]["merges"] == ["a b"]
    for threads in (1, 2):
        assert dolly_rs.train_tokenizer(iter(TEXTS), 270, threads=threads) == vocabulary
    assert dolly_rs.train_tokenizer("ab ab ab", 262) == dolly_rs.train_tokenizer(["ab ab ab"], 262)


@pytest.mark.parametrize(
    ("texts", "size", "threads", "error", "words"),
    [
        (TEXTS, 260, None, dolly_rs.InvalidArgumentError, "vocab_size"),
        (TEXTS, -1, None, dolly_rs.InvalidArgumentError, "vocab_size"),
        (TEXTS, 2**70, None, dolly_rs.InvalidArgumentError, "vocab_size"),
        (TEXTS, "many", None, TypeError, "vocab_size"),
        (TEXTS, 270, 0, dolly_rs.InvalidArgumentError, "threads"),
        (TEXTS, 270, 1 << 40, dolly_rs.InvalidArgumentError, "threads"),
        ([1], 270, None, TypeError, "texts"),
        (7, 270, None, TypeError, "iterable"),
        (["\ud800"], 270, None, UnicodeEncodeError, "surrogate"),
    ],
)
def test_vocabulary_refusals(
    texts: Any, size: Any, threads: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        dolly_rs.train_tokenizer(texts, size, threads=threads)


def test_gil_is_released() -> None:
    texts = [f"{n} sheep graze on moor {n * n}, all day long." for n in range(20_000)]
    assert progress_meanwhile(lambda: dolly_rs.train_tokenizer(texts, 2_000, threads=1)) > 100


def test_from_nothing(vocabulary: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = dolly_rs.train(None, ROWS, out, config=SHAPE, tokenizer=vocabulary, **SMALL)
    # At first every id is about equally likely.
    assert run.history[0]["loss"] == pytest.approx(math.log(270), abs=0.2)
    assert run.history[-1]["loss"] < 0.8 * run.history[0]["loss"]
    # The vocabulary is the tokenizer's, whatever the configuration says.
    with dolly_rs.pipeline(out, threads=1) as pipe:
        assert (pipe.config["vocab_size"], pipe.config["hidden_size"]) == (270, 16)
        assert pipe.generate("Say the number 3.", max_new_tokens=4).usage.completion_tokens > 0
    assert dolly_rs.lineage(out).nodes[0]["record"]["parents"] == []


def test_files_are_the_same_as_their_content(vocabulary: bytes, tmp_path: Path) -> None:
    config, tokenizer = tmp_path / "shape.json", tmp_path / "vocabulary.json"
    config.write_text(json.dumps(SHAPE))
    tokenizer.write_bytes(vocabulary)
    kinds: list[tuple[Any, Any]] = [
        (SHAPE, vocabulary),
        (config, bytearray(vocabulary)),
        (str(config), memoryview(vocabulary)),
        (SHAPE, tokenizer),
        (config, str(tokenizer)),
    ]
    options = {**SMALL, "max_steps": 2}
    found = []
    for number, (shape, words) in enumerate(kinds):
        out = tmp_path / str(number)
        run = dolly_rs.train(None, ROWS, out, config=shape, tokenizer=words, **options)
        found.append((numbers(run), weights(out)))
    assert all(one == found[0] for one in found)
    # A run that began with the one goes on with the other.
    again = dolly_rs.train(
        None,
        ROWS,
        tmp_path / "0",
        config=config,
        tokenizer=tokenizer,
        resume=True,
        **{**SMALL, "max_steps": 3},
    )
    assert again.resumed_from == 2


def test_text_then_instructions(vocabulary: bytes, tmp_path: Path) -> None:
    options = {**SMALL, "eval_size": 0, "max_steps": 3}
    run = dolly_rs.train_text(
        None,
        None,
        tmp_path / "base",
        texts=["Sheep graze on grass. " * 60],
        config=SHAPE,
        tokenizer=vocabulary,
        max_length=32,
        **options,
    )
    assert len(run.history) == 3
    tuned = dolly_rs.train(tmp_path / "base", ROWS, tmp_path / "tuned", **options)
    assert len(tuned.history) == 3
    assert len(dolly_rs.lineage(tmp_path / "tuned").nodes) == 2


def test_tokens_are_added(tmp_path: Path) -> None:
    plain = tiny.tokenizer()
    plain["added_tokens"] = plain["added_tokens"][:2]
    options = {**SMALL, "max_steps": 1}
    json_bytes = json.dumps(plain).encode()
    dolly_rs.train(None, ROWS, tmp_path / "out", config=SHAPE, tokenizer=json_bytes, **options)
    written = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert {"### End", "### Instruction:", "### Response:\n"} <= {
        entry["content"] for entry in written["added_tokens"]
    }


@pytest.mark.parametrize(
    ("model", "names", "error", "words"),
    [
        (None, {}, TypeError, "needs config and tokenizer; neither"),
        (None, {"config": SHAPE}, TypeError, "config alone"),
        (None, {"tokenizer": b"{}"}, TypeError, "tokenizer alone"),
        ("dolly-nano", {"config": SHAPE}, TypeError, "config: .*'dolly-nano'"),
        ("dolly-nano", {"tokenizer": b"{}"}, TypeError, "tokenizer: .*'dolly-nano'"),
        ("dolly-nano", {"config": SHAPE, "tokenizer": b"{}"}, TypeError, "config and tokenizer"),
        (None, {"config": 7, "tokenizer": b"{}"}, TypeError, "config: expected"),
        (None, {"config": SHAPE, "tokenizer": 7}, TypeError, "tokenizer: expected"),
        (None, {"config": {1j: 1}, "tokenizer": b"{}"}, TypeError, "keys must be"),
        (None, {"confg": SHAPE}, TypeError, "did you mean 'config'"),
        (None, {"config": {}, "tokenizer": "V"}, dolly_rs.ModelFormatError, "model_type"),
        (
            None,
            {"config": {**SHAPE, "hidden_size": 0}, "tokenizer": "V"},
            dolly_rs.ModelFormatError,
            "hidden_size",
        ),
        (None, {"config": SHAPE, "tokenizer": b"{}"}, dolly_rs.ModelFormatError, "tokenizer"),
        (None, {"config": "/none/c.json", "tokenizer": "V"}, dolly_rs.DollyIOError, r"c\.json"),
        (None, {"config": SHAPE, "tokenizer": "/none/t.json"}, dolly_rs.DollyIOError, r"t\.json"),
        (
            None,
            {"config": SHAPE, "tokenizer": "V", "lora": dolly_rs.LoraConfig()},
            ValueError,
            "lora",
        ),
    ],
)
def test_refusals(
    vocabulary: bytes,
    tmp_path: Path,
    model: Any,
    names: Any,
    error: type[Exception],
    words: str,
) -> None:
    if names.get("tokenizer") == "V":
        names = {**names, "tokenizer": vocabulary}
    out = tmp_path / "out"
    with pytest.raises(error, match=words):
        dolly_rs.train(model, ROWS, out, max_steps=1, **names)
    with pytest.raises(error, match=words):
        dolly_rs.train_text(model, None, out, texts=TEXTS, max_length=4, max_steps=1, **names)
    assert not out.exists()


def test_command_line(vocabulary: bytes, tmp_path: Path) -> None:
    for name, content in (("config.json", json.dumps(SHAPE)), ("tokenizer.json", vocabulary)):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    text = tmp_path / "text.txt"
    text.write_text("Sheep graze on grass. " * 60)
    parts = ["--config", tmp_path / "config.json", "--tokenizer", tmp_path / "tokenizer.json"]
    options = ["--max-steps", "2", "--eval-size", "0", "--threads", "1", "--batch-size", "2"]
    done = dolly("train", "-", rows, "--output-dir", tmp_path / "a", *parts, *options)
    assert done.returncode == 0, done.stderr
    python = dolly_rs.train(
        None,
        ROWS,
        tmp_path / "b",
        config=SHAPE,
        tokenizer=vocabulary,
        max_steps=2,
        eval_size=0,
        threads=1,
        batch_size=2,
    )
    assert json.loads(done.stdout)["loss"] == python.history[-1]["loss"]
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    packed = ["--text", "--max-length", "16", "--output-dir", tmp_path / "c"]
    done = dolly("train", "-", text, *packed, *parts, *options)
    assert done.returncode == 0, done.stderr
    for model, given in (("-", parts[:2]), ("-", []), ("dolly-nano", parts)):
        done = dolly("train", model, rows, "--output-dir", tmp_path / "d", *given, *options)
        assert done.returncode == 1
        assert "config" in done.stderr
