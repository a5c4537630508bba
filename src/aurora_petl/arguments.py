"""The words of the ``aurora`` command: its parser, and what it says to words that it does not know."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from . import __version__
from .errors import one_line
from .search_arguments import add_search_commands

SHORT = {"lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay", "steps": "max_steps", "rank": "r"}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with a way out."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        message = message if len(message) <= 500 else f"{message[:500]}..."
        message = one_line(message)
        self.exit(2, f"{self.prog}: error: {message}{self._hint(message)} (see {self.prog} --help)\n")

    def _hint(self, message: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        if choice := re.search("invalid choice: '(.*?)'", message):
            known = [str(name) for action in self._actions for name in action.choices or ()]
            wrong = choice[1]
        else:
            wrong = next((word.rstrip(":").split("=")[0] for word in message.split() if word.startswith("--")), "")
        words = [action for action in self._actions if not action.option_strings]
        is_word = wrong in {f"--{name}" for word in words for name in (word.dest, word.dest.removesuffix("s"))}
        if is_word and not any(option.startswith(wrong) for option in known):
            names = " ".join(str(word.metavar or word.dest) for word in words if word.dest != "overrides")
            return f"; it is given without {wrong}: {self.prog} {names}"
        close = _closest(wrong, known)
        override = _override(wrong, message) if any(a.dest == "overrides" for a in self._actions) else None
        if not wrong or wrong in known or not (close or override):
            return ""
        cut = bool(close) and close.startswith(wrong)
        return f"; did you mean {close if cut or not override else override}?"


def _closest(wrong: str, known: Sequence[str]) -> str:
    """What is known and most like a wrong word, dashes aside, which all options have; empty if nothing is."""
    bare = {word.lstrip("-"): word for word in known}
    close = difflib.get_close_matches(wrong[:100].lstrip("-"), bare, 1, 0.65)
    return bare[close[0]] if close else ""


def _override(option: str, message: str) -> str | None:
    """The override of a recipe's field that stands behind an option, such as --lr."""
    from .recipe import Recipe, TrainSettings  # and pydantic, which right options do without
    from .tasks.settings import TASKS

    name = option.removeprefix("--").replace("-", "_")
    name = SHORT.get(name, name)
    places = {field.name: field.name for field in fields(Recipe)}
    for prefix, kinds in (("task.", [kind for kind, _ in TASKS.values()]), ("train.", [TrainSettings])):
        places |= {field.name: f"{prefix}{field.name}" for kind in kinds for field in fields(kind)}
    places["r"] = "method_options.r"
    value = re.search(f"{re.escape(option)}[ =]([^ ;-][^ ;]*)", message)
    return f"{places[name]}={value[1] if value else '...'}" if name in places else None


def parse(
    argv: Sequence[str] | None, commands: Mapping[str, Callable[[argparse.Namespace], None]]
) -> argparse.Namespace:
    """The options of a command line; ``run`` among them is what its command calls, None without a command.

    Args:
        commands: by name, what runs each of them.
    """
    parser = _parser(commands)
    options, unknown = parser.parse_known_args(argv)
    if "overrides" in options and not any(word.startswith("-") for word in unknown):
        options.overrides += unknown  # argparse takes positionals in one place; overrides may follow options as well
        unknown = []
    if unknown:
        if any(word.startswith("-") for word in unknown):
            options.parser.error(f"unknown option {' '.join(unknown)}")
        hint = "; put a text of several words in quotes" if hasattr(options, "text") else ""
        hint = hint or (f"; name an index with --index {unknown[0]}" if hasattr(options, "index") else "")
        options.parser.error(f"one word too many: {' '.join(unknown)}{hint}")
    options.help = parser.format_help()
    return options


