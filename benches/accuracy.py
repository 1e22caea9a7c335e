"""What formats of weights and of keys and values cost in accuracy: perplexity of held-out answers, each against f32.

    python benches/accuracy.py --data held-out-dolly.jsonl

Needs an environment with dolly_rs and nothing else. `tests/nano/make_data.py` writes the rows; the model is dolly-nano
unless `--model` says otherwise. Rows that do not fit the context are left out.
"""

import argparse
import json
import math
from pathlib import Path

import dolly_rs

WEIGHTS = ("f32", "f16", "bf16", "q8_0", "q6_k", "q4_k", "q4_0")
CACHES = ("f32", "f16", "q8_0")


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="dolly-nano")
    parser.add_argument("--rows", type=int)
    args = parser.parse_args()
    with open(args.data, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][: args.rows]
    exact, tokens = perplexity(args.model, rows, "f32", "f32")
    print(f"| weights | keys and values | perplexity of {tokens:,} tokens | against f32 |\n|---|---|---|---|")
    for dtype, kv_cache in [(dtype, "f32") for dtype in WEIGHTS] + [("f32", kind) for kind in CACHES[1:]]:
        found, _ = perplexity(args.model, rows, dtype, kv_cache)
        print(f"| {dtype} | {kv_cache} | {found:.4f} | {100 * (found / exact - 1):+.3f} % |", flush=True)


if __name__ == "__main__":
    main()
