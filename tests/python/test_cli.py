"""The command line, as a user runs it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import dolly_rs
import tiny
from conftest import ANSWER, EURO

Done = subprocess.CompletedProcess


def dolly(*arguments: str | Path, stdin: str = "") -> Done[str]:
    """Run ``python -m dolly_rs``; nothing may end in a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "dolly_rs", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def test_generate(chain_dir: Path) -> None:
    done = dolly("generate", "Say hi.", "--model", chain_dir)
    assert (done.returncode, done.stdout) == (0, ANSWER + "\n")
    assert "answer 9 tokens" in done.stderr
    assert "prefill" in done.stderr


def test_generate_takes_every_option(chain_dir: Path) -> None:
    h = tiny.byte_id(ord("H"))
    options = (
        "--max-new-tokens 5 --no-do-sample --temperature 0.5 --top-p 0.9 --top-k 3 --min-p 0.1 "
        "--typical-p 0.9 --repetition-penalty 1.1 --presence-penalty 0 --frequency-penalty 0 "
        f"--no-repeat-ngram-size 3 --seed 4 --stop zz --stop you --logit-bias {h}=0 --logprobs 1 "
        "--deadline 60 --return-full-text --ignore-end --prompt-overflow truncate_context "
        "--prompt-mode hf --prompt-lookup 4 --threads 1 --dtype q8_0 --context-length 900 "
        "--memory-limit 100000000"
    )
    given = set(dolly_rs.GenerateOptions.__dataclass_fields__) - {"num_return_sequences"}
    assert {name for name in given if f"-{name.replace('_', '-')} " not in options} <= {"do_sample"}
    done = dolly("generate", "a", "--json", "--model", chain_dir, *options.split())
    result = json.loads(done.stdout)
    assert result["text"] == "a\nHi, y"
    assert result["seed"] == 4
    assert len(result["logprobs"]) == 5


def test_generate_reads_standard_input(chain_dir: Path) -> None:
    done = dolly("generate", "-", "--json", "--model", chain_dir, stdin="Say é.\n")
    expected = dolly("generate", "Say é.", "--json", "--model", chain_dir)
    usage = json.loads(done.stdout)["usage"]
    assert usage == json.loads(expected.stdout)["usage"]


def test_bundled_model_is_the_default() -> None:
    done = dolly("generate", "Name a colour.", "--max-new-tokens", "4", "--ignore-end")
    assert done.returncode == 0
    assert "answer 4 tokens" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--top-p", "2"], "top_p"),
        (["--dtype", "q9"], "q9"),
        (["--device", "cuda"], "cuda"),
    ],
)
def test_failure_is_one_line(arguments: list[str], message: str) -> None:
    done = dolly("generate", "a", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dolly: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_wrong_usage() -> None:
    assert dolly().returncode == 2
    assert dolly("generate").returncode == 2
    assert dolly("generate", "a", "--max-tokens", "3").returncode == 2
    assert dolly("generate", "a", "--logit-bias", "3").returncode == 2


def test_version() -> None:
    assert dolly("--version").stdout == f"dolly {dolly_rs.__version__}\n"


def test_chat(chain_dir: Path) -> None:
    lines = "Say hi.\n\n/help\n/context A passage.\nAgain.\n/reset\n"
    done = dolly("chat", "--model", chain_dir, stdin=lines)
    assert (done.returncode, done.stdout) == (0, f"{ANSWER}\n{ANSWER}\n")


def test_chat_drops_the_oldest_turns(chain_dir: Path) -> None:
    turn = "x" * 300
    done = dolly("chat", "--running", "--model", chain_dir, stdin=f"{turn}\n" * 6)
    assert (done.returncode, done.stdout) == (0, f"{ANSWER}\n" * 6)
    done = dolly("chat", "--model", chain_dir, stdin="x" * 2000 + "\na\n")
    assert done.stdout == f"{ANSWER}\n"
    assert "the context holds 1024" in done.stderr


def test_info(chain_dir: Path) -> None:
    report = json.loads(dolly("info", "--json", "--model", chain_dir).stdout)
    assert report["config"]["hidden_size"] == tiny.VOCAB
    stored = {one["name"]: one for one in report["tensors"]}
    expected = tiny.chain_tensors({})
    assert set(stored) == set(expected)
    for name, array in expected.items():
        assert stored[name]["shape"] == list(array.shape)
        assert stored[name]["bytes"] == array.nbytes
    plain = dolly("info", "--model", chain_dir).stdout
    assert "hidden_size: 320" in plain
    assert f"tensors: {len(expected)}\n" in plain


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_leaves(endless_dir: Path) -> None:
    command = [sys.executable, "-m", "dolly_rs", "generate", "a", "--model", str(endless_dir)]
    with subprocess.Popen(
        [*command, "--max-new-tokens", "30000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as child:
        assert child.stdout is not None
        assert child.stdout.read(1) == EURO
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert set(out) <= {EURO}
    assert "Traceback" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_in_chat_stops_the_answer_only(endless_dir: Path) -> None:
    command = [sys.executable, "-m", "dolly_rs", "chat", "--model", str(endless_dir)]
    with subprocess.Popen(
        [*command, "--max-new-tokens", "30000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(2):
            child.stdin.write("a\n")
            child.stdin.flush()
            assert child.stdout.read(1) == EURO
            child.send_signal(signal.SIGINT)
            assert set(child.stdout.readline().strip()) <= {EURO}
        _, err = child.communicate(timeout=120)
    assert child.returncode == 0
    assert "Traceback" not in err


def test_reader_that_goes_away(chain_dir: Path) -> None:
    command = [sys.executable, "-m", "dolly_rs", "info", "--model", str(chain_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert b"Traceback" not in child.stderr.read()
        assert child.wait(timeout=120) in (0, 1)


def test_script_is_installed() -> None:
    script = shutil.which("dolly", path=sysconfig.get_path("scripts"))
    assert script is not None
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dolly ")


def test_convert(chain_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    done = dolly("convert", chain_dir, out, "--to", "gguf", "--dtype", "q8_0")
    assert (done.returncode, done.stdout) == (0, "")
    assert "wrote" in done.stderr
    answered = dolly("generate", "a", "--model", out)
    assert answered.stdout == ANSWER + "\n"
    assert dolly("convert", out, out).returncode == 1