def _parser(runs: Mapping[str, Callable[[argparse.Namespace], None]]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aurora",
        description="Adapt a pretrained vision-language model to your own pictures by training a tiny share of it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aurora-petl {__version__}")
    parser.set_defaults(run=None, parser=parser)
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    demo = _command(
        commands,
        "demo",
        runs,
        "see it work: tune the small embedded model on embedded pictures, beside "
        "LoRA and full fine-tuning, in a few minutes",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        help="folder for results (default: %(default)s; a demo that was stopped there goes on)",
    )
    demo.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each method (default: %(default)s)")

    train = _command(commands, "train", runs, "tune a model on a dataset and write a run's folder")
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
        help="pictures with captions, in any of the forms of docs/data.md: a folder, a .tar, a table, shards such as "
        "'data/{00000..00099}.tar' or an id of the Hugging Face hub; or the name of an embedded pack or of a benchmark",
    )
    train.add_argument(
        "--root",
        help="the folder of a benchmark, such as flickr30k (see docs/benchmarks.md); of own data, the folder that the "
        "names of pictures are relative to, if it is another",
    )
    train.add_argument("--model", help="blip-mini, a model folder, or a hub id such as Salesforce/blip-itm-base-coco")
    train.add_argument("--method", help="aurora, lora, dora, vera, heads or full")
    train.add_argument(
        "--from",
        dest="init_from",
        metavar="RUN",
        help="begin with the weights of another finished run of the same model and method, or with those of an "
        "adapter, by its folder or hub id",
    )
    train.add_argument("--out", type=Path, help="folder of the run (default: runs/ and the recipe's or data's name)")
    train.add_argument("--resume", action="store_true", help="continue a run that was stopped, to the same result")
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="check data, model and recipe, print what would be trained, train nothing",
    )

    evaluate = _command(commands, "evaluate", runs, "score a finished run, or compare two")
    evaluate.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of the run; two of the same data are compared"
    )
    evaluate.add_argument("--split", default="test", help="train, validation or test (default: %(default)s)")
    evaluate.add_argument("--data", help="another dataset than the run's own")
    evaluate.add_argument("--root", help="the folder of a benchmark or of pictures, if not the run's own")
    evaluate.add_argument(
        "--files",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="how the data are read, like caption_column=text; may be given several times (see docs/data.md)",
    )
    evaluate.add_argument(
        "--zero-shot", action="store_true", help="score the model before tuning as well, and the gain"
    )
    evaluate.add_argument(
        "--also",
        metavar="DATA",
        help="score other data as well, before and after tuning, to see what was forgotten: own data in any form, or "
        "an embedded pack",
    )
    evaluate.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="S",
        help="score the model part of the way from untuned (0) to tuned (1, the default)",
    )
    evaluate.add_argument(
        "--step", type=int, metavar="N", help="score the weights of step N, if the run kept them (train.checkpoints)"
    )
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
    evaluate.add_argument("--json", type=Path, help="also write the figures to this file, - to print them instead")
    evaluate.add_argument(
        "--queries", type=Path, metavar="CSV", help="also write all queries with their ranks or answers to this file"
    )
    evaluate.add_argument(
        "--upload", type=Path, help="also write the answers to this file, as the server of VQAv2 takes them"
    )

    compare = _command(commands, "compare", runs, "tune by several methods, over seeds, and put them in one table")
    compare.add_argument("recipe", nargs="?", help="name of a recipe or a .yaml file; without one, defaults for --data")
    compare.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the recipe to set")
    compare.add_argument("--data", help="as of aurora train")
    compare.add_argument("--root", help="the folder of a benchmark")
    compare.add_argument("--model", help="as of aurora train")
    compare.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="such as aurora, heads, full, lora:r=8, dora:10x, which has ten times Aurora's weights, or another method "
        "of peft, such as vblora:vector_length=64 (default: heads aurora lora:1x lora:10x dora:10x vera full)",
    )
    compare.add_argument("--seeds", type=int, default=3, help="runs of each method (default: %(default)s)")
    compare.add_argument(
        "--rates",
        type=float,
        nargs="+",
        metavar="RATE",
        help="learning rates that are tried for each method on the validation split; a single one is taken as it is "
        "(default: 3e-4 1e-3 3e-3)",
    )
    compare.add_argument(
        "--beyond",
        type=int,
        default=2,
        metavar="N",
        help="how many further rates to try while the best is the lowest or the highest (default: %(default)s)",
    )
    compare.add_argument(
        "--search-seeds",
        type=int,
        default=1,
        metavar="N",
        help="runs of each rate and number of steps that are tried, whose mean counts (default: %(default)s)",
    )
    compare.add_argument(
        "--steps", type=int, nargs="+", default=[0], metavar="N", help="numbers of steps to try (default: the recipe's)"
    )
    compare.add_argument(
        "--also", metavar="DATA", help="score other data as well, to see what was forgotten: a folder, .tar or pack"
    )
    compare.add_argument(
        "--out",
        type=Path,
        default=Path("runs/compare"),
        help="folder of the runs (default: %(default)s); one that was stopped goes on, one that is there is widened",
    )

    params = _command(
        commands, "params", runs, "how many weights Aurora would train in a model, before anything is trained"
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
        runs,
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

    searching = add_search_commands(lambda name, about: _command(commands, name, runs, about))

    push = _command(commands, "push", runs, "share a finished run on the Hugging Face hub")
    push.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    push.add_argument("name", metavar="NAME", help="owner and name of the repository, such as you/my-photos")
    push.add_argument("--private", action="store_true", help="make a repository that others cannot see")
    push.add_argument("--base-model", metavar="ID", help="the tuned model's hub id, if the run tuned one in a folder")
    push.add_argument("--dry-run", action="store_true", help="list what would be uploaded, upload nothing")

    export = _command(
        commands, "export", runs, "write a finished run's model, adapter folded in, as a folder that transformers reads"
    )
    export.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    export.add_argument("out", type=Path, metavar="OUT", help="folder to make; it must not exist yet")
    export.add_argument(
        "--format",
        default="transformers",
        choices=("transformers", "sentence-transformers"),
        help="what reads the folder; sentence-transformers knows CLIP, MetaCLIP 2, SigLIP and SigLIP 2 "
        "(default: %(default)s, which knows all)",
    )

    features = _command(
        commands, "features", runs, "write the vectors of pictures and captions to a Parquet or NumPy file"
    )
    features.add_argument(
        "model", metavar="MODEL", help="folder of a finished run, blip-mini, a model folder or a hub id"
    )
    features.add_argument("data", metavar="DATA", help="pictures, as of aurora train --data, with captions or without")
    features.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .parquet or .npz file to write")
    features.add_argument("--split", help="train, validation or test (default: all)")
    features.add_argument("--root", help="as of aurora train")
    features.add_argument(
        "--files", action="append", default=[], metavar="KEY=VALUE", help="as of aurora evaluate: how data are read"
    )
    features.add_argument("--frames", type=int, default=0, metavar="N", help="of a clip (default: as the run has it)")
    features.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="pictures at a time (default: %(default)s)"
    )

    _command(commands, "recipes", runs, "list the recipes")

    for command in (demo, train, evaluate, compare, *searching, features):
        command.add_argument("--device", help="auto, cpu, mps, cuda or cuda:N (default: auto, a GPU if there is one)")
    for command in (evaluate, searching[0]):
        command.add_argument(
            "--workers",
            type=_count,
            metavar="N",
            help="processes that read pictures (default: as many as fit the machine, none where the CPU computes)",
        )
    return parser


def _count(word: str) -> int:
    if not (word.isascii() and word.isdigit() and int(word) <= 256):
        raise argparse.ArgumentTypeError(f"{word!r} is no number from 0 to 256")
    return int(word)


def _command(commands, name: str, runs: Mapping[str, Callable], about: str) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".", allow_abbrev=False)
    made.set_defaults(run=runs[name], parser=made)
    made.add_argument(
        "--quiet", action="store_true", help="no progress bars, which a file never gets, and no notes: results alone"
    )
    return made
