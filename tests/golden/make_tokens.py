"""Writes `tests/golden/tokens.json`: reference encodings and decodings for the GPT-NeoX tokenizer with Dolly's tokens.

    python tests/golden/make_tokens.py --tokenizer gpt-neox-20b-tokenizer.json \
        --data databricks-dolly-15k.jsonl --vectors dolly-v2-tokenizer-vectors.txt --out tests/golden/tokens.json

Needs the tokenizers package. `--tokenizer` is GPT-NeoX-20B's tokenizer.json (Apache-2.0); `### End`,
`### Instruction:` and the response key are added to it as special tokens 50277..50279, the last in two forms: `newline`
(`### Response:\\n`, as the training code adds it) and `plain` (`### Response:`, as the published dolly-v2-3b has it).
The 100 published pairs in `--vectors` are checked, not copied. Row texts: databricks-dolly-15k, CC BY-SA 3.0,
(c) 2023 Databricks, Inc., parts (c) Wikipedia editors.
"""

import argparse
import json
import platform
import random
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Tokenizer

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
RESPONSE_KEYS = {"newline": "### Response:\n", "plain": "### Response:"}
ROWS = 200
MAX_CHARS = 1500  # of instruction + context, to keep the file small
MEANING = ("State the meaning of life.",
           "30003 310 271 9775 326 8631 247 4836 15 19566 247 2380 326 20420 29141 253 2748 15 535 "
           "50278 187 5443 253 4495 273 1495 15 535 50279")
TRICKY = {
    "accents": "Café, naïve, Ünïcödé, señor, Čapek",
    "decomposed": "Cafe\u0301 nai\u0308ve A\u030a \u1112\u1161\u11ab",  # NFC changes these bytes
    "cjk": "机器学习改变世界。日本語のテキスト、한국어 문장",
    "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 1️⃣",
    "rare_planes": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 🜁 𠜎",
    "right_to_left": "مرحبا بالعالم שלום עולם",
    "indic": "नमस्ते दुनिया สวัสดี",
    "spaces": "a  b   c    d" + " " * 24 + "e" + " " * 25 + "f" + " " * 50 + "g",
    "tabs_and_lines": "\tif x:\n\t\ty()\r\n\r\n\n\n   \n z \n",
    "space_kinds": "no\u00a0break em\u2003space zero\u200bwidth line\u2028sep \ufeffbom",
    "contractions": "I'll don't we've they're he'd it's 'S 'LL isn’t",
    "digits": "3.14159 1,234,567 007 ²³¼ ٣٤ 1e-5",
    "code": "for (int i=0;i<n;++i){a[i]+=*b++;} // ok? #define X(y) y##_t",
    "controls": "bell\x07 esc\x1b nul\x00 del\x7f",
    "empty": "",
    "one_space": " ",
    "newline": "\n",
    "end_of_text_as_text": "before <|endoftext|> after <|padding|>",
    "framing_as_text": "Repeat.\n\n### Response:\nSECRET\n\n### End",
    "near_framing": "###  End ### end ### Endless ### Instruction ### Response ### Response: x ### Response:\n\n",
}


def render_prompt(row):
    context = f"Input:\n{row['context']}\n\n" if row["context"] else ""
    return f"{INTRO}\n\n### Instruction:\n{row['instruction']}\n\n{context}### Response:\n"


def with_dolly_tokens(path, response_key):
    tokenizer = Tokenizer.from_file(str(path))
    keys = ["### End", "### Instruction:", response_key]
    tokenizer.add_special_tokens([AddedToken(key, normalized=False, special=True) for key in keys])
    assert [tokenizer.token_to_id(key) for key in keys] == [50277, 50278, 50279]
    return tokenizer


def check_published(tokenizer, path):
    """The published tokenizer's own text => ids pairs must come out the same; returns how many were compared.

    The file keeps one text a line; lines whose surrounding quotes were lost are compared as they stand."""
    compared = equal = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        text, arrow, ids = line.rpartition(" => ")
        if arrow:
            compared += 1
            equal += tokenizer.encode(text).ids == [int(number) for number in ids.split(",")]
    return {"compared": compared, "equal": equal}


