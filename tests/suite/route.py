"""Answers the cases of a file with the bundled model: python route.py CASES MODEL > ANSWERS."""

import sys
from pathlib import Path

import dolly_rs


def main(cases: Path, model: str) -> None:
    """Write, per case, a line with the answer's number of bytes, the answer, a newline."""
    data = cases.read_bytes()
    out = sys.stdout.buffer
    with dolly_rs.pipeline(model) as pipe:
        while data:
            header, _, data = data.partition(b"\n")
            instruction_bytes, context_bytes, seed = map(int, header.split())
            instruction = data[:instruction_bytes].decode()
            context = data[instruction_bytes : instruction_bytes + context_bytes].decode()
            data = data[instruction_bytes + context_bytes + 1 :]
            answer = pipe.generate(instruction, context=context or None, seed=seed, max_new_tokens=64)
            text = answer.text.encode()
            out.write(b"%d\n%s\n" % (len(text), text))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
