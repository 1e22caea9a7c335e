"""Loads the GGUF files this library writes in llama.cpp and compares them with transformers.

    mkdir gguf
    DOLLY_CHECK_DIR=$PWD/gguf cargo test -p dolly-core --lib export_for_llama_cpp -- --ignored
    python tests/golden/check_gguf.py reference gguf    # needs torch, transformers, gguf
    python tests/golden/check_gguf.py llama gguf        # needs xllamacpp (llama.cpp on the CPU)

`reference` reads each file with the gguf package, undoes llama.cpp's order of query, key and value
rows, and computes with GPTNeoXForCausalLM the log-probabilities of every next token after a prompt
of ids. `llama` lets llama.cpp evaluate the same file and ids, and prints the largest difference.
llama.cpp keeps its cache in f16, uses the tanh form of GELU and rounds activations to 8 bits
before products with quantised weights, hence the limits.

Verified with xllamacpp 2026.10.11549, gguf 0.19.0, torch 2.15.0 and transformers 5.23.0: all five
files load, and the largest differences were 0.0015 (f32), 0.0015 (f16), 0.011 (bf16), 0.047 (q8_0)
and 0.041 (q4_0), against log-probabilities from -9 to -1.
"""

import json
import pathlib
import sys

PROMPT = [3, 17, 29, 5, 11, 38, 0, 21, 8, 33]
LIMITS = {"f32": 0.01, "f16": 0.01, "bf16": 0.02, "q8_0": 0.1, "q4_0": 0.1}
HIDDEN, HEADS = 32, 4


def weights(path):
    """The tensors of a GGUF file under their Hugging Face names."""
    import gguf
    import torch

    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPTNEOX, 1)
    layer = "gpt_neox.layers.0."
    stems = [layer + part for part in (
        "input_layernorm", "attention.query_key_value", "attention.dense",
        "post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
    )] + ["gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"]
    names = {name_map.get_name(stem): stem for stem in stems}
    result = {}
    for tensor in gguf.GGUFReader(path).tensors:
        stem, suffix = tensor.name.rsplit(".", 1)
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        data = torch.tensor(data.reshape(tuple(int(n) for n in tensor.shape)[::-1]))
        if "attn_qkv" in stem:
            split = data.reshape(3, HEADS, HIDDEN // HEADS, *data.shape[1:])
            data = split.transpose(0, 1).reshape(data.shape)
        result[f"{names[stem]}.{suffix}"] = data.float()
    result["lm_head.weight"] = result.pop("embed_out.weight")  # its name within transformers 5
    return result


def reference(folder):
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=40, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=HEADS,
        intermediate_size=64, max_position_embeddings=64, layer_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25
        },
    )
    model = GPTNeoXForCausalLM(config).eval()
    expected = {}
    for name in LIMITS:
        model.load_state_dict(weights(folder / f"{name}.gguf"))
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT])).logits[0, -1]
        expected[name] = torch.log_softmax(logits.double(), -1).tolist()
    (folder / "reference.json").write_text(json.dumps(expected))


def llama(folder):
    import xllamacpp

    failed = False
    for name, expected in json.loads((folder / "reference.json").read_text()).items():
        params = xllamacpp.CommonParams()
        params.model.path = str(folder / f"{name}.gguf")
        params.n_ctx, params.n_gpu_layers, params.warmup = 64, 0, False
        params.fit_params = False
        server = xllamacpp.Server(params)
        reply = server.handle_completions({
            "prompt": PROMPT, "n_predict": 1, "logprobs": len(expected), "temperature": 1.0,
            "top_k": 0, "top_p": 1.0, "min_p": 0.0, "cache_prompt": False,
        })
        reply = json.loads(reply) if isinstance(reply, (str, bytes)) else reply
        if "choices" not in reply:
            sys.exit(f"{name}: {reply}")
        top = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = {token["id"]: token["logprob"] for token in top}
        assert len(found) == len(expected), f"{name}: {len(found)} of {len(expected)} tokens"
        worst = max(abs(found[i] - value) for i, value in enumerate(expected))
        limit = LIMITS[name]
        print(f"{name}: largest difference of a log-probability {worst:.5f} (limit {limit})")
        failed |= worst > limit
    sys.exit(failed)


if __name__ == "__main__":
    {"reference": reference, "llama": llama}[sys.argv[1]](pathlib.Path(sys.argv[2]))
