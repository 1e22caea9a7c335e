"""How transformers reads GPT-NeoX configurations: rotary settings, defaults, tensors, parameters.

    python make_configs.py configs.json

Each case holds the config.json given and what GPTNeoXConfig and a model make of it: rotary
dimensions and frequencies, flags, names and shapes of the saved tensors, parameters.
"""

import json
import sys
import tempfile

import safetensors.torch
import transformers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

BASE = {
    "model_type": "gpt_neox",
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
CASES = [
    {},
    {"rotary_pct": 0.5, "rotary_emb_base": 5000},
    {"rotary_pct": 1.0, "use_parallel_residual": False, "attention_bias": False},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 2000.0, "partial_rotary_factor": 0.75}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000}, "rotary_pct": 0.5},
    {"rope_scaling": {"type": "linear", "factor": 4.0}, "rotary_pct": 0.25, "rotary_emb_base": 300},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_scaling": None, "tie_word_embeddings": True, "rotary_pct": 0.4},
    {"layer_norm_eps": 1e-6, "hidden_act": "gelu_fast", "bos_token_id": None, "eos_token_id": [0, 5]},
    {"num_attention_heads": 1, "intermediate_size": 7, "num_hidden_layers": 1},
]


def read(extra):
    config = GPTNeoXConfig(**{k: v for k, v in (BASE | extra).items() if k != "model_type"})
    model = GPTNeoXForCausalLM(config)
    rotary = type(model.gpt_neox.rotary_emb)(config)
    tied = config.tie_word_embeddings
    with tempfile.TemporaryDirectory() as out:
        model.save_pretrained(out)
        saved = safetensors.torch.load_file(f"{out}/model.safetensors")
    tensors = {n: list(t.shape) for n, t in saved.items()}
    return {
        "given": BASE | extra,
        "rotary_dims": 2 * rotary.inv_freq.numel(),
        "inv_freq": rotary.inv_freq.tolist(),
        "layer_norm_eps": config.layer_norm_eps,
        "use_parallel_residual": config.use_parallel_residual,
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": tied,
        "tensors": tensors,
        "parameters": model.num_parameters(),
    }


if __name__ == "__main__":
    with open(sys.argv[1], "w") as out:
        golden = {"transformers": transformers.__version__, "cases": [read(c) for c in CASES]}
        json.dump(golden, out, separators=(",", ":"))
        out.write("\n")
