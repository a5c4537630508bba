"""The words of the commands that make and search a library of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add_search_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add them to a parser.

    Args:
        command: makes the parser of a command, of its name and what it does.

    Returns:
        Those of the commands.
    """
    index = command("index", "encode the pictures of a folder, so that they can be searched")
    index.add_argument("folder", type=Path, metavar="FOLDER", help="folder with pictures, and with captions")
    index.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="folder of a finished run, blip-mini, a model folder or a hub id",
    )
    _place(index, "--out", "folder of the index (default: FOLDER's name and .index)")

    search = command("search", "find pictures in an index, in words or by picture")
    search.add_argument("text", nargs="?", type=_text, metavar="TEXT", help="what to look for")
    search.add_argument("--image", type=Path, help="look for what is like this picture instead")
    search.add_argument("--texts", action="store_true", help="find captions for --image, not pictures")
    _place(search)
    _filters(search)
    search.add_argument("-k", type=int, default=10, help="how many to show (default: %(default)s)")
    search.add_argument(
        "--rerank", type=int, default=0, metavar="N", help="rescore the N best by ITM (default: %(default)s, none)"
    )
    search.add_argument("--sheet", type=Path, metavar="PNG", help="also draw what was found")
    search.add_argument("--json", type=Path, help="also write what was found to this file, - to print it instead")

    duplicates = command("duplicates", "list pictures of an index that are alike, or the same")
    _place(duplicates)
    _filters(duplicates)
    duplicates.add_argument(
        "--threshold", type=float, default=0.97, help="smallest cosine of what is alike (default: %(default)s)"
    )
    duplicates.add_argument("--json", type=Path, help="also write the groups to this file, - to print them instead")

    serve = command("serve", "search an index on a page of this machine, before and after tuning")
    _place(serve)
    serve.add_argument(
        "--port", type=int, default=7860, help="port to listen at; 0 takes a free one (default: %(default)s)"
    )
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="name or address of this machine to listen at, 0.0.0.0 or :: for all of them; others than 127.0.0.1 let "
        "the network in, without encryption (default: %(default)s)",
    )
    serve.add_argument(
        "--token",
        help="what opens the page, in the place of one drawn at every start; better set by AURORA_TOKEN in the "
        "environment, which other users of the machine cannot read",
    )
    return [index, search, duplicates, serve]


def _place(
    command: argparse.ArgumentParser,
    name: str = "--index",
    about: str = "folder of the index (default: the only *.index here)",
) -> None:
    """Options that say where an index is."""
    either = command.add_mutually_exclusive_group()
    either.add_argument(name, type=Path, help=about)
    either.add_argument(
        "--store",
        type=_address,
        metavar="ADDRESS",
        help="a library in PostgreSQL in its place: postgresql://USER@HOST/DATABASE?library=NAME; leave the password "
        "to PGPASSWORD or ~/.pgpass",
    )


def _filters(command: argparse.ArgumentParser) -> None:
    """Options that say which pictures come into question."""
    command.add_argument("--under", metavar="FOLDER", help="only pictures in this folder of the indexed one")
    command.add_argument(
        "--after",
        metavar="DATE",
        help="only pictures from this date on: 2024, 2024-05 or 2024-05-31; theirs is that "
        "of their EXIF data or, if they have none, that of the file",
    )
    command.add_argument("--before", metavar="DATE", help="only pictures from before this date")


def _address(word: str) -> str:
    if not word.startswith(("postgresql://", "postgres://")):
        raise argparse.ArgumentTypeError("the address begins with postgresql://")
    return word


def _text(word: str) -> str:
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("the text is not UTF-8") from error
    return word
