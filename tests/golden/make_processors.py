"""Writes `tests/golden/processors.json`: what transformers' logits processors make of a few random score vectors.

    python tests/golden/make_processors.py --out tests/golden/processors.json

Needs torch and transformers. Each case names its vector, the processors in order (as [name, value]) and the resulting
scores; removed tokens (-inf) are null. Presence and frequency penalties and logit_bias follow OpenAI's published
formula and are computed here, because transformers has no such processors: they count the generated ids only, while
repetition_penalty and no_repeat_ngram_size look at prompt and generated ids together.
"""

import argparse
import inspect
import json
import platform
from collections import Counter
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import logits_process as lp

VOCAB = 50
SPREADS = (1.0, 3.0, 0.3, 8.0)  # standard deviations of the random vectors
ORDER = ["repetition_penalty", "no_repeat_ngram_size", "temperature", "top_k", "top_p", "min_p", "typical_p"]
CLASSES = {
    "repetition_penalty": lp.RepetitionPenaltyLogitsProcessor, "no_repeat_ngram_size": lp.NoRepeatNGramLogitsProcessor,
    "temperature": lp.TemperatureLogitsWarper, "top_k": lp.TopKLogitsWarper, "top_p": lp.TopPLogitsWarper,
    "min_p": lp.MinPLogitsWarper, "typical_p": lp.TypicalLogitsWarper,
}
ALONE = {
    "temperature": [0.7, 1.5, 0.05], "top_k": [1, 5, 49, 50, 1000], "top_p": [0.92, 0.5, 0.999, 1e-6],
    "min_p": [0.05, 0.5, 1.0], "typical_p": [0.9, 0.2, 0.95], "repetition_penalty": [1.3, 0.8],
    "no_repeat_ngram_size": [1, 2, 3],
}
CHAINS = [
    {"temperature": 0.7, "top_p": 0.92},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "temperature": 0.8, "top_k": 30, "top_p": 0.92},
    {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "temperature": 1.4, "top_k": 40, "top_p": 0.95,
     "min_p": 0.05, "typical_p": 0.9},
    {"repetition_penalty": 0.8, "temperature": 0.5, "min_p": 0.1, "typical_p": 0.5},
    {"top_k": 3, "top_p": 0.5, "min_p": 0.9, "typical_p": 0.2},
]
OPENAI = [
    {"presence_penalty": 0.6}, {"presence_penalty": -1.5}, {"frequency_penalty": 0.4}, {"frequency_penalty": -2.0},
    {"presence_penalty": 0.5, "frequency_penalty": 1.25},
    {"logit_bias": {"3": 2.5, "17": -4.0, "44": -100.0, "8": 100.0}},
    {"logit_bias": {"5": 1.0, "6": -1.0}, "presence_penalty": 1.0, "frequency_penalty": 0.5},
]


def make_vectors():
    """Random scores, a prompt, and generated ids that repeat tokens, bigrams and trigrams."""
    generator = torch.Generator().manual_seed(7)
    vectors = []
    for index, spread in enumerate(SPREADS):
        logits = torch.randn(VOCAB, generator=generator) * spread
        if index == 2:  # exact ties at the top and in the middle
            logits[[4, 9, 30]] = logits.max() + 0.25
            logits[[1, 2]] = logits.median()
        prompt = torch.randint(0, VOCAB, (6,), generator=generator).tolist()
        drawn = torch.randint(0, VOCAB, (5,), generator=generator).tolist()
        generated = drawn + prompt[1:4] + drawn[:2] + [drawn[0], drawn[0]] + prompt[1:3]
        vectors.append({"logits": logits.tolist(), "prompt_ids": prompt, "generated_ids": generated})
    return vectors


def as_json(scores):
    return [None if value == float("-inf") else value for value in scores.tolist()]


def apply_transformers(vector, steps):
    ids = torch.tensor([vector["prompt_ids"] + vector["generated_ids"]])
    scores = torch.tensor([vector["logits"]])
    for name, value in steps:
        scores = CLASSES[name](value)(ids, scores.clone())
    return as_json(scores[0])


def apply_openai(vector, options):
    """logits + bias - presence * (count > 0) - frequency * count, over the generated ids."""
    scores = torch.tensor(vector["logits"])
    for token, bias in options.get("logit_bias", {}).items():
        scores[int(token)] += bias
    for token, count in Counter(vector["generated_ids"]).items():
        scores[token] -= options.get("presence_penalty", 0.0) + options.get("frequency_penalty", 0.0) * count
    return as_json(scores)


