"""Whether what a form of the adapter can express says how well it will be trained.

    python benchmarks/modes.py scenes-changes train.max_steps=40 --scores runs/forms/results.json

A form is a word of `aurora compare`: which layers share factors, with which core and rank. Every form approximates the
same three sets of matrices, one for each layer that Aurora targets, each in two ways:

    first      the gradient of the frozen weights on training batches
    adam       what Adam has added to the weights after some steps of full fine-tuning
    gain       the same, by how much of its first-order gain on validation batches the approximation has

    raw        as they are
    even       every slice scaled to norm 1, since Adam gives every weight a step of one size

For the first two the figure is the share of the energy, the sum of squares, that the form explains: of Aurora's forms
by alternating least squares from the leading eigenvectors (`CP`) or by a Tucker decomposition (``core=full``), of
LoRA's by the singular vectors of every layer. With ``--scores``, the file of a comparison, each is set beside what the
forms scored once trained, by Spearman's rank correlation.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from pages import write_between
from torch import Tensor

from aurora_petl.adapter.layer import AuroraLinear
from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method, weight_counts
from aurora_petl.compare import recipe_of
from aurora_petl.examples import Order, TrainingExamples
from aurora_petl.files import read_json, write_json
from aurora_petl.recipe import Recipe, load_recipe
from aurora_petl.report import markdown_table
from aurora_petl.report.comparison import AURORA
from aurora_petl.training import Prepared, prepare

FORMS = (
    AURORA,
    "aurora:r=16",
    "aurora:r=128",
    "aurora:core=full,r=32",
    "aurora:factor_groups=[vision_model],r=36",
    r"aurora:factor_groups=['fc\d|projection'],r=36",
    "lora:1x",
    "lora:10x",
)
SWEEPS = 25
MARKS = ("<!-- modes: python benchmarks/modes.py -->", "<!-- end of modes -->")
Matrices = Mapping[str, Tensor]  # by layer, (out, in)
Cut = Mapping[str, tuple[int, int]]  # by layer, how many slices it has by rows and by columns
Cell = tuple[str, int]  # a layer, and the number of a slice of it


@dataclass(frozen=True)
class Form:
    """What a method's update of the target layers can be.

    Args:
        weights: of the adapter.
        rank: R of Aurora's factors, or that of every layer of LoRA.
        layers: the layers, with how many slices each has by rows and by columns; for LoRA one.
        groups: which factors each layer shares; empty for LoRA, whose layers share none.
        full: whether the core is full.
    """

    weights: int
    rank: int
    layers: Cut
    groups: Mapping[str, int]
    full: bool = False


def form_of(word: str, recipe: Recipe) -> Form:
    """The form of a method, by applying it to the model without weights."""
    made = recipe_of(word, recipe)
    backbone = load_backbone(made.model, weights=False, task=made.task.name, image_size=made.image_size or None)
    apply_method(backbone, made.method, made.method_options, False)
    layers = {plain(name): layer for name, layer in backbone.module.named_modules() if hasattr(layer, "base_layer")}
    weights = weight_counts(backbone)["adapter"]
    if made.method != AURORA:
        return Form(weights, made.method_options["r"], dict.fromkeys(layers, (1, 1)), {})
    ours = {name: layer for name, layer in layers.items() if isinstance(layer, AuroraLinear)}
    splits = {name: layer.aurora_split["default"] for name, layer in ours.items()}
    groups = {name: layer.aurora_group["default"] for name, layer in ours.items()}
    options = made.method_options
    return Form(weights, options["r"], splits, groups, options.get("core") == "full")


def plain(name: str) -> str:
    """A layer's name without what peft puts around it."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


# What is approximated


def matrices(recipe: Recipe, layers: Sequence[str], steps: int, batches: int) -> dict[str, dict[str, Tensor]]:
    """``first``, ``adam`` and ``validation``, the gradient on the validation split where Adam began, by layer."""
    prepared = prepare(replace(recipe, method="full", method_options={}), check=False)
    named = {name: layer.weight for name, layer in prepared.backbone.model.named_modules() if name in layers}
    train, validation = (_batches(prepared, split) for split in ("train", "validation"))
    first = _gradients(prepared, named, train, batches)
    checked = _gradients(prepared, named, validation, batches)
    start = {name: weight.detach().clone() for name, weight in named.items()}
    learned = [weight for _, weight in prepared.task.trained()]
    rate = recipe.train.learning_rate
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    prepared.task.train()
    for _ in range(steps):
        prepared.task(**next(train))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    moved = {name: weight.detach() - start[name] for name, weight in named.items()}
    return {"first": first, "adam": moved, "validation": checked}


