"""Makes the golden files of the weight readers in tests/golden/weights/.

    python tests/golden/make_weights.py

Needs torch, safetensors, gguf and numpy (made with torch 2.15.0, safetensors 0.8.0, gguf 0.19.0,
numpy 2.4.6). The independent references are those packages: they write every file and compute
every expected number; nothing here repeats the library's own code.

One tiny model (1 layer, hidden 32, 4 heads, feed-forward 64, vocabulary 40), in every format:

    model.safetensors            f32, with the buffers old checkpoints carry
    bf16.safetensors             bf16, saved from the bare GPTNeoXModel (no "gpt_neox." prefix)
    pytorch_model.bin            torch.save of an OrderedDict, f16, embed_out tied to embed_in
    parameters.bin               nn.Parameter values, f32 and f64 storages, a view with an offset
    legacy.bin                   the format before PyTorch 1.6
    sharded/                     two safetensors shards and their index
    model.gguf                   llama.cpp's names and row order, Q8_0 matrices, f32 vectors
    expected.f32                 the f32 values of model.safetensors, tensors sorted by name
    expected_gguf.f32            the same of model.gguf, in the order of Hugging Face
    transposed.bin               a tensor that is not contiguous
    quants.gguf + quants.f32     one tensor of every block type and its gguf.quants.dequantize
    quantized.bin                32-block inputs (f32) with gguf's Q8_0, Q4_0, f16 and bf16 bytes
"""

import collections
import json
import pathlib

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "weights"
LAYERS, HIDDEN, HEADS, FF, VOCAB = 1, 32, 4, 64, 40


def state_dict():
    generator = torch.Generator().manual_seed(7)
    tensors = collections.OrderedDict()

    def add(name, *shape):
        tensors[name] = torch.randn(shape, generator=generator) * 0.5

    add("gpt_neox.embed_in.weight", VOCAB, HIDDEN)
    for layer in range(LAYERS):
        prefix = f"gpt_neox.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            add(prefix + norm + ".weight", HIDDEN)
            add(prefix + norm + ".bias", HIDDEN)
        for linear, rows, cols in (
            ("attention.query_key_value", 3 * HIDDEN, HIDDEN),
            ("attention.dense", HIDDEN, HIDDEN),
            ("mlp.dense_h_to_4h", FF, HIDDEN),
            ("mlp.dense_4h_to_h", HIDDEN, FF),
        ):
            add(prefix + linear + ".weight", rows, cols)
            add(prefix + linear + ".bias", rows)
    add("gpt_neox.final_layer_norm.weight", HIDDEN)
    add("gpt_neox.final_layer_norm.bias", HIDDEN)
    add("embed_out.weight", VOCAB, HIDDEN)
    return tensors


def buffers():
    mask = torch.tril(torch.ones(4, 4, dtype=torch.bool)).view(1, 1, 4, 4)
    for layer in range(LAYERS):
        prefix = f"gpt_neox.layers.{layer}.attention."
        yield prefix + "bias", mask.clone()
        yield prefix + "masked_bias", torch.tensor(-1e9)
        yield prefix + "rotary_emb.inv_freq", torch.ones(1)


def write_torch(model):
    half = collections.OrderedDict((k, v.half()) for k, v in model.items())
    half["embed_out.weight"] = half["gpt_neox.embed_in.weight"]
    half._metadata = collections.OrderedDict({"": {"version": 1}})
    torch.save(half, OUT / "pytorch_model.bin")
    base = torch.arange(24, dtype=torch.float32)
    special = {
        "whole": torch.nn.Parameter(base.view(4, 6)),
        "view": base[6:18].view(2, 6),
        "double": torch.tensor([1.5, -2.25, 1e-300], dtype=torch.float64),
        "bf16": torch.tensor([1.0, -3.0], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 5),
        "count": torch.tensor([3], dtype=torch.int64),
    }
    torch.save(special, OUT / "parameters.bin")
    torch.save({"x": base}, OUT / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"x": base.view(4, 6).t()}, OUT / "transposed.bin")


