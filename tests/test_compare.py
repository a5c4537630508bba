"""Comparisons of methods: what is searched, run, kept and told."""

import json
import math
from types import SimpleNamespace

import pytest

from aurora_petl import compare
from aurora_petl.backbones.blip.model import BlipBackbone
from aurora_petl.cli import main
from aurora_petl.errors import AuroraError, Diverged
from aurora_petl.methods import OTHERS, find_method
from aurora_petl.rate_search import Search
from aurora_petl.recipe import load_recipe
from aurora_petl.report.comparison import Compared, comparison_json, comparison_table

SMALL = [
    "train.precision=fp32",
    "train.batch_size=4",
    "train.max_steps=2",
    "train.evaluations=1",
    "task.queue_size=0",
    "method_options.r=4",
]


def weights_of(recipe):
    return compare._adapter_weights(recipe)


def test_a_method_of_a_size():
    recipe = load_recipe("photos-mini")
    ours = weights_of(recipe)
    for word, times in (("lora:1x", 1), ("lora:10x", 10), ("dora:10x", 10)):
        made = compare.recipe_of(word, recipe)
        assert weights_of(made) == pytest.approx(times * ours, rel=0.5 if times == 1 else 0.1)
        assert made.method_options["target_modules"] == recipe.method_options["target_modules"]
        assert made.method_options["lora_alpha"] == made.method_options["r"]


def test_methods_with_options():
    recipe = load_recipe("photos-mini")
    made = compare.recipe_of("lora:r=3,lora_alpha=6", recipe)
    assert made.method == "lora" and made.method_options["r"] == 3 and made.method_options["lora_alpha"] == 6
    made = compare.recipe_of("lora:target_modules=[query, value],r=2", recipe)
    assert (made.method_options["target_modules"], made.method_options["r"]) == (["query", "value"], 2)
    assert compare.recipe_of("aurora:factor_groups=[a,b],r=2", recipe).method_options["factor_groups"] == ["a", "b"]
    assert compare.recipe_of("aurora", recipe) is recipe
    assert compare.recipe_of("aurora:r=8", recipe).method_options == recipe.method_options | {"r": 8}
    assert compare.recipe_of("full", recipe).method_options == {}
    for word, told in (
        ("lorra", "no method 'lorra'; did you mean lora?"),
        ("lora:rr=3", "method lora has no field method_options.rr; did you mean"),
        ("lora:0x", "method 'lora:0x': a size must lie above 0, as in lora:1x"),
        ("heads:r=3", "method heads takes no method_options"),
        ("full:2x", "method full has no rank r"),
        ("zero-shot", "method zero-shot learns nothing"),
        ("fourierft:2x", "method fourierft has no rank r"),
    ):
        with pytest.raises(AuroraError, match=told):
            compare.recipe_of(word, recipe)


