"""The ``aurora`` command: parses, calls, prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .arguments import parse
from .errors import AuroraError, install, one_line
from .terminal import close_output, ending, progress, say, settle


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        settle()
        options = parse(argv, COMMANDS)
        if options.run is None:
            print(options.help, end="")
        else:
            if getattr(options, "device", None) is not None:
                from .devices import use

                use(options.device)
            options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a closed pipe can be told
    except BaseException as error:
        end = ending(error)
        if end is None:
            raise
        close_output()
        if not _is_told(error):
            say(end[1])
        return end[0]
    return 0


def _is_told(error: BaseException) -> bool:
    """Whether the first of several processes says it."""
    from .distributed import SharedError, rank

    return isinstance(error, SharedError) and rank() > 0


def _demo(options: argparse.Namespace) -> None:
    from .demo import demo

    demo(options.out, seed=options.seed, progress=progress(options.quiet))


def _train(options: argparse.Namespace) -> None:
    from .recipe import load_recipe

    name, overrides = options.recipe, list(options.overrides)
    if name and "=" in name:
        name, overrides = None, [name, *overrides]
    fields = ("data", "root", "model", "method")
    given = {field: value for field in fields if (value := getattr(options, field)) is not None}
    folder = options.out or Path("runs") / Path(name or options.data or "photos").stem
    if options.resume:
        if name or overrides or given:
            raise AuroraError("--resume takes the run's own recipe: give --out only, no recipe and no overrides")
        recipe = load_recipe(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else load_recipe()
    else:
        if name is None and "data" not in given and not any(word.startswith("data=") for word in overrides):
            raise AuroraError("nothing to train on: name a recipe (aurora recipes lists them) or give --data FOLDER")
        own = "photos" if options.model and options.model != "blip-mini" else "photos-mini"
        recipe = load_recipe(name or own, overrides, given)
    from .distributed import rank
    from .report import run_summary
    from .training import claim, prepare, train

    if options.dry_run:
        from .baselines import find_method
        from .plan import describe, make_plan

        claim(folder, options.resume)
        dataset, backbone, task = prepare(recipe, progress=progress(options.quiet))
        plan = make_plan(recipe, dataset, task) if find_method(recipe.method).learns else None
        if rank():
            return
        print(describe(recipe, dataset, backbone, plan, "the run's own" if options.resume else name or own))
        print(f"\nAll checks passed; without --dry-run the run would go to {folder}")
        return
    run = train(recipe, folder, resume=options.resume, progress=progress(options.quiet))
    if rank():
        return
    print(run_summary(run.metrics))
    made = {name: path for name in ("adapter", "curve.png", "gallery.png") if (path := folder / name).exists()}
    print("\n" + "\n".join(f"{name.partition('.')[0]:<10}{path}" for name, path in made.items()))


def _evaluate(options: argparse.Namespace) -> None:
    import torch

    from .distributed import rank
    from .files import check_output, write_json
    from .report import caution, metrics_table
    from .training import evaluate_run

    if options.rescore and options.dtype == "float32":
        raise AuroraError("--rescore repeats scores in float32: give --dtype bfloat16 with it, or leave it out")
    if options.rescore < 0:
        raise AuroraError(f"--rescore is {options.rescore}; it must be positive, or 0 for none")
    for path in (options.json, options.upload):
        if path:
            check_output(path)
    scored = evaluate_run(
        options.folder,
        split=options.split,
        data=options.data or "",
        root=options.root or "",
        merge=options.merge,
        dtype=getattr(torch, options.dtype),
        rescore=options.rescore,
        cache=not options.no_cache,
        upload=bool(options.upload),
        progress=progress(options.quiet),
    )
    if rank():
        return
    others = scored.other_metrics()
    if scored.metrics:
        print(metrics_table({scored.task.protocol: scored.metrics, **others}))
        if small := caution(scored.metrics, len(scored.split), options.split):
            print(small)
    else:
        print(f"no scores: split {options.split} comes without right answers; write yours to a file with --upload")
    if options.json:
        named = {name.lower().replace(" ", "_"): other for name, other in others.items()}
        write_json(options.json, {"metrics": scored.metrics, **named})
    if options.upload:
        write_json(options.upload, scored.task.upload(scored.split, *scored.details))


def _params(options: argparse.Namespace) -> None:
    from .backbones import load_backbone
    from .baselines import apply_method
    from .report import parameter_summary

    backbone = load_backbone(options.model, weights=False, task=options.task)
    fields = {name: getattr(options, name) for name in ("r", "core", "context", "gate")}
    apply_method(backbone, "aurora", fields)
    shown = ", ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
    print(parameter_summary(backbone, f"Aurora, {shown}, on {options.model}"))


def _convert(options: argparse.Namespace) -> None:
    from .backbones.blip.convert import convert
    from .report import conversion_summary

    print(conversion_summary(convert(options.checkpoint, options.out, image_size=options.image_size)))
    print(f"\nmodel     {options.out}")


def _index(options: argparse.Namespace) -> None:
    from .distributed import rank
    from .search.index import build_index
    from .search.lines import summary

    out = options.out or Path(f"{os.path.basename(os.path.realpath(options.folder))}.index")
    update = build_index(options.folder, out, options.model, progress=progress(options.quiet))
    if rank() == 0:
        print(summary(out, update))


def _search(options: argparse.Namespace) -> None:
    if (options.text is None) == (options.image is None):
        raise AuroraError('say what to look for, or give a picture with --image: aurora search "a dog on a beach"')
    from .data.media import load_image
    from .files import check_output, write_json
    from .search.library import Library
    from .search.query import Searcher, find_index
    from .search.sheet import MOST, SIDE, contact_sheet

    if options.sheet and options.k > MOST:
        raise AuroraError(f"-k is {options.k}; a sheet shows at most {MOST:,}")
    for path in (options.json, options.sheet):
        if path:
            check_output(path)
    library = Library(find_index(options.index))
    query = options.text if options.image is None else load_image(options.image)
    searcher = Searcher(library)
    found = searcher.search(query, options.k, texts=options.texts, rerank=options.rerank)
    score = searcher.scored_by(options.k, options.rerank)
    about = f"{library.out}, {'captions' if options.texts else 'pictures'}, {searcher.view} model, score: {score}"
    print(f"{one_line(str(options.text or options.image))}\n{one_line(about)}")
    for rank, hit in enumerate(found, 1):
        what = hit.what if options.texts else os.path.relpath(library.folder / hit.what)
        print(f"{rank:4}  {hit.score:7.3f}  {one_line(what)}")
    if library.gone:
        say(f"aurora: {len(library.gone)} more are gone since they were indexed; run aurora index again")
    if options.json:
        rows = [{"rank": rank, "score": hit.score, "found": hit.what} for rank, hit in enumerate(found, 1)]
        places = {"query": options.text or options.image, "index": library.out, "folder": library.folder}
        asked = {name: str(value).encode("utf-8", "backslashreplace").decode() for name, value in places.items()}
        write_json(options.json, {**asked, "view": searcher.view, "score": score, "found": rows})
    if options.sheet:
        shown = []
        for hit in found:
            image = None if options.texts else searcher.picture(hit.row)
            if image is not None:
                image.thumbnail((2 * SIDE, 2 * SIDE))  # so that not all are in memory as they are
            shown.append((image, hit.score, hit.what))
        contact_sheet(options.sheet, query, about, shown)


def _serve(options: argparse.Namespace) -> None:
    from .search.library import Library
    from .search.query import find_index

    library = Library(find_index(options.index))
    try:
        from .search.serve import serve
    except ImportError as error:
        raise AuroraError(f"aurora serve needs starlette and uvicorn: {install('serve')}") from error
    serve(library, options.port)


def _recipes(options: argparse.Namespace) -> None:
    from .recipe import load_recipe, recipe_names

    for name in recipe_names():
        recipe = load_recipe(name)
        print(f"{name:24} {recipe.about}")
        if recipe.needs:
            print(f"{'':24} needs {recipe.needs}")


COMMANDS = {
    "demo": _demo,
    "train": _train,
    "evaluate": _evaluate,
    "params": _params,
    "convert": _convert,
    "index": _index,
    "search": _search,
    "serve": _serve,
    "recipes": _recipes,
}

if __name__ == "__main__":
    sys.exit(main())
