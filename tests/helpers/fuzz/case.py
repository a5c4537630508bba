"""A case: words of the command line over files that may be bad, and what must come of it."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import resource
import signal
import stat
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from .ground import Ground

SECONDS = 60  # that a case may take
LONGEST = 1000  # characters of a refusal
GROWTH = 1500 * 1024  # KiB of memory that a case may add to the peak
_UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass
class Outcome:
    """What a command did: its status, None if it raised, and what it printed."""

    status: int | None
    out: str
    err: str
    folder: Path
    trace: str = ""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        return self.status != 0


Check = Callable[[Outcome], str | None]


@dataclass(frozen=True)
class Expectation:
    """Whether a case may be taken or refused. A refusal must hold one of ``names``; what is taken must pass
    ``check``, which says what is wrong, or None."""

    taken: bool
    refused: bool
    names: tuple[str, ...] = ()
    check: Check | None = None


def refuse(*names: object) -> Expectation:
    return Expectation(False, True, tuple(map(str, names)))


def accept(check: Check | None = None) -> Expectation:
    return Expectation(True, False, (), check)


def either(*names: object, check: Check | None = None) -> Expectation:
    """For changes that may do no harm; the check says whether a result is right."""
    return Expectation(True, True, tuple(map(str, names)), check)


@dataclass
class Case:
    """``words`` of the command line, run in ``folder``.

    Args:
        about: what is bad, for the report.
        writes: paths in ``folder`` that the command may write to, all below them included.
        call: what is run in place of the command; gives a status and prints.
    """

    about: str
    words: Sequence[str | Path]
    expects: Expectation
    writes: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    call: Callable[[], int] | None = None


class Draw:
    """What a family makes its case from: numbers drawn from the seed, the good files, and an empty folder."""

    def __init__(self, seed: str, family: str, number: int, ground: Ground, folder: Path) -> None:
        self.seed, self.family, self.number = seed, family, number
        self.ground, self.folder = ground, folder
        self.rng = random.Random(f"{seed}/{family}/{number}")

    def one_of(self, choices: Sequence[Any], every: int = 1, what: str = "", times: int = 1) -> Any:
        """Of choices the one whose turn it is: none comes twice before all came once.

        Args:
            every: in how many of the family's cases one is drawn, in the first ``times`` of them.
            what: is drawn; each has an order of its own.
        """
        order = list(range(len(choices)))
        drawn = self.number // every * times + self.number % every % times
        turn, place = divmod(drawn, len(order))
        random.Random(f"{self.seed}/{self.family}/{what}/{turn}").shuffle(order)
        return choices[order[place]]


class Hang(BaseException):
    """A case took too long."""


def run(case: Case, folder: Path) -> Outcome:
    """Run a case as the shell would, in this process."""
    before, peak, start = _state(folder), _peak(), time.monotonic()
    outcome = Outcome(None, "", "", folder)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with mock.patch.dict(os.environ, case.env), _inside(folder), _printed_to(out, err), _limited(outcome):
            outcome.status = case.call() if case.call else _command([str(word) for word in case.words])
        outcome.seconds = time.monotonic() - start
        outcome.out, outcome.err = (_text(file, outcome) for file in (out, err))
    if (growth := _peak() - peak) > GROWTH:
        outcome.problems.append(f"took {growth / 1024**2:.1f} GiB of memory")
    outcome.problems += _changes(before, _state(folder), case)
    return outcome


def judge(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with how a case was taken."""
    problems = list(outcome.problems)
    if outcome.trace:
        return [*problems, f"raised: {outcome.trace.strip().splitlines()[-1][:300]}", outcome.trace]
    for name, text in (("stdout", outcome.out), ("stderr", outcome.err)):
        if "Traceback" in text:
            problems.append(f"a traceback on {name}")
        if match := _UNSEEN.search(text):
            problems.append(f"{match[0]!r} on {name}: {text[max(0, match.start() - 60) : match.start() + 20]!r}")
    expects = case.expects
    if outcome.refused:
        return problems + _refusal(expects, outcome)
    if not expects.taken:
        return [*problems, f"taken, and must be refused with one of {expects.names}; it printed {outcome.out[:300]!r}"]
    if strange := [line for line in outcome.err.splitlines() if not line.startswith("aurora: ")]:
        problems.append(f"on stderr beside a result: {strange[0][:300]!r}")
    if expects.check:
        try:
            wrong = expects.check(outcome)
        except Exception as error:  # it looked for what is not there
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            problems.append(f"a wrong result with status 0: {wrong}")
    return problems


