"""Writes and checks `tests/golden/adapters/`: LoRA adapters of `parity/standard`, and what PEFT computes with them.

    python tests/golden/make_adapters.py --out tests/golden/adapters
    python tests/golden/make_adapters.py --check tests/golden/adapters/ours

Needs torch, transformers, peft, safetensors. Each case is a directory in PEFT's layout, plus

    golden.safetensors   input_ids.N (i64), logits.N (f32: tokens x vocab) of the merged model

`ours` is written by this library (`cargo test -p dolly-core --test adapters` holds the files against what it writes
today). `--check` loads it into PEFT, which must find every tensor, and writes its `golden.safetensors`.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

BASE = Path(__file__).parent / "parity" / "standard"
LENGTHS = (1, 7, 33)
ALL = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
CASES = {
    "defaults": dict(r=8, lora_alpha=16, target_modules=["query_key_value", "dense"]),
    # Patterns are regular expressions over module names; pickled, as adapters of 2023 are.
    "patterns_bin": dict(r=4, lora_alpha=8, target_modules=ALL, use_rslora=True, rank_pattern={r"layers\.1\..*dense": 2},
                         alpha_pattern={"query_key_value": 24, "mlp.dense_4h_to_h": 3}),
    "output_layer": dict(r=2, lora_alpha=3, target_modules=["lm_head", "dense_h_to_4h"]),
    "all_linear": dict(r=2, lora_alpha=4, target_modules="all-linear"),
    "regex": dict(r=2, lora_alpha=4, target_modules=r".*\.0\.attention\.(dense|query_key_value)"),
}


def base_model():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def goldens(model, seed):
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(0, 96, (length,), generator=generator)
        out[f"input_ids.{number}"] = ids
        out[f"logits.{number}"] = model(ids[None]).logits[0].float().contiguous()
    return out


def write_golden(model, directory, seed):
    """Logits before and after merging; they must agree, and differ from the base's."""
    plain = goldens(base_model(), seed)
    beside = goldens(model, seed)
    merged = goldens(model.merge_and_unload(), seed)
    for number in range(len(LENGTHS)):
        name = f"logits.{number}"
        assert (beside[name] - merged[name]).abs().max() < 1e-4, name
        assert (plain[name] - merged[name]).abs().max() > 1e-2, f"{name}: the adapter changes too little"
    save_file(merged, directory / "golden.safetensors")


def make(name, settings, out):
    torch.manual_seed(sum(map(ord, name)))
    model = get_peft_model(base_model(), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_(0, 0.3)
    directory = out / name
    # Else PEFT adds the whole output layer where it is a target, which this library refuses.
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    if name.endswith("_bin"):
        file = directory / "adapter_model.safetensors"
        torch.save(load_file(file), directory / "adapter_model.bin")
        file.unlink()
    config = json.loads((directory / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "parity/standard"
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_golden(PeftModel.from_pretrained(base_model(), directory).eval(), directory, seed=5)


def check(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns of missing and unexpected keys
        model = PeftModel.from_pretrained(base_model(), directory).eval()
    held = {key.replace(".default", ""): value for key, value in model.state_dict().items() if "lora_" in key}
    written = load_file(directory / "adapter_model.safetensors")
    assert set(held) == set(written), set(held) ^ set(written)
    for key, value in written.items():
        assert torch.equal(held[key], value), key
    write_golden(model, directory, seed=6)
    print(f"{directory}: {len(written)} tensors, as PEFT names them")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write every case below this directory")
    parser.add_argument("--check", type=Path, help="an adapter of this library")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.out:
        for name, settings in CASES.items():
            make(name, settings, arguments.out)
    if arguments.check:
        check(arguments.check)


if __name__ == "__main__":
    main()