def _batches(prepared: Prepared, split: str) -> Iterator[dict[str, Any]]:
    """Without end."""
    settings = prepared.recipe.train
    rows = TrainingExamples(prepared.task, prepared.dataset.split(split), seed=0, augment=False, flip=False)
    size = min(settings.batch_size, len(rows))
    place = iter(Order(len(rows), size, 1000 * size, 0))
    while True:
        yield prepared.task.collate([rows[next(place)] for _ in range(size)])


def _gradients(
    prepared: Prepared, named: Mapping[str, Tensor], batches: Iterator[Any], count: int
) -> dict[str, Tensor]:
    prepared.task.eval()  # no dropout
    for _ in range(count):
        with torch.enable_grad():
            (prepared.task(**next(batches))["loss"] / count).backward()
    gradients = {name: weight.grad.clone() for name, weight in named.items() if weight.grad is not None}
    prepared.task.zero_grad()
    return gradients


# How a form approximates it


def approximated(form: Form, wanted: Matrices, cut: Cut, *, even: bool) -> dict[Cell, Tensor]:
    """What the form makes of each slice; of layers that it does not adapt nothing.

    Args:
        cut: into the slices by which all forms are measured.
        even: scale every slice to norm 1 first, and back.
    """
    made: dict[Cell, Tensor] = {}
    if not form.groups:
        for name in form.layers:
            left, values, right = torch.linalg.svd(wanted[name].double(), full_matrices=False)
            whole = (left[:, : form.rank] * values[: form.rank]) @ right[: form.rank]
            made |= slices({name: whole}, {name: cut[name]})
        return made
    alike: dict[Any, dict[Cell, Tensor]] = defaultdict(dict)
    for cell, part in slices(wanted, form.layers).items():
        alike[form.groups[cell[0]], part.shape][cell] = part.double()
    for parts in alike.values():
        norms = torch.stack([part.norm() if even else part.new_ones(()) for part in parts.values()]).clamp(min=1e-30)
        stack = torch.stack([*parts.values()]) / norms[:, None, None]
        fitted = (tucker if form.full else cp)(stack, form.rank) * norms[:, None, None]
        made |= dict(zip(parts, fitted, strict=True))
    return made


def slices(wanted: Matrices, cut: Cut) -> dict[Cell, Tensor]:
    """The blocks of each layer, by rows and then by columns."""
    parts: dict[Cell, Tensor] = {}
    for name, (rows, columns) in cut.items():
        blocks = [block for band in wanted[name].chunk(rows, 0) for block in band.chunk(columns, 1)]
        parts |= {(name, number): block for number, block in enumerate(blocks)}
    return parts


def cp(stack: Tensor, rank: int) -> Tensor:
    """The approximation of N matrices by V diag(p_k) U^T with common U and V, by alternating least squares.

    Args:
        stack: (N, out, in)
    """
    V, U = _leading(stack, rank)
    P = stack.new_zeros(len(stack), V.shape[1])
    for _ in range(SWEEPS):
        P = _solved(torch.einsum("nij,ir,jr->nr", stack, V, U), V, U)
        V = _solved(torch.einsum("nij,nr,jr->ir", stack, P, U), P, U)
        V = V / V.norm(dim=0).clamp(min=1e-30)
        U = _solved(torch.einsum("nij,nr,ir->jr", stack, P, V), P, V)
        U = U / U.norm(dim=0).clamp(min=1e-30)
    P = _solved(torch.einsum("nij,ir,jr->nr", stack, V, U), V, U)
    return torch.einsum("ir,nr,jr->nij", V, P, U)