def check_order():
    """The order in which `generate` appends its processors, read from its source and from a real list."""
    source = inspect.getsource(GenerationMixin._get_logits_processor)
    positions = [source.index(CLASSES[name].__name__ + "(") for name in ORDER]
    assert positions == sorted(positions), positions
    config = GenerationConfig(do_sample=True, repetition_penalty=1.1, no_repeat_ngram_size=2, temperature=0.5, top_k=5,
                              top_p=0.9, min_p=0.1, typical_p=0.9)
    holder = type("Holder", (), {"config": transformers.GPTNeoXConfig(), "_merge_criteria_processor_list":
                                 GenerationMixin._merge_criteria_processor_list})()
    made = GenerationMixin._get_logits_processor(holder, config, input_ids_seq_length=1)
    assert [type(processor) for processor in made] == [CLASSES[name] for name in ORDER], made


def closest_call(vector, steps):
    """Smallest distance, in probability mass, of a top_p, min_p or typical_p decision; small means fragile."""
    calls = []
    ids, scores = torch.tensor([vector["prompt_ids"] + vector["generated_ids"]]), torch.tensor([vector["logits"]])
    for name, value in steps:
        probabilities = scores.double().softmax(-1)
        if name == "top_p":
            calls.append((probabilities.sort().values.cumsum(-1) - (1 - value)).abs().min().item())
        elif name == "min_p":
            best = probabilities.max()
            calls.append((probabilities[probabilities < best] - value * best).abs().min().item())
        elif name == "typical_p":
            surprise = -probabilities.clamp_min(1e-300).log()
            order = (surprise - (probabilities * surprise).sum()).abs().argsort(-1)
            calls.append((probabilities.gather(-1, order).cumsum(-1) - value).abs().min().item())
        scores = CLASSES[name](value)(ids, scores.clone())
    return min(calls, default=None)


def splits_tie(vector, steps):
    """True if a step removes one of two tokens with equal scores: torch's sort decides which one."""
    ids, scores = torch.tensor([vector["prompt_ids"] + vector["generated_ids"]]), torch.tensor([vector["logits"]])
    for name, value in steps:
        after = CLASSES[name](value)(ids, scores.clone())
        if name in ("top_k", "top_p", "min_p", "typical_p"):
            kept = set(scores[after.isfinite()].tolist())
            if kept & set(scores[after.isinf() & scores.isfinite()].tolist()):
                return True
        scores = after
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    check_order()
    vectors, cases = make_vectors(), []
    chains = [[[name, value]] for name, values in ALONE.items() for value in values]
    chains += [[[name, chain[name]] for name in ORDER if name in chain] for chain in CHAINS]
    for number, vector in enumerate(vectors):
        for steps in chains:
            cases.append({"vector": number, "steps": steps, "closest_call": closest_call(vector, steps),
                          "splits_tie": splits_tie(vector, steps), "expected": apply_transformers(vector, steps)})
    openai = [{"vector": number, "options": options, "expected": apply_openai(vector, options)}
              for number, vector in enumerate(vectors) for options in OPENAI]
    document = {
        "command": "python tests/golden/make_processors.py --out tests/golden/processors.json",
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__},
        "order": {"chain": ORDER,
                  "source": "transformers GenerationMixin._get_logits_processor: repetition_penalty and "
                  "no_repeat_ngram_size always; temperature, top_k, top_p, min_p, typical_p only when sampling"},
        "notes": {
            "history": "prompt_ids + generated_ids for transformers' processors; generated_ids alone in 'openai'",
            "top_p": "ascending cumulative softmax; a token goes when the sum with it is <= 1 - top_p; the best stays",
            "top_k": "scores below the k-th best go; scores equal to it stay",
            "closest_call": "smallest distance, in probability, of a threshold decision: how exact one must be",
            "splits_tie": "tokens with equal scores met different fates (the sort decides): compare only how many stay",
            "null": "-inf (removed)",
        },
        "vectors": vectors, "cases": cases, "openai": openai,
    }
    args.out.write_text(json.dumps(document, separators=(",", ":")).replace('{"vector"', '\n{"vector"') + "\n")
    print(f"{len(cases)} cases, {len(openai)} penalty cases, {args.out.stat().st_size} bytes, closest "
          f"{min(case['closest_call'] for case in cases if case['closest_call'] is not None):.2e}")


if __name__ == "__main__":
    main()
