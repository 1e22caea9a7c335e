"""Perplexity of given tokens in llama.cpp: `PYTHON llama_perplexity.py MODEL.gguf < ids.json`, for `accuracy.py`.

PYTHON has llama-cpp-python; each entry of the input is a row's ids and how many of them, at the end, count.
"""

import ctypes
import json
import math
import sys

import llama_cpp as lib
import numpy


def logits(context, vocabulary, ids):
    """One row of logits for each id."""
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    status = lib.llama_decode(context, batch)
    lib.llama_batch_free(batch)
    if status:
        raise RuntimeError(f"llama_decode: {status}")
    rows = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    return numpy.ctypeslib.as_array(rows, shape=(len(ids), vocabulary)).astype(numpy.float64)


def main(path):
    rows = json.load(sys.stdin)
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    if not model:
        raise RuntimeError("llama.cpp does not load the file")
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(len(row["ids"]) for row in rows)
    params.type_k = params.type_v = lib.GGML_TYPE_F32
    context = lib.llama_init_from_model(model, params)
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    nats = tokens = 0
    for row in rows:
        ids, count = row["ids"], row["count"]
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        found = logits(context, vocabulary, ids)[-count - 1 : -1]
        most = found.max(axis=1, keepdims=True)
        sums = numpy.log(numpy.exp(found - most).sum(axis=1)) + most[:, 0]
        nats += float((sums - found[numpy.arange(count), ids[-count:]]).sum())
        tokens += count
    print(json.dumps({"perplexity": math.exp(nats / tokens), "tokens": tokens}))


if __name__ == "__main__":
    main(sys.argv[1])
