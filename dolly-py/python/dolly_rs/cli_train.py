"""``dolly train`` and ``dolly evaluate``: the result is a line of JSON on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from typing import Any

from .arguments import column, size
from .data import Dataset, load_dataset
from .lora import LoraConfig
from .progress import step_text
from .runs import StepReport, TrainingRun
from .training import OnStep, TrainingNames, _Options, evaluate, train, train_text

__all__ = ["add"]

_COUNTS = (
    "epochs",
    "max_steps",
    "batch_size",
    "gradient_accumulation",
    "warmup_steps",
    "max_length",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "early_stopping_patience",
    "seed",
    "threads",
    "memory_limit",
)
_NUMBERS = (
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "dropout",
)


def add(commands: Any) -> None:
    """Add both commands to those of the command line."""
    parser = commands.add_parser("train", help="train a model on your own data")
    model = "hub id, directory, .gguf file or dolly-nano; - for one from nothing"
    parser.add_argument("model", help=model)
    _add_data(parser)
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="for result and logs")
    parser.add_argument("--source", metavar="TEXT", help="where the data was had from")
    parser.add_argument("--licence", metavar="SPDX", help="of the data")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--text", action="store_true", help="DATA is plain text to continue on")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="of files of rows")
    _add_nothing(parser)
    _add_options(parser)
    _add_lora(parser)
    parser.set_defaults(command=_train)

    parser = commands.add_parser("evaluate", help="loss and perplexity on instruction data")
    parser.add_argument("model", help="as of train, or the directory of an adapter")
    _add_data(parser)
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--max-length", type=int, metavar="N", help="rows of this length are left")
    parser.add_argument("--threads", type=int, metavar="N", help="one per core unless given")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.set_defaults(command=_evaluate)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", metavar="DATA", help=".jsonl .json .csv .tsv .parquet")
    parser.add_argument(
        "--column",
        action="append",
        type=column,
        metavar="FIELD=NAME",
        help="such as response=output; repeatable",
    )
    parser.add_argument("--on-bad-row", choices=("error", "skip"), default="error")


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a model from nothing", "where MODEL is -")
    group.add_argument("--config", metavar="FILE", help="its config.json")
    group.add_argument("--tokenizer", metavar="FILE", help="its tokenizer.json")


def _add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options")
    defaults = _Options()

    def option(name: str, **settings: Any) -> None:
        default = getattr(defaults, name)
        shown = "" if default is None else f"default {default}"
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, default=default, help=shown or None, **settings)

    for name in _COUNTS:
        option(name, type=int, metavar="N")
    for name in _NUMBERS:
        option(name, type=float, metavar="X")
    option("eval_size", type=size, metavar="N")
    option("schedule", choices=("constant", "linear", "cosine"))
    option("precision", choices=("f32", "bf16"))
    option("gradient_checkpointing", action=argparse.BooleanOptionalAction)


def _add_lora(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("low-rank adapters")
    group.add_argument("--lora", action="store_true", help="train an adapter, not the weights")
    group.add_argument("--lora-r", type=int, metavar="N", help="rank, default 8")
    group.add_argument("--lora-alpha", type=float, metavar="X", help="default 16")
    group.add_argument("--lora-dropout", type=float, metavar="X", help="default 0")
    group.add_argument("--lora-target", action="append", metavar="NAME", help="repeatable")


def _lora(parsed: argparse.Namespace) -> LoraConfig | None:
    names = {"r": "lora_r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
    found = {name: getattr(parsed, given) for name, given in names.items()}
    found["targets"] = parsed.lora_target
    chosen = {name: value for name, value in found.items() if value is not None}
    if chosen and not parsed.lora:
        raise ValueError("options of adapters need --lora")
    return LoraConfig(**chosen) if parsed.lora else None


def _data(
    parsed: argparse.Namespace, source: str | None = None, licence: str | None = None
) -> Dataset:
    return load_dataset(
        parsed.data,
        columns=dict(parsed.column or ()),
        on_bad_row=parsed.on_bad_row,
        source=source,
        licence=licence,
    )


def _model(parsed: argparse.Namespace) -> str | None:
    return None if parsed.model == "-" else str(parsed.model)


def _train(parsed: argparse.Namespace) -> None:
    names = [one.name for one in fields(_Options) if one.name != "lora"]
    given: Any = {name: getattr(parsed, name) for name in names}
    given["lora"] = _lora(parsed)
    options: TrainingNames = given
    terminal = sys.stderr.isatty()
    on_step = None if terminal else _lines(parsed.logging_steps)
    if parsed.text:
        run = _train_text(parsed, options, on_step, terminal)
    else:
        run = train(
            _model(parsed),
            _data(parsed, parsed.source, parsed.licence),
            parsed.output_dir,
            config=parsed.config,
            tokenizer=parsed.tokenizer,
            on_step=on_step,
            progress=terminal,
            **options,
        )
    for warning in run.warnings:
        print(f"dolly: {warning}", file=sys.stderr)
    print(json.dumps(run.to_dict()))


def _train_text(
    parsed: argparse.Namespace, options: TrainingNames, on_step: OnStep | None, terminal: bool
) -> TrainingRun:
    if parsed.column or parsed.on_bad_row != "error":
        raise ValueError("--column and --on-bad-row are for instruction data, not for --text")
    return train_text(
        _model(parsed),
        parsed.data,
        parsed.output_dir,
        config=parsed.config,
        tokenizer=parsed.tokenizer,
        column=parsed.text_column,
        source=parsed.source,
        licence=parsed.licence,
        on_step=on_step,
        progress=terminal,
        **options,
    )


def _lines(every: int) -> OnStep:
    """Writes about the steps that are logged, where standard error is no terminal."""

    def on_step(report: StepReport) -> None:
        last = report["step"] == report["total_steps"]
        if last or report["eval_loss"] is not None or report["step"] % max(every, 1) == 0:
            print(step_text(report), file=sys.stderr, flush=True)

    return on_step


def _evaluate(parsed: argparse.Namespace) -> None:
    found = evaluate(
        parsed.model,
        _data(parsed),
        batch_size=parsed.batch_size,
        max_length=parsed.max_length,
        threads=parsed.threads,
        device=parsed.device,
    )
    print(json.dumps(found))
