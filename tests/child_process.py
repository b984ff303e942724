"""Threads at once; processes for what begins anew, or may crash or never come back."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: How long it may take for one question.
_PATIENCE_SECONDS = 60


def python(*arguments: object, **options: Any) -> str:
    """Return what Python prints that is run with these arguments, and that says nothing else."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return str(done.stdout)


def in_threads(*works: Callable[[int], None]) -> None:
    """Start all at once, each with its number; raise what one has raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(number: int) -> None:
        start.wait()
        try:
            works[number](number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


class CrashedError(Exception):
    """The process died of a question, or did not answer it in time."""


class ChildProcess:
    """Answers questions in a new process; after a crash the next question starts another.

    ``prepare`` is called in that process and returns the function that answers there.
    """

    def __init__(self, prepare: Callable[[], Callable[[Any], Any]]) -> None:
        self._prepare = prepare
        self._process: Any = None
        self._connection: Any = None

    def ask(self, question: Any) -> Any:
        """Return the answer.

        Raises
        ------
        CrashedError
        """
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, there = context.Pipe()
            self._process = context.Process(target=_serve, args=(self._prepare, there), daemon=True)
            self._process.start()
            there.close()
        try:
            self._connection.send(question)
            if self._connection.poll(_PATIENCE_SECONDS):
                return self._connection.recv()
        except (EOFError, OSError):
            pass
        self.close()
        raise CrashedError

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def _serve(prepare: Callable[[], Callable[[Any], Any]], connection: Connection) -> None:
    answer = prepare()
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        connection.send(answer(question))
