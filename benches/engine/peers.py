"""One measure of one peer, in a process of its own: a JSON line with samples, peak memory and versions.

    PYTHON peers.py ENGINE MODEL MEASURE THREADS REPEATS OPTIONS

PYTHON is that of the peer's environment, OPTIONS a JSON object for the engine's constructor. What is measured, prompts
included, is the same in `dolly-core/benches/engine.rs`: a change here is one there.
"""

import importlib.metadata
import json
import sys
import time

PACKAGES = {
    "openvino": ("openvino", "openvino-genai", "optimum-intel", "nncf"),
    "llama.cpp": ("llama-cpp-python",),
    "ctranslate2": ("ctranslate2",),
    "transformers": ("torch", "transformers"),
}


class OpenVino:
    """OpenVINO GenAI's `LLMPipeline`. A call includes its tokenless scheduler and pipeline, no text is decoded.

    Its defaults but for the latency hint: keys and values in 8 bits, arithmetic in bf16 where the CPU has it unless
    `INFERENCE_PRECISION_HINT` says otherwise.
    """

    def __init__(self, model, threads, **options):
        import numpy
        import openvino
        import openvino_genai

        self.numpy, self.openvino, self.genai = numpy, openvino, openvino_genai
        self.build = lambda: openvino_genai.LLMPipeline(
            model, "CPU", INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY", **options)

    def load(self):
        self.pipe = self.build()

    def generate(self, prompts, new):
        ids = self.numpy.array(prompts, dtype=self.numpy.int64)
        config = self.genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new
        config.ignore_eos, config.do_sample = True, False
        ids, mask = self.openvino.Tensor(ids), self.openvino.Tensor(self.numpy.ones_like(ids))
        return self.pipe.generate(self.genai.TokenizedInputs(ids, mask), config).tokens


class LlamaCpp:
    """llama.cpp's C functions through llama-cpp-python: `llama_decode` and its greedy sampler, no text is decoded.

    Batches as llama-bench makes them; keys and values in f16, flash attention where llama.cpp chooses it. `repack`
    lets it rearrange weights for the CPU (its default), `mmap` lets it use them where the file is mapped (its default).
    """

    def __init__(self, model, threads, sequences, tokens, repack=True, mmap=True):
        import llama_cpp

        self.lib, self.path, self.threads = llama_cpp, model.encode(), threads
        self.sequences, self.tokens = sequences, tokens
        self.repack, self.mmap = repack, mmap

    def load(self):
        lib = self.lib
        # Kept: llama.cpp calls it later.
        self.quiet = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self.quiet, None)
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if self.mmap else lib.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = self.repack
        self.model = lib.llama_model_load_from_file(self.path, params)
        if not self.model:
            raise RuntimeError("llama.cpp does not load the file")
        params = lib.llama_context_default_params()
        params.n_threads = params.n_threads_batch = self.threads
        params.n_seq_max, params.n_ctx, params.n_batch = self.sequences, self.sequences * self.tokens, 512
        self.context = lib.llama_init_from_model(self.model, params)
        self.sampler = lib.llama_sampler_init_greedy()
        self.memory = lib.llama_get_memory(self.context)

    def step(self, rows):
        """One pass; rows are `(sequence, position, id, wanted)`. The greedy choice of each wanted row."""
        lib, batch = self.lib, self.lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (sequence, position, token, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        status = lib.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        wanted = [i for i, row in enumerate(rows) if row[3]]
        picked = [lib.llama_sampler_sample(self.sampler, self.context, i) for i in wanted]
        lib.llama_batch_free(batch)
        return picked

    def generate(self, prompts, new):
        self.lib.llama_memory_clear(self.memory, False)
        rows = [(s, i, t, i + 1 == len(ids)) for s, ids in enumerate(prompts) for i, t in enumerate(ids)]
        last = self.step(rows)
        answers = [[token] for token in last]
        for i in range(1, new):
            last = self.step([(s, len(prompts[s]) + i - 1, token, True) for s, token in enumerate(last)])
            for answer, token in zip(answers, last):
                answer.append(token)
        return answers


class CTranslate2:
    """CTranslate2's `Generator.generate_batch`, greedy, all prompts in one batch.

    Ids become its tokens before the call. No text is decoded; keys and values in f32.
    """

    def __init__(self, model, threads, compute_type):
        import ctranslate2

        self.lib, self.path, self.threads, self.compute_type = ctranslate2, model, threads, compute_type
        with open(f"{model}/vocabulary.json", encoding="utf-8") as file:
            self.tokens = json.load(file)

    def load(self):
        self.model = self.lib.Generator(self.path, device="cpu", compute_type=self.compute_type,
                                        intra_threads=self.threads, inter_threads=1)
        actual = self.model.compute_type
        if actual not in (self.compute_type, f"{self.compute_type}_float32"):
            raise RuntimeError(f"CTranslate2 has no {self.compute_type} on this CPU: it would compute in {actual}")

    def prepare(self, prompts):
        return [[self.tokens[i] for i in ids] for ids in prompts]

    def generate(self, prompts, new):
        answers = self.model.generate_batch(
            prompts, max_length=new, min_length=new, beam_size=1, sampling_topk=1, end_token=[],
            include_prompt_in_result=False, max_batch_size=0)
        return [answer.sequences_ids[0] for answer in answers]


class Transformers:
    """transformers' GPTNeoXForCausalLM in a plain greedy loop with its `DynamicCache`: less around a step than in its
    `generate`. Logits of the last position only, no text is decoded.
    """

    def __init__(self, model, threads, dtype):
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch, self.lib, self.path = torch, transformers, model
        self.dtype = getattr(torch, dtype)

    def load(self):
        self.model = self.lib.GPTNeoXForCausalLM.from_pretrained(self.path, dtype=self.dtype).eval()

    def generate(self, prompts, new):
        with self.torch.inference_mode():
            cache, ids = self.lib.DynamicCache(), self.torch.tensor(prompts)
            answers = []
            for _ in range(new):
                out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids = out.logits[:, -1].argmax(-1, keepdim=True)
                answers.append(ids)
            return self.torch.cat(answers, 1).tolist()


# The room a measure needs, for the one engine that allocates it beforehand: sequences, tokens of each (of 256).
ROOM = {"prefill": (1, 768), "batch8": (8, 256)}
ENGINES = {"openvino": OpenVino, "llama.cpp": LlamaCpp, "ctranslate2": CTranslate2, "transformers": Transformers}


class Prompts:
    """Prompts nobody has seen before: a cache of prefixes, ours or a peer's, finds nothing."""

    def __init__(self):
        self.count = 0

    def next(self, tokens):
        self.count += 1
        state, ids = self.count * 2654435761 & 0xFFFFFFFF, []
        for _ in range(tokens):
            state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
            ids.append(5 + (state >> 8) % 50000)
        return ids


def seconds(engine, prompts, new):
    """Seconds from the call until every one of the sequences has its `new` tokens, by the wall clock."""
    prompts = getattr(engine, "prepare", lambda ids: ids)(prompts)
    start = time.perf_counter()
    answers = engine.generate(prompts, new)
    elapsed = time.perf_counter() - start
    assert [len(answer) for answer in answers] == [new] * len(prompts), "other numbers of tokens than asked"
    return elapsed


def decode_rate(engine, prompts, sequences, new):
    """Tokens a second after the first token, all sequences together: the time of a whole call less that of a call
    which ends with the first token."""
    first = seconds(engine, [prompts.next(64) for _ in range(sequences)], 1)
    whole = seconds(engine, [prompts.next(64) for _ in range(sequences)], new + 1)
    return sequences * new / (whole - first)


def sample(engine, prompts, measure):
    """One sample: tokens a second, or for `first` milliseconds."""
    if measure == "prefill":
        return 512 / seconds(engine, [prompts.next(512)], 1)
    if measure == "first":
        return 1e3 * seconds(engine, [prompts.next(64)], 1)
    return decode_rate(engine, prompts, *{"decode": (1, 128), "batch8": (8, 64)}[measure])


def peak_mb():
    """The largest resident set of this process so far: interpreter, libraries and mapped files that were read count."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def main(name, model, measure, threads, repeats, options):
    options = json.loads(options)
    if name == "llama.cpp":
        options["sequences"], options["tokens"] = ROOM.get(measure, (1, 256))
    engine, prompts = ENGINES[name](model, int(threads), **options), Prompts()
    # Imports are done: what is timed is opening the model, as for a program that has its library already.
    start = time.perf_counter()
    engine.load()
    if measure == "load":
        seconds(engine, [prompts.next(64)], 1)
        samples = [time.perf_counter() - start]
        # What a short answer adds to the peak.
        seconds(engine, [prompts.next(64)], 17)
    else:
        sample(engine, prompts, measure)
        samples = [sample(engine, prompts, measure) for _ in range(int(repeats))]
    versions = {package: importlib.metadata.version(package) for package in PACKAGES[name]}
    print(json.dumps({"samples": samples, "peak_mb": peak_mb(), "versions": versions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
