"""Prompts of databricks-dolly-15k and what the reference tokenizer makes of them.

    python make_rows.py databricks-dolly-15k.jsonl gpt-neox-20b-tokenizer.json dolly-rows.jsonl.gz

Takes the 8,500 shortest rows without context and the 3,000 shortest with one. One line a row:
[instruction, context, [count, crc32 of the ids as little-endian u32] for the response key with
its newline inside the token, the same without]. Ids are the whole-string encoding of the
original's prompt by the tokenizers package (version in the first line).
"""

import gzip
import json
import struct
import sys
import zlib

import tokenizers

INTRO = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)


def tokenizer(path, response_key):
    result = tokenizers.Tokenizer.from_file(path)
    keys = ["### End", "### Instruction:", response_key]
    result.add_special_tokens([tokenizers.AddedToken(k, normalized=False) for k in keys])
    return result


def prompt(instruction, context):
    middle = f"{instruction}\n\nInput:\n{context}" if context else instruction
    return f"{INTRO}\n\n### Instruction:\n{middle}\n\n### Response:\n"


def check(ids):
    return [len(ids), zlib.crc32(struct.pack(f"<{len(ids)}I", *ids))]


def main(data, neox, out):
    both = [tokenizer(neox, "### Response:\n"), tokenizer(neox, "### Response:")]
    rows = [json.loads(line) for line in open(data, encoding="utf-8")]
    rows = [(r["instruction"], r["context"]) for r in rows]
    rows = sorted(set(rows), key=lambda r: (len(r[0]) + len(r[1]), r))
    rows = [r for r in rows if not r[1]][:8_500] + [r for r in rows if r[1]][:3_000]
    lines = [json.dumps({"rows": len(rows), "tokenizers": tokenizers.__version__})]
    for instruction, context in rows:
        text = prompt(instruction, context)
        checks = [check(t.encode(text).ids) for t in both]
        lines.append(json.dumps([instruction, context, *checks], ensure_ascii=False))
    with gzip.GzipFile(out, "wb", 9, mtime=0) as file:
        file.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
