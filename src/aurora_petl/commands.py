"""What the ``aurora`` command does when its words are known to be right: calls, prints. PyTorch is imported here."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from . import backbones, baselines, plan, report, scoring, sharing, training
from . import compare as comparison
from . import demo as demonstration
from . import export as exporting
from . import features as vectors
from .api import load
from .backbones.blip import convert as converting
from .data import load_dataset
from .data.kinds import PICTURE_SUFFIXES
from .data.media import load_image
from .data.rows import announced
from .distributed import rank
from .errors import AuroraError, install, one_line
from .files import check_output, write_json
from .methods import find_method
from .notes import note
from .recipe import Recipe
from .run_folder import claim
from .search import lines
from .search.duplicates import find_duplicates
from .search.filters import make_filter
from .search.picture_index import default_place
from .search.query import Searcher, find_index
from .search.sheet import MOST, SIDE, contact_sheet
from .search.stores import build_store, open_store, place_name


def demo(out: Path, *, seeds: int, progress: bool) -> None:
    """Run the demo into the folder ``out``."""
    demonstration.demo(out, seeds=seeds, progress=progress)


def dry_run(recipe: Recipe, folder: Path, name: str, *, resume: bool, progress: bool) -> None:
    """Print what a run of the recipe called ``name`` into ``folder`` would do."""
    claim(folder, resume)
    prepared = training.prepare(recipe, progress=progress, folder=folder, compiles=False)
    recipe, dataset = prepared.recipe, prepared.dataset
    planned = plan.make_plan(recipe, dataset, prepared.task) if find_method(recipe.method).learns else None
    if rank() == 0:
        print(plan.describe(recipe, dataset, prepared.backbone, planned, name))
        print(f"\nAll checks passed; without --dry-run the run would go to {folder}")


def train(recipe: Recipe, folder: Path, *, resume: bool, progress: bool) -> None:
    """Train a recipe into ``folder`` and print the scores and what was made."""
    run = training.train(recipe, folder, resume=resume, progress=progress)
    if rank():
        return
    print(report.run_summary(run.metrics))
    made = {name: path for name in ("adapter", "curve.png", "gallery.png") if (path := folder / name).exists()}
    print("\n" + "\n".join(f"{name.partition('.')[0]:<10}{path}" for name, path in made.items()))


def evaluate(options: argparse.Namespace, files: dict[str, Any], progress: bool) -> None:
    """Score a finished run, or two, by the options of ``aurora evaluate``, data being read as ``files`` says, and print
    and write the scores."""
    manner = scoring.Manner(
        strength=options.strength,
        step=options.step,
        merge=options.merge,
        dtype=getattr(torch, options.dtype),
        rescore=options.rescore,
        cache=not options.no_cache,
        progress=progress,
    )
    own, *also = scoring.evaluate(
        options.runs,
        split=options.split,
        data=options.data or "",
        root=options.root or "",
        files=files,
        also=options.also or "",
        zero_shot=options.zero_shot,
        upload=bool(options.upload),
        manner=manner,
    )
    if rank():
        return
    if len(options.runs) == 2:
        for folder, (name, protocol) in zip(options.runs, own.protocols.items(), strict=True):
            print(one_line(f"{name}: {folder}, {protocol}"))
    figures = _print_scores(own, options.split)
    if len(options.runs) == 2:
        folders = (str(folder).encode("utf-8", "backslashreplace").decode() for folder in options.runs)
        figures["runs"] = dict(zip(own.protocols, folders, strict=True))
    for other in also:
        print(f"\nbeside it, {one_line(other.split.name)}:")
        figures["also"] = {"data": other.split.name, **_print_scores(other, options.split)}
    if options.json:
        write_json(options.json, figures)
    if options.queries:
        report.write_queries(options.queries, own.outcomes)
    if options.upload:
        write_json(options.upload, own.upload)


def _print_scores(scored: scoring.Evaluation, split: str) -> dict[str, Any]:
    """Print the scores of a split; returns them for a file."""
    protocols = report.by_protocol(scored.outcomes)
    named = set(scored.protocols.values())
    media = "clips" if scored.split.clips else "pictures"
    if scored.metrics:
        print(report.scores_table(protocols, {"": named.pop()} if len(named) == 1 else {}, media))
        if small := report.caution(protocols[0], len(scored.split), split=split, media=media):
            print(small)
    else:
        print(f"no scores: split {split} comes without right answers; write yours to a file with --upload")
    return report.scores_json(protocols)


def compare(options: argparse.Namespace, recipe: Recipe, progress: bool) -> None:
    """Compare methods by the options of ``aurora compare`` and print the table."""
    plan = comparison.Plan(
        recipe,
        tuple(dict.fromkeys(options.methods or comparison.METHODS)),
        options.seeds,
        tuple(options.rates or comparison.RATES),
        options.beyond,
        tuple(options.steps),
        options.also or "",
        search_seeds=options.search_seeds,
    )
    print(report.comparison.comparison_table(comparison.compare(plan, options.out, progress=progress)))
    print(f"\nplot      {options.out / 'comparison.png'}\nfigures   {options.out / 'results.json'}")


def params(model: str, task: str, fields: dict[str, Any]) -> None:
    """Print how many weights Aurora with the options ``fields`` trains in a model for a task."""
    backbone = backbones.load_backbone(model, weights=False, task=task)
    baselines.apply_method(backbone, "aurora", fields)
    shown = ", ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
    print(report.parameter_summary(backbone, f"Aurora, {shown}, on {model}"))


def convert(checkpoint: Path, out: Path, image_size: int | None) -> None:
    """Convert an original checkpoint to the model folder ``out`` and print what became of its weights."""
    if rank():
        return
    print(report.conversion_summary(converting.convert(checkpoint, out, image_size=image_size)))
    print(f"\nmodel     {out}")


def index(folder: Path, place: Path | str | None, model: str, progress: bool) -> None:
    """Make or renew the index of a folder of pictures, in a folder or at an address, and print what is new."""
    place = place or default_place(folder)
    update = build_store(folder, place, model, progress=progress)
    if rank() == 0:
        print(lines.summary(place_name(place), update))


def search(options: argparse.Namespace) -> None:
    """Answer a query by the options of ``aurora search``, and print and draw what matches."""
    if options.sheet and options.k > MOST:
        raise AuroraError(f"-k is {options.k}; a sheet shows at most {MOST:,}")
    for path in (options.json, options.sheet):
        if path:
            check_output(path, ".png" if path == options.sheet else "")
    library = open_store(options.store or find_index(options.index))
    among = make_filter(library.folder, options.under, options.after, options.before)
    query = options.text if options.image is None else load_image(options.image)
    searcher = Searcher(library)
    if options.text and options.text.lower().endswith(PICTURE_SUFFIXES) and os.path.isfile(options.text):
        note(f"{options.text} is taken as a text; what is like this picture: aurora search --image {options.text}")
    hits = searcher.search(query, options.k, texts=options.texts, rerank=options.rerank, among=among)
    score = searcher.scored_by(options.k, options.rerank)
    shown = "captions" if options.texts else f"pictures {among}".rstrip()
    about = f"{library.name}, {shown}, {searcher.view} model, score: {score}"
    print(f"{one_line(str(options.text or options.image))}\n{one_line(about)}")
    for place, hit in enumerate(hits, 1):
        what = hit.what if options.texts else os.path.relpath(library.folder / hit.what)
        print(f"{place:4}  {hit.score:7.3f}  {one_line(what)}")
    if library.gone:
        note(f"{len(library.gone)} more are gone since they were indexed; run aurora index again")
    if options.json:
        rows = [{"rank": place, "score": hit.score, "found": hit.what} for place, hit in enumerate(hits, 1)]
        places = {"query": options.text or options.image, "index": library.name, "folder": library.folder}
        asked = {name: _utf8(value) for name, value in places.items()}
        write_json(options.json, {**asked, "view": searcher.view, "score": score, "found": rows})
    if options.sheet:
        # small ones, so that not all are in memory as they are
        pictures = [None if options.texts else library.picture(hit.row, 2 * SIDE) for hit in hits]
        drawn = [(picture, hit.score, hit.what) for picture, hit in zip(pictures, hits, strict=True)]
        contact_sheet(options.sheet, query, about, drawn)


def duplicates(options: argparse.Namespace, progress: bool) -> None:
    """Print groups of pictures that are alike, by the options of ``aurora duplicates``."""
    if options.json:
        check_output(options.json)
    library = open_store(options.store or find_index(options.index))
    among = make_filter(library.folder, options.under, options.after, options.before)
    groups = find_duplicates(library, options.threshold, among=among, progress=progress)
    count = sum(map(len, groups))
    print(
        one_line(
            f"{library.name}, {f'pictures {among}'.rstrip()}: {count:,} in {len(groups):,} groups, of the same content "
            f"(=) or with a cosine of {options.threshold:g} at least"
        )
    )
    for group in groups:
        print()
        for one in group:
            mark = "=" if one.same and one is not group[0] else " "
            path = os.path.relpath(library.folder / one.picture.path)
            print(f"{mark} {one.similarity:7.3f}  {one.picture.size:>12,}  {one_line(path)}")
    if options.json:
        rows = [
            [
                {"path": one.picture.path, "size": one.picture.size, "similarity": one.similarity, "same": one.same}
                for one in group
            ]
            for group in groups
        ]
        places = {"index": _utf8(library.name), "folder": _utf8(library.folder)}
        write_json(options.json, {**places, "threshold": options.threshold, "groups": rows})


def _utf8(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


def push(run: Path, name: str, private: bool, base_model: str, dry: bool) -> None:
    """Upload a finished run to the hub, or print what would go up."""
    if rank():
        return
    if not dry:
        print(sharing.push(run, name, private=private, base_model=base_model))
        return
    with sharing.prepared(run, name, base_model) as folder:
        sizes = [[path.name, report.size_of(path.stat().st_size)] for path in sorted(folder.iterdir())]
    print(report.table(["file", "size"], sizes))
    seen = "which others cannot see" if private else "where everybody sees them"
    print(f"\nwithout --dry-run they would go to {name}, {seen}; gallery.png, with your pictures, stays here")


def export(run: Path, out: Path, form: str) -> None:
    """Write a finished run's model as a folder that a library reads, and print how to load it and what it lacks."""
    if rank():
        return
    made = exporting.export(run, out, form)
    print("\n".join([*made.notes, made.loading]))


