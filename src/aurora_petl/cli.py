"""The ``aurora`` command: parses its words, refuses wrong ones, and only then imports what does the work.

``python -m aurora_petl.cli`` is the same command, which ``torchrun`` can start.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .interrupts import at_once

with at_once():
    import argparse
    import io
    from collections.abc import Sequence
    from contextlib import AbstractContextManager, nullcontext, redirect_stdout
    from pathlib import Path

    from .arguments import parse
    from .errors import AuroraError
    from .files import STDOUT, check_output
    from .notes import hushed
    from .terminal import close_output, ending, is_told, progress, say, settle, silence

    if TYPE_CHECKING:
        from .recipe import Recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        settle()
        options = parse(argv, COMMANDS)
        if options.run is None:
            print(options.help, end="")
        else:
            with hushed(options.quiet), _aside(options):
                options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a closed pipe can be told
    except BaseException as error:
        end = ending(error)
        if end is None:
            raise
        close_output()
        if not is_told(error):
            say(end[1])
        return end[0]
    return 0


def _aside(options: argparse.Namespace) -> AbstractContextManager[object]:
    """Nobody reads the tables where JSON goes to the standard output."""
    files = (getattr(options, "json", None), getattr(options, "upload", None))
    return redirect_stdout(io.StringIO()) if STDOUT in files else nullcontext()


def _work(options: argparse.Namespace) -> ModuleType:
    """The module that does the commands' work, on the device that the options name. PyTorch comes with it, so it is
    imported when the words are known to be right."""
    with at_once():
        from . import commands, devices
        from .data import loading

        silence()
    if getattr(options, "device", None) is not None:
        devices.use(options.device)
    if getattr(options, "workers", None) is not None:
        loading.use(options.workers)
    return commands


def _check_seeds(seeds: int) -> None:
    if seeds < 1:
        raise AuroraError(f"--seeds is {seeds}; it must be at least 1")


def _demo(options: argparse.Namespace) -> None:
    _check_seeds(options.seeds)
    _work(options).demo(options.out, seeds=options.seeds, progress=progress(options.quiet))


def _train(options: argparse.Namespace) -> None:
    with at_once():  # peft is imported for the options of its methods
        from .recipe import default_name, load_recipe, load_saved

        name, overrides = _recipe_words(options)
        fields = ("data", "root", "model", "method")
        given: dict[str, Any] = {field: value for field in fields if (value := getattr(options, field)) is not None}
        if options.init_from is not None:
            given["train"] = {"init_from": options.init_from}
        folder = options.out or Path("runs") / default_name(name or options.data or "photos")
        if options.resume:
            if name or overrides or given:
                raise AuroraError("--resume takes the run's own recipe: give --out only, no recipe and no overrides")
            name = "the run's own"
            recipe = load_saved(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else load_recipe()
        else:
            name, recipe = _chosen_recipe(name, overrides, given)
    work = _work(options)
    if options.dry_run:
        work.dry_run(recipe, folder, name, resume=options.resume, progress=progress(options.quiet))
    else:
        work.train(recipe, folder, resume=options.resume, progress=progress(options.quiet))


def _recipe_words(options: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The recipe's name, if there is one, and the overrides."""
    name, overrides = options.recipe or None, list(options.overrides)
    return (None, [name, *overrides]) if name and "=" in name else (name, overrides)


def _chosen_recipe(name: str | None, overrides: list[str], given: dict[str, Any]) -> tuple[str, Recipe]:
    """The recipe that the words name, or that for one's own pictures, with its name."""
    from .recipe import load_own, load_recipe

    if name is None and "data" not in given and not any(word.startswith("data=") for word in overrides):
        raise AuroraError("nothing to train on: name a recipe (aurora recipes lists them) or give --data FOLDER")
    return load_own(overrides, given) if name is None else (name, load_recipe(name, overrides, given))


