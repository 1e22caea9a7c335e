"""Trains `models/dolly-nano`: a GPT-NeoX model of five million parameters that answers in Dolly's format.

Reference script (PyTorch + transformers); nothing in the library needs it at run time. One CPU thread is enough:

    python tests/golden/train_nano.py --data DATA --corpora DATA/corpora --out models/dolly-nano \
        --report tests/golden/nano_report.json --scratch SCRATCH --minutes 70 --threads 1 --seed 42

`--data` holds `databricks-dolly-15k.jsonl`; `--corpora` holds `enwiki-2015-leads.jsonl`, `wordnet-3.0-glosses.jsonl`
and `novels/*.txt`. Steps: split, tokenizer, phase 1 (plain text), phase 2 (instructions), save, measure. The split,
the tokenizer and the order of the data follow from the seed; how far training gets depends on the machine, because
the schedule runs on elapsed time. The held-out rows are used by nothing before the last step.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import platform
import random
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
END_KEY = "### End"
INSTRUCTION_KEY = "### Instruction:"
RESPONSE_KEY = "### Response:\n"
HELD_OUT = 1000
VOCAB = 6144
TRAIN_CAP = 448  # tokens; longer rows are dropped, never cut
PHASE1_SHARE = 0.45
PACKED = 256  # tokens of one phase 1 sequence
STEP_TOKENS = 2048  # tokens of one optimizer step, padding included
CORPUS_CHARS = {"wiki": 18_000_000, "wordnet": 3_000_000, "novels": 4_000_000}


def log(message):
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    folders = {"data": "folder with databricks-dolly-15k.jsonl", "corpora": "folder with the plain-text corpora",
               "out": "folder of the finished model", "report": "JSON file for the measured numbers",
               "scratch": "folder for cached tokens (may be deleted)"}
    for name, text in folders.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=text)
    parser.add_argument("--minutes", type=float, default=70.0, help="wall time of the two training phases together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, help="model folder to go on from, made with the same seed and tokenizer")
    return parser.parse_args()


# ---- data ----------------------------------------------------------------------------------------------------------


def read_jsonl(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def split_rows(count, seed):
    """Row indices (0-based line numbers) held out for evaluation, and the rest."""
    held_out = sorted(random.Random(seed).sample(range(count), HELD_OUT))
    return held_out, sorted(set(range(count)) - set(held_out))


def render_prompt(row):
    context = f"Input:\n{row['context']}\n\n" if row["context"] else ""
    return f"{INTRO}\n\n{INSTRUCTION_KEY}\n{row['instruction']}\n\n{context}{RESPONSE_KEY}"


def paragraphs_up_to(text, limit):
    """Whole paragraphs from the start of `text`, at most `limit` characters; at least the first one."""
    paragraphs = text.split("\n")
    sizes = itertools.accumulate(map(len, paragraphs))
    return "\n".join(p for n, (p, size) in enumerate(zip(paragraphs, sizes)) if n == 0 or size <= limit).strip()


def wiki_documents(path):
    return [f"{row['title']}\n{paragraphs_up_to(row['text'], 900)}" for row in read_jsonl(path)]


def wordnet_documents(path):
    documents = []
    for row in read_jsonl(path):
        meaning = f"What is the meaning of {row['words'][0]}? ({row['pos']}) It means {row['definition']}."
        documents.append(meaning + "".join(f' For example: "{example}".' for example in row["examples"][:2]))
    return documents


def novel_documents(folder):
    """Passages of about 1,200 characters, cut between paragraphs."""
    documents = []
    for path in sorted(folder.glob("*.txt")):
        passage = ""
        for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            passage += " ".join(paragraph.split()) + "\n\n"
            if len(passage) > 1200:
                documents.append(passage.strip())
                passage = ""
    return documents


def take(documents, chars, rng):
    """A random selection of `documents` of about `chars` characters."""
    rng.shuffle(documents)
    sizes = itertools.accumulate(len(document) for document in documents)
    return [document for document, size in zip(documents, sizes) if size - len(document) < chars]


def plain_documents(corpora, train_rows, seed):
    """Phase 1 text: encyclopedia openings, glosses, novels, and the training rows without their framing."""
    rng = random.Random(seed)
    documents = take(wiki_documents(corpora / "enwiki-2015-leads.jsonl"), CORPUS_CHARS["wiki"], rng)
    documents += take(wordnet_documents(corpora / "wordnet-3.0-glosses.jsonl"), CORPUS_CHARS["wordnet"], rng)
    documents += take(novel_documents(corpora / "novels"), CORPUS_CHARS["novels"], rng)
    documents += ["\n\n".join(t for t in (r["instruction"], r["context"], r["response"]) if t) for r in train_rows]
    rng.shuffle(documents)
    return documents


# ---- tokenizer -----------------------------------------------------------------------------------------------------


def train_tokenizer(documents, path):
    """Byte-level BPE with the structure of GPT-NeoX's tokenizer.json, and Dolly's three tokens as the last ids."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    trained.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=True)
    trained.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    dolly_tokens = [END_KEY, INSTRUCTION_KEY, RESPONSE_KEY]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(dolly_tokens),
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(documents, trainer)
    trained.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in dolly_tokens])
    parsed = json.loads(trained.to_str())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parsed.update(pre_tokenizer=byte_level, post_processor=byte_level, decoder=byte_level)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in parsed["model"]["merges"]]
    keep = ("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "vocab")
    parsed["model"] = {key: parsed["model"][key] for key in keep} | {"merges": merges}
    path.write_text(json.dumps(parsed, ensure_ascii=False, indent=1), encoding="utf-8")
    loaded = Tokenizer.from_file(str(path))
    assert loaded.get_vocab_size() == VOCAB and loaded.token_to_id(RESPONSE_KEY) == VOCAB - 1
    return loaded


def encode_stream(tokenizer, documents):
    """All documents as one stream of ids, each followed by `<|endoftext|>`."""
    parts = []
    for start in range(0, len(documents), 2000):
        for encoding in tokenizer.encode_batch(documents[start : start + 2000]):
            parts.append(np.array(encoding.ids + [0], dtype=np.int16))
    return np.concatenate(parts)


def encode_rows(tokenizer, rows, cap):
    """(prompt ids, ids after the response key, bytes scored) of each row of at most `cap` tokens."""
    encoded = []
    for row in rows:
        scored = f"{row['response']}\n\n{END_KEY}"
        prompt = tokenizer.encode(render_prompt(row)).ids
        answer = tokenizer.encode(scored).ids
        if len(prompt) + len(answer) <= cap:
            encoded.append((prompt, answer, len(scored.encode())))
    return encoded


# ---- model and training --------------------------------------------------------------------------------------------


def new_model():
    config = GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768,
        hidden_act="gelu", rotary_pct=0.25, rotary_emb_base=10000, max_position_embeddings=1024,
        layer_norm_eps=1e-5, use_parallel_residual=True, tie_word_embeddings=False, attention_bias=True,
        bos_token_id=0, eos_token_id=0,
    )
    return GPTNeoXForCausalLM._from_config(config, attn_implementation="sdpa")


