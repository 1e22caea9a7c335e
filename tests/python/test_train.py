"""Training from Python and the command line: a model in, a directory that loads out."""

from __future__ import annotations

import html
import importlib.util
import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_cli import dolly
from test_threads import progress_meanwhile, run

import dolly_rs
import tiny
from conftest import ANSWER
from dolly_rs.progress import step_reporter
from dolly_rs.runs import StepReport

ROWS = [
    {
        "instruction": f"Say the number {n}.",
        "context": "",
        "response": f"{n}",
        "category": "open_qa" if n % 2 else "closed_qa",
    }
    for n in range(20)
]
SMALL: Any = {"batch_size": 2, "eval_size": 4, "learning_rate": 1e-3, "threads": 1}

# Section 4 of the project's design; the others are transformers' Trainer's.
DEFAULTS = {
    "config": None,
    "tokenizer": None,
    "lora": None,
    "epochs": 2,
    "max_steps": None,
    "batch_size": 8,
    "gradient_accumulation": 1,
    "learning_rate": 1e-5,
    "warmup_steps": 0,
    "schedule": "constant",
    "max_length": None,
    "eval_size": 0.02,
    "eval_steps": 50,
    "save_steps": 200,
    "save_total_limit": 10,
    "gradient_checkpointing": True,
    "seed": 42,
    "resume": False,
    "threads": None,
    "device": "auto",
    "precision": "f32",
    "on_step": None,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "dropout": 0.0,
    "early_stopping_patience": None,
    "logging_steps": 10,
    "memory_limit": None,
    "progress": None,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer with random weights: gradients reach every one of them."""
    path = tiny.chain_model(tmp_path_factory.mktemp("base"), {})
    noise = np.random.default_rng(1)
    tensors = {
        name: (array + 0.02 * noise.standard_normal(array.shape)).astype(np.float32)
        for name, array in tiny.chain_tensors({}).items()
    }
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def weights(directory: Path, name: str = "model") -> dict[str, bytes]:
    """The bytes of every tensor of a result."""
    tensors = load_file(directory / f"{name}.safetensors")
    return {name: array.tobytes() for name, array in tensors.items()}


def numbers(run: dolly_rs.TrainingRun) -> list[dict[str, Any]]:
    """The history without the one number that depends on the clock."""
    return [{**row, "tokens_per_second": 0.0} for row in run.history]


def test_defaults() -> None:
    parameters = inspect.signature(dolly_rs.train).parameters
    keywords = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert keywords == DEFAULTS
    options = dolly_rs.training._Options()
    for name in dolly_rs.training._NAMES:
        assert getattr(options, name) == DEFAULTS[name]
    assert set(dolly_rs.training.TrainingNames.__annotations__) == set(dolly_rs.training._NAMES)


def test_run(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[StepReport] = []
    run = dolly_rs.train(base, ROWS, out, epochs=3, eval_steps=4, on_step=seen.append, **SMALL)
    assert [row["step"] for row in run.history] == list(range(1, 25))
    assert [row["step"] for row in run.history if row["eval_loss"] is not None] == [
        *range(4, 25, 4)
    ]
    assert (run.stopped, run.total_steps, run.output_dir) == ("finished", 24, out)
    assert (run.train_rows, run.eval_rows, run.dropped_rows, run.warnings) == (16, 4, 0, [])
    assert all(row["learning_rate"] == 1e-3 for row in run.history)
    assert run.history[-1]["epoch"] == 3.0
    # A model that knows nothing has the loss of a uniform guess, or worse; it has learned since.
    assert run.history[0]["loss"] > math.log(tiny.VOCAB) - 0.5
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 1
    assert run.evaluation is not None
    assert run.best is not None
    assert run.evaluation["loss"] == run.history[-1]["eval_loss"]
    assert run.best["eval_loss"] == min(row["eval_loss"] or math.inf for row in run.history)
    rows = [{key: value for key, value in one.items() if key in run.history[0]} for one in seen]
    assert rows == run.history
    assert {one["total_steps"] for one in seen} == {24}
    assert seen[-1]["evaluation"] == run.evaluation
    assert seen[-1]["remaining"] == 0
    with dolly_rs.pipeline(out, threads=1) as pipe:
        assert pipe.generate("Say the number 3.", max_new_tokens=4).usage.completion_tokens > 0
    assert dolly_rs.lineage(out).nodes[0]["record"]["data"][0]["rows"] == 16


def test_result_is_described(base: Path, tmp_path: Path) -> None:
    run = dolly_rs.train(base, ROWS, tmp_path / "<out>", max_steps=2, **SMALL)
    assert "2 of 2 steps, finished" in repr(run)
    page = run._repr_html_()
    assert html.escape("<out>") in page
    assert "<out>" not in page
    assert "open_qa" in page
    line = json.loads(json.dumps(run.to_dict()))
    assert (line["steps"], line["stopped"]) == (2, "finished")
    assert line["loss"] == run.history[-1]["loss"]
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(ImportError, match="pip install matplotlib"):
            run.plot()
    else:
        (axes,) = run.plot().axes
        losses = [row["loss"] for row in run.history]
        assert list(axes.lines[0].get_ydata()) == losses


@pytest.mark.parametrize("lora", [None, dolly_rs.LoraConfig(r=2, dropout=0.1)])
def test_resumed_run_has_the_same_bits(
    base: Path, tmp_path: Path, lora: dolly_rs.LoraConfig | None
) -> None:
    name = "model" if lora is None else "adapter_model"
    whole = dolly_rs.train(base, ROWS, tmp_path / "a", lora=lora, max_steps=6, **SMALL)
    first = dolly_rs.train(base, ROWS, tmp_path / "b", lora=lora, max_steps=3, **SMALL)
    assert first.resumed_from is None
    with pytest.raises(dolly_rs.InvalidArgumentError, match="resume"):
        dolly_rs.train(base, ROWS, tmp_path / "b", lora=lora, max_steps=6, **SMALL)
    again = {**SMALL, "threads": 2, "resume": True}
    second = dolly_rs.train(base, ROWS, tmp_path / "b", lora=lora, max_steps=6, **again)
    assert second.resumed_from == 3
    # The shorter run evaluated at its end.
    ends = [{**row, "eval_loss": None} for row in numbers(second)]
    assert ends == [{**row, "eval_loss": None} for row in numbers(whole)]
    assert weights(tmp_path / "b", name) == weights(tmp_path / "a", name)


def test_adapter_round_trip(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    before = weights(base)
    config = dolly_rs.LoraConfig(r=2, alpha=8)
    run = dolly_rs.train(base, ROWS, out, lora=config, max_steps=12, **SMALL)
    assert weights(base) == before
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    with dolly_rs.pipeline(base, threads=1) as plain:
        old = plain.score("Say the number 3.", "3").perplexity
    with dolly_rs.pipeline(base, adapter=out, threads=1) as pipe:
        assert pipe.score("Say the number 3.", "3").perplexity != old
    # The rows that were kept for evaluation: the adapter's directory gives the run's own number.
    kept = dolly_rs.load_dataset(ROWS).split(4, seed=42)[1]
    found = dolly_rs.evaluate(out, kept)
    assert run.evaluation is not None
    assert found["loss"] == pytest.approx(run.evaluation["loss"], rel=1e-5)
    merged = tmp_path / "merged"
    dolly_rs.merge_adapter(base, out, merged)
    assert dolly_rs.evaluate(merged, kept)["loss"] == pytest.approx(found["loss"], rel=1e-4)


def test_target_that_matches_nothing(base: Path, tmp_path: Path) -> None:
    config = dolly_rs.LoraConfig(targets=("q_proj",))
    with pytest.raises(dolly_rs.DollyError, match="q_proj"):
        dolly_rs.train(base, ROWS, tmp_path / "out", lora=config, **SMALL)
    wrong: Any = {"r": 8}
    with pytest.raises(TypeError, match="LoraConfig"):
        dolly_rs.train(base, ROWS, tmp_path / "out", lora=wrong)


def test_evaluate(chain_dir: Path) -> None:
    rows = [
        {"instruction": "Say hi.", "response": ANSWER, "category": "greeting"},
        {"instruction": "Say hi.", "response": "Hi", "category": "half"},
    ]
    found = dolly_rs.evaluate(chain_dir, rows, batch_size=1, threads=1)
    parts = list(found["by_category"].values())
    assert list(found["by_category"]) == ["greeting", "half"]
    assert found["tokens"] == sum(part["tokens"] for part in parts)
    total = sum(part["loss"] * part["tokens"] for part in parts)
    assert found["loss"] == pytest.approx(total / found["tokens"])
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    # By the model's making, in float64: what is predicted is the response, a blank line, the end.
    for row in rows:
        ids = [tiny.RESPONSE, *tiny.ids_of(row["response"] + "\n\n"), tiny.END]
        logs = tiny.log_softmax(tiny.chain_logits(tiny.answer_chain(ANSWER), ids[:-1]))
        part = found["by_category"][row["category"]]
        assert part["tokens"] == len(ids) - 1
        nats = -sum(logs[place, id] for place, id in enumerate(ids[1:]))
        assert part["loss"] * part["tokens"] == pytest.approx(nats, rel=1e-5)
    assert dolly_rs.evaluate(chain_dir, rows, batch_size=2, threads=2) == found
    short = dolly_rs.evaluate(chain_dir, [*rows, dict(ROWS[0], response="x" * 900)])
    assert short["dropped_rows"] + short["rows"] == 3
    with pytest.raises(dolly_rs.InvalidArgumentError):
        dolly_rs.evaluate(chain_dir, rows, max_length=4)


def test_text(base: Path, tmp_path: Path) -> None:
    text = "Sheep graze on grass. " * 60
    (tmp_path / "sheep.txt").write_text(text)
    options: Any = {"max_length": 32, "max_steps": 3, "batch_size": 2, "eval_size": 0}
    whole = dolly_rs.train_text(base, tmp_path / "sheep.txt", tmp_path / "a", **options)
    same = dolly_rs.train_text(
        base, None, tmp_path / "b", texts=[text], name="sheep", licence="CC0-1.0", **options
    )
    assert numbers(whole) == numbers(same)
    assert len(same.history) == 3
    (data,) = dolly_rs.lineage(tmp_path / "b").nodes[0]["record"]["data"]
    assert (data["name"], data["licence"]) == ("sheep", "CC0-1.0")
    for files, texts in ((None, []), ([tmp_path / "sheep.txt"], [text])):
        with pytest.raises(TypeError, match="either"):
            dolly_rs.train_text(base, files, tmp_path / "c", texts=texts)
    wrong: Any = {"epoch": 1}
    with pytest.raises(TypeError, match="did you mean 'epochs'"):
        dolly_rs.train_text(base, None, tmp_path / "c", texts=[text], **wrong)


def test_on_step_stops(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = dolly_rs.train(base, ROWS, out, on_step=lambda row: row["step"] < 3, **SMALL)
    assert (run.stopped, len(run.history), run.total_steps) == ("callback", 3, 16)
    assert (out / "checkpoint-3").is_dir()
    assert (out / "model.safetensors").is_file()


def test_on_step_goes_on_after_anything_but_false(base: Path, tmp_path: Path) -> None:
    answers = iter([None, 0, "", [], True])
    run = dolly_rs.train(
        base, ROWS, tmp_path / "out", max_steps=5, on_step=lambda _: next(answers), **SMALL
    )
    assert run.stopped == "finished"


def test_exception_of_on_step(base: Path, tmp_path: Path) -> None:
    seen = []

    def fail(report: StepReport) -> None:
        seen.append(report["step"])
        if report["step"] == 3:
            raise LookupError("mine")

    out = tmp_path / "out"
    with pytest.raises(LookupError, match="mine"):
        dolly_rs.train(base, ROWS, out, save_steps=2, on_step=fail, **SMALL)
    assert seen == [1, 2, 3]
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    again = dolly_rs.train(base, ROWS, out, save_steps=2, max_steps=4, resume=True, **SMALL)
    assert (again.resumed_from, len(again.history)) == (2, 4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"epochs": 0}, dolly_rs.InvalidArgumentError, "epochs"),
        ({"batch_size": -1}, dolly_rs.InvalidArgumentError, "batch_size"),
        ({"seed": 2**70}, dolly_rs.InvalidArgumentError, "seed"),
        ({"learning_rate": math.nan}, dolly_rs.InvalidArgumentError, "learning_rate"),
        ({"eval_size": 1.5}, dolly_rs.InvalidArgumentError, "eval_size"),
        ({"schedule": "step"}, dolly_rs.InvalidArgumentError, "schedule"),
        ({"memory_limit": 1000}, dolly_rs.DollyMemoryError, "1000"),
        ({"device": "cuda"}, dolly_rs.DeviceError, "cuda"),
        ({"device": "tpu"}, dolly_rs.InvalidArgumentError, "tpu"),
        ({"precision": "f8"}, dolly_rs.InvalidArgumentError, "f8"),
        ({"precision": "bf16", "device": "cpu"}, dolly_rs.DollyError, "bf16"),
        ({"epochs": "two"}, TypeError, "epochs"),
        ({"eval_size": "all"}, TypeError, "eval_size"),
        ({"learning_rates": 1.0}, TypeError, "did you mean 'learning_rate'"),
        ({"num_epochs": 1}, TypeError, "did you mean 'epochs'"),
    ],
)
def test_refusals(
    base: Path, tmp_path: Path, options: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        dolly_rs.train(base, ROWS, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_divergence(tmp_path: Path) -> None:
    model = tiny.chain_model(tmp_path / "model", {})
    tensors = tiny.chain_tensors({})
    tensors["embed_out.weight"][5, 5] = np.inf
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(dolly_rs.DivergedError, match="step 1") as caught:
        dolly_rs.train(model, ROWS, tmp_path / "out", **SMALL)
    assert caught.value.step == 1
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_data_that_cannot_be_read(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "response": "b"}\n{"instruction": "a"}\n')
    with pytest.raises(dolly_rs.DataFormatError, match=r"rows\.jsonl:2"):
        dolly_rs.train(base, path, tmp_path / "out")
    with pytest.raises(dolly_rs.ModelNotFoundError):
        dolly_rs.train(tmp_path / "none", ROWS, tmp_path / "out")


def test_gil_is_released(base: Path, tmp_path: Path) -> None:
    def call() -> None:
        dolly_rs.train(base, ROWS, tmp_path / "out", max_steps=20, **SMALL)

    assert progress_meanwhile(call) > 100
    rows = [dict(row, response="x" * 200) for row in ROWS]
    assert progress_meanwhile(lambda: dolly_rs.evaluate(base, rows, threads=1)) > 100


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c(base: Path, tmp_path: Path) -> None:
    out = run(
        """
        import os, signal, sys, threading, time, dolly_rs
        rows = [{"instruction": f"Say {n}.", "response": f"{n}"} for n in range(20)]
        sent = []
        def on_step(report):
            if report["step"] == 3:
                sent.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)
        options = dict(batch_size=2, eval_size=0, save_steps=2, epochs=100000, threads=1)
        try:
            dolly_rs.train(sys.argv[1], rows, sys.argv[2], on_step=on_step, **options)
        except KeyboardInterrupt:
            print(time.monotonic() - sent[0])
        options["max_steps"] = 4
        again = dolly_rs.train(sys.argv[1], rows, sys.argv[2] + "-other", **options)
        print(again.stopped)
        """,
        base,
        tmp_path / "out",
    )
    latency, stopped = out.split()
    assert float(latency) < 2
    assert stopped == "finished"
    checkpoints = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert "checkpoint-2" in checkpoints
    assert not (tmp_path / "out" / "model.safetensors").exists()


def report(step: int, eval_loss: float | None = None) -> Any:
    row = dolly_rs.runs.HistoryRow(
        step=step,
        epoch=0.5,
        loss=2.5,
        eval_loss=eval_loss,
        learning_rate=1e-5,
        grad_norm=1.0,
        tokens_per_second=1234.4,
    )
    return row, 10, 61.2, None


def test_steps_are_shown_as_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with step_reporter(True, None) as step:
        assert step is not None
        step(*report(4))
        step(*report(5, 2.25))
        step(*report(6))
    text = capsys.readouterr().err
    assert "6/10" in text
    for part in ("loss=2.5000", "eval loss=2.2500", "tokens/s=1234"):
        assert part in text


@pytest.mark.parametrize("terminal", [True, False])
def test_steps_are_shown_as_a_line_without_tqdm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with step_reporter(True, lambda _: False) as step:
        assert step is not None
        assert step(*report(4, 2.25)) is False
    line = "step 4 of 10: loss 2.5000, eval loss 2.2500, 1234 tokens/s, 0:01:01 left"
    assert capsys.readouterr().err == (f"\r\x1b[K{line}\n" if terminal else "")


def test_nobody_listens() -> None:
    with step_reporter(None, None) as step:
        assert step is None


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """The rows, by other names."""
    path = tmp_path / "rows.jsonl"
    names = {"instruction": "instruction", "response": "output", "category": "category"}
    rows = [{names[key]: row[key] for key in names} for row in ROWS]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


COMMON = ["--column", "response=output", "--batch-size", "2", "--threads", "1"]


def test_command_line(base: Path, tmp_path: Path, rows_file: Path) -> None:
    out = tmp_path / "out"
    options = (
        "--eval-size 4 --learning-rate 1e-3 --max-steps 4 --logging-steps 2 --schedule linear "
        "--no-gradient-checkpointing --licence CC0-1.0"
    )
    done = dolly("train", base, rows_file, "--output-dir", out, *COMMON, *options.split())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["steps"], result["stopped"], result["train_rows"]) == (4, "finished", 16)
    assert "step 2 of 4: loss" in done.stderr
    assert "step 3 of 4" not in done.stderr
    python = dolly_rs.train(base, ROWS, tmp_path / "b", max_steps=4, schedule="linear", **SMALL)
    assert result["loss"] == python.history[-1]["loss"]
    assert weights(out) == weights(tmp_path / "b")
    assert dolly_rs.lineage(out).nodes[0]["record"]["data"][0]["licence"] == "CC0-1.0"

    done = dolly("evaluate", out, rows_file, *COMMON)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == dolly_rs.evaluate(out, ROWS)


def test_command_line_with_adapters_and_resume(base: Path, tmp_path: Path, rows_file: Path) -> None:
    out = tmp_path / "out"
    lora = "--lora --lora-r 2 --lora-alpha 4 --lora-target dense --eval-size 0"
    train = ["train", str(base), str(rows_file), "--output-dir", str(out), *COMMON]
    train += lora.split()
    assert dolly(*train, "--max-steps", "2").returncode == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 4.0, ["dense"])
    done = dolly(*train, "--max-steps", "4")
    assert done.returncode == 1
    assert "resume" in done.stderr
    done = dolly(*train, "--max-steps", "4", "--resume")
    assert json.loads(done.stdout)["resumed_from"] == 2
    done = dolly("train", base, rows_file, "--output-dir", out, "--lora-r", "2")
    assert done.returncode == 1
    assert "--lora" in done.stderr


def test_command_line_with_text(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"body": "Sheep graze on grass. " * 60}) + "\n")
    out = tmp_path / "out"
    options = "--text --text-column body --max-length 32 --max-steps 1 --eval-size 0"
    done = dolly("train", base, path, "--output-dir", out, *options.split())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 1
    done = dolly("train", base, path, "--output-dir", out, "--text", "--column", "response=body")
    assert done.returncode == 1


def test_every_option_is_on_the_command_line() -> None:
    text = dolly("train", "--help").stdout
    for name in DEFAULTS.keys() - {"on_step", "progress"}:
        assert f"--{name.replace('_', '-')}" in text


def test_wrong_usage() -> None:
    assert dolly("train", "a").returncode == 2
    assert dolly("evaluate", "a").returncode == 2
