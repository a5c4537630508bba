"""The ``aurora`` command: parses, calls, prints."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .errors import AuroraError


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with a way out."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        wrong = next((word.rstrip(":") for word in message.split() if word.startswith("--")), "")
        close = difflib.get_close_matches(wrong.split("=")[0], known, 1) if wrong and wrong not in known else []
        hint = f"; did you mean {close[0]}?" if close else ""
        self.exit(2, f"{self.prog}: error: {message}{hint} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options, unknown = parser.parse_known_args(argv)
    if "overrides" in options:  # argparse takes positionals in one place; overrides may follow options as well
        options.overrides += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        options.parser.error(f"unknown option {' '.join(unknown)}")
    if options.run is None:
        parser.print_help()
        return 0
    # raised by peft against transformers 5; nothing that a user can do about it
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    try:
        options.run(options)
    except AuroraError as error:
        from .distributed import SharedError, rank

        if not (isinstance(error, SharedError) and rank()):
            print(f"aurora: error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        from .distributed import is_lost

        if not is_lost(error):
            raise
        print("aurora: error: another process of this run ended; train goes on with --resume", file=sys.stderr)
        return 1
    except OSError as error:  # no right to write, no room left
        print(f"aurora: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        saved = getattr(stopped, "saved", None)
        where = "stopped" if saved is None else f"stopped, step {saved} is saved"
        print(f"aurora: {where}; train goes on with --resume, index when called again", file=sys.stderr)
        return 128 + getattr(stopped, "signum", 2)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aurora",
        description="Adapt a pretrained vision-language model to your own pictures by training a tiny share of it.",
    )
    parser.set_defaults(run=None, parser=parser)
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    demo = _command(
        commands,
        "demo",
        _demo,
        "see it work: tune the small embedded model on embedded pictures, beside "
        "LoRA and full fine-tuning, in a few minutes",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        help="folder for results (default: %(default)s; an earlier demo there is replaced)",
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of all runs (default: %(default)s)")

    train = _command(commands, "train", _train, "tune a model on a dataset and write a run's folder")
    train.add_argument(
        "recipe",
        nargs="?",
        help="name of a recipe (see aurora recipes) or a .yaml file; without one, defaults for --data",
    )
    train.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="fields of the recipe to set, like train.learning_rate=1e-3 or method=lora method_options.r=5",
    )
    train.add_argument(
        "--data",
        help="a folder with captions.jsonl, captions.csv or questions.jsonl, a .tar of one, or the name of an embedded "
        "pack or of a benchmark",
    )
    train.add_argument("--root", help="the folder of a benchmark, such as flickr30k (see docs/benchmarks.md)")
    train.add_argument("--model", help="blip-mini, a model folder, or a hub id such as Salesforce/blip-itm-base-coco")
    train.add_argument("--method", help="aurora, lora, dora, vera, heads or full")
    train.add_argument("--out", type=Path, help="folder of the run (default: runs/ and the recipe's or data's name)")
    train.add_argument("--resume", action="store_true", help="continue a run that was stopped, to the same result")
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="check data, model and recipe, print what would be trained, train nothing",
    )
    train.add_argument("--quiet", action="store_true", help="no progress bars")

    evaluate = _command(commands, "evaluate", _evaluate, "score a finished run")
    evaluate.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    evaluate.add_argument("--split", default="test", help="train, validation or test (default: %(default)s)")
    evaluate.add_argument("--data", help="another dataset than the run's own")
    evaluate.add_argument("--root", help="the folder of a benchmark, if not the run's own")
    evaluate.add_argument("--merge", action="store_true", help="fold the adapter into the weights first")
    evaluate.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="precision (default: %(default)s)"
    )
    evaluate.add_argument(
        "--rescore",
        type=int,
        default=0,
        metavar="N",
        help="with --dtype bfloat16, score the best N of every list once more in float32 (default: %(default)s)",
    )
    evaluate.add_argument(
        "--no-cache", action="store_true", help="neither read nor keep features and scores in RUN/features"
    )
    evaluate.add_argument("--json", type=Path, help="also write the figures to this file")
    evaluate.add_argument(
        "--upload", type=Path, help="also write the answers to this file, as the server of VQAv2 takes them"
    )

    params = _command(
        commands, "params", _params, "how many weights Aurora would train in a model, before anything is trained"
    )
    params.add_argument("model", metavar="MODEL", help="blip-mini, a model folder or a hub id")
    params.add_argument("--task", default="retrieval", help="retrieval or vqa (default: %(default)s)")
    params.add_argument("--r", type=int, default=64, help="rank (default: %(default)s)")
    params.add_argument("--core", default="diagonal", help="diagonal or full (default: %(default)s)")
    params.add_argument("--context", help="informative context enhancement: batch or released (default: none)")
    params.add_argument("--gate", help="gated query transformation: scale_shift or released (default: none)")

    convert = _command(
        commands,
        "convert",
        _convert,
        "turn an original BLIP checkpoint (a .pth file from Salesforce's BLIP repository) into a model "
        "folder, which --model takes",
    )
    convert.add_argument(
        "checkpoint",
        type=Path,
        metavar="FILE.pth",
        help="the downloaded file, such as model_base.pth; it is read as data, no code in it is run",
    )
    convert.add_argument(
        "--out", type=Path, required=True, help="folder to make, such as models/blip-base; it must not exist yet"
    )
    convert.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the pictures that the model shall see, such as 384 (default: as it was trained); "
        "larger ones show more detail and take longer",
    )

    index = _command(commands, "index", _index, "encode the pictures of a folder, so that they can be searched")
    index.add_argument("folder", type=Path, metavar="FOLDER", help="folder with pictures, captions.jsonl if it has one")
    index.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="folder of a finished run, blip-mini, a model folder or a hub id",
    )
    index.add_argument("--out", type=Path, help="folder of the index (default: FOLDER's name and .index)")
    index.add_argument("--quiet", action="store_true", help="no progress bars")

    search = _command(commands, "search", _search, "find pictures in an index, in words or by picture")
    search.add_argument("text", nargs="?", metavar="TEXT", help="what to look for")
    search.add_argument("--image", type=Path, help="look for what is like this picture instead")
    search.add_argument("--texts", action="store_true", help="find captions for --image, not pictures")
    search.add_argument("--index", type=Path, help="folder of the index (default: the only *.index here)")
    search.add_argument("-k", type=int, default=10, help="how many to show (default: %(default)s)")
    search.add_argument(
        "--rerank", type=int, default=0, metavar="N", help="rescore the N best by ITM (default: %(default)s, none)"
    )
    search.add_argument("--sheet", type=Path, metavar="PNG", help="also draw what was found")
    search.add_argument("--json", type=Path, help="also write what was found to this file")

    serve = _command(commands, "serve", _serve, "search an index on a page of this machine, before and after tuning")
    serve.add_argument("--index", type=Path, help="folder of the index (default: the only *.index here)")
    serve.add_argument("--port", type=int, default=7860, help="port on 127.0.0.1 (default: %(default)s)")

    _command(commands, "recipes", _recipes, "list the recipes")
    return parser


def _command(commands, name: str, run, about: str) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    made.set_defaults(run=run, parser=made)
    return made


def _demo(options: argparse.Namespace) -> None:
    from .demo import demo

    demo(options.out, seed=options.seed)


def _train(options: argparse.Namespace) -> None:
    from .recipe import load_recipe

    name, overrides = options.recipe, list(options.overrides)
    if name and "=" in name:
        name, overrides = None, [name, *overrides]
    for field in ("data", "root", "model", "method"):
        if value := getattr(options, field):
            overrides.append(f"{field}={json.dumps(value)}")
    folder = options.out or Path("runs") / Path(name or options.data or "photos").stem
    if options.resume:
        if name or overrides:
            raise AuroraError("--resume takes the run's own recipe: give --out only, no recipe and no overrides")
        recipe = load_recipe(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else load_recipe()
    else:
        if name is None and not any(override.startswith("data=") for override in overrides):
            raise AuroraError("nothing to train on: name a recipe (aurora recipes lists them) or give --data FOLDER")
        own = "photos" if options.model and options.model != "blip-mini" else "photos-mini"
        recipe = load_recipe(name or own, overrides)
    from .training import claim, prepare, train

    if options.dry_run:
        claim(folder, options.resume)
        from .report import describe

        dataset, backbone, _ = prepare(recipe, progress=not options.quiet)
        print(describe(recipe, dataset, backbone))
        print(f"\nAll checks passed; without --dry-run the run would go to {folder}")
        return
    run = train(recipe, folder, resume=options.resume, progress=not options.quiet)
    from .distributed import rank
    from .report import run_summary

    if rank():
        return
    print(run_summary(run.metrics))
    made = {name: path for name in ("adapter", "curve.png", "gallery.png") if (path := folder / name).exists()}
    print("\n" + "\n".join(f"{name.partition('.')[0]:<10}{path}" for name, path in made.items()))


def _evaluate(options: argparse.Namespace) -> None:
    import torch

    from .distributed import rank
    from .files import write_json
    from .report import metrics_table
    from .training import evaluate_run

    if options.rescore and options.dtype == "float32":
        raise AuroraError("--rescore repeats scores in float32: give --dtype bfloat16 with it, or leave it out")
    for path in (options.json, options.upload):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
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
        progress=True,
    )
    if rank():
        return
    others = scored.other_metrics()
    if scored.metrics:
        print(metrics_table({scored.task.protocol: scored.metrics, **others}))
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
    from .backbones.convert import convert
    from .report import conversion_summary

    print(conversion_summary(convert(options.checkpoint, options.out, image_size=options.image_size)))
    print(f"\nmodel     {options.out}")


def _index(options: argparse.Namespace) -> None:
    from .search.index import build_index

    out = options.out or Path(f"{options.folder.resolve().name}.index")
    update = build_index(options.folder, out, options.model, progress=not options.quiet)
    print(
        f"{out}: {update.pictures:,} pictures ({update.encoded:,} encoded now, {update.removed:,} removed), "
        f"{update.texts:,} captions"
    )
    if update.skipped:
        print(f"{len(update.skipped)} skipped; mend or remove them and run aurora index again:")
        print("\n".join(f"  {why}" for why in update.skipped.values()))


def _search(options: argparse.Namespace) -> None:
    if (options.text is None) == (options.image is None):
        raise AuroraError('say what to look for, or give a picture with --image: aurora search "a dog on a beach"')
    from .data.media import load_image
    from .files import write_json
    from .search.index import Library
    from .search.query import Searcher, find_index
    from .search.sheet import contact_sheet

    library = Library(find_index(options.index))
    query = options.text if options.image is None else load_image(options.image)
    searcher = Searcher(library)
    found = searcher.search(query, options.k, texts=options.texts, rerank=options.rerank)
    score = searcher.scored_by(options.k, options.rerank)
    about = f"{library.out}, {'captions' if options.texts else 'pictures'}, {searcher.view} model, score: {score}"
    print(f"{options.text or options.image}\n{about}")
    for rank, hit in enumerate(found, 1):
        what = hit.what if options.texts else os.path.relpath(library.folder / hit.what)
        print(f"{rank:4}  {hit.score:7.3f}  {what}")
    if options.json:
        rows = [{"rank": rank, "score": hit.score, "found": hit.what} for rank, hit in enumerate(found, 1)]
        options.json.parent.mkdir(parents=True, exist_ok=True)
        asked = {"query": str(options.text or options.image), "index": str(library.out), "folder": str(library.folder)}
        write_json(options.json, {**asked, "view": searcher.view, "score": score, "found": rows})
    if options.sheet:
        shown = [(None if options.texts else searcher.picture(hit.row), hit.score, hit.what) for hit in found]
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(options.sheet, query, about, shown)


def _serve(options: argparse.Namespace) -> None:
    from .search.index import Library
    from .search.query import find_index

    library = Library(find_index(options.index))
    try:
        from .search.serve import serve
    except ImportError as error:
        raise AuroraError("aurora serve needs starlette and uvicorn; pip install 'aurora-petl[serve]'") from error
    serve(library, options.port)


def _recipes(options: argparse.Namespace) -> None:
    from .recipe import load_recipe, recipe_names

    for name in recipe_names():
        recipe = load_recipe(name)
        print(f"{name:24} {recipe.about}")
        if recipe.needs:
            print(f"{'':24} needs {recipe.needs}")


if __name__ == "__main__":
    sys.exit(main())
