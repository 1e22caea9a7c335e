"""Writes `tests/golden/parity/`: tiny random GPT-NeoX checkpoints and what transformers computes with them.

    python tests/golden/make_parity.py --out tests/golden/parity

Needs torch, transformers, safetensors. Every case is a folder that loads with `from_pretrained`, plus

    golden.safetensors   input_ids.N (i64), logits.N (f32: tokens x vocab), greedy.N (i64: 64 new tokens)
    golden.json          command, versions, seed, note, prompt lengths, top1_margin_min, what transformers read

Logits come from a float32 model with eager attention on one thread; `greedy` from `generate` with its KV cache and
no stop token. The script checks that each key under test changes the logits, that cached and recomputed runs choose
the same tokens, and that no choice is closer than 1e-3, so a correct engine reproduces `greedy` exactly.
"""

import argparse
import json
import platform
import shutil
from pathlib import Path

import numpy
import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

COMMAND = "python tests/golden/make_parity.py --out tests/golden/parity"
PROMPT_LENGTHS = (1, 7, 33)
NEW_TOKENS = 64
MARGIN = 1e-3
DISTINCT = 10  # fewer different tokens than this in a greedy run say too little

BASE = {
    "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": 96, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "gelu",
    "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": 100, "layer_norm_eps": 1e-5,
    "use_parallel_residual": True, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
    "initializer_range": 0.02, "use_cache": True,
}
CLASSIC_ROPE = ("rotary_pct", "rotary_emb_base")


def case(name, note, layout="safetensors", dtype=torch.float32, drop=(), reads=None, **config):
    """One case: config keys over BASE (less `drop`), file layout, and the rope settings it must have (`reads`)."""
    return {"name": name, "note": note, "layout": layout, "dtype": dtype, "drop": drop, "reads": reads or {},
            "config": config}


def rope(**values):
    return {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.25} | values


ACTIVATIONS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
CASES = [
    case("standard", "parallel residual, rotary_pct 0.25, classic keys", intermediate_size=128),
    case("sequential", "sequential residual", use_parallel_residual=False, intermediate_size=64),
    case("rotary_full", "rotary_pct 1.0", rotary_pct=1.0, reads=rope(partial_rotary_factor=1.0)),
    case("rotary_half_base_5000", "rotary_pct 0.5, rotary_emb_base 5000", rotary_pct=0.5, rotary_emb_base=5000,
         reads=rope(partial_rotary_factor=0.5, rope_theta=5000)),
    case("tied", "tied embeddings: the file has no embed_out.weight", tie_word_embeddings=True),
    case("no_attention_bias", "no bias in query_key_value and dense; the MLP keeps its biases", attention_bias=False),
    *(case(f"act_{name}", f"hidden_act {name}", hidden_act=name) for name in ACTIVATIONS),
    case("head_dim_80", "head_dim 80 and 20 rotary dimensions, as in dolly-v2-3b", hidden_size=80,
         num_attention_heads=1, intermediate_size=40),
    case("rope_linear", "rope_scaling linear, factor 2 (old key 'type')",
         rope_scaling={"type": "linear", "factor": 2.0}, reads=rope(rope_type="linear", factor=2.0)),
    case("rope_dynamic", "dynamic NTK, factor 2, beyond max_position_embeddings 24. `greedy` is the cached run: keys "
         "stay as rotated when they were stored. `greedy_recomputed` runs the whole sequence anew for each token.",
         rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=24, rotary_pct=0.5,
         reads=rope(rope_type="dynamic", factor=2.0, partial_rotary_factor=0.5)),
    case("new_keys", "only rope_parameters: no rotary_pct, no rotary_emb_base", drop=CLASSIC_ROPE,
         rope_parameters=rope(partial_rotary_factor=0.5, rope_theta=5000),
         reads=rope(partial_rotary_factor=0.5, rope_theta=5000)),
    case("new_keys_linear", "only rope_parameters, with rope_type linear", drop=CLASSIC_ROPE,
         rope_parameters=rope(rope_type="linear", factor=4.0), reads=rope(rope_type="linear", factor=4.0)),
    case("both_keys_disagree", "classic and new keys disagree: rope_parameters wins", rotary_pct=1.0,
         rotary_emb_base=500, rope_parameters=rope(partial_rotary_factor=0.5, rope_theta=5000),
         reads=rope(partial_rotary_factor=0.5, rope_theta=5000)),
    case("odd_shapes", "3 heads, intermediate not a multiple of hidden, layer_norm_eps 1e-3, 3 layers", hidden_size=24,
         num_attention_heads=3, num_hidden_layers=3, intermediate_size=56, layer_norm_eps=1e-3, vocab_size=101),
    case("sharded_safetensors", "model.safetensors.index.json and 2 shards, with old buffers", "sharded_safetensors"),
    case("bin", "pytorch_model.bin (zip), with old buffers", "bin"),
    case("bin_sharded", "pytorch_model.bin.index.json and 2 shards, with old buffers", "sharded_bin"),
    case("bin_f16", "pytorch_model.bin in float16, with old buffers", "bin", torch.float16),
    case("bin_bf16", "pytorch_model.bin in bfloat16, with old buffers", "bin", torch.bfloat16),
    case("safetensors_f16", "model.safetensors in float16", dtype=torch.float16),
    case("safetensors_bf16", "model.safetensors in bfloat16", dtype=torch.bfloat16),
]


