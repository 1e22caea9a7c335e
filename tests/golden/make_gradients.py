"""Writes `tests/golden/gradients/`: losses, gradients and training steps of the parity models, as PyTorch computes them.

    python tests/golden/make_gradients.py --parity tests/golden/parity --out tests/golden/gradients

Needs torch, transformers, peft, safetensors. Weights are those of `tests/golden/parity/CASE`. Per case:

    CASE.safetensors   the gradient of every parameter, under its name; for `lora`, also `value.NAME` of the adapters
    CASE.json          command, versions, sequences (ids, first_label), loss, losses of ten optimizer steps

The loss is the mean over all predicted tokens of the batch: `ids[first_label..]` of each sequence. The steps use
AdamW (lr 1e-3, betas 0.9 0.999, eps 1e-8, decay 0.01 of matrices only) after clipping the global norm to 1.0, on
batches of one sequence each in turn, two accumulated per step.
"""

import argparse
import json
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

COMMAND = "python tests/golden/make_gradients.py --parity tests/golden/parity --out tests/golden/gradients"
CASES = ("standard", "sequential", "tied", "no_attention_bias", "rotary_full", "act_gelu_new", "act_quick_gelu",
         "act_relu", "act_silu", "lora")


def sequences(vocabulary):
    generator = torch.Generator().manual_seed(11)
    shapes = ((37, 12), (90, 1), (9, 8), (70, 40))
    return [(torch.randint(0, vocabulary, (length,), generator=generator).tolist(), first) for length, first in shapes]


def load(parity, case):
    torch.manual_seed(5)
    name = "standard" if case == "lora" else case
    model = AutoModelForCausalLM.from_pretrained(parity / name, dtype=torch.float32, attn_implementation="eager")
    if case == "lora":
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, target_modules=["query_key_value", "dense"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros would leave A without a gradient
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def loss_sum(model, batch):
    """Summed cross entropy of the predicted tokens, and their number; one padded batch."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), -100)
    attention = torch.zeros(len(batch), width, dtype=torch.long)
    for row, (tokens, first) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, first : len(tokens)] = torch.tensor(tokens[first:])
        attention[row, : len(tokens)] = 1
    logits = model(input_ids=ids, attention_mask=attention).logits
    wanted = labels[:, 1:].flatten()
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, ignore_index=-100, reduction="sum")
    return total, int((wanted != -100).sum())


def stored_name(name):
    """The name on disk: transformers renames the head in memory; PEFT leaves out the adapter's own name."""
    return name.replace(".default.weight", ".weight").replace("base_layer.", "").replace("lm_head.", "embed_out.")


def gradients(model, batch):
    model.zero_grad()
    total, count = loss_sum(model, batch)
    (total / count).backward()
    named = {stored_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    return (total / count).item(), {name: p.grad.clone() for name, p in named.items()}, named


def ten_steps(model, batch):
    named = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in named if p.dim() > 1], "weight_decay": 0.01},
              {"params": [p for p in named if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for step in range(10):
        micro = [[batch[(2 * step + i) % len(batch)]] for i in range(2)]
        sums = [loss_sum(model, part) for part in micro]
        count = sum(tokens for _, tokens in sums)
        optimizer.zero_grad()
        for total, _ in sums:
            (total / count).backward()
        losses.append(sum(total.item() for total, _ in sums) / count)
        torch.nn.utils.clip_grad_norm_(named, 1.0)
        optimizer.step()
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parity", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        model = load(args.parity, case)
        batch = sequences(model.config.vocab_size)
        loss, grads, named = gradients(model, batch)
        values = {f"value.{name}": p.detach().clone() for name, p in named.items() if ".lora_" in name}
        losses = ten_steps(model, batch)
        save_file({**grads, **values}, args.out / f"{case}.safetensors")
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
        described = {"command": COMMAND, "versions": versions, "loss": loss, "ten_losses": losses,
                     "sequences": [{"ids": ids, "first_label": first} for ids, first in batch]}
        (args.out / f"{case}.json").write_text(json.dumps(described) + "\n")
        print(case, loss, losses[-1], len(grads))


if __name__ == "__main__":
    main()
