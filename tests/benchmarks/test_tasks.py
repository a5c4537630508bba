"""The table of methods over tasks: means, paired differences and what is counted as a win."""

from importlib import import_module
from pathlib import Path

import pytest

from aurora_petl.files import write_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def figures(*scores, rate=1e-3, edge=False):
    return {"scores": list(scores), "mean": sum(scores) / len(scores), "rate": rate, "at_edge": edge}


def test_aurora_is_compared_by_seed_over_all_tasks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    tasks = import_module("tasks")
    one = {
        "full": figures(12, 20, rate=1e-4, edge=True),
        "zero-shot": figures(5, 5, rate=0),
        "aurora": figures(10, 20, 30),
    }
    two = {
        "zero-shot": figures(1, 1, rate=0),
        "aurora": figures(40, 41),
        "full": figures(40, 39),
        "heads": figures(1, 1),
    }
    assert tasks.mean_difference([one, two], "full") == [-1.0, 1.0]  # of two seeds, the third is not in all
    table = tasks.in_table({"scenes-ink": one, "scenes-colour": two}).splitlines()
    assert "| full | 16.0 +- 4.0 (rate 0.0001*) | 39.5 +- 0.5 (rate 0.001) | 27.8 | +0.0 +- 1.0 | 2 of 2 |" in table
    assert [line.split()[1] for line in table[2:]] == ["zero-shot", "aurora", "full"]
    assert "| zero-shot | 5.0 | 1.0 | 3.0 |" in table[2] and "heads" not in "".join(table)
    assert tasks.in_table({"scenes-ink": {"full": figures(1, 3)}}).endswith("| 2.0 +- 1.0 (rate 0.001) | 2.0 |  |  |")


def test_a_comparison_runs_and_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    tasks = import_module("tasks")
    plans = []
    monkeypatch.setattr(tasks, "compare", lambda plan, out: plans.append((plan, out)))
    words = ["tasks.py", "--out", str(tmp_path), "--packs", "scenes-ink", "--set", "train.max_steps=3"]
    monkeypatch.setattr("sys.argv", [*words, "--default"])
    with pytest.raises(SystemExit, match="holds no comparison that ended"):
        tasks.main()
    [(plan, out)] = plans
    assert out == tmp_path / "scenes-ink" and plan.recipe.train.max_steps == 3 and plan.methods == ("aurora",)
    assert plan.known == {"aurora": plan.recipe.train.learning_rate}


def test_rates_of_another_comparison_are_taken_without_a_search(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    tasks = import_module("tasks")
    plans = []
    monkeypatch.setattr(tasks, "compare", lambda plan, out: plans.append(plan))
    words = ["tasks.py", "--out", str(tmp_path / "few"), "--packs", "emoji", "--rates-of", str(tmp_path / "all")]
    monkeypatch.setattr("sys.argv", [*words, "--set", "train.max_train_samples=64"])
    with pytest.raises(SystemExit, match="all holds no comparison on emoji that ended"):
        tasks.main()
    (tmp_path / "all/emoji").mkdir(parents=True)
    write_json(tmp_path / "all/emoji/results.json", {"methods": {"zero-shot": figures(1, rate=0), "full": figures(2)}})
    with pytest.raises(SystemExit, match="few holds no comparison that ended"):
        tasks.main()
    assert plans[0].known == {"full": 1e-3} and plans[0].budgets("full") == [(0, 1e-3)]
    assert tasks.rates_of(None, "emoji") == {}