def config_of(item):
    config = {key: value for key, value in BASE.items() if key not in item["drop"]} | item["config"]
    return config | {"torch_dtype": str(item["dtype"]).removeprefix("torch.")}


def random_weights(config, seed):
    """Random tensors under their checkpoint names; no bias is 0 and no LayerNorm weight is 1."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]

    def normal(*shape, std=0.3, mean=0.0):
        return torch.randn(*shape, generator=generator) * std + mean

    def linear(name, rows, columns, bias=True):
        weights[f"{name}.weight"] = normal(rows, columns)
        if bias:
            weights[f"{name}.bias"] = normal(rows, std=0.1)

    def norm(name):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = normal(hidden, std=0.2, mean=1.0), normal(hidden, std=0.2)

    weights = {"gpt_neox.embed_in.weight": normal(config["vocab_size"], hidden, std=0.3)}
    for index in range(config["num_hidden_layers"]):
        layer, bias = f"gpt_neox.layers.{index}", config.get("attention_bias", True)
        norm(f"{layer}.input_layernorm")
        norm(f"{layer}.post_attention_layernorm")
        linear(f"{layer}.attention.query_key_value", 3 * hidden, hidden, bias)
        linear(f"{layer}.attention.dense", hidden, hidden, bias)
        linear(f"{layer}.mlp.dense_h_to_4h", inner, hidden)
        linear(f"{layer}.mlp.dense_4h_to_h", hidden, inner)
    norm("gpt_neox.final_layer_norm")
    if not config["tie_word_embeddings"]:
        weights["embed_out.weight"] = normal(config["vocab_size"], hidden, std=0.3)
    return weights


def old_buffers(config):
    """The buffers that older checkpoints carry and that loaders ignore."""
    positions = config["max_position_embeddings"]
    rotary = int(config["hidden_size"] // config["num_attention_heads"] * config["rotary_pct"])
    buffers = {}
    for index in range(config["num_hidden_layers"]):
        attention = f"gpt_neox.layers.{index}.attention"
        buffers[f"{attention}.bias"] = torch.ones(positions, positions, dtype=torch.bool).tril()[None, None]
        buffers[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        buffers[f"{attention}.rotary_emb.inv_freq"] = 1.0 / 10000 ** (torch.arange(0, rotary, 2).float() / rotary)
    return buffers


def write_checkpoint(folder, item, seed):
    """Writes config.json and the weights in the layout of the case."""
    config = config_of(item)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: tensor.to(item["dtype"]) for name, tensor in random_weights(config, seed).items()}
    if item["layout"] != "safetensors":
        weights |= old_buffers(config)
    pickled = "bin" in item["layout"]
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    save = torch.save if pickled else (lambda tensors, path: save_file(tensors, path, metadata={"format": "pt"}))
    if "sharded" not in item["layout"]:
        save(weights, folder / f"{stem}.{suffix}")
        return
    names, shards = list(weights), [f"{stem}-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    place = {name: shards[position * 2 // len(names)] for position, name in enumerate(names)}
    for shard in shards:
        save({name: weights[name] for name in names if place[name] == shard}, folder / shard)
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": place}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=1) + "\n")


def load(folder, **overrides):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **overrides)
    return model.eval()


def prompts_of(vocab, seed):
    generator = torch.Generator().manual_seed(seed + 1)
    return [torch.randint(0, vocab, (1, length), generator=generator) for length in PROMPT_LENGTHS]


def reset_rope(model):
    """Dynamic NTK keeps the frequencies of the longest sequence so far, so an earlier call changes a later one."""
    model.gpt_neox.rotary_emb = type(model.gpt_neox.rotary_emb)(model.config)


@torch.no_grad()
def generate(model, ids):
    """(64 greedy ids, smallest margin between the best two logits on the way), with the KV cache."""
    reset_rope(model)
    model.generation_config.eos_token_id = None
    result = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
                            pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    best = torch.cat(result.logits).topk(2, dim=-1).values
    return result.sequences[0, ids.shape[1] :], (best[:, 0] - best[:, 1]).min().item()


@torch.no_grad()
def generate_recomputed(model, ids):
    reset_rope(model)
    margin = float("inf")
    sequence = ids
    for _ in range(NEW_TOKENS):
        best = model(sequence, use_cache=False).logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        sequence = torch.cat([sequence, best.indices[:1][None]], dim=1)
    return sequence[0, ids.shape[1] :], margin


def rotary_facts(model):
    embedding = model.gpt_neox.rotary_emb
    return {"rope_parameters": model.config.rope_parameters, "rotary_dims": 2 * len(embedding.inv_freq),
            "head_dim": model.config.hidden_size // model.config.num_attention_heads}


@torch.no_grad()
def run_case(folder, item, seed):
    """(tensors, smallest margin, fewest distinct tokens, model) with one seed; None if the seed does not serve."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_checkpoint(folder, item, seed)
    model = load(folder)
    tensors, margins, distinct = {}, [], []
    for number, ids in enumerate(prompts_of(model.config.vocab_size, seed)):
        reset_rope(model)
        tensors[f"input_ids.{number}"] = ids[0]
        tensors[f"logits.{number}"] = model(ids, use_cache=False).logits[0]
        tensors[f"greedy.{number}"], margin = generate(model, ids)
        margins.append(margin)
        distinct.append(len(set(tensors[f"greedy.{number}"].tolist())))
        if margin <= MARGIN or distinct[-1] < DISTINCT:
            return None
    for number, ids in enumerate(prompts_of(model.config.vocab_size, seed)):
        recomputed, margin = generate_recomputed(model, ids)
        margins.append(margin)
        if item["name"] == "rope_dynamic":
            tensors[f"greedy_recomputed.{number}"] = recomputed
        elif not torch.equal(recomputed, tensors[f"greedy.{number}"]):
            return None
    return (tensors, min(margins), min(distinct), model) if min(margins) > MARGIN else None