def _compare(options: argparse.Namespace) -> None:
    with at_once():
        from .methods import find_method

        name, overrides = _recipe_words(options)
        given = {field: value for field in ("data", "root", "model") if (value := getattr(options, field)) is not None}
        _, recipe = _chosen_recipe(name, overrides, given)
        for word in options.methods or ():
            find_method(word.partition(":")[0])
        _check_seeds(options.seeds)
        if wrong := [rate for rate in options.rates or () if not 0 < rate <= 10]:
            raise AuroraError(f"--rates has {wrong[0]:g}; rates must lie above 0, up to 10")
        if options.search_seeds < 1:
            raise AuroraError(f"--search-seeds is {options.search_seeds}; it must be at least 1")
        if options.beyond < 0:
            raise AuroraError(f"--beyond is {options.beyond}; it must be at least 0")
        if wrong := [steps for steps in options.steps if steps < 0]:
            raise AuroraError(f"--steps has {wrong[0]}; it must be above 0, or 0 for what the recipe says")
    _work(options).compare(options, recipe, progress(options.quiet))


def _evaluate(options: argparse.Namespace) -> None:
    if options.rescore and options.dtype == "float32":
        raise AuroraError("--rescore repeats scores in float32: give --dtype bfloat16 with it, or leave it out")
    if options.rescore < 0:
        raise AuroraError(f"--rescore is {options.rescore}; it must be positive, or 0 for none")
    if not 0 <= options.strength <= 1:
        raise AuroraError(f"--strength is {options.strength:g}; it must lie between 0, the untuned model, and 1")
    if options.merge and options.strength == 0:
        raise AuroraError("--merge has nothing to merge at --strength 0, the untuned model; leave out one of them")
    if options.step is not None and (options.strength != 1 or options.step < 0):
        raise AuroraError(f"--step is {options.step}; it must be a step's number, and goes without --strength")
    if len(options.runs) > 2:
        raise AuroraError(f"aurora evaluate takes one run, or two to compare; {len(options.runs)} are given")
    for name in ("also", "zero_shot", "upload", "step"):
        if len(options.runs) == 2 and (given := getattr(options, name)) is not None and given is not False:
            raise AuroraError(f"--{name.replace('_', '-')} is for one run; leave it out, or name one run")
    for path in (options.json, options.queries, options.upload):
        if path:
            check_output(path, ".csv" if path == options.queries else "")
    files = _files(options.files)
    _work(options).evaluate(options, files, progress(options.quiet))


def _files(words: Sequence[str]) -> dict[str, Any]:
    """How data are to be read, of ``key=value`` each."""
    if not words:
        return {}
    with at_once():
        from .recipe import load_recipe

        return load_recipe(None, [f"files.{word}" for word in words]).files


def _params(options: argparse.Namespace) -> None:
    from .method_options import typed_options

    given = {name: getattr(options, name) for name in ("r", "core", "context", "gate")}
    fields = typed_options("aurora", given)
    _work(options).params(options.model, options.task, fields)


def _convert(options: argparse.Namespace) -> None:
    _work(options).convert(options.checkpoint, options.out, options.image_size)


def _index(options: argparse.Namespace) -> None:
    _work(options).index(options.folder, options.store or options.out, options.model, progress(options.quiet))


def _search(options: argparse.Namespace) -> None:
    if (options.text is None) == (options.image is None):
        raise AuroraError('say what to look for, or give a picture with --image: aurora search "a dog on a beach"')
    _work(options).search(options)


def _duplicates(options: argparse.Namespace) -> None:
    _work(options).duplicates(options, progress(options.quiet))


def _serve(options: argparse.Namespace) -> None:
    _work(options).serve(options.store or options.index, options.port, options.host, options.token)


def _push(options: argparse.Namespace) -> None:
    _work(options).push(options.folder, options.name, options.private, options.base_model or "", options.dry_run)


def _export(options: argparse.Namespace) -> None:
    _work(options).export(options.folder, options.out, options.format)


def _features(options: argparse.Namespace) -> None:
    if options.batch_size < 1 or options.frames < 0:
        raise AuroraError(
            f"--batch-size is {options.batch_size} and --frames {options.frames}; the first must be at least 1, the "
            "second at least 0"
        )
    _work(options).features(options, _files(options.files), progress(options.quiet))


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
    "compare": _compare,
    "params": _params,
    "convert": _convert,
    "index": _index,
    "search": _search,
    "duplicates": _duplicates,
    "serve": _serve,
    "push": _push,
    "export": _export,
    "features": _features,
    "recipes": _recipes,
}

if __name__ == "__main__":
    sys.exit(main())
