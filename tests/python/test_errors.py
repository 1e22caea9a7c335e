"""Every failure is an exception of its class, which is also the built-in a caller expects."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

import dolly_rs
import tiny
from conftest import ANSWER
from dolly_rs import errors

BASES = {
    "CancelledError": Exception,
    "ClosedError": RuntimeError,
    "ContextOverflowError": ValueError,
    "DataFormatError": ValueError,
    "DeadlineError": TimeoutError,
    "DeviceError": RuntimeError,
    "DivergedError": ArithmeticError,
    "DollyIOError": OSError,
    "DollyMemoryError": MemoryError,
    "InternalError": Exception,
    "InvalidArgumentError": ValueError,
    "ModelFormatError": ValueError,
    "ModelNotFoundError": FileNotFoundError,
    "NetworkError": ConnectionError,
    "UnsupportedError": NotImplementedError,
}


def test_classes() -> None:
    assert set(errors.__all__) == {*BASES, "DollyError"}
    for name, base in BASES.items():
        kind = getattr(dolly_rs, name)
        assert issubclass(kind, dolly_rs.DollyError)
        assert issubclass(kind, base)


@pytest.mark.parametrize("name", BASES)
def test_exceptions_pickle(name: str) -> None:
    error = getattr(dolly_rs, name)("what happened")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.args == error.args


def test_not_found(tmp_path: Path) -> None:
    with pytest.raises(dolly_rs.ModelNotFoundError, match="nowhere"):
        dolly_rs.pipeline(tmp_path / "nowhere", offline=True)


def test_format(tmp_path: Path) -> None:
    model = tiny.chain_model(tmp_path / "cut", {})
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(dolly_rs.ModelFormatError, match=r"model\.safetensors"):
        dolly_rs.pipeline(model)


def test_config(tmp_path: Path) -> None:
    model = tiny.chain_model(tmp_path / "act", {}, hidden_act="mish")
    with pytest.raises(dolly_rs.ModelFormatError, match=r"config\.json.*hidden_act.*mish"):
        dolly_rs.pipeline(model)


def test_tensor_missing(tmp_path: Path) -> None:
    model = tiny.chain_model(tmp_path / "layers", {}, num_hidden_layers=2)
    with pytest.raises(dolly_rs.ModelFormatError, match=r"layers\.1"):
        dolly_rs.pipeline(model)


def test_tokenizer(tmp_path: Path) -> None:
    model = tiny.chain_model(tmp_path / "tokenizer", {})
    (model / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece"}}))
    with pytest.raises(dolly_rs.ModelFormatError, match=r"tokenizer\.json"):
        dolly_rs.pipeline(model)


def test_memory_limit(chain_dir: Path) -> None:
    with pytest.raises(dolly_rs.DollyMemoryError, match="100000 bytes"):
        dolly_rs.pipeline(chain_dir, memory_limit=100_000)


def test_context_overflow(chain: dolly_rs.Pipeline) -> None:
    with pytest.raises(dolly_rs.ContextOverflowError) as caught:
        chain.generate("x" * tiny.CONTEXT)
    error = caught.value
    assert error.prompt_tokens > tiny.CONTEXT == error.context_length
    assert str(error.prompt_tokens) in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.prompt_tokens, copy.context_length) == (error.prompt_tokens, tiny.CONTEXT)


def test_truncate_context(chain: dolly_rs.Pipeline) -> None:
    passage = "x" * tiny.CONTEXT
    answer = chain.generate("a", passage, prompt_overflow="truncate_context")
    assert answer.usage.prompt_tokens < tiny.CONTEXT


def test_deadline(endless: dolly_rs.Pipeline) -> None:
    with pytest.raises(dolly_rs.DeadlineError):
        endless.logits([3] * 100, deadline=0.0)
    with pytest.raises(dolly_rs.DeadlineError):
        endless.score("a", "b", deadline=0.0)
    with pytest.raises(dolly_rs.DeadlineError):
        endless.classify("a", ["b", "c"], deadline=0.0)


def test_closed(chain_dir: Path) -> None:
    pipe = dolly_rs.pipeline(chain_dir)
    tokenizer = pipe.tokenizer
    pipe.close()
    pipe.close()
    assert pipe.closed
    assert repr(pipe).endswith("(closed)")
    assert pipe.memory.weights == 0
    calls = [
        lambda: pipe("a"),
        lambda: pipe.generate("a"),
        lambda: pipe.stream("a"),
        lambda: pipe.complete("a"),
        lambda: pipe.score("a", "b"),
        lambda: pipe.classify("a", ["b"]),
        lambda: pipe.logits([1]),
    ]
    for call in calls:
        with pytest.raises(dolly_rs.ClosedError):
            call()
    assert tokenizer.encode("H") == tiny.ids_of("H")


def test_close_ends_a_running_stream(endless: dolly_rs.Pipeline) -> None:
    stream = endless.stream("a", max_new_tokens=30_000)
    next(stream)
    endless.close()
    with pytest.raises(dolly_rs.ClosedError):
        list(stream)


def test_text_that_is_no_text(chain: dolly_rs.Pipeline) -> None:
    with pytest.raises(UnicodeEncodeError):
        chain.generate("\ud800")
    with pytest.raises(TypeError):
        chain.generate(7)  # type: ignore[arg-type]
    assert chain.generate("a\0b").text == ANSWER


def test_progress(chain_dir: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    dolly_rs.pipeline(chain_dir, progress=lambda *report: seen.append(report)).close()
    loaded = [report[0] for report in seen]
    assert loaded == sorted(loaded)
    assert loaded[-1] == seen[-1][1] == sum(a.size for a in tiny.chain_tensors({}).values())
    assert any("embed_in" in report[2] for report in seen)


def test_progress_that_raises_stops_the_load(chain_dir: Path) -> None:
    calls = []

    def stop(*report: object) -> None:
        calls.append(report)
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        dolly_rs.pipeline(chain_dir, progress=stop)
    assert len(calls) == 1


def test_progress_bar(chain_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dolly_rs.pipeline(chain_dir, progress=True).close()
    shown = capsys.readouterr()
    assert "Loading" in shown.err
    assert shown.out == ""


def test_nothing_is_printed(chain_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with dolly_rs.pipeline(chain_dir) as pipe:
        pipe("a")
        with pytest.raises(dolly_rs.ContextOverflowError):
            pipe("x" * 5000)
    assert capfd.readouterr() == ("", "")


def test_events_reach_logging(chain_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="dolly_core"):
        dolly_rs.pipeline(chain_dir, threads=1).close()
    assert any(record.name == "dolly_core.backend.cpu" for record in caplog.records)
