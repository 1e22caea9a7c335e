"""``dolly chat``: an instruction a line, its answer as it is written."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from .errors import ContextOverflowError, DollyError
from .pipelines import Pipeline
from .results import Generation

__all__ = ["Chat"]

_HELP = "/context TEXT sets the context, /reset forgets it, /help; Ctrl-C stops, Ctrl-D leaves"


class Chat:
    """A conversation of single instructions; Dolly was not trained on dialogues.

    With ``running``, earlier turns stand in the context; the oldest leave when the prompt no
    longer fits.
    """

    def __init__(
        self,
        pipe: Pipeline,
        options: Mapping[str, Any],
        context: str | None,
        *,
        running: bool = False,
    ) -> None:
        self._pipe = pipe
        self._options = dict(options)
        self._context = context
        self._running = running
        self._turns: list[str] = []

    def run(self) -> None:
        """Read standard input to its end."""
        self._tell(_HELP)
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._tell("")
                continue
            if line:
                self._take(line)

    def _take(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name == "/context":
            self._context = rest or None
        elif name == "/reset":
            self._context = None
            self._turns.clear()
        elif name.startswith("/"):
            self._tell(_HELP)
        else:
            self._turn(line)

    def _turn(self, instruction: str) -> None:
        try:
            answer = self._answer(instruction)
        except DollyError as error:
            self._tell(f"dolly: {error}")
            return
        print(flush=True)
        if answer is not None and self._running:
            self._turns.append(f"{instruction}\n{answer.text}")

    def _answer(self, instruction: str) -> Generation | None:
        while True:
            try:
                return self._write(instruction)
            except ContextOverflowError:
                if not self._turns:
                    raise
                del self._turns[0]

    def _write(self, instruction: str) -> Generation | None:
        """Print the answer as it comes; Ctrl-C ends it, and what was written stays."""
        passages = [self._context] if self._context else []
        context = "\n\n".join([*passages, *self._turns]) or None
        with self._pipe.stream(instruction, context, **self._options) as stream:
            try:
                for piece in stream:
                    print(piece, end="", flush=True)
            except KeyboardInterrupt:
                stream.close()
        return stream.generation

    @staticmethod
    def _tell(text: str) -> None:
        print(text, file=sys.stderr)