def features(options: argparse.Namespace, files: dict[str, Any], progress: bool) -> None:
    """Write vectors by the options of ``aurora features``, data being read as ``files`` says."""
    if rank():
        return
    vectors.check_suffix(options.out)
    check_output(options.out)
    dataset = announced(load_dataset(options.data, options.root, files, bare=True))
    dataset = dataset.split(options.split) if options.split else dataset
    written = vectors.write_features(
        load(options.model, task="retrieval"),
        dataset,
        options.out,
        frames=options.frames,
        batch_size=options.batch_size,
        progress=progress,
    )
    wide = " x ".join(map(str, written.shape))
    print(f"{written.file}: {written.pictures:,} pictures and {written.captions:,} captions, float32 of {wide}")


def serve(index: Path | str | None, port: int, host: str, token: str | None) -> None:
    """Serve an index on a page of this machine until Ctrl-C; without ``token``, ``AURORA_TOKEN`` in the environment may
    set one.

    Raises:
        AuroraError: if there is no index, or what serves pages is not installed.
    """
    library = open_store(index if isinstance(index, str) else find_index(index))
    try:
        from .search.serve import serve as serve_library
    except ImportError as error:
        raise AuroraError(f"aurora serve needs starlette and uvicorn: {install('serve')}") from error
    serve_library(library, port, host, token or os.environ.get("AURORA_TOKEN") or None)