def write_sharded(model):
    folder = OUT / "sharded"
    folder.mkdir(parents=True, exist_ok=True)
    names = list(model)
    half = len(names) // 2
    shards = {
        "model-00001-of-00002.safetensors": names[:half],
        "model-00002-of-00002.safetensors": names[half:],
    }
    weight_map = {}
    for shard, part in shards.items():
        save_file({n: model[n] for n in part}, folder / shard, metadata={"format": "pt"})
        weight_map |= {n: shard for n in part}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def llama_order(tensor):
    """[head][q, k, v][dim] rows to all queries, all keys, all values (llama.cpp's converter)."""
    split = tensor.reshape(HEADS, 3, HIDDEN // HEADS, *tensor.shape[1:])
    return split.transpose(0, 1).reshape(tensor.shape)


def write_gguf(model):
    writer = gguf.GGUFWriter(OUT / "model.gguf", "gptneox")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FF)
    writer.add_rope_dimension_count(2)
    writer.add_head_count(HEADS)
    writer.add_parallel_residual(True)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["t 0", "t 1"])
    writer.add_bool("test.flag", True)
    writer.add_int64("test.negative", -5)
    writer.add_array("test.nested", [[1, 2], [3]])
    expected = {}
    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPTNEOX, LAYERS)
    for name, tensor in model.items():
        expected[name] = tensor.numpy()
        if tensor.ndim == 2:
            blocks = gguf.quants.quantize(tensor.numpy(), Q.Q8_0)
            expected[name] = gguf.quants.dequantize(blocks, Q.Q8_0)
        if "query_key_value" in name:
            tensor = llama_order(tensor)
        data = tensor.contiguous().numpy()
        gguf_name = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        if data.ndim == 2:
            quantized = gguf.quants.quantize(data, Q.Q8_0)
            writer.add_tensor(gguf_name, quantized, raw_dtype=Q.Q8_0)
        else:
            writer.add_tensor(gguf_name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values = [expected[name].astype("<f4").tobytes() for name in sorted(expected)]
    (OUT / "expected_gguf.f32").write_bytes(b"".join(values))


def write_quants():
    """Random bytes make every bit of a block matter; scales are set to sane f16 values."""
    rng = np.random.default_rng(11)
    writer = gguf.GGUFWriter(OUT / "quants.gguf", "gptneox")
    writer.add_head_count(1)
    writer.add_embedding_length(1)
    halves = {  # positions of the f16 scales in a block
        Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q8_0: [0],
        Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208],
    }
    expected = []
    for kind, positions in halves.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rows, per_row = 2, 512 // block
        data = rng.integers(0, 256, (rows, per_row, size), dtype=np.uint8)
        for at in positions:
            scale = rng.uniform(-0.1, 0.1, (rows, per_row, 1)).astype(np.float16)
            data[..., at : at + 2] = scale.view(np.uint8)
        data = data.reshape(rows, per_row * size)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        expected.append(gguf.quants.dequantize(data, kind).astype("<f4").tobytes())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (OUT / "quants.f32").write_bytes(b"".join(expected))


def write_quantized():
    rng = np.random.default_rng(13)
    rows = [
        rng.normal(0, 1, 32), rng.uniform(-3, 3, 32), np.zeros(32), rng.normal(0, 1e-6, 32),
        np.arange(32) - 16.0, np.full(32, -2.5), rng.normal(0, 2000, 32),
        np.linspace(-127, 127, 32), (np.arange(32) % 16) * 0.5 - 4.0, rng.normal(0, 0.02, 32),
    ]
    data = np.stack(rows).astype("<f4")
    parts = [
        data.tobytes(),
        gguf.quants.quantize(data, Q.Q8_0).tobytes(),
        gguf.quants.quantize(data, Q.Q4_0).tobytes(),
        torch.from_numpy(data).half().numpy().tobytes(),
        torch.from_numpy(data).bfloat16().view(torch.uint16).numpy().tobytes(),
    ]
    (OUT / "quantized.bin").write_bytes(b"".join(parts))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    model = state_dict()
    with_buffers = dict(model) | dict(buffers())
    save_file(with_buffers, OUT / "model.safetensors", metadata={"format": "pt"})
    bare = {k.removeprefix("gpt_neox."): v.bfloat16() for k, v in model.items()}
    save_file(bare, OUT / "bf16.safetensors")
    expected = [model[name].numpy().astype("<f4").tobytes() for name in sorted(model)]
    (OUT / "expected.f32").write_bytes(b"".join(expected))
    write_torch(model)
    write_sharded(model)
    write_gguf(model)
    write_quants()
    write_quantized()
    for path in OUT.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
