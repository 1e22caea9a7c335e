"""Small Parquet files written by pyarrow, and what their rows hold.

    python tests/golden/dataset/make_parquet.py

needs pyarrow (written with the version that the output names).
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent

ROWS = [
    {
        "instruction": f"Instruction {n}: é\u2028\n\"",
        "context": None if n % 3 else "the same passage " * 20,
        "response": f"Response {n}",
        "category": ["open_qa", "brainstorming", None][n % 3],
        "id": n,
        "tags": [{"name": "a"}] * (n % 2),
    }
    for n in range(3000)
]


def write(name, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), HERE / name, **options)


write("snappy.parquet", ROWS, compression="snappy", row_group_size=1100)
write("gzip.parquet", ROWS[:300], compression="gzip", data_page_version="2.0", data_page_size=1024)
write("plain.parquet", ROWS[:7], compression="none", use_dictionary=False)
write("zstd.parquet", ROWS[:7], compression="zstd")
bad = [dict(row) for row in ROWS[:6]]
bad[1]["response"] = ""
bad[2]["instruction"] = None
bad[4]["instruction"] = "a\0b"
write("bad.parquet", bad, compression="none")
write("number.parquet", [{"instruction": 1, "response": "r"}])
binary = pa.table({"instruction": [b"\xff", b"fine"], "response": [b"r", b"r"]})
pq.write_table(binary, HERE / "binary.parquet", compression="none")

summary = {
    "command": "python tests/golden/dataset/make_parquet.py",
    "pyarrow": pa.__version__,
    "files": {"snappy.parquet": 3000, "gzip.parquet": 300, "plain.parquet": 7},
}
(HERE / "parquet.json").write_text(json.dumps(summary) + "\n")
