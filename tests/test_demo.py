"""The demo in a few steps: what it compares, prints and writes."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from aurora_petl import demo
from aurora_petl.compare import Plan, recipe_of
from aurora_petl.errors import AuroraError


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(AuroraError, match="holds other files than a comparison's; name another --out"):
        demo.demo(tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("mine.txt", "precious")]


def test_nothing_is_searched_in_a_demo():
    planned = demo.plan(2)
    assert {len(planned.budgets(word)) for word in planned.methods} == {1}
    kinds = [recipe_of(word, planned.recipe).method for word in planned.methods]
    assert kinds == ["heads", "aurora", "lora", "full"]


def test_demo_in_two_steps(folder, tmp_path, monkeypatch, capsys):
    made = demo.plan(1)
    few = replace(made.recipe.train, max_steps=2, batch_size=6, evaluations=1, warmup=0.0)
    recipe = replace(made.recipe, data=str(folder), train=few)
    monkeypatch.setattr(demo, "plan", lambda seeds: Plan(recipe, made.methods, seeds=seeds, known=made.known))
    out = tmp_path / "demo"
    demo.demo(out, seeds=1)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"blip-mini on {folder}: 12 pictures to learn from, 6 to choose by, 6 to score on")
    first = next(number for number, line in enumerate(printed) if line.startswith("method "))
    names = [line.split()[0] for line in printed[first + 2 : first + 7]]
    assert names == ["zero-shot", *made.methods]
    told = dict(line.split(maxsplit=1) for line in printed[-4:-1])
    assert sorted(told) == ["adapter", "gallery", "plot"]
    for name in ("gallery", "plot"):
        Image.open(told[name]).verify()
    figures = json.loads((out / "results.json").read_text())
    assert list(figures["methods"]) == names
    demo.demo(out, seeds=1)  # what is there is not trained again
    again = capsys.readouterr().out.splitlines()
    assert again[:-1] == printed[:-1]
