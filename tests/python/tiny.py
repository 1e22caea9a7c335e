"""Models small enough to make in a test, whose answers follow from their making.

`chain_model` writes a GPT-NeoX whose next token is a function of the last one alone: embeddings
are unit vectors, the layers add nothing, and the output layer maps each token to its successor.
What it must answer is known without running any other implementation.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

#: Ids of the bytes follow the two special tokens of GPT-NeoX.
FIRST_BYTE = 2
END, INSTRUCTION, RESPONSE = 258, 259, 260
VOCAB = 320
HEADS = 4
CONTEXT = 1024
SHARPNESS = 10.0


def byte_id(byte: int) -> int:
    """The id of the token that is this one byte."""
    return FIRST_BYTE + byte


def ids_of(text: str) -> list[int]:
    """The ids of a text: one per byte."""
    return [byte_id(byte) for byte in text.encode()]


def answer_chain(answer: str) -> dict[int, int]:
    """Successors that make `answer` follow the response key; every byte may stand once.

    The end follows itself, for those who ignore it.
    """
    ids = [RESPONSE, *ids_of(answer), END, END]
    if len(set(ids)) != len(ids) - 1:
        raise ValueError(f"{answer!r} repeats a byte")
    return dict(itertools.pairwise(ids))


def loop_chain(text: str) -> dict[int, int]:
    """Successors that repeat `text` for ever after the response key."""
    ids = ids_of(text)
    return {RESPONSE: ids[0], **dict(zip(ids, [*ids[1:], ids[0]], strict=True))}


def chain_model(directory: Path, successors: Mapping[int, int], **config: Any) -> Path:
    """Write the model; what follows a token without a successor is not defined."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(chain_tensors(successors), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer()))
    return directory


def chain_tensors(successors: Mapping[int, int]) -> dict[str, npt.NDArray[np.float32]]:
    """The weights of the model."""
    output = np.zeros((VOCAB, VOCAB), np.float32)
    for token, successor in successors.items():
        output[successor, token] = SHARPNESS
    layer = {
        "attention.query_key_value": (3 * VOCAB, VOCAB),
        "attention.dense": (VOCAB, VOCAB),
        "mlp.dense_h_to_4h": (VOCAB, VOCAB),
        "mlp.dense_4h_to_h": (VOCAB, VOCAB),
    }
    tensors = {"gpt_neox.embed_in.weight": np.eye(VOCAB, dtype=np.float32)}
    for name, shape in layer.items():
        tensors[f"gpt_neox.layers.0.{name}.weight"] = np.zeros(shape, np.float32)
        tensors[f"gpt_neox.layers.0.{name}.bias"] = np.zeros(shape[0], np.float32)
    norms = ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "final_layer_norm")
    for name in norms:
        tensors[f"gpt_neox.{name}.weight"] = np.ones(VOCAB, np.float32)
        tensors[f"gpt_neox.{name}.bias"] = np.zeros(VOCAB, np.float32)
    tensors["embed_out.weight"] = output
    return tensors


def chain_logits(successors: Mapping[int, int], ids: list[int]) -> npt.NDArray[np.float64]:
    """What the model must give after each of `ids`, in float64: (tokens, vocab)."""
    hidden = np.eye(VOCAB)[ids]
    centred = hidden - hidden.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt(centred.var(axis=1, keepdims=True) + CONFIG["layer_norm_eps"])
    return normed @ chain_tensors(successors)["embed_out.weight"].T.astype(np.float64)


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Natural log-probabilities over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


CONFIG: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "vocab_size": VOCAB,
    "hidden_size": VOCAB,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "intermediate_size": VOCAB,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
    "max_position_embeddings": CONTEXT,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}


def tokenizer() -> dict[str, Any]:
    """A tokenizer of the GPT-NeoX kind that has one token per byte."""
    specials = ["<|endoftext|>", "<|padding|>"]
    added = ["### End", "### Instruction:", "### Response:\n"]
    vocab = {text: id for id, text in enumerate(specials)}
    vocab |= {character: byte_id(byte) for byte, character in _byte_characters().items()}
    numbered = [*enumerate(specials), *enumerate(added, END)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for id, text in numbered
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte (GPT-2's byte-level alphabet)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(0x100 + index) for index, byte in enumerate(others)}