def _refusal(expects: Expectation, outcome: Outcome) -> list[str]:
    if not expects.refused:
        return [f"refused, and must be taken: {outcome.err[:500]!r}"]
    problems = []
    lines = outcome.err.splitlines()
    errors = [line for line in lines if re.match(r"aurora( \w+)?: error: \S", line)]
    if outcome.status not in (1, 2):
        problems.append(f"status {outcome.status}")
    if len(errors) != 1 or any(not line.startswith("aurora: warning: ") for line in lines if line not in errors):
        problems.append(f"{len(lines)} lines of which {len(errors)} are an error: {outcome.err[:600]!r}")
    if outcome.out:
        problems.append(f"refused, but printed {outcome.out[:200]!r}")
    if len(outcome.err) > LONGEST:
        problems.append(f"a refusal of {len(outcome.err)} characters: {outcome.err[:200]!r}")
    if expects.names and not any(name in outcome.err for name in expects.names):
        problems.append(f"names none of {expects.names}: {outcome.err[:500]!r}")
    return problems


def _command(words: list[str]) -> int:
    from aurora_petl.cli import main

    try:
        return main(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1


@contextmanager
def _limited(outcome: Outcome) -> Iterator[None]:
    """End what takes too long, and note what is raised."""

    def late(*_: object) -> None:
        raise Hang(f"took more than {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        outcome.trace = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """In a folder, with the warnings that a fresh interpreter shows, on the device of a fresh one."""
    from aurora_petl import devices

    before, device = Path.cwd(), devices._choice.name
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", kind)
            warnings.showwarning = _show
            yield
    finally:
        os.chdir(before)
        devices._choice.name = device


def _show(message: Warning | str, category: type[Warning], name: str, line: int, *rest: Any, **more: Any) -> None:
    print(warnings.formatwarning(message, category, name, line, ""), end="", file=sys.stderr)


@contextmanager
def _printed_to(out: Any, err: Any) -> Iterator[None]:
    """Send what Python and the libraries below it print to two files."""
    streams, copies = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    for stream in streams:
        stream.flush()
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (closed by what follows)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    _log_to(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.close()
        sys.stdout, sys.stderr = streams
        _log_to(sys.stderr)
        for number, copy in zip((1, 2), copies, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _log_to(stream: Any) -> None:
    """Send what libraries log to a stream: their handlers hold the one that was there when they were imported."""
    for name in ("transformers", "huggingface_hub", "peft", "accelerate"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.stream = stream


def _text(file: Any, outcome: Outcome) -> str:
    file.seek(0)
    data = file.read(10_000_000)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        outcome.problems.append(f"printed what is no UTF-8: {data[max(0, error.start - 60) : error.start + 20]!r}")
        return data.decode(errors="backslashreplace")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _state(folder: Path) -> dict[str, str]:
    """Every file of a folder by its path, with a digest of what it holds; links are not followed."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                what = f"link to {os.readlink(path)}"
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    what = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                what = f"mode {stat.S_IFMT(mode)}"
            found[os.path.relpath(path, folder)] = what
    return found


def _changes(before: dict[str, str], after: dict[str, str], case: Case) -> list[str]:
    """What was written where nothing may be."""
    changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    strange = sorted(
        path
        for path in changed
        if not any(place in (".", path) or path.startswith(f"{place}/") for place in case.writes)
    )
    return [f"{path!r} was {'changed' if path in before else 'made'}" for path in strange[:3]]
