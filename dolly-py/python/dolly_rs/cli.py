"""The command line: ``dolly generate``, ``chat``, ``info``, ``data``, ``train`` and more.

Answers go to standard output, everything else to standard error. Exit status: 0 done, 1 failed
(one line says why), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__, cli_train
from .arguments import column, size
from .chat import Chat
from .data import load_dataset
from .errors import DollyError
from .files import convert, tensors
from .options import GenerateOptions
from .pipelines import Pipeline, pipeline
from .results import Generation

__all__ = ["main"]

_LOAD = (
    "device",
    "dtype",
    "threads",
    "context_length",
    "memory_limit",
    "kv_cache",
    "prefix_cache",
    "revision",
    "offline",
    "adapter",
    "packed_weights",
)

_DTYPES = "auto f32 f16 bf16 q8_0 q4_0 q4_k q6_k"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = parsed.command
    try:
        command(parsed)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone; what is left in the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DollyError, OSError, ValueError, TypeError) as error:
        print(f"dolly: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dolly", description="Run Dolly 2.0, Pythia and other GPT-NeoX models."
    )
    parser.add_argument("--version", action="version", version=f"dolly {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="answer one instruction")
    generate.add_argument("instruction", help="the instruction, or - for standard input")
    generate.add_argument("--context", help="the passage the instruction speaks of")
    generate.add_argument("--json", action="store_true", help="the whole result as JSON")
    _add_model(generate)
    _add_options(generate)
    generate.set_defaults(command=_generate)

    chat = commands.add_parser("chat", help="one instruction a line, answers as they are written")
    chat.add_argument("--context", help="a passage that every instruction speaks of")
    chat.add_argument(
        "--running", action="store_true", help="earlier turns join the context, oldest dropped"
    )
    _add_model(chat)
    _add_options(chat)
    chat.set_defaults(command=_chat)

    info = commands.add_parser("info", help="configuration, tensors and memory of a model")
    info.add_argument("--json", action="store_true", help="as JSON")
    _add_model(info)
    info.set_defaults(command=_info)

    _add_data(commands)
    cli_train.add(commands)
    _add_convert(commands)
    return parser


def _add_data(commands: Any) -> None:
    parser = commands.add_parser("data", help="read, check, describe and split instruction data")
    parser.add_argument("files", nargs="+", metavar="FILE", help=".jsonl .json .csv .tsv .parquet")
    parser.add_argument("--report", choices=("text", "json"), default="text")
    parser.add_argument(
        "--column",
        action="append",
        type=column,
        metavar="FIELD=NAME",
        help="such as response=output; repeatable",
    )
    parser.add_argument("--on-bad-row", choices=("error", "skip"), default="error")
    parser.add_argument("--clean", action="store_true", help="remove footnote marks, trim fields")
    parser.add_argument("--model", help="report lengths in the tokens of this model")
    parser.add_argument("--max-length", type=int, metavar="N", help="count rows of this length")
    parser.add_argument("--split", type=size, metavar="N", help="rows, or fraction, for testing")
    parser.add_argument("--seed", type=int, default=42, help="of the split, default 42")
    parser.add_argument("--out", metavar="DIR", help="write data.jsonl, or train and test.jsonl")
    parser.set_defaults(command=_data)


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser("convert", help="write a model in another format")
    parser.add_argument("model", help="hub id, directory, .gguf file or dolly-nano")
    parser.add_argument("output", help="the directory (safetensors) or file (gguf) to write")
    parser.add_argument("--to", choices=("gguf", "safetensors"), help="else by the output's name")
    parser.add_argument("--dtype", "--format", default="auto", help=_DTYPES)
    parser.add_argument("--adapter", metavar="DIR", help="a low-rank adapter to merge in")
    parser.set_defaults(command=_convert)


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="dolly-nano", help="hub id, directory or .gguf file")
    group.add_argument("--dtype", "--format", default="auto", help=_DTYPES)
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--threads", type=int, help="one per core unless given")
    group.add_argument("--context-length", type=int, help="longest sequence in tokens")
    group.add_argument("--memory-limit", type=int, metavar="BYTES", help="for weights and caches")
    group.add_argument("--kv-cache", metavar="TYPE", help="f32 f16 bf16 q8_0, for keys and values")
    group.add_argument("--prefix-cache", type=int, metavar="BYTES", help="for prompts read before")
    group.add_argument("--revision", help="branch, tag or commit of a hub id")
    group.add_argument("--adapter", metavar="DIR", help="a low-rank adapter to merge in")
    group.add_argument("--packed-weights", metavar="DIR", help="where to keep weights as packed")
    group.add_argument("--offline", action="store_const", const=True, help="do not ask the network")


def _add_options(parser: argparse.ArgumentParser) -> None:
    """One argument per option of a request; what is not given stays None, the default."""
    group = parser.add_argument_group("options")
    switch = argparse.BooleanOptionalAction
    defaults = GenerateOptions()
    for name in ("max_new_tokens", "top_k", "no_repeat_ngram_size", "seed"):
        _add(group, name, defaults, type=int, metavar="N")
    for name in ("logprobs", "prompt_lookup"):
        _add(group, name, defaults, type=int, metavar="N")
    for name in ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty"):
        _add(group, name, defaults, type=float, metavar="X")
    for name in ("presence_penalty", "frequency_penalty", "deadline"):
        _add(group, name, defaults, type=float, metavar="X")
    for name in ("do_sample", "ignore_end", "return_full_text"):
        _add(group, name, defaults, action=switch)
    _add(group, "prompt_overflow", defaults, choices=("error", "truncate_context"))
    _add(group, "prompt_mode", defaults, choices=("safe", "hf"))
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="ends the answer; repeatable"
    )
    group.add_argument(
        "--logit-bias", action="append", type=_bias, metavar="ID=X", help="repeatable"
    )


def _add(group: Any, name: str, defaults: GenerateOptions, **settings: Any) -> None:
    default = getattr(defaults, name)
    group.add_argument(
        "--" + name.replace("_", "-"), default=None, help=f"default {default}", **settings
    )


def _bias(text: str) -> tuple[int, float]:
    id, found, bias = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ID=BIAS")
    return int(id), float(bias)


def _load(parsed: argparse.Namespace) -> Pipeline:
    settings = {name: getattr(parsed, name) for name in _LOAD}
    return pipeline(parsed.model, progress=sys.stderr.isatty(), **settings)


def _options(parsed: argparse.Namespace) -> Any:
    names = [name for name in GenerateOptions.__dataclass_fields__ if hasattr(parsed, name)]
    options = {name: getattr(parsed, name) for name in names}
    if options.get("logit_bias") is not None:
        options["logit_bias"] = dict(options["logit_bias"])
    return options


def _generate(parsed: argparse.Namespace) -> None:
    read = parsed.instruction == "-"
    instruction = sys.stdin.read().strip() if read else parsed.instruction
    with _load(parsed) as pipe:
        with pipe.stream(instruction, parsed.context, **_options(parsed)) as stream:
            for piece in stream:
                if not parsed.json:
                    print(piece, end="", flush=True)
        result = stream.generation
    if result is None:
        return
    print(json.dumps(result.to_dict()) if parsed.json else "", flush=True)
    print(_timing(result), file=sys.stderr)


def _timing(result: Generation) -> str:
    usage, timings = result.usage, result.timings
    parts = [
        f"prompt {usage.prompt_tokens} tokens, answer {usage.completion_tokens} tokens",
        f"end: {result.finish_reason}",
        f"seed {result.seed}",
        f"prefill {timings.prefill:.3f} s, decode {timings.decode:.3f} s",
    ]
    if timings.decode > 0 and usage.completion_tokens > 1:
        parts.append(f"{(usage.completion_tokens - 1) / timings.decode:.1f} tokens/s")
    return "; ".join(parts)


def _chat(parsed: argparse.Namespace) -> None:
    with _load(parsed) as pipe:
        Chat(pipe, _options(parsed), parsed.context, running=parsed.running).run()


def _info(parsed: argparse.Namespace) -> None:
    stored = tensors(parsed.model)
    with _load(parsed) as pipe:
        report = {
            "model": pipe.id,
            "weight_format": pipe.weight_format,
            "context_length": pipe.context_length,
            "config": dict(pipe.config),
            "memory": dict(pipe.memory),
            "tensors": [one._asdict() for one in stored],
        }
    print(json.dumps(report) if parsed.json else _plain(report))


def _plain(report: dict[str, Any]) -> str:
    lines = [f"{name}: {report[name]}" for name in ("model", "weight_format", "context_length")]
    for part in ("config", "memory"):
        lines.append(f"{part}:")
        lines.extend(f"  {name}: {value}" for name, value in report[part].items())
    lines.append(f"tensors: {len(report['tensors'])}")
    for one in report["tensors"]:
        shape = " x ".join(map(str, one["shape"]))
        lines.append(f"  {one['name']}: {one['dtype']} {shape} ({one['bytes']} bytes)")
    return "\n".join(lines)


def _data(parsed: argparse.Namespace) -> None:
    if parsed.split is not None and parsed.out is None:
        raise ValueError("--split needs --out, the directory to write to")
    columns = dict(parsed.column or ())
    data = load_dataset(parsed.files, columns=columns, on_bad_row=parsed.on_bad_row)
    if parsed.clean:
        data = data.clean()
    parts = {"data": data}
    if parsed.split is not None:
        parts["train"], parts["test"] = data.split(parsed.split, parsed.seed)
        del parts["data"]
    if parsed.out is not None:
        Path(parsed.out).mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            path = Path(parsed.out) / f"{name}.jsonl"
            part.to_jsonl(path)
            print(f"wrote {path}: {len(part)} rows", file=sys.stderr)
    tokenizer = None
    if parsed.model is not None:
        with pipeline(parsed.model) as pipe:
            tokenizer = pipe.tokenizer
    report = data.report(tokenizer, max_length=parsed.max_length)
    print(json.dumps(report.to_dict()) if parsed.report == "json" else str(report).rstrip())


def _convert(parsed: argparse.Namespace) -> None:
    convert(
        parsed.model,
        parsed.output,
        format=parsed.to,
        dtype=parsed.dtype,
        adapter=parsed.adapter,
        progress=sys.stderr.isatty(),
    )
    print(f"wrote {parsed.output}", file=sys.stderr)
