"""What formats of weights and of keys and values cost in accuracy: perplexity of held-out answers, each against f32.

    python benches/accuracy.py --data held-out-dolly.jsonl [--llama PYTHON]

Needs an environment with dolly_rs and nothing else. `tests/nano/make_data.py` writes the rows; the model is dolly-nano
unless `--model` says otherwise. Rows that do not fit the context are left out. With `--llama`, a Python that has
llama-cpp-python (`python benches/engine` makes one), llama.cpp's loss on the same tokens stands beside, for files of the
same types that this library writes.
"""

import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path

import dolly_rs

WEIGHTS = ("f32", "f16", "bf16", "q8_0", "q6_k", "q4_k", "q4_0")
CACHES = ("f32", "f16", "bf16", "q8_0")
LLAMA = ("f32", "q8_0", "q4_0")
# As in the original's `generate.py`.
INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


def perplexity(model, rows, dtype, kv_cache):
    """Per token of the answers, and how many tokens that are."""
    with dolly_rs.pipeline(model, dtype=dtype, kv_cache=kv_cache) as pipe:
        nats = tokens = 0
        for row in rows:
            try:
                score = pipe.score(row["instruction"], row["response"], context=row["context"] or None)
            except dolly_rs.ContextOverflowError:
                continue
            nats -= score.sum
            tokens += len(score.token_ids)
    return math.exp(nats / tokens), tokens


def tokens_of(model, rows):
    """The ids of prompt and answer of every row that fits, and how many are the answer's."""
    with dolly_rs.pipeline(model, dtype="f32") as pipe:
        for row in rows:
            given = f"\n\nInput:\n{row['context']}" if row["context"] else ""
            prompt = f"{INTRO}\n\n### Instruction:\n{row['instruction']}{given}\n\n### Response:\n"
            try:
                score = pipe.score(row["instruction"], row["response"], context=row["context"] or None)
            except dolly_rs.ContextOverflowError:
                continue
            ids = [*pipe.tokenizer.encode(prompt, special=True), *score.token_ids]
            yield {"ids": ids, "count": len(score.token_ids)}


def llama(python, model, rows):
    """llama.cpp's perplexity for each type."""
    counted = json.dumps(list(tokens_of(model, rows)))
    script = Path(__file__).with_name("llama_perplexity.py")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in LLAMA:
            path = Path(folder) / f"{dtype}.gguf"
            dolly_rs.convert(model, path, dtype=dtype)
            done = subprocess.run([python, script, path], input=counted, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout)
            yield dtype, found["perplexity"], found["tokens"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="dolly-nano")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--llama", type=Path, help="a Python that has llama-cpp-python")
    args = parser.parse_args()
    with open(args.data, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][: args.rows]
    exact, tokens = perplexity(args.model, rows, "f32", "f32")
    print(f"| weights | keys and values | perplexity of {tokens:,} tokens | against f32 |\n|---|---|---|---|")
    for dtype, kv_cache in [(dtype, "f32") for dtype in WEIGHTS] + [("f32", kind) for kind in CACHES[1:]]:
        found, _ = perplexity(args.model, rows, dtype, kv_cache)
        print(f"| {dtype} | {kv_cache} | {found:.4f} | {100 * (found / exact - 1):+.3f} % |", flush=True)
    exact = None
    for dtype, found, counted in llama(args.llama, args.model, rows) if args.llama else ():
        exact = exact or found
        print(f"| {dtype} in llama.cpp, {counted:,} tokens | f32 | {found:.4f} | {100 * (found / exact - 1):+.3f} % |")


if __name__ == "__main__":
    main()
