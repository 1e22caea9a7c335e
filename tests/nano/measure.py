"""Measures a dolly-nano and writes its card; needs an environment with dolly_rs and nothing else.

    python tests/nano/measure.py --data NANO_DATA --run OUT --out models/dolly-nano

`--run` is what the example `train_nano` wrote, `--out` receives the model's files, `report.json` goes to tests/nano.
Held-out rows are used here and nowhere else: perplexity and the greedy and sampled answers on databricks-dolly-15k,
exact answers on instruction-induction.
"""

import argparse
import collections
import json
import math
import re
import shutil
import statistics
from pathlib import Path

import dolly_rs

HERE = Path(__file__).resolve().parent
FILES = ("config.json", "dolly_provenance.json", "generation_config.json", "model.safetensors",
         "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
WORD = re.compile(r"[A-Za-z]+")


def read_jsonl(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def held_out_loss(model, data):
    """Over `{response}\\n\\n### End` of the rows that fit the context."""
    found = dolly_rs.evaluate(str(model), dolly_rs.load_dataset(data / "held-out-dolly.jsonl"))
    rows = read_jsonl(data / "held-out-dolly.jsonl")
    result = {"rows": len(rows), "rows_that_fit": found["rows"], "tokens": found["tokens"], "loss": found["loss"],
              "perplexity": found["perplexity"]}
    if found["rows"] == len(rows):
        return result | {"bits_per_byte": bits_per_byte(found, rows)}
    pipe = dolly_rs.pipeline(str(model))
    longest = pipe.config["max_position_embeddings"]
    fit = [row for row in rows if sequence_length(pipe.tokenizer, row) < longest]
    assert len(fit) == found["rows"], (len(fit), found["rows"])
    return result | {"bits_per_byte": bits_per_byte(found, fit)}


def scored_text(row):
    return f"{row['response']}\n\n### End"


def bits_per_byte(found, rows):
    size = sum(len(scored_text(row).encode()) for row in rows)
    return found["loss"] * found["tokens"] / math.log(2) / size


def prompt_text(row):
    intro = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    context = f"Input:\n{row['context']}\n\n" if row["context"] else ""
    return f"{intro}\n\n### Instruction:\n{row['instruction']}\n\n{context}### Response:\n"


def sequence_length(tokenizer, row):
    return len(tokenizer.encode(prompt_text(row) + scored_text(row), special=True))


def induction_accuracy(pipe, data):
    """Share of greedy answers that are the example's own output, letter case aside."""
    rows = read_jsonl(data / "held-out-induction.jsonl")
    right, all_rows = collections.Counter(), collections.Counter()
    asked = [{"instruction": row["instruction"], "context": row["context"]} for row in rows]
    for row, ask in zip(rows, asked):
        answer = pipe.generate(ask["instruction"], context=ask["context"], do_sample=False, max_new_tokens=64)
        all_rows[row["category"]] += 1
        right[row["category"]] += answer.text.strip().lower() == row["response"].strip().lower()
    tasks = {task: {"examples": all_rows[task], "right": right[task]} for task in sorted(all_rows)}
    return {"examples": len(rows), "right": right.total(), "by_task": tasks}


def known_words(data):
    """Words that occur three times or more in the training text, in lower case."""
    counts = collections.Counter()
    for path in sorted(data.glob("text-*.jsonl")):
        for row in read_jsonl(path):
            counts.update(word.lower() for word in WORD.findall(row["text"]))
    return {word for word, count in counts.items() if count >= 3}


def answers(pipe, rows, **options):
    for row in rows:
        yield pipe.generate(row["instruction"], context=row["context"] or None, max_new_tokens=256,
                            prompt_overflow="truncate_context", **options)


def answer_report(pipe, data, vocabulary):
    rows = read_jsonl(data / "held-out-dolly.jsonl")
    greedy = list(answers(pipe, rows[:50], do_sample=False))
    sampled = list(answers(pipe, rows[:50], seed=42))
    numbers = json.loads((HERE.parents[1] / "models/dolly-nano/held_out_rows.json").read_text())
    samples = [
        {"row": number, "instruction": row["instruction"], "has_context": bool(row["context"]), "answer": answer.text,
         "ended": str(answer.finish_reason) == "end", "tokens": len(answer.token_ids)}
        for number, row, answer in zip(numbers, rows[:10], sampled)
    ]
    return {
        "answers": 50, "max_new_tokens": 256,
        "greedy_ended": sum(str(answer.finish_reason) == "end" for answer in greedy),
        "sampled_ended": sum(str(answer.finish_reason) == "end" for answer in sampled),
        "greedy_words": word_share(greedy, vocabulary), "sampled_words": word_share(sampled, vocabulary),
        "samples": samples,
    }


def word_share(found, vocabulary):
    words = [word.lower() for answer in found for word in WORD.findall(answer.text)]
    return {"words": len(words), "known": sum(word in vocabulary for word in words)}


def stage(folder):
    rows = read_jsonl(folder / "log.jsonl")
    last = rows[-1]
    evaluated = [row["eval_loss"] for row in rows if row.get("eval_loss") is not None]
    times = [row["wall_time"] for row in rows]
    steps = [later - earlier for earlier, later in zip(times, times[1:])]
    # A run that was stopped and went on did not train in between.
    seconds = sum(step for step in steps if step < 10 * statistics.median(steps))
    return {"steps": last["step"], "epochs": last["epoch"], "train_loss": last["loss"], "eval_loss": evaluated[-1],
            "seconds": round(seconds * last["step"] / (last["step"] - rows[0]["step"]))}


def measure(model, data):
    pipe = dolly_rs.pipeline(str(model))
    vocabulary = known_words(data)
    return {"held_out": held_out_loss(model, data), "answers": answer_report(pipe, data, vocabulary),
            "induction": induction_accuracy(pipe, data)}


def quoted(text):
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines()) or "> (empty)"


def card(report, model):
    """The template with the report's numbers."""
    held_out, found, induction = report["held_out"], report["answers"], report["induction"]
    config = json.loads((model / "config.json").read_text())
    tasks = "\n".join(f"| {task} | {n['right']} of {n['examples']} |" for task, n in induction["by_task"].items())
    samples = "\n\n".join(
        f"**Row {s['row']}**{' (has a context)' if s['has_context'] else ''}: {' '.join(s['instruction'].split())}\n\n"
        f"{quoted(s['answer'])}\n\n({s['tokens']} tokens, {'ended with `### End`' if s['ended'] else 'cut at the limit'})"
        for s in found["samples"])
    stages = "\n".join(
        f"| {name} | {s['steps']:,} | {s['epochs']:.2f} | {s['seconds']:,} | {s['train_loss']:.3f} | {s['eval_loss']:.3f} |"
        for name, s in report["stages"].items())
    words = {kind: f"{100 * found[kind]['known'] / found[kind]['words']:.1f} % of {found[kind]['words']:,}"
             for kind in ("greedy_words", "sampled_words")}
    megabytes = sum((model / name).stat().st_size for name in FILES) / 1e6
    template = (HERE / "card.md").read_text(encoding="utf-8")
    return template.format(**{**held_out, **found, **words, **config, "parameters": report["parameters"], "stages": stages,
                              "induction_right": induction["right"], "induction_examples": induction["examples"],
                              "tasks": tasks, "samples": samples, "megabytes": megabytes})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that make_data.py wrote")
    parser.add_argument("--run", type=Path, required=True, help="folder that the example train_nano wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    args = parser.parse_args()
    for name in FILES:
        shutil.copyfile(args.run / "dolly-nano" / name, args.out / name)
    info = dolly_rs.pipeline(str(args.out))
    report = {"version": dolly_rs.__version__, "parameters": parameters(args.out), "vocabulary": len(info.tokenizer),
              "stages": {name: stage(args.run / name) for name in ("text", "instructions")},
              **measure(args.out, args.data)}
    (HERE / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (args.out / "README.md").write_text(card(report, args.out), encoding="utf-8")


def parameters(model):
    """From the header of the safetensors file: 8 bytes of its length, then JSON."""
    with open(model / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


if __name__ == "__main__":
    main()