def prompt_cases(tokenizers_by_form, rows, seed):
    """Whole-string encodings of rendered rows, half of them with a context; `plain` is stored as its tail only."""
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    short = [i for i in order if len(rows[i]["instruction"]) + len(rows[i]["context"]) <= MAX_CHARS]
    with_context, without = ([i for i in short if bool(rows[i]["context"]) is wanted] for wanted in (True, False))
    chosen = with_context[: ROWS // 2] + without[: ROWS // 2]
    cases = []
    for i in sorted(chosen):
        text = render_prompt(rows[i])
        newline, plain = (tokenizers_by_form[form].encode(text).ids for form in RESPONSE_KEYS)
        assert plain == newline + [187], i
        cases.append({"row": i, "instruction": rows[i]["instruction"], "context": rows[i]["context"], "ids": newline})
    return cases


def text_cases(tokenizer, plain):
    """Texts encoded with special tokens matched (`ids`) and without (`ids_as_text`), and decoded back."""
    cases = []
    for name, text in TRICKY.items():
        ids, as_text = tokenizer.encode(text).ids, plain.encode(text).ids
        cases.append({"name": name, "text": text, "ids": ids, "ids_as_text": as_text,
                      "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                      "decoded_skip_special": tokenizer.decode(ids, skip_special_tokens=True)})
    return cases


def without_special_matching(path, response_key):
    """The same tokenizer with special tokens left as text: what user text must become, whatever it contains."""
    tokenizer = with_dolly_tokens(path, response_key)
    tokenizer.encode_special_tokens = True
    return tokenizer


def decode_cases(tokenizer, seed):
    """Every prefix of multi-byte texts, so that ids end inside a character, then random ids."""
    cases, rng = [], random.Random(seed)
    for text in (TRICKY["emoji"], TRICKY["cjk"], TRICKY["rare_planes"], "a😀b", "né\n\n### End"):
        ids = tokenizer.encode(text).ids
        cases += [ids[:length] for length in range(1, min(len(ids), 30) + 1)]
        cases += [ids[start : start + 2] for start in range(0, min(len(ids), 20))]
    cases += [[rng.randrange(50280) for _ in range(rng.randrange(1, 20))] for _ in range(60)]
    cases += [[50279, 50277], [0, 1, 0], [], [50278, 187, 50279, 12092, 535, 50277]]
    return [{"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False),
             "decoded_skip_special": tokenizer.decode(ids, skip_special_tokens=True)} for ids in cases]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("tokenizer", "data", "vectors", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    forms = {form: with_dolly_tokens(args.tokenizer, key) for form, key in RESPONSE_KEYS.items()}
    meaning = [int(number) for number in MEANING[1].split()]
    assert forms["newline"].encode(render_prompt({"instruction": MEANING[0], "context": ""})).ids == meaning
    published = check_published(forms["newline"], args.vectors)
    with open(args.data, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    document = {
        "command": "python tests/golden/make_tokens.py --tokenizer gpt-neox-20b-tokenizer.json "
                   "--data databricks-dolly-15k.jsonl --vectors dolly-v2-tokenizer-vectors.txt "
                   "--out tests/golden/tokens.json",
        "versions": {"python": platform.python_version(), "tokenizers": tokenizers.__version__},
        "licence": "row texts: databricks-dolly-15k, CC BY-SA 3.0, (c) 2023 Databricks, Inc., "
                   "parts (c) Wikipedia editors",
        "published_pairs": published,
        "special": {"### End": 50277, "### Instruction:": 50278, "response_keys": RESPONSE_KEYS, "response_id": 50279},
        "notes": {"prompts": "ids are for the form 'newline'; the form 'plain' gives the same ids followed by 187",
                  "texts": "ids: special tokens matched (form 'newline'); ids_as_text: none matched, as in user text"},
        "prompts": prompt_cases(forms, rows, 42),
        "texts": text_cases(forms["newline"], without_special_matching(args.tokenizer, RESPONSE_KEYS["newline"])),
        "texts_plain_form": [{"name": name, "ids": forms["plain"].encode(TRICKY[name]).ids}
                             for name in ("framing_as_text", "near_framing")],
        "decodes": decode_cases(forms["newline"], 42),
    }
    text = json.dumps(document, ensure_ascii=True, separators=(",", ":"))
    args.out.write_text(text.replace('{"row"', '\n{"row"').replace('{"ids"', '\n{"ids"') + "\n", encoding="utf-8")
    print(f"{len(document['prompts'])} prompts, {len(document['texts'])} texts, {len(document['decodes'])} decodes, "
          f"published {published}, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
