"""What chance, the most frequent answer and the untuned model score on the packs of scenes.

    python benchmarks/scene_scores.py                                     the table, printed
    python benchmarks/scene_scores.py --json scores.json --docs docs/blip-mini.md    ... written between the marks there
    python benchmarks/scene_scores.py --runs runs/scenes                  ... beside what each recipe reaches, seed 0

Everything is scored on the test split with the protocol of the pack's recipe. Chance of retrieval is that of a random
order: a query with c right items among N has one of them among the K best with probability 1 - C(N - c, K) / C(N, K).
Answers are learned from the training split: chance draws one with the frequency that it has there for the question's
kind, and the majority answer is the most frequent one, of all or of the kind.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pages import write_between

from aurora_petl.data import ImageTextDataset, QuestionDataset, load_dataset
from aurora_petl.evaluation.outcome import AnswerOutcome
from aurora_petl.evaluation.recall import KS
from aurora_petl.evaluation.vqa_accuracy import question_score
from aurora_petl.files import write_json
from aurora_petl.recipe import load_recipe
from aurora_petl.report import markdown_table
from aurora_petl.training import train, untuned

RETRIEVAL = ("scenes-colour", "scenes-ink", "scenes-moves", "scenes-changes")
ANSWERS = ("scenes-questions", "scenes-clip-questions")
MARKS = ("<!-- scores of scenes: python benchmarks/scene_scores.py -->", "<!-- end of scores of scenes -->")
SHOWN = ("text_recall@1", "image_recall@1", "mean_recall")


def chance_of_recall(right: int, items: int, k: int) -> float:
    """In percent, for a query with ``right`` right ones among ``items`` in random order."""
    return 100 * (1 - math.comb(items - right, k) / math.comb(items, k))


def chance_of_retrieval(split: ImageTextDataset) -> dict[str, float]:
    """The metrics of a random order; every picture is its own."""
    captions = [len(item.captions) for item in split]
    chances: dict[str, float] = {}
    for k in KS:
        found = [chance_of_recall(own, sum(captions), k) for own in captions]
        chances[f"text_recall@{k}"] = sum(found) / len(found)
        chances[f"image_recall@{k}"] = chance_of_recall(1, len(captions), k)
    return {**chances, "mean_recall": sum(chances.values()) / len(chances)}


def kind_of(question: Any) -> str:
    """The kind of a question, which its id ends in."""
    return question.id.rpartition("-")[2]


def score_of(answer: str, question: Any) -> float:
    """The score of an answer to a question of a pack, all of which have a right answer."""
    found = question_score(answer, question)
    assert found is not None
    return found


def accuracy(answers: Sequence[str], split: QuestionDataset) -> float:
    """In percent."""
    scores = [score_of(answer, question) for answer, question in zip(answers, split, strict=True)]
    return 100 * sum(scores) / len(scores)


def answers_without_looking(train_split: QuestionDataset, split: QuestionDataset) -> dict[str, float]:
    """Accuracies of ``chance``, ``majority`` and ``majority of its kind``, in percent."""
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in train_split:
        by_kind[kind_of(question)].update(question.answers)
    every = sum(by_kind.values(), Counter[str]())
    first = {kind: min(counts, key=lambda answer: (-counts[answer], answer)) for kind, counts in by_kind.items()}
    overall = min(every, key=lambda answer: (-every[answer], answer))
    chances = [
        sum(count * score_of(answer, question) for answer, count in counts.items()) / counts.total()
        for question in split
        if (counts := by_kind[kind_of(question)])
    ]
    return {
        "chance": 100 * sum(chances) / len(chances),
        "majority": accuracy([overall] * len(split), split),
        "majority of its kind": accuracy([first[kind_of(question)] for question in split], split),
    }


def kinds_of_answers(answers: Sequence[str], split: QuestionDataset) -> dict[str, float]:
    """Accuracy by kind of question, in percent."""
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for answer, question in zip(answers, split, strict=True):
        scores[kind_of(question)].append(100 * score_of(answer, question))
    return {kind: sum(own) / len(own) for kind, own in sorted(scores.items())}


def score(name: str, runs: Path | None) -> dict[str, Any]:
    """Scores of one pack; with ``runs``, of its recipe too, whose finished run there is not run again."""
    recipe, dataset = load_recipe(name), load_dataset(name)
    split = dataset.split("test")
    before = untuned(recipe, split, progress=True)
    result: dict[str, Any] = {"pack": name, "rows": {part: len(dataset.split(part)) for part in ("train", "test")}}
    result["untuned"] = before.metrics
    if isinstance(dataset, QuestionDataset):
        assert isinstance(before, AnswerOutcome)
        blind = answers_without_looking(dataset.split("train"), split)
        result |= {"blind": blind, "untuned_by_kind": kinds_of_answers(before.answers, split)}
    else:
        result["chance"] = chance_of_retrieval(split)
    if runs is not None:
        done = runs / name / "metrics.json"
        if not done.is_file():
            train(recipe, runs / name, progress=True, before=before)
        result["tuned"] = json.loads(done.read_text())["test"]
    return result


def in_tables(results: list[dict[str, Any]]) -> str:
    """Markdown: retrieval, then questions."""
    tuned = any("tuned" in result for result in results)
    rows = [["R@1 of texts, of pictures, mean recall", "chance", "untuned", *["recipe, seed 0"] * tuned]]
    answers = [["accuracy", "chance", "majority", "of its kind", "untuned", *["recipe, seed 0"] * tuned]]
    for result in results:
        models = [result["untuned"], *([result["tuned"]] if "tuned" in result else [])]
        if "chance" in result:
            cells = [", ".join(f"{result['chance'][key]:.2f}" for key in SHOWN)]
            cells += [", ".join(f"{model[key]:.1f}" for key in SHOWN) for model in models]
            rows.append([f"`{result['pack']}`", *cells])
        else:
            scores = [*result["blind"].values(), *(model["accuracy"] for model in models)]
            answers.append([f"`{result['pack']}`", *(f"{value:.1f}" for value in scores)])
    return "\n\n".join(markdown_table(table[0], table[1:]) for table in (rows, answers) if len(table) > 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", nargs="+", default=[*RETRIEVAL, *ANSWERS], choices=[*RETRIEVAL, *ANSWERS])
    parser.add_argument("--runs", type=Path, help="folder of the recipes' runs, which are made where they are missing")
    parser.add_argument("--json", type=Path, help="where figures go")
    parser.add_argument("--docs", type=Path, help="a page with the marks that the tables go between")
    options = parser.parse_args()
    results = [score(name, options.runs) for name in options.packs]
    tables = in_tables(results)
    print(tables)
    if options.json:
        write_json(options.json, {"date": date.today().isoformat(), "results": results})
    if options.docs:
        write_between(options.docs, tables, MARKS)


if __name__ == "__main__":
    main()
