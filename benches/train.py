"""Training steps side by side: this library and a plain PyTorch/transformers (PEFT) loop, in turn on this machine.

    python benches/train.py [--shapes 70m 160m] [--modes full checkpointed lora] [--threads 2] [--rounds 3]

Makes an environment with torch, transformers and peft under target/, builds the Rust bench `train`, runs both sides
`--rounds` times in turn, each in a process of its own, and prints medians, spreads and ratios. Both train the same
shape with random weights on the same 4 x 256 random tokens, f32, AdamW, gradient clipping; the first step of a
process is not counted.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"14m": (128, 6, 4), "70m": (512, 6, 8), "160m": (768, 12, 12)}
BATCH, LENGTH, VOCABULARY = 4, 256, 50280
PEERS = ("torch", "transformers", "peft")


def peer(shape, mode, threads, steps):
    """One process of the peer: prints tokens/s of the median step and the peak of resident memory."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    hidden, layers, heads = SHAPES[shape]
    config = GPTNeoXConfig(vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers,
                           num_attention_heads=heads, intermediate_size=4 * hidden, rotary_pct=0.25)
    model = GPTNeoXForCausalLM(config)
    if mode == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["query_key_value", "dense"]))
    if mode == "checkpointed":
        model.gradient_checkpointing_enable()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"tokens_per_second": BATCH * LENGTH / statistics.median(times[1:]), "peak_mb": peak}))


def environment():
    """The Python of an environment that has the peers."""
    home = ROOT / "target" / "bench-train-env"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return python


def bench_binary():
    """Builds the Rust bench; the path of its executable."""
    command = ["cargo", "bench", "-p", "dolly-core", "--bench", "train", "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = [json.loads(line) for line in lines if '"executable"' in line]
    return next(m["executable"] for m in found if m.get("executable") and m["target"]["name"] == "train")


def run(command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def compare(shape, mode, args, ours, python):
    numbers = [str(args.threads), str(args.steps)]
    results = {"ours": [], "peer": []}
    for _ in range(args.rounds):
        results["peer"].append(run([python, __file__, "--peer", shape, mode, *numbers]))
        results["ours"].append(run([ours, shape, mode, *numbers]))
    rows = {}
    for side, found in results.items():
        speeds = [r["tokens_per_second"] for r in found]
        peak = statistics.median(r["peak_mb"] for r in found)
        rows[side] = (statistics.median(speeds), min(speeds), max(speeds), peak)
    speed, memory = rows["ours"][0] / rows["peer"][0], rows["ours"][3] / rows["peer"][3]
    for side, (median, low, high, peak) in rows.items():
        print(f"{shape:5} {mode:12} {side:5} {median:8.1f} tokens/s ({low:.1f} to {high:.1f})  peak {peak:7.0f} MB")
    print(f"{shape:5} {mode:12} ratio {speed:8.2f} tokens/s              peak {memory:7.2f}", flush=True)


def main():
    if sys.argv[1:2] == ["--peer"]:
        return peer(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["70m", "160m"])
    parser.add_argument("--modes", nargs="+", choices=("full", "checkpointed", "lora"),
                        default=["full", "checkpointed", "lora"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", type=Path, help="a Python that has the peers, instead of a new environment")
    args = parser.parse_args()
    ours, python = bench_binary(), args.python or environment()
    for shape in args.shapes:
        for mode in args.modes:
            compare(shape, mode, args, ours, python)


if __name__ == "__main__":
    main()
