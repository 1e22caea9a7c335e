"""Writes the training data of `models/dolly-nano` as JSON lines; needs Python 3.10 and nothing else.

    python tests/nano/make_data.py --dolly databricks-dolly-15k.jsonl --corpora CORPORA --out NANO_DATA

`CORPORA` holds `enwiki-2015-leads.jsonl`, `wordnet-3.0-glosses.jsonl`, `novels/*.txt`, `instruction-induction.jsonl`
and `instruction-induction.annotations.json`. Plain text goes to `text-*.jsonl`, instructions to `train-*.jsonl`, and
rows that no training may see to `held-out-*.jsonl`:

- of databricks-dolly-15k the 1,000 rows that `models/dolly-nano/held_out_rows.json` lists;
- of instruction-induction 500 examples of its `execute` split; no example of that split is trained on, nor one of the
  `induce` split with the same task and input.
"""

import argparse
import itertools
import json
import random
from collections import defaultdict
from pathlib import Path

SEED = 42
HELD_OUT_INDUCTION = 500
INDUCTION_PER_TASK = 700
TEXT_CHARACTERS = {"wikipedia": 36_000_000, "wordnet": 6_000_000, "novels": 8_000_000}


def read_jsonl(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows, {path.stat().st_size} bytes")


# ---- plain text ----------------------------------------------------------------------------------------------------


def wikipedia(path):
    for row in read_jsonl(path):
        paragraphs = row["text"].split("\n")
        sizes = itertools.accumulate(map(len, paragraphs))
        kept = [p for n, (p, size) in enumerate(zip(paragraphs, sizes)) if n == 0 or size <= 1800]
        yield f"{row['title']}\n" + "\n".join(kept).strip()


def wordnet(path):
    for row in read_jsonl(path):
        meaning = f"What is the meaning of {row['words'][0]}? ({row['pos']}) It means {row['definition']}."
        yield meaning + "".join(f' For example: "{example}".' for example in row["examples"][:2])


def novels(folder):
    """Passages of about 1,200 characters, cut between paragraphs."""
    for path in sorted(folder.glob("*.txt")):
        passage = ""
        for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            passage += " ".join(paragraph.split()) + "\n\n"
            if len(passage) > 1200:
                yield passage.strip()
                passage = ""


def take(documents, characters, rng):
    """A random selection of about so many characters."""
    documents = list(documents)
    rng.shuffle(documents)
    sizes = itertools.accumulate(map(len, documents))
    return [document for document, size in zip(documents, sizes) if size - len(document) < characters]


def write_texts(corpora, dolly_train, out):
    rng = random.Random(SEED)
    texts = {
        "wikipedia": wikipedia(corpora / "enwiki-2015-leads.jsonl"),
        "wordnet": wordnet(corpora / "wordnet-3.0-glosses.jsonl"),
        "novels": novels(corpora / "novels"),
    }
    for name, documents in texts.items():
        chosen = take(documents, TEXT_CHARACTERS[name], rng)
        write_jsonl(out / f"text-{name}.jsonl", [{"text": text} for text in chosen])
    parts = ([row["instruction"], row["context"], row["response"]] for row in dolly_train)
    write_jsonl(out / "text-dolly.jsonl", [{"text": "\n\n".join(filter(None, part))} for part in parts])


# ---- instructions --------------------------------------------------------------------------------------------------


def split_dolly(path, held_out_rows):
    rows = read_jsonl(path)
    held_out = set(held_out_rows)
    train = [row for n, row in enumerate(rows) if n not in held_out]
    return train, [rows[n] for n in held_out_rows]


def induction_pair(task, example):
    """(input, output) of an example, by the task's own fields."""
    match task:
        case "cause_and_effect":
            sentences = sorted([example["cause"], example["effect"]])
            return f"Sentence 1: {sentences[0]} Sentence 2: {sentences[1]}", example["cause"]
        case "common_concept":
            return ", ".join(example["items"]), example["concept"]
        case _:
            return example["input"], example["output"]


def induction(corpora):
    """Training and held-out rows: a description of the task by people, the input as context, the output."""
    annotations = json.loads((corpora / "instruction-induction.annotations.json").read_text(encoding="utf-8"))
    tasks = {"induce": defaultdict(list), "execute": defaultdict(list)}
    for row in read_jsonl(corpora / "instruction-induction.jsonl"):
        tasks[row["split"]][row["task"]].append(induction_pair(row["task"], row["example"]))
    rng = random.Random(SEED)

    def as_row(task, pair):
        instruction = rng.choice(annotations[task]["annotations"])
        return {"instruction": instruction, "context": pair[0], "response": pair[1], "category": task}

    held_out = [(task, pair) for task, pairs in sorted(tasks["execute"].items()) for pair in pairs]
    kept_apart = {(task, pair[0]) for task, pair in held_out}
    train = []
    for task, pairs in sorted(tasks["induce"].items()):
        free = [pair for pair in pairs if (task, pair[0]) not in kept_apart]
        train += [as_row(task, pair) for pair in rng.sample(free, min(len(free), INDUCTION_PER_TASK))]
    rng.shuffle(train)
    return train, [as_row(task, pair) for task, pair in rng.sample(held_out, HELD_OUT_INDUCTION)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dolly", type=Path, required=True, help="databricks-dolly-15k.jsonl")
    parser.add_argument("--corpora", type=Path, required=True, help="folder with the corpora")
    parser.add_argument("--out", type=Path, required=True, help="folder for the data")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    listed = Path(__file__).parents[2] / "models/dolly-nano/held_out_rows.json"
    held_out_rows = json.loads(listed.read_text(encoding="utf-8"))
    train, held_out = split_dolly(args.dolly, held_out_rows)
    write_texts(args.corpora, train, args.out)
    write_jsonl(args.out / "train-dolly.jsonl", train)
    write_jsonl(args.out / "held-out-dolly.jsonl", held_out)
    train, held_out = induction(args.corpora)
    write_jsonl(args.out / "train-induction.jsonl", train)
    write_jsonl(args.out / "held-out-induction.jsonl", held_out)


if __name__ == "__main__":
    main()
