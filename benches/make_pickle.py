"""A random checkpoint of Pythia 410M's shape as PyTorch saves it, for `benches/load.rs`.

    python benches/make_pickle.py OUT [float16|float32]
"""

import json
import shutil
import sys
from pathlib import Path

import torch

CONFIG = {
    "model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 1024, "num_hidden_layers": 24,
    "num_attention_heads": 16, "intermediate_size": 4096, "hidden_act": "gelu",
    "max_position_embeddings": 2048, "rotary_pct": 0.25, "use_parallel_residual": True,
    "tie_word_embeddings": False,
}


def main(out: Path, dtype: str) -> None:
    hidden, inner, vocab = 1024, 4096, 50304
    shapes = {"gpt_neox.embed_in.weight": (vocab, hidden), "embed_out.weight": (vocab, hidden)}
    products = {
        "attention.query_key_value": (3 * hidden, hidden), "attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (inner, hidden), "mlp.dense_4h_to_h": (hidden, inner),
    }
    norms = ["final_layer_norm"]
    for layer in range(24):
        for name, shape in products.items():
            shapes[f"gpt_neox.layers.{layer}.{name}.weight"] = shape
            shapes[f"gpt_neox.layers.{layer}.{name}.bias"] = shape[:1]
        norms += [f"layers.{layer}.input_layernorm", f"layers.{layer}.post_attention_layernorm"]
    for name in norms:
        shapes |= {f"gpt_neox.{name}.weight": (hidden,), f"gpt_neox.{name}.bias": (hidden,)}
    kind = getattr(torch, dtype)
    state = {name: (torch.randn(shape) * 0.02).to(kind) for name, shape in shapes.items()}
    out.mkdir(parents=True, exist_ok=True)
    torch.save(state, out / "pytorch_model.bin")
    (out / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": dtype}))
    nano = Path(__file__).parent.parent / "models/dolly-nano"
    shutil.copy(nano / "tokenizer.json", out / "tokenizer.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "float16")