def new_optimizer(model, lr):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def rate(done):
    """Factor of the learning rate when the fraction `done` of the time is over: warm-up, then cosine to 2 %."""
    return min(1.0, done / 0.015) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def pad_rows(sequences):
    width = max(len(ids) for ids in sequences)
    batch = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, ids in enumerate(sequences):
        batch[row, : len(ids)] = torch.as_tensor(np.asarray(ids, dtype=np.int64))
    return batch


def packed_batches(stream, rng):
    """Endless (ids, mask of the predicted positions, tokens) from the packed stream."""
    count = len(stream) // PACKED
    while True:
        order = rng.permutation(count)
        for start in range(0, count - STEP_TOKENS // PACKED + 1, STEP_TOKENS // PACKED):
            chosen = order[start : start + STEP_TOKENS // PACKED]
            ids = pad_rows([stream[i * PACKED : (i + 1) * PACKED] for i in chosen])
            yield ids, torch.ones_like(ids, dtype=torch.bool), ids.numel()


def instruction_batches(rows, rng):
    """Endless batches of rows of similar length; only the response and its end token are predicted."""
    while True:
        noisy = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]) + rng.uniform(0, 12))
        batches, current, width = [], [], 0
        for i in noisy:
            length = len(rows[i][0]) + len(rows[i][1])
            width = max(width, length)
            if current and width * (len(current) + 1) > STEP_TOKENS:
                batches.append(current)
                current, width = [], length
            current.append(i)
        batches.append(current)
        for at in rng.permutation(len(batches)):
            chosen = [rows[i] for i in batches[at]]
            ids = pad_rows([prompt + answer for prompt, answer, _ in chosen])
            mask = torch.zeros_like(ids, dtype=torch.bool)
            for line, (prompt, answer, _) in enumerate(chosen):
                mask[line, len(prompt) : len(prompt) + len(answer)] = True
            yield ids, mask, sum(len(prompt) + len(answer) for prompt, answer, _ in chosen)


