"""The demo in a few steps: what it compares, prints and writes."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from aurora_petl import demo, report
from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method, weight_counts
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(AuroraError) as caught:
        demo.demo(tmp_path)
    assert str(caught.value) == f"{tmp_path} holds other files than a demo's; name another --out"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("mine.txt", "precious")]


def test_methods_differ_in_what_trains_and_share_the_rest():
    recipes = demo.methods()
    assert [recipe.method for recipe in recipes.values()] == ["heads", "aurora", "lora", "full"]
    assert demo.AURORA in recipes
    assert len({(recipe.model, recipe.data, recipe.train_heads) for recipe in recipes.values()}) == 1
    assert len({str(recipe.task) for recipe in recipes.values()}) == 1


def test_loras_adapter_is_about_ten_times_auroras():
    counts = {}
    for recipe in demo.methods().values():
        backbone = load_backbone(recipe.model, weights=False)
        apply_method(backbone, recipe.method, recipe.method_options, recipe.train_heads)
        counts[recipe.method] = weight_counts(backbone)
    assert 9.5 < counts["lora"]["adapter"] / counts["aurora"]["adapter"] < 10.5
    assert counts["heads"]["adapter"] == 0
    assert len({count["heads"] for count in counts.values()}) == 1


def test_demo_in_two_steps(folder, tmp_path, monkeypatch, capsys):
    def short(recipe):
        few = replace(recipe.train, max_steps=2, batch_size=6, evaluations=1, warmup=0.0)
        return replace(recipe, data=str(folder), train=few)

    recipes = {name: short(recipe) for name, recipe in demo.methods().items()}
    monkeypatch.setattr(demo, "methods", lambda: recipes)
    out = tmp_path / "demo"
    out.mkdir()
    for name in ("demo.json", "left.txt"):  # of an earlier demo
        (out / name).write_text("{}")
    demo.demo(out, seed=3)
    printed = capsys.readouterr().out.splitlines()

    assert printed[0].startswith(f"blip-mini on {folder}: 12 pictures to learn from, 6 to choose by, 6 to score on")
    assert [line for line in printed if line.startswith("tuning: ")] == [f"tuning: {name}" for name in recipes]
    rows = json.loads((out / "demo.json").read_text())
    assert list(rows) == ["zero-shot", *recipes]
    first = next(n for n, line in enumerate(printed) if line.startswith("method "))
    for line, (name, found) in zip(printed[first + 2 :], rows.items(), strict=False):
        weights = found["weights"]
        assert line.startswith(f"{name} ") and line[len(name) :].split() == [
            f"{weights['trainable']:,}",
            f"{100 * weights['trainable'] / weights['model']:.2f}%",
            *(f"{found['test'][key]:.1f}" for key in report.RECALLS),
            f"{found['train_seconds']:.0f}",
        ]
    assert printed[first + 2 + len(rows)] == report.LEGEND
    assert rows["zero-shot"]["weights"]["trainable"] == 0
    assert rows["full"]["weights"]["trainable"] == rows["full"]["weights"]["model"]

    told = dict(line.split(maxsplit=1) for line in printed[-4:-1])
    assert told == {
        "gallery": str(out / "Aurora/gallery.png"),
        "curve": str(out / "curve.png"),
        "adapter": str(out / "Aurora/adapter"),
    }
    for name in ("gallery", "curve"):
        Image.open(told[name]).verify()
    assert (out / "Aurora/adapter/adapter_model.safetensors").is_file()
    assert " s in all, " in printed[-1] and printed[-1].endswith(" s of it training")

    folders = {path.name: path for path in out.iterdir() if path.is_dir()}
    assert len(folders) == len(recipes) and {p.name for p in out.iterdir()} == {*folders, "demo.json", "curve.png"}
    for path in folders.values():
        metrics = json.loads((path / "metrics.json").read_text())
        assert metrics["steps"] == 2 and metrics["zero_shot_test"] == rows["zero-shot"]["test"]
        assert load_recipe(path / "recipe.yaml").train.seed == 3
    assert {recipe.train.seed for recipe in recipes.values()} == {0}
