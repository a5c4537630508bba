"""Packs of scenes: what is drawn where, that their words are true of them, and that the script makes these bytes."""

import json
import random
import sys
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from aurora_petl import data, training
from aurora_petl.data import ImageTextDataset, load_dataset, pack_names
from aurora_petl.data.places import Tar
from aurora_petl.data.rows import SPLITS
from aurora_petl.data.scenes import FRAMES, SIDE, Scenes
from aurora_petl.recipe import load_recipe
from aurora_petl.training import train

ROOT = Path(__file__).parents[2]
PACKS = ROOT / "src/aurora_petl/assets/packs"
NAMES = [name for name in pack_names() if name.startswith("scenes-")]
BY_DEFAULT = ("scenes-ink", "scenes-clip-questions")  # that train in the default tests


@pytest.fixture(scope="module")
def scripts():
    """The modules of ``pretraining/`` that make the packs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "pretraining"))
        yield import_module("scenes"), import_module("scene_words")
        sys.modules.pop("scenes")
        sys.modules.pop("scene_words")


@pytest.fixture(scope="module")
def words(scripts):
    return scripts[1]


def lines(name, file):
    return [json.loads(line) for line in Tar(PACKS / f"{name}.tar").read(file).decode().splitlines()]


# The packs


def test_one_of_each_kind():
    kinds = [(type(pack).__name__, pack.clips) for pack in map(load_dataset, NAMES)]
    assert sorted(kinds) == [
        ("ImageTextDataset", False),
        ("ImageTextDataset", False),
        ("ImageTextDataset", True),
        ("ImageTextDataset", True),
        ("QuestionDataset", False),
        ("QuestionDataset", True),
    ]
    assert sum((PACKS / f"{name}.tar").stat().st_size for name in NAMES) <= 8_000_000


def test_the_script_makes_these_bytes(scripts):
    made, _ = scripts
    assert sorted(made.TASKS) == NAMES and (made.SIDE, made.FRAMES) == (SIDE, FRAMES)
    for name in NAMES:
        assert made.packed(made.build(name, PACKS)) == (PACKS / f"{name}.tar").read_bytes(), name


@pytest.mark.parametrize("name", NAMES)
def test_scenes_show_things_of_their_own_split(name):
    splits = {
        pack: {Path(row["image"]).stem: row["split"] for row in lines(pack, "captions.jsonl")}
        for pack in ("fluent-flat", "fluent-contrast")
    }
    shown = {split: set() for split in SPLITS}
    table = "questions.jsonl" if "questions" in name else "captions.jsonl"
    split_of = {row.get("image") or row["clip"]: row["split"] for row in lines(name, table)}
    scenes = lines(name, "scenes.jsonl")
    assert {scene["name"] for scene in scenes} == set(split_of)
    for scene in scenes:
        for thing in scene["things"]:
            assert splits[scene["pack"]][thing["drawing"]] == split_of[scene["name"]]
            shown[split_of[scene["name"]]].add(thing["drawing"])
    assert len(shown["train"]) > 300 and min(map(len, shown.values())) > 90
    assert not (shown["train"] & shown["test"] or shown["validation"] & (shown["train"] | shown["test"]))


@pytest.mark.parametrize("name", [name for name in NAMES if "questions" not in name])
def test_no_caption_is_said_of_two_scenes(name):
    for split in SPLITS:
        captions = [caption for item in load_dataset(name).split(split) for caption in item.captions]
        assert len(set(captions)) == len(captions) >= 2 * len(load_dataset(name).split(split))


@pytest.mark.parametrize(
    "name", [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_trains_two_steps_and_evaluates(name, tmp_path, monkeypatch):
    """With a few rows of each split and the settings of its recipe."""
    whole = load_dataset(name)
    few = replace(whole, items=[item for split in SPLITS for item in whole.split(split).items[:6]])
    for module in (data, training):
        monkeypatch.setattr(module, "load_dataset", lambda *_: few)
    recipe = load_recipe(name, ["train.max_steps=2", "train.batch_size=4", "train.evaluations=1"])
    assert recipe.data == name
    metrics = train(recipe, tmp_path / "run").metrics
    main = "mean_recall" if isinstance(whole, ImageTextDataset) else "accuracy"
    assert all(0 <= metrics[scores][main] <= 100 for scores in ("test", "zero_shot_test"))
    assert len((tmp_path / "run/losses.jsonl").read_text().splitlines()) == 2


# Composing


@pytest.fixture
def composed(tmp_path):
    """A still scene and a clip."""
    red, blue, ground = [208, 32, 38], [32, 84, 200], [250, 204, 222]
    moving = {"drawing": "1f431", "tint": red, "box": [20, 10, 60], "to": [20, 150, 60]}
    late = {"drawing": "1f436", "tint": blue, "box": [150, 100, 40], "shown": [6, 8]}
    still = {"name": "a.bmp", "pack": "fluent-contrast", "ground": ground}
    rows = [
        {**still, "things": [{**moving, "to": moving["box"]}, {**late, "shown": [0, 8]}]},
        {"name": "b", "pack": "fluent-contrast", "things": [moving, late]},
        {
            "name": "c.bmp",
            "pack": "fluent-flat",
            "ground": ground,
            "things": [{"drawing": "1f431", "box": [0, 0, 112]}],
        },
    ]
    (tmp_path / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Scenes(data.places.Folder(tmp_path), PACKS)


def box(picture, colour):
    """Left, top, right and bottom of the pixels nearly of a colour."""
    near = np.abs(np.asarray(picture).astype(int) - colour).max(-1) < 30
    rows, columns = np.nonzero(near)
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_drawings_lie_in_their_boxes(composed):
    picture = composed.picture("a.bmp")
    assert picture.size == (SIDE, SIDE)
    left, top, right, bottom = box(picture, (208, 32, 38))
    assert 20 <= left < right < 80 and 10 <= top < bottom < 70 and max(right - left, bottom - top) > 45
    left, top, right, bottom = box(picture, (32, 84, 200))
    assert 150 <= left < right < 190 and 100 <= top < bottom < 140
    assert picture.getpixel((0, 0)) == picture.getpixel((21, 11)) == (250, 204, 222)  # white lets the ground through


def test_colours_are_printed_on_the_ground(composed):
    picture = composed.picture("c.bmp")
    assert picture.getpixel((0, 0)) == (250, 204, 222)
    drawing = np.asarray(load_image_of("fluent-flat", "1f431").resize((112, 112))).astype(int)
    expected = drawing * np.array([250, 204, 222]) / 255
    assert np.abs(np.asarray(picture)[:112, :112] - expected).max() < 2


def load_image_of(pack, code):
    dataset = load_dataset(pack)
    row = next(row for row, item in enumerate(dataset) if item.image == f"images/{code}.png")
    return dataset.image(row)


def test_things_move_and_appear(composed):
    assert composed.frames("b") == [f"b/{number}.bmp" for number in range(FRAMES)] and not composed.frames("a.bmp")
    frames = [composed.picture("b", number) for number in range(FRAMES)]
    tops = [box(frame, (208, 32, 38))[1] for frame in frames]
    assert all(15 <= b - a <= 25 for a, b in pairwise(tops)) and tops[-1] - tops[0] == 140
    blue = [bool((np.asarray(frame)[100:140, 150:190] < 255).any()) for frame in frames]
    assert blue == [False] * 6 + [True] * 2


def test_files_are_read_by_their_names(composed):
    assert {"a.bmp", "b/0.bmp", "b/7.bmp", "scenes.jsonl"} <= composed.names() and "b" not in composed.names()
    assert composed.read("a.bmp")[:2] == b"BM" and composed.read("a.bmp", 10) == composed.read("a.bmp")[:10]
    assert composed.read("b/0.bmp") != composed.read("b/7.bmp")
    with pytest.raises(FileNotFoundError):
        composed.read("b/none.bmp")


# Words


LISTED = ["red apple", "dog", "car", "glass of milk", "unicorn", "umbrella", "hourglass", "fish", "police car"]


def random_scenes(words, count=400):
    rng = random.Random(0)
    for number in range(count):
        colours, grounds = tuple(words.COLOURS) * (number % 2), tuple(words.GROUNDS) * (number % 3 == 0)
        make = words.moving_scene if number % 4 < 2 else words.still_scene
        yield rng, make(rng, LISTED, colours, grounds)


def test_things_stay_in_the_picture_and_apart(words):
    for rng, scene in random_scenes(words):
        for one in (scene, words.twin(rng, scene)):
            for time in (0, 0.5, 1):
                drawn = [thing.place for thing in words.drawn(one, time)]
                for number, place in enumerate(drawn):
                    half = place.size / 2 - 1e-9
                    assert half <= place.x <= 1 - half and half <= place.y <= 1 - half
                    apart = [max(abs(place.x - a.x), abs(place.y - a.y)) - half - a.size / 2 for a in drawn[:number]]
                    assert all(room > -1e-6 for room in apart)


def test_sides_are_those_of_the_places(words):
    """Groups follow each other along their axis, whenever they are looked at; a twin says something else."""
    for rng, scene in random_scenes(words):
        twin = words.twin(rng, scene)
        assert words.facts(twin) != words.facts(scene)
        assert not set(words.captions(rng, twin, 5)) & set(words.captions(rng, scene, 5))
        for one in (scene, twin):
            assert bool(one.axis) == (len(one.groups) > 1)
            for before, after in pairwise(one.groups):
                last = max(getattr(place, one.axis) + place.size / 2 for place in before.places)
                assert last <= min(getattr(place, one.axis) - place.size / 2 for place in after.places) + 1e-6


def test_what_is_true_because_of_some_groups(words):
    place = words.Place
    groups = [words.Group(name, (place(x, 0.5, 0.3),)) for name, x in (("dog", 0.2), ("car", 0.5), ("fish", 0.8))]
    row = words.Scene(tuple(groups), "x")
    parts = words.implied(row)
    assert len(parts) == 7 and words.facts(row) in parts  # three alone, three pairs, all
    assert words.facts(words.Scene((groups[0], groups[2]), "x")) in parts
    assert words.facts(words.Scene((groups[2], groups[0]), "x")) not in parts
    growing = words.Change("grows", 1, (place(0.5, 0.5, 0.5),))
    moving = words.implied(replace(row, change=growing))
    assert len(moving) == 4  # with what grows
    assert words.facts(words.Scene((groups[1],), "", "", replace(growing, group=0))) in moving


def test_questions_have_the_answers_of_the_scene(words):
    rng = random.Random(0)
    place = words.Place
    dogs = words.Group("dog", (place(0.2, 0.3, 0.3), place(0.2, 0.7, 0.3)))
    car = words.Group("car", (place(0.7, 0.5, 0.4),), "red")
    scene = words.Scene((dogs, car), "x", "yellow")
    for _ in range(50):
        asked = {one.kind: one for one in words.questions(rng, scene, LISTED)}
        assert set(asked) == {
            *("count", "total", "colour", "ground", "exists", "relation", "more", "side", "end", "where")
        }
        assert asked["count"].answer == ("two" if "dogs" in asked["count"].question else "one")
        assert (asked["total"].answer, asked["colour"].answer, asked["ground"].answer) == ("three", "red", "yellow")
        assert asked["where"].answer == ("left" if "dogs" in asked["where"].question else "right")
        assert asked["side"].answer == ("dog" if "left" in asked["side"].question else "car")
        assert asked["end"].answer == ("dog" if "left" in asked["end"].question else "car")
        relation, more = asked["relation"], asked["more"]
        dogs_first = relation.question.index("dogs") < relation.question.index("car")
        assert relation.answer == ("yes" if dogs_first == ("left" in relation.question) else "no")
        assert more.answer == ("yes" if more.question.index("dogs") < more.question.index("cars") else "no")
        assert asked["exists"].answer == (
            "yes" if any(n in asked["exists"].question for n in (" dog?", "a car?")) else "no"
        )


def test_questions_about_what_happens(words):
    rng = random.Random(0)
    place = words.Place
    dog, car = words.Group("dog", (place(0.5, 0.2, 0.3),)), words.Group("car", (place(0.5, 0.7, 0.3),))
    scene = words.Scene((dog, car), "y", "", words.Change("left", 0, (place(0.2, 0.2, 0.3),)))
    seen = set()
    for _ in range(200):
        asked = {one.kind: one for one in words.questions(rng, scene, LISTED)}
        assert (asked["mover"].answer, asked["direction"].answer) == ("dog", "left") and "dog" in asked[
            "direction"
        ].question
        assert asked["happens"].answer == ("moves left" if "dog" in asked["happens"].question else "nothing")
        assert asked["does"].answer == ("yes" if "left" in asked["does"].question else "no")
        seen |= {asked["happens"].answer, asked["does"].answer}
    assert seen == {"moves left", "nothing", "yes", "no"}
    assert [round(thing.place.x, 2) for thing in words.drawn(scene, 0.5)] == [0.35, 0.5]


@pytest.mark.parametrize(
    ("name", "one", "many"),
    [
        ("red apple", "a red apple", "red apples"),
        ("glass of milk", "a glass of milk", "glasses of milk"),
        ("umbrella on ground", "an umbrella on ground", "umbrellas on ground"),
        ("unicorn", "a unicorn", "unicorns"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("police car", "a police car", "police cars"),
        ("butterfly", "a butterfly", "butterflies"),
        ("donkey", "a donkey", "donkeys"),
        ("tropical fish", "a tropical fish", "tropical fish"),
        ("snowman", "a snowman", "snowmen"),
        ("bus", "a bus", "buses"),
        ("scissors", "scissors", "scissors"),
    ],
)
def test_plurals(words, name, one, many):
    assert (words.article(name), words.plural(name)) == (one, many)