@pytest.mark.parametrize("name", ["tinylora", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
def test_other_methods_of_peft_train_are_saved_and_loaded(name, folder, tmp_path, capsys):
    options = {"c3a": "method_options.block_size=64", "vblora": "method_options.vector_length=64"}.get(name)
    words = [f"data={folder}", f"method={name}", *SMALL[:-1], *([options] if options else [])]
    assert main(["train", *words, "--out", str(tmp_path / "run"), "--quiet"]) == 0, capsys.readouterr().err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["weights"]["adapter"] > 0 and find_method(name).learns
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["metrics"] == pytest.approx(metrics["test"])


def test_a_comparison_is_searched_run_taken_up_and_widened(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["compare", *SMALL, "--data", str(folder), "--also", str(folder), "--out", "out"]
    words += ["--methods", "aurora", "--rates", "1e-3", "3e-3", "--beyond", "0"]
    assert main([*words, "--seeds", "1"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["zero-shot", "aurora"]
    assert "one seed: differences may be chance" in out and "other data" in out.splitlines()[0]
    assert "3/3 aurora, seed 0: rate" in err and (tmp_path / "out/comparison.png").stat().st_size > 5000
    results = json.loads((tmp_path / "out/results.json").read_text())
    found = results["methods"]["aurora"]
    chosen = max(found["search"], key=found["search"].get)
    assert chosen == f"rate {found['rate']:g}" and found["also"] == found["scores"]  # the same data
    assert found["aurora_minus"] == 0 and found["weights"]["adapter"] > 0 < found["bytes"]

    monkeypatch.setattr(compare, "fit", None)  # what is there is not run again
    assert main([*words[:6], "train.learning_rate=1", *words[6:], "--seeds", "2"]) == 0  # which every run replaces
    out, err = capsys.readouterr()
    assert "2 seeds" in out and "+-" in out
    wider = json.loads((tmp_path / "out/results.json").read_text())["methods"]["aurora"]
    assert wider["scores"][0] == found["scores"][0] and len(wider["scores"]) == 2

    scores = iter([20.0, 21.0, 24.0, 22.0])
    asked = []

    def fit_again(folder, prepared, **words):
        asked.append((folder.name, prepared.recipe.train.seed))
        made = SimpleNamespace(main_metric="mean_recall")
        metrics = {"validation_best": next(scores), "weights": {}, "train_seconds": 0.0}
        return SimpleNamespace(metrics=metrics, task=made)

    monkeypatch.setattr(compare, "fit", fit_again)  # more seeds of the search are run beside the one that is there
    for folder_of_search in (tmp_path / "out/aurora").glob("search-*"):
        cell = json.loads((folder_of_search / "cell.json").read_text())
        (folder_of_search / "cell.json").write_text(json.dumps(cell | {"validation": 20.0}))
    assert main([*words, "--seeds", "1", "--search-seeds", "3"]) == 0
    assert [name for name, _ in asked] == [
        *("search-own-0.001-seed-1", "search-own-0.001-seed-2", "search-own-0.003-seed-1", "search-own-0.003-seed-2")
    ]
    assert [seed for _, seed in asked] == [101, 102, 101, 102]
    searched = json.loads((tmp_path / "out/results.json").read_text())["methods"]["aurora"]["search"]
    assert searched == {"rate 0.001": pytest.approx(61 / 3), "rate 0.003": 22.0}
    capsys.readouterr()

    assert main([*words[:6], "train.batch_size=3", *words[6:]]) == 1
    assert "holds a comparison of another recipe or other data" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    assert main([*words, "--out", "taken"]) == 1
    assert "holds other files than a comparison's" in capsys.readouterr().err


def test_a_comparison_that_was_stopped_finds_the_scores_of_the_untuned_model(folder, tmp_path, monkeypatch):
    words = ["compare", *SMALL, "--data", str(folder), "--also", str(folder), "--out", str(tmp_path / "out")]
    words += ["--methods", "aurora", "--rates", "1e-3", "--seeds", "1"]

    class StoppedError(Exception):
        pass

    def stop(*words, **more):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(compare, "train", stop)
        with pytest.raises(StoppedError):
            main(words)
        patch.setattr(BlipBackbone, "encode_image", None)
        with pytest.raises(StoppedError):  # and not that nothing can be called
            main(words)
    assert (tmp_path / "out/untuned/also").is_dir()
    assert main(words) == 0
    assert not (tmp_path / "out/untuned").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--methods", "lorra"], "no method 'lorra'; did you mean lora?"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--rates", "0"], "--rates has 0; rates must lie above 0"),
        (["--beyond", "-1"], "--beyond is -1"),
        (["--search-seeds", "0"], "--search-seeds is 0; it must be at least 1"),
        (["--steps", "-1"], "--steps has -1"),
        (["--also", "gone"], "gone"),
        (["--methods", "aurora", "lora:target_modules=[nowhere]"], "method lora:target_modules=[nowhere]: "),
    ],
)
def test_wrong_words_are_one_line(words, told, folder, tmp_path, capsys):
    assert main(["compare", "--data", str(folder), "--out", str(tmp_path / "out"), *words]) == 1
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1


def test_the_table_pairs_by_seed():
    weights = {"adapter": 10, "heads": 5, "trainable": 15}
    ours = Compared("aurora", "mean_recall", (10.0, 20.0, 30.0), weights, rate=1e-3)
    theirs = Compared("lora:r=1", "mean_recall", (9.0, 19.0, 29.0), weights, rate=1e-2, at_edge=True)
    text = comparison_table([ours, theirs])
    assert "+1.0 +- 0.0" in text and "20.0 +- 5.8" in text and "0.01*" in text and "edge" in text
    figures = comparison_json([ours, theirs], "mine", "")["methods"]["lora:r=1"]
    assert figures["aurora_minus"] == 1 and figures["aurora_minus_standard_error"] == 0 and figures["mean"] == 19


def test_a_search_goes_on_beyond_the_best_rate_at_the_edge():
    search = Search({(0, 1e-3): 20.0, (0, 3e-3): 21.0})
    assert search.beyond() == (0, 9e-3) and search.at_edge
    search.scores[0, 9e-3] = 20.5
    assert search.best() == (0, 3e-3) and search.beyond() is None and not search.at_edge
    search.scores[0, 3e-4] = 22.0
    assert search.beyond() == (0, 9e-5)
    search.scores[0, 9e-5] = -math.inf  # it diverged
    assert search.beyond() is None
    assert Search({(0, 1e-3): 20.0, (0, 1.1e-3): 21.0}).beyond()[1] == pytest.approx(1.21e-3)  # not 1e-3 again
    assert Search({(0, 1.0): 20.0, (0, 5.0): 21.0}).beyond() is None  # no recipe may have 25
    tied = Search({(0, 1e-3): 20.0, (0, 3e-3): 20.0, (0, 3e-4): 18.0})  # the first is taken, and the edge is as good
    assert tied.best() == (0, 1e-3) and tied.beyond() == (0, 9e-3) and tied.at_edge
    assert Search({(0, 1e-3): 20.0}).beyond() is None and not Search().at_edge
    assert Search({(60, 1e-3): 1.0, (60, 3e-3): 2.0, (240, 1e-3): 3.0, (240, 3e-4): 2.0}).beyond() == (240, 3e-3)


def test_a_comparison_searches_beyond_and_survives_a_rate_that_diverges(folder, tmp_path, capsys, monkeypatch):
    scores = {1e-3: 10.0, 3e-3: 20.0, 9e-3: None}
    fit = lambda _, prepared, **__: _scored(scores[prepared.recipe.train.learning_rate])  # noqa: E731
    monkeypatch.setattr(compare, "fit", fit)
    monkeypatch.setattr(compare, "_train", lambda recipe, folder, _: (folder.mkdir(), _scored(19.0))[1])
    words = ["compare", *SMALL, "--data", str(folder), "--out", str(tmp_path / "out"), "--seeds", "1"]
    assert main([*words, "--methods", "aurora", "--rates", "1e-3", "3e-3"]) == 0
    out, err = capsys.readouterr()
    assert "3/4 aurora, search: rate 0.009, diverged" in err and "edge" not in out
    found = json.loads((tmp_path / "out/results.json").read_text())["methods"]["aurora"]
    assert found["search"] == {"rate 0.001": 10.0, "rate 0.003": 20.0} and found["rate"] == 3e-3
    monkeypatch.setattr(compare, "fit", lambda *_, **__: _scored(None))
    assert main([*words[:-3], str(tmp_path / "none"), "--methods", "aurora", "--rates", "1e-2", "3e-2"]) == 1
    assert "aurora diverged at every rate that was tried; give lower --rates" in capsys.readouterr().err


def _scored(validation):
    if validation is None:
        raise Diverged("the loss of step 3 is nan")
    weights = {"adapter": 1, "heads": 1, "trainable": 2}
    metrics = {"validation_best": validation, "weights": weights, "train_seconds": 1, "test": {"mean_recall": 18.0}}
    return SimpleNamespace(metrics=metrics, task=SimpleNamespace(main_metric="mean_recall"))
