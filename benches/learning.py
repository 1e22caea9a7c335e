"""Learns the same rows from the same random weights here and in PyTorch, and plots both courses together.

    python benches/learning.py --data databricks-dolly-15k.jsonl --tokenizer gpt-neox-20b-tokenizer.json

Needs an environment with dolly_rs, torch, transformers, tokenizers and matplotlib. The base is a random model of
Pythia 14M's shape with Dolly's tokens; 2,000 rows of fewer than 256 tokens are learned once, 200 others are evaluated.
Both sides use AdamW, gradients clipped at norm 1, batches of 8 and the same rates; each has its own order of the rows,
and PyTorch runs three, to show how far apart orders alone are. Writes learning.json and learning.svg.
"""

import argparse
import json
import random
import time
from pathlib import Path

import dolly_rs
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

TRAIN_ROWS, EVAL_ROWS, EPOCHS, BATCH = 2000, 200, 1, 8
RATE, WARMUP, EVERY, LENGTH = 1e-3, 25, 25, 256
DOLLY_TOKENS = ("### End", "### Instruction:", "### Response:\n")
INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


def make_base(folder, tokenizer_file):
    """A random model and its tokenizer in the Hugging Face layout."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in DOLLY_TOKENS])
    config = GPTNeoXConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=128, num_hidden_layers=6,
                           num_attention_heads=4, intermediate_size=512, rotary_pct=0.25, max_position_embeddings=2048,
                           tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(1)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def encode(tokenizer, row):
    """(ids, place of the first predicted one)."""
    context = f"Input:\n{row['context']}\n\n" if row["context"] else ""
    prompt = f"{INTRO}\n\n### Instruction:\n{row['instruction']}\n\n{context}### Response:\n"
    first = len(tokenizer.encode(prompt).ids)
    return tokenizer.encode(f"{prompt}{row['response']}\n\n### End").ids, first


def choose(data, tokenizer):
    """The first rows short enough that hold no framing of their own; with the split that training makes of them."""
    wanted = TRAIN_ROWS + EVAL_ROWS
    fit = [n for n, row in enumerate(data) if len(encode(tokenizer, row)[0]) < LENGTH and "###" not in str(row)]
    data = data.select(fit[:wanted], "short rows")
    assert len(data) == wanted, len(data)
    return data, *data.split(EVAL_ROWS, seed=42)


def ours(base, data, out):
    run = dolly_rs.train(str(base), data, str(out), epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE,
                         warmup_steps=WARMUP, max_length=LENGTH, eval_size=EVAL_ROWS, eval_steps=EVERY, save_steps=0,
                         gradient_checkpointing=False, logging_steps=1, seed=42)
    return {"train": [[row["step"], row["loss"]] for row in run.history],
            "eval": [[row["step"], row["eval_loss"]] for row in run.history if row["eval_loss"] is not None]}


def batch_of(rows):
    width = max(len(ids) for ids, _ in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for n, (row, first) in enumerate(rows):
        ids[n, : len(row)] = torch.tensor(row)
        labels[n, first : len(row)] = torch.tensor(row[first:])
    return ids, labels


def loss_of(model, rows, reduction="mean"):
    """Right padding needs no mask under causal attention; logits are made for predicted tokens alone."""
    ids, labels = batch_of(rows)
    hidden, labels = model.gpt_neox(input_ids=ids).last_hidden_state[:, :-1], labels[:, 1:]
    predicted = labels != -100
    logits = model.get_output_embeddings()(hidden[predicted])
    return torch.nn.functional.cross_entropy(logits, labels[predicted], reduction=reduction)


@torch.no_grad()
def evaluated(model, rows):
    nats = sum(loss_of(model, rows[i : i + BATCH], "sum").item() for i in range(0, len(rows), BATCH))
    return nats / sum(len(ids) - first for ids, first in rows)


def peer(base, train, held_out, seed):
    """A plain loop; the first update has rate 0, as in transformers' schedules."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    order, course, step = random.Random(seed), {"train": [], "eval": []}, 0
    for _ in range(EPOCHS):
        shuffled = order.sample(train, len(train))
        for start in range(0, len(shuffled), BATCH):
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, step / WARMUP)
            step += 1
            loss = loss_of(model, shuffled[start : start + BATCH])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            course["train"].append([step, loss.item()])
            if step % EVERY == 0:
                course["eval"].append([step, evaluated(model, held_out)])
    return course


def smoothed(points, width=20):
    return [(step, sum(y for _, y in points[max(0, n - width) : n + 1]) / len(points[max(0, n - width) : n + 1]))
            for n, (step, _) in enumerate(points)]


def plot(result, file):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), sharex=True)
    for n, course in enumerate(result["peer"]):
        label = "PyTorch, three orders" if n == 0 else None
        left.plot(*zip(*smoothed(course["train"])), color="0.6", linewidth=1, label=label)
        right.plot(*zip(*course["eval"]), color="0.6", linewidth=1, label=label)
    left.plot(*zip(*smoothed(result["ours"]["train"])), color="C0", label="dolly-rs")
    right.plot(*zip(*result["ours"]["eval"]), color="C0", label="dolly-rs")
    for axes, title in ((left, "training loss, mean of 20 steps"), (right, "loss on 200 held-out rows")):
        axes.set(xlabel="step", title=title)
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, default=Path("target/learning"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = args.scratch / "base"
    base.mkdir(parents=True, exist_ok=True)
    tokenizer = make_base(base, args.tokenizer)
    data, train, held_out = choose(dolly_rs.load_dataset(str(args.data)), tokenizer)
    result = {"versions": {"dolly_rs": dolly_rs.__version__, "torch": torch.__version__}, "seconds": {}}
    start = time.perf_counter()
    result["ours"] = ours(base, data, args.scratch / f"run-{time.time_ns()}")
    result["seconds"]["ours"] = round(time.perf_counter() - start)
    rows = [[encode(tokenizer, row) for row in part] for part in (train, held_out)]
    start = time.perf_counter()
    result["peer"] = []
    for seed in (1, 2, 3):
        result["peer"].append(peer(base, *rows, seed))
        print(f"order {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    result["seconds"]["peer"] = round((time.perf_counter() - start) / 3)
    folder = Path(__file__).parent
    (folder / "learning.json").write_text(json.dumps(result) + "\n")
    plot(result, folder / "learning.svg")
    last = [course["eval"][-1][1] for course in (result["ours"], *result["peer"])]
    print(f"held-out loss at the end: dolly-rs {last[0]:.4f}, PyTorch {', '.join(f'{x:.4f}' for x in last[1:])}")


if __name__ == "__main__":
    main()