def token_losses(model, ids, mask):
    """Cross entropy of each token in `mask`. Right padding needs no attention mask under causal attention."""
    hidden, wanted = model.gpt_neox(input_ids=ids[:, :-1], use_cache=False).last_hidden_state, mask[:, 1:]
    return F.cross_entropy(model.get_output_embeddings()(hidden[wanted]).float(), ids[:, 1:][wanted], reduction="none")


def run_phase(name, model, optimizer, batches, clock, until, lr, total):
    """Trains until the fraction `until` of the time is over; returns what was done."""
    seen = predicted = steps = 0
    started = shown = time.time()
    smooth = None
    while (done := (time.time() - clock) / total) < until:
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(done)
        ids, mask, tokens = next(batches)
        loss = token_losses(model, ids, mask).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen, predicted, steps = seen + tokens, predicted + int(mask[:, 1:].sum()), steps + 1
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if time.time() - shown > 30:
            shown = time.time()
            log(f"{name} {done:6.1%} step {steps} loss {smooth:.3f} tokens {seen} ({seen / (shown - started):.0f}/s)")
    seconds = max(time.time() - started, 1e-9)
    return {"steps": steps, "tokens": seen, "predicted_tokens": predicted, "seconds": round(seconds, 1),
            "tokens_per_second": round(seen / seconds), "last_loss_smoothed": round(smooth, 4)}


# ---- saving and measuring ------------------------------------------------------------------------------------------


def save_model(model, tokenizer_path, out):
    """Writes the Hugging Face layout with float16 weights and both the classic and the new config keys."""
    largest = max(p.abs().max().item() for p in model.parameters())
    assert math.isfinite(largest) and largest < 1000.0, largest
    model.to(torch.float16).save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config.update(rotary_pct=0.25, rotary_emb_base=10000, torch_dtype="float16", architectures=["GPTNeoXForCausalLM"])
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
               "pad_token": "<|padding|>", "additional_special_tokens": [END_KEY, INSTRUCTION_KEY, RESPONSE_KEY]}
    settings = special | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1024,
                          "add_prefix_space": False, "clean_up_tokenization_spaces": False}
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (out / "tokenizer.json").write_bytes(tokenizer_path.read_bytes())
    return largest


@torch.no_grad()
def held_out_perplexity(model, tokenizer, rows):
    """Perplexity and bits per byte over `{response}\\n\\n### End` of the held-out rows that fit the context."""
    encoded = encode_rows(tokenizer, rows, model.config.max_position_embeddings)
    nats = tokens = size = 0
    for prompt, answer, scored_bytes in encoded:
        ids = torch.tensor([prompt + answer])
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, len(prompt) :] = True
        nats += token_losses(model, ids, mask).double().sum().item()
        tokens, size = tokens + len(answer), size + scored_bytes
    return {"rows_that_fit": len(encoded), "rows_held_out": len(rows), "scored": "{response}\\n\\n### End",
            "tokens": tokens, "bytes": size, "loss": nats / tokens, "perplexity": math.exp(nats / tokens),
            "bits_per_byte": nats / math.log(2) / size}


@torch.no_grad()
def answer(model, tokenizer, row, limit=256, **options):
    """Generated ids after the prompt, at most `limit` and never past the context."""
    ids, end = torch.tensor([tokenizer.encode(render_prompt(row)).ids]), tokenizer.token_to_id(END_KEY)
    room = model.config.max_position_embeddings - ids.shape[1]
    if room <= 0:
        return []
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=min(limit, room),
                               eos_token_id=end, pad_token_id=1, **options)
    return generated[0, ids.shape[1] :].tolist()