def check_effect(folder, item, model, tensors):
    """Each key under test must be read and must change the logits: put back the standard value and compare."""
    facts = rotary_facts(model)
    for key, value in item["reads"].items():
        assert facts["rope_parameters"][key] == value, (item["name"], key, facts)
    fraction = (item["reads"] or rope())["partial_rotary_factor"]
    assert facts["rotary_dims"] == int(facts["head_dim"] * fraction), (item["name"], facts)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == item["config"].get("tie_word_embeddings", False)
    assert (model.gpt_neox.layers[0].attention.dense.bias is None) == (item["config"].get("attention_bias") is False)
    changed = {"hidden_act": "gelu" if item["config"].get("hidden_act") else None, "layer_norm_eps": 1e-5,
               "use_parallel_residual": True, "rope_parameters": rope(partial_rotary_factor=0.125)}
    effects = {}
    for key, standard in changed.items():
        if key in item["config"] or (key == "rope_parameters" and item["reads"]):
            other = load(folder, **{key: standard})
            pairs = [(tensors[f"input_ids.{n}"][None], tensors[f"logits.{n}"]) for n in range(len(PROMPT_LENGTHS))]
            effects[key] = max((other(ids).logits[0] - logits).abs().max().item() for ids, logits in pairs)
            assert effects[key] > 1e-4, (item["name"], key, effects)
    return facts | {"effect_of_standard_value": {key: round(value, 6) for key, value in effects.items()}}


def write_case(root, item):
    folder = root / item["name"]
    for seed in range(1000, 1400):
        if (found := run_case(folder, item, seed)) is not None:
            break
    else:
        raise SystemExit(f"{item['name']}: no seed gave a margin above {MARGIN}")
    tensors, margin, distinct, model = found
    with torch.no_grad():
        facts = check_effect(folder, item, model, tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "golden.safetensors")
    golden = {
        "command": COMMAND, "note": item["note"], "seed": seed, "layout": item["layout"],
        "weights_dtype": str(item["dtype"]).removeprefix("torch."), "computed_in": "float32, eager attention, 1 thread",
        "prompt_lengths": PROMPT_LENGTHS, "new_tokens": NEW_TOKENS, "top1_margin_min": margin,
        "distinct_tokens_min": distinct, "transformers_read": facts, "versions": versions(),
    }
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{item['name']}: seed {seed}, margin {margin:.5f}, distinct {distinct}, rotary {facts['rotary_dims']}, "
          f"effect {facts['effect_of_standard_value']}", flush=True)


def versions():
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
            "safetensors": safetensors.__version__, "numpy": numpy.__version__}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="write just this case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for item in CASES:
        if args.only in (None, item["name"]):
            write_case(args.out, item)


if __name__ == "__main__":
    main()
