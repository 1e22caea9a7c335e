"""Golden files of the trainer: schedules, AdamW, special tokens and masks, TensorBoard records.

    pip install torch transformers tensorboard
    python tests/golden/make_trainer.py

Writes tests/golden/trainer/*. Reference versions stand in adamw.json.
"""

import gzip
import io
import json
import pathlib

import torch
import transformers

OUT = pathlib.Path(__file__).parent / "trainer"
INTRO = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)


def schedules():
    cases = []
    names = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
    for name, theirs in names.items():
        for warmup, total in [(0, 20), (5, 20), (20, 20), (30, 20)]:
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            scheduler = transformers.get_scheduler(
                theirs, optimizer, num_warmup_steps=warmup, num_training_steps=total
            )
            factors = []
            for _ in range(total):
                factors.append(scheduler.get_last_lr()[0])
                optimizer.step()
                scheduler.step()
            cases.append({"name": name, "warmup": warmup, "total": total, "factors": factors})
    (OUT / "schedules.json").write_text(json.dumps(cases, indent=1) + "\n")


def adamw():
    """Ten steps of torch.optim.AdamW (single tensor) after clip_grad_norm_."""
    torch.manual_seed(7)
    start = {"matrix": torch.randn(5, 7), "vector": torch.randn(9)}
    cases = []
    for decay, betas, eps, clip in [
        (0.0, (0.9, 0.999), 1e-8, 1.0),
        (0.1, (0.9, 0.95), 1e-6, 1.0),
        (0.01, (0.4, 0.9), 1e-8, 0.0),
    ]:
        torch.manual_seed(11)
        parameters = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
        groups = [
            {"params": [parameters["matrix"]], "weight_decay": decay},
            {"params": [parameters["vector"]], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=eps, foreach=False)
        steps = []
        for step in range(10):
            rate = 1e-2 * (step + 1) / 10
            for group in optimizer.param_groups:
                group["lr"] = rate
            for parameter in parameters.values():
                parameter.grad = torch.randn_like(parameter) * 10.0 ** (step % 4 - 2)
            gradients = {n: p.grad.flatten().tolist() for n, p in parameters.items()}
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), clip or float("inf"))
            optimizer.step()
            steps.append({
                "rate": rate,
                "gradients": gradients,
                "norm": norm.item(),
                "values": {n: p.detach().flatten().tolist() for n, p in parameters.items()},
            })
        state = {n: optimizer.state[p] for n, p in parameters.items()}
        cases.append({
            "decay": decay, "beta1": betas[0], "beta2": betas[1], "epsilon": eps, "clip": clip,
            "steps": steps,
            "first": {n: s["exp_avg"].flatten().tolist() for n, s in state.items()},
            "second": {n: s["exp_avg_sq"].flatten().tolist() for n, s in state.items()},
        })
    document = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "start": {n: {"shape": list(v.shape), "values": v.flatten().tolist()} for n, v in start.items()},
        "cases": cases,
    }
    (OUT / "adamw.json").write_text(json.dumps(document) + "\n")


def tensorboard():
    """The bytes that TensorBoard's own writer gives for a version, a restart and two scalars."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    class Keep(io.BytesIO):
        def close(self):
            self.kept = self.getvalue()

    file = Keep()
    writer = RecordWriter(file)
    values = [
        Summary.Value(tag="train/loss", simple_value=2.5),
        Summary.Value(tag="train/learning_rate", simple_value=1e-5),
    ]
    events = [
        Event(wall_time=1700000000.25, file_version="brain.Event:2"),
        Event(wall_time=1700000000.5, step=301, session_log=SessionLog(status=SessionLog.START)),
        Event(wall_time=1700000001.0, step=301, summary=Summary(value=values)),
    ]
    for event in events:
        writer.write(event.SerializeToString())
    writer.flush()
    (OUT / "events.bin").write_bytes(file.getvalue())


def examples():
    """Special tokens and masks as databrickslabs/dolly's trainer.py (e2d664d) makes them."""
    with gzip.open(OUT.parent / "tokenizer" / "gpt-neox-20b-tokenizer.json.gz") as packed:
        file = OUT / "tokenizer.json"
        file.write_bytes(packed.read())
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))
    file.unlink()
    keys = ["### End", "### Instruction:", "### Response:\n"]
    tokenizer.add_special_tokens({"additional_special_tokens": keys})
    rows = [
        ("Name three colours.", "", "Red, green and blue."),
        ("Who wrote it?", "Emma is a novel by Jane Austen.", "Jane Austen."),
        ("Wie heißt die Hauptstadt?", "", "  Wien \n\n (Österreich) — 維也納 🎡"),
        ("List two\nthings.", "a\n\nb", "- one\n- two\n"),
        ("Code?", "", "```\ndef f(x):\n        return x\n```"),
        ("\n", "Input:", "Response:"),
    ]
    cases = []
    for instruction, context, response in rows:
        text = f"{INTRO}\n\n### Instruction:\n{instruction}\n\n"
        text += f"Input:\n{context}\n\n" if context else ""
        text += f"### Response:\n{response}\n\n### End"
        ids = tokenizer(text)["input_ids"]
        first = ids.index(tokenizer.convert_tokens_to_ids(keys[2])) + 1
        cases.append({"row": [instruction, context, response], "ids": ids, "first_label": first})
    document = {
        "length": len(tokenizer),
        "keys": {key: tokenizer.convert_tokens_to_ids(key) for key in keys},
        "cases": cases,
    }
    (OUT / "examples.json").write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    examples()
    schedules()
    adamw()
    tensorboard()
