"""Makes tests/golden/kquants/: a GGUF file that mixes Q4_K, Q5_K and Q6_K as llama.cpp's Q4_K_M does.

    python tests/golden/make_kquants.py

Needs torch, transformers, gguf and numpy (made with torch 2.15.0, transformers 5.23.0, gguf 0.19.0,
numpy 2.4.6). gguf reads these types but does not write them: blocks are random bytes (any bytes
are a block) with small f16 scales. `GPTNeoXForCausalLM` computes the logits from the weights that
`gguf.quants.dequantize` gives.

    model.gguf           1 layer, hidden 256, 4 heads, feed-forward 768, vocabulary 72
    logits.f32           f32 (tokens, vocabulary) of the prompt in `ids.json`
    ids.json             the prompt and 32 greedy tokens after it
"""

import json
import pathlib

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

OUT = pathlib.Path(__file__).parent / "kquants"
HIDDEN, HEADS, FF, VOCAB = 256, 4, 768, 72
LAYER = "gpt_neox.layers.0."
# As llama.cpp's Q4_K_M chooses them for this architecture.
MATRICES = [
    ("gpt_neox.embed_in", Q.Q4_K, VOCAB, HIDDEN),
    (LAYER + "attention.query_key_value", Q.Q5_K, 3 * HIDDEN, HIDDEN),
    (LAYER + "attention.dense", Q.Q4_K, HIDDEN, HIDDEN),
    (LAYER + "mlp.dense_h_to_4h", Q.Q4_K, FF, HIDDEN),
    (LAYER + "mlp.dense_4h_to_h", Q.Q6_K, HIDDEN, FF),
    ("embed_out", Q.Q6_K, VOCAB, HIDDEN),
]
NORMS = [LAYER + "input_layernorm", LAYER + "post_attention_layernorm", "gpt_neox.final_layer_norm"]
PROMPT = [3, 17, 29, 5, 11, 38, 0, 21, 8, 33, 71, 64]


def blocks(rng, kind, rows, cols):
    """Random bytes whose weights are centred and of a deviation of about 0.06."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)

    def put(at, low, high):
        scale = rng.uniform(low, high, (rows, cols // block, 1)).astype(np.float16)
        data[..., at : at + 2] = scale.view(np.uint8)

    if kind == Q.Q6_K:
        put(208, -4e-5, 4e-5)
    else:
        most = 15 if kind == Q.Q4_K else 31
        put(0, 2.5e-4 * 15 / most, 3.5e-4 * 15 / most)
        put(2, 3e-4 * 7.5, 3e-4 * 7.5)
    return data.reshape(rows, cols // block * size)


def llama_order(rows):
    """[head][q, k, v][dim] rows to all queries, all keys, all values (llama.cpp's converter)."""
    split = rows.reshape(HEADS, 3, HIDDEN // HEADS, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(0, 1).reshape(rows.shape))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    # Of a few seeds one whose greedy tokens win by more than rounding to 8 bits can change.
    rng = np.random.default_rng(28)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPTNEOX, 1)
    writer = gguf.GGUFWriter(OUT / "model.gguf", "gptneox")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FF)
    writer.add_rope_dimension_count(16)
    writer.add_head_count(HEADS)
    writer.add_parallel_residual(True)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("olmo")
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:!?#'ĠĊ-"
    writer.add_token_list(["<|endoftext|>", *letters[: VOCAB - 2], "ab"])
    writer.add_token_types([3] + [1] * (VOCAB - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    state = {}

    def vector(name, values):
        state[name] = torch.tensor(values.astype(np.float32))
        stored = llama_order(values) if "query_key_value" in name else values
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), stored.astype(np.float32))

    for stem, kind, rows, cols in MATRICES:
        data = blocks(rng, kind, rows, cols)
        state[stem + ".weight"] = torch.tensor(gguf.quants.dequantize(data, kind))
        stored = llama_order(data) if "query_key_value" in stem else data
        writer.add_tensor(names.get_name(stem) + ".weight", stored, raw_dtype=kind)
        if LAYER in stem:
            vector(stem + ".bias", rng.normal(0, 0.1, rows))
    for stem in NORMS:
        vector(stem + ".weight", rng.normal(1, 0.1, HIDDEN))
        vector(stem + ".bias", rng.normal(0, 0.1, HIDDEN))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for stem, *_ in MATRICES:
        print(f"{stem}: deviation {state[stem + '.weight'].std():.4f}, mean {state[stem + '.weight'].mean():.4f}")

    config = GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=HEADS,
        intermediate_size=FF, max_position_embeddings=64, layer_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25
        },
    )
    model = GPTNeoXForCausalLM(config).eval()
    state["lm_head.weight"] = state.pop("embed_out.weight")  # its name within transformers 5
    model.load_state_dict(state)
    ids, margin = list(PROMPT), []
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
        for _ in range(32):
            last = model(torch.tensor([ids])).logits[0, -1]
            best = last.topk(2)
            margin.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
    print(f"logits: deviation {logits.std():.3f}; smallest margin of a greedy token {min(margin):.4f}")
    (OUT / "logits.f32").write_bytes(logits.numpy().astype("<f4").tobytes())
    greedy = {"prompt": PROMPT, "greedy": ids[len(PROMPT) :]}
    (OUT / "ids.json").write_text(json.dumps(greedy) + "\n")


if __name__ == "__main__":
    main()
