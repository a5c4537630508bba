"""Bad inputs to every command, drawn from a seed: each is refused in one line that says what is wrong with which file,
row or option, or it is taken and the result is right.

One case again: ``pytest -m slow tests/test_fuzz.py -k pictures-17``. Other inputs: ``AURORA_FUZZ_SEED=2 pytest ...``.
"""

import os
import shutil
from collections import Counter

import pytest

from aurora_petl import errors
from tests.helpers.fuzz.case import Case, Draw, accept, judge, refuse, run
from tests.helpers.fuzz.families import FAMILIES
from tests.helpers.fuzz.ground import Ground

SEED = os.environ.get("AURORA_FUZZ_SEED", "1")
EVERY = [(family, number) for family, (_, count) in FAMILIES.items() for number in range(count)]
SAMPLE = [(family, 0) for family in FAMILIES if family not in ("stopped", "convert", "several")]
TALLY: dict[str, Counter] = {}


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """The good files; no case may change them."""
    made = Ground(tmp_path_factory.mktemp("ground"))
    yield made
    if TALLY:
        print(f"\n{'family':<16}{'inputs':>8}{'refused':>9}{'taken':>7}{'seconds':>9}")
        for family, counts in TALLY.items():
            inputs = counts["refused"] + counts["taken"]
            print(f"{family:<16}{inputs:>8}{counts['refused']:>9}{counts['taken']:>7}{counts['ms'] / 1000:>9.1f}")
        total = sum(TALLY.values(), Counter())
        inputs = total["refused"] + total["taken"]
        print(f"{'all':<16}{inputs:>8}{total['refused']:>9}{total['taken']:>7}{total['ms'] / 1000:>9.1f}")


def attempt(seed, family, number, ground, folder):
    """Make, run and judge a case."""
    make, _ = FAMILIES[family]
    case = make(Draw(seed, family, number, ground, folder))
    before = ground.state()
    outcome = run(case, folder)
    problems = judge(case, outcome)
    after = ground.state()
    problems += [f"{path} of the good files changed" for path in before if before[path] != after.get(path)]
    counts = TALLY.setdefault(family, Counter())
    counts["refused" if outcome.refused else "taken"] += 1
    counts["ms"] += int(1000 * outcome.seconds)
    words = " ".join(map(repr, map(str, case.words)))[:500]
    assert not problems, "\n".join([f"{case.about!r}: aurora {words}", *problems])


@pytest.mark.slow
@pytest.mark.parametrize(("family", "number"), EVERY, ids=[f"{family}-{number}" for family, number in EVERY])
def test_bad_inputs(family, number, ground, tmp_path):
    attempt(SEED, family, number, ground, tmp_path)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("family", [family for family, _ in SAMPLE])
def test_a_few_bad_inputs(family, ground, tmp_path):
    attempt("sample", family, 0, ground, tmp_path)


# The judge itself


def judged(call, expects, tmp_path):
    case = Case("a case", [], expects, (), {}, call)
    return judge(case, run(case, tmp_path))


def test_the_judge_sees_what_is_wrong(tmp_path):
    import sys

    def say(status, err="", out=""):
        def call():
            sys.stderr.write(err)
            sys.stdout.write(out)
            return status

        return call

    def write():
        (tmp_path / "new").touch()
        return 0

    def fail():
        raise errors.AuroraError("x")

    line = "aurora: error: cat.png is broken\n"
    assert judged(say(1, line), refuse("cat.png"), tmp_path) == []
    assert judged(say(0, "", "fine\n"), accept(), tmp_path) == []
    for call, expects in (
        (say(0), refuse("cat.png")),
        (say(1, line), refuse("dog.png")),
        (say(1, line), accept()),
        (say(1, line + line), refuse("cat.png")),
        (say(1, "cat.png is broken\n"), refuse("cat.png")),
        (say(1, line, "some"), refuse("cat.png")),
        (say(3, line), refuse("cat.png")),
        (say(1, f"aurora: error: cat.png {'y' * 2000}\n"), refuse("cat.png")),
        (say(1, "aurora: error: cat.png \x1b[31m\n"), refuse("cat.png")),
        (say(0, "UserWarning: x\n"), accept()),
        (say(0, "", "Traceback (most recent call last)"), accept()),
        (say(0), accept(lambda outcome: "wrong")),
        (fail, refuse()),
        (write, accept()),
    ):
        assert len(judged(call, expects, tmp_path)) >= 1
