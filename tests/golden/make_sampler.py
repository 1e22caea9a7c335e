"""Makes sampler.json: what transformers makes of a step's logits under each option.

Run from this folder: python make_sampler.py > sampler.json
Needs torch and transformers 5.23. The processors come from `_get_logits_processor` itself, so
that their order is transformers' own; presence and frequency penalties, which it lacks, are passed
to it as a custom processor with vLLM's formula. torch.sort is made stable: its default leaves the
order of equal logits, hence which of them top_p keeps, to the machine's vector width. A case whose kept set depends on rounding (a mass
within 1e-4 of its limit) is drawn again.
"""

import json
import random
import sys

import torch
import transformers
from transformers import GenerationConfig, GPTNeoXConfig, GPTNeoXForCausalLM, LogitsProcessor

VOCAB = 48
unspecified_sort = torch.sort
torch.sort = lambda *args, **kwargs: unspecified_sort(*args, stable=True, **kwargs)
CONFIG = GPTNeoXConfig(
    vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=8, max_position_embeddings=64,
)
MODEL = GPTNeoXForCausalLM(CONFIG)


class Occurrences(LogitsProcessor):
    """logits -= frequency * count; logits -= presence * (count > 0), over the answer alone."""

    def __init__(self, presence, frequency, prompt_length):
        self.presence, self.frequency, self.prompt_length = presence, frequency, prompt_length

    def __call__(self, input_ids, scores):
        answer = input_ids[0, self.prompt_length :]
        counts = torch.bincount(answer, minlength=VOCAB).to(torch.float32)
        return scores - self.frequency * counts - self.presence * (counts > 0)


def process(case, dtype):
    options, prompt, answer = case["options"], case["prompt"], case["generated"]
    names = {"no_repeat_ngram": "no_repeat_ngram_size"}
    skip = ("presence_penalty", "frequency_penalty", "logit_bias")
    arguments = {names.get(k, k): v for k, v in options.items() if k not in skip}
    arguments.setdefault("top_k", 0)
    bias = options.get("logit_bias")
    if bias:
        arguments["sequence_bias"] = {(i,): float(b) for i, b in bias}
    custom = []
    if "presence_penalty" in options or "frequency_penalty" in options:
        custom.append(Occurrences(
            options.get("presence_penalty", 0.0), options.get("frequency_penalty", 0.0), len(prompt)
        ))
    processors = MODEL._get_logits_processor(
        GenerationConfig(**arguments), input_ids_seq_length=len(prompt), logits_processor=custom
    )
    logits = [-float("inf") if x is None else x for x in case["logits"]]
    ids = torch.tensor([prompt + answer], dtype=torch.long)
    return processors(ids, torch.tensor([logits], dtype=dtype))[0]


def random_case(options):
    prompt = [random.randrange(12) for _ in range(9)]
    answer = [random.randrange(12) for _ in range(9)]
    spread = random.choice([0.5, 1.5, 4.0])
    # Multiples of 1/8: exact in every type, with many ties.
    logits = [round(random.gauss(0.0, spread) * 8) / 8 for _ in range(VOCAB)]
    if random.random() < 0.3:
        logits[random.randrange(VOCAB)] = None
    return {"options": options, "prompt": prompt, "generated": answer, "logits": logits}


def is_stable(case):
    """Whether nudging the limits by 1e-4 keeps the same tokens."""
    kept = torch.isfinite(process(case, torch.float32))
    for name in ("top_p", "typical_p", "min_p"):
        for nudge in (-1e-4, 1e-4):
            if name in case["options"]:
                options = case["options"] | {name: case["options"][name] + nudge}
                if not torch.equal(kept, torch.isfinite(process(case | {"options": options}, torch.float32))):
                    return False
    return True


OPTIONS = [
    {"logit_bias": [[3, 2.5], [7, -1.25], [11, -float("inf")]]},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.75},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -0.5, "frequency_penalty": 0.25},
    {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 2},
    {"no_repeat_ngram": 3},
    {"no_repeat_ngram": 40},
    {"temperature": 0.7},
    {"temperature": 1.8},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 60},
    {"top_p": 0.92},
    {"top_p": 0.5},
    {"top_p": 0.01},
    {"min_p": 0.1},
    {"min_p": 0.6},
    {"typical_p": 0.9},
    {"typical_p": 0.3},
    {"top_k": 12, "top_p": 0.8},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_p": 0.9, "typical_p": 0.7},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8},
    {"logit_bias": [[1, 3.0], [2, -3.0]], "repetition_penalty": 1.2, "presence_penalty": 0.5,
     "frequency_penalty": 0.3, "no_repeat_ngram": 2, "temperature": 0.9, "top_k": 30,
     "top_p": 0.95, "min_p": 0.01, "typical_p": 0.95},
]


def finite(values):
    return [x if x > -float("inf") else None for x in values]


def main():
    random.seed(20)
    cases = []
    for options in OPTIONS:
        for do_sample in (True, True, False):
            case = random_case({"do_sample": do_sample} | options)
            while not is_stable(case):
                case = random_case(case["options"])
            scores = process(case, torch.float32)
            case["scores"] = finite(scores.tolist())
            case["probabilities"] = torch.softmax(scores.double(), -1).tolist()
            case["argmax"] = int(scores.argmax())
            bias = case["options"].get("logit_bias")
            if bias:
                case["options"] = case["options"] | {
                    "logit_bias": [[i, b if b > -float("inf") else None] for i, b in bias]
                }
            cases.append(case)
    # Ties decide: uniform logits, where the mass reaches the limit exactly.
    for top_p in (0.5, 0.8, 0.9):
        case = random_case({"do_sample": True, "top_p": top_p})
        case["logits"] = [0.0] * 10 + [None] * (VOCAB - 10)
        scores = process(case, torch.float32)
        case["scores"] = finite(scores.tolist())
        case["probabilities"] = torch.softmax(scores.double(), -1).tolist()
        case["argmax"] = int(scores.argmax())
        cases.append(case)
    spaces = [i for i in range(sys.maxunicode + 1) if chr(i).isspace()]
    made = f"python make_sampler.py > sampler.json; torch {torch.__version__}, transformers {transformers.__version__}"
    json.dump({"made_by": made, "python_spaces": spaces, "cases": cases}, sys.stdout)
    print()


main()
