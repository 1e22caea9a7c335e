"""Gives a wheel another distribution name; what it is imported as stays.

usage: rename.py WHEEL NAME DIRECTORY
"""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path


def rename(wheel: Path, name: str, directory: Path) -> Path:
    """Write the wheel anew under `name`; give the new file's path."""
    old, version, tags = wheel.name.split("-", 2)
    new = name.replace("-", "_")
    before, after = (f"{part}-{version}.dist-info/" for part in (old, new))
    target = directory / f"{new}-{version}-{tags}"
    lines = []
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as out:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.startswith(before):
                item.filename = after + item.filename[len(before) :]
            if item.filename == after + "RECORD":
                continue
            if item.filename == after + "METADATA":
                own = f"\nName: {old.replace('_', '-')}\n".encode()
                if data.count(own) != 1:
                    sys.exit(f"{wheel.name}: METADATA has no line{own.decode()!r}")
                data = data.replace(own, f"\nName: {name}\n".encode())
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{item.filename},sha256={digest},{len(data)}\n")
            out.writestr(item, data, zipfile.ZIP_DEFLATED, 9)
        out.writestr(after + "RECORD", "".join([*lines, f"{after}RECORD,,\n"]))
    return target


if __name__ == "__main__":
    print(rename(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