def _solved(right: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The least squares solution for a factor, given the two others."""
    gram = (one.T @ one) * (other.T @ other)
    ridge = 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, right.T).T


def _leading(stack: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading left and right singular vectors of the matrices side by side and one upon the other."""
    outer = torch.einsum("nij,nkj->ik", stack, stack)
    inner = torch.einsum("nij,nik->jk", stack, stack)
    return tuple(torch.linalg.eigh(gram)[1].flip(1)[:, :rank] for gram in (outer, inner))  # type: ignore[return-value]


def tucker(stack: Tensor, rank: int) -> Tensor:
    """The approximation by V M_k U^T, where the M_k lie in a space of ``rank`` dimensions."""
    V, U = _leading(stack, rank)
    cores = torch.einsum("nij,ir,js->nrs", stack, V, U)
    left, values, right = torch.linalg.svd(cores.flatten(1), full_matrices=False)
    cores = ((left[:, :rank] * values[:rank]) @ right[:rank]).view(cores.shape)
    return torch.einsum("ir,nrs,js->nij", V, cores, U)


# Figures


def predictors(form: Form, sets: Mapping[str, Matrices], cut: Cut) -> dict[str, float]:
    """Each share of a form, of 1, by the slices of ``cut``."""
    shares: dict[str, float] = {}
    checked = slices(sets["validation"], cut)
    for name in ("first", "adam"):
        parts = slices(sets[name], cut)
        for way in ("raw", "even"):
            made = approximated(form, sets[name], cut, even=way == "even")
            if way == "raw":
                whole = sum(float(part.double().square().sum()) for part in parts.values())
                left = sum(float((part.double() - made.get(cell, 0)).square().sum()) for cell, part in parts.items())
                shares[f"{name} {way}"] = 1 - left / whole
            else:
                shares[f"{name} {way}"] = mean(_share(part.double(), made.get(cell)) for cell, part in parts.items())
            if name == "adam":
                gain = {cell: float((part.double() * checked[cell]).sum()) for cell, part in parts.items()}
                own = {cell: float((part * checked[cell]).sum()) for cell, part in made.items()}
                shares[f"gain {way}"] = sum(own.values()) / sum(gain.values())
    return shares


def _share(part: Tensor, made: Tensor | None) -> float:
    whole = float(part.square().sum())
    return 0.0 if made is None or whole == 0 else 1 - float((part - made).square().sum()) / whole


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of the ranks; of equal figures the mean rank."""
    first, second = (torch.tensor(_ranks(values), dtype=torch.float64) for values in (one, other))
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    return [mean(place for place, other in enumerate(sorted(values)) if other == value) for value in values]


def in_table(forms: Mapping[str, Form], shares: Mapping[str, Mapping[str, float]], scores: Mapping[str, float]) -> str:
    names = list(next(iter(shares.values())))
    header = ["form", "weights", *names, *(["trained"] if scores else [])]
    rows = []
    for word, form in forms.items():
        row = [word, f"{form.weights:,}", *(f"{shares[word][name]:.2f}" for name in names)]
        rows.append([*row, *([f"{scores[word]:.1f}" if word in scores else ""] if scores else [])])
    words = [word for word in forms if word in scores]
    if len(words) > 2:
        trained = [scores[word] for word in words]
        ranks = [spearman([shares[word][name] for word in words], trained) for name in names]
        size = spearman([forms[word].weights for word in words], trained)
        rows.append(["rank correlation with trained", f"{size:+.2f}", *(f"{value:+.2f}" for value in ranks), ""])
    return markdown_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="fields of the recipe, key=value")
    parser.add_argument("--forms", nargs="+", default=FORMS, help="words of aurora compare")
    parser.add_argument("--rate", type=float, default=9e-5, help="of full fine-tuning")
    parser.add_argument("--steps", type=int, default=20, help="of full fine-tuning")
    parser.add_argument("--batches", type=int, default=6, help="that gradients are averaged over")
    parser.add_argument("--scores", type=Path, help="results.json of a comparison of the forms")
    parser.add_argument("--json", type=Path, help="where figures go")
    parser.add_argument("--docs", type=Path, help="a page with the marks that the table goes between")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.overrides)
    forms = {word: form_of(word, recipe) for word in options.forms}
    cut = form_of(AURORA, recipe).layers
    torch.manual_seed(0)
    trained = replace(recipe, train=replace(recipe.train, learning_rate=options.rate))
    sets = matrices(trained, list(cut), options.steps, options.batches)
    shares = {word: predictors(form, sets, cut) for word, form in forms.items()}
    results = read_json(options.scores)["methods"] if options.scores else {}
    scores = {word: figures["mean"] for word, figures in results.items()}
    table = in_table(forms, shares, scores)
    print(table)
    if options.json:
        content = {"date": date.today().isoformat(), "recipe": recipe.data, "shares": shares, "scores": scores}
        write_json(options.json, content)
    if options.docs:
        write_between(options.docs, table, MARKS)


if __name__ == "__main__":
    main()