def measure(out, rows, held_out):
    """Everything the report says about the saved files, read back as a user would read them."""
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    check, prompts = AutoTokenizer.from_pretrained(out), [render_prompt(rows[i]) for i in held_out[:50]]
    assert all(check(prompt).input_ids == tokenizer.encode(prompt).ids for prompt in prompts)
    result = {"held_out": held_out_perplexity(model, tokenizer, [rows[i] for i in held_out])}
    end = tokenizer.token_to_id(END_KEY)
    ended = sum(end in answer(model, tokenizer, rows[i], do_sample=False) for i in held_out[:50])
    result["greedy_ended"] = {"answers": 50, "max_new_tokens": 256, "ended_with_end_key": ended, "fraction": ended / 50}
    samples = []
    for i in held_out[:10]:
        torch.manual_seed(42)
        ids = answer(model, tokenizer, rows[i], do_sample=True, top_p=0.92, top_k=0, temperature=1.0)
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        samples.append({"row": i, "instruction": rows[i]["instruction"], "has_context": bool(rows[i]["context"]),
                        "answer": text, "ended": end in ids, "tokens": len(ids)})
    options = "do_sample, top_p 0.92, top_k 0, temperature 1.0, max_new_tokens 256, torch seed 42 before each answer"
    result["samples"] = {"options": options, "answers": samples}
    return result


def prepare(args):
    """Split, tokenizer and token caches: (all rows, held-out indices, tokenizer, stream, encoded training rows)."""
    rows = read_jsonl(args.data / "databricks-dolly-15k.jsonl")
    held_out, training = split_rows(len(rows), args.seed)
    (args.out / "held_out_rows.json").write_text(json.dumps(held_out) + "\n")
    train_rows = [rows[i] for i in training]
    documents = plain_documents(args.corpora, train_rows, args.seed)
    log(f"{len(documents)} documents, {sum(map(len, documents))} characters")
    path = args.scratch / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.exists() else train_tokenizer(documents[::2], path)
    if not (args.scratch / "stream.npy").exists():
        np.save(args.scratch / "stream.npy", encode_stream(tokenizer, documents))
    stream = np.load(args.scratch / "stream.npy")
    encoded = encode_rows(tokenizer, train_rows, TRAIN_CAP)
    log(f"phase 1: {len(stream)} tokens; phase 2: {len(encoded)} rows, {len(train_rows) - len(encoded)} too long")
    return rows, held_out, tokenizer, stream, encoded


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for folder in (args.out, args.scratch, args.report.parent):
        folder.mkdir(parents=True, exist_ok=True)
    rows, held_out, tokenizer, stream, encoded = prepare(args)
    torch.manual_seed(args.seed)
    model, rng = new_model(), np.random.default_rng(args.seed + (1 if args.start else 0))
    if args.start:
        model.load_state_dict(AutoModelForCausalLM.from_pretrained(args.start, dtype=torch.float32).state_dict())
    model.train()
    optimizer, clock, total = new_optimizer(model, args.lr), time.time(), args.minutes * 60
    phase1 = run_phase("phase 1", model, optimizer, packed_batches(stream, rng), clock, PHASE1_SHARE, args.lr, total)
    phase2 = run_phase("phase 2", model, optimizer, instruction_batches(encoded, rng), clock, 1.0, args.lr, total)
    largest = save_model(model, args.scratch / "tokenizer.json", args.out)
    log("saved; measuring")
    report = {
        "parameters": sum(p.numel() for p in model.parameters()), "max_abs_weight": largest, "seed": args.seed,
        "threads": args.threads, "minutes": args.minutes, "lr": args.lr, "step_tokens": STEP_TOKENS,
        "phase1": phase1 | {"corpus_tokens": len(stream)},
        "phase2": phase2 | {"rows": len(encoded), "rows_too_long": len(rows) - HELD_OUT - len(encoded),
                            "max_tokens": TRAIN_CAP},
        **measure(args.out, rows, held_out),
        "sha256": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(args.out.glob("*.[js]*"))},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
    }
    args.report.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    log(json.dumps({key: report[key] for key in ("parameters", "phase1", "phase2", "held_out", "greedy_ended")}))


if __name__ == "__main__":
    main()
