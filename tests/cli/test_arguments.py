"""The words of the `aurora` command, taken from its parser: each is explained, and others are refused."""

import argparse
import tomllib
from pathlib import Path

import pytest

import aurora_petl
from aurora_petl import arguments
from aurora_petl.cli import COMMANDS, main


def subparsers(parser):
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


PARSER = arguments._parser(COMMANDS)


@pytest.mark.parametrize("command", ["", *subparsers(PARSER)])
def test_help_says_what_every_word_is_for(command, capsys):
    parser = subparsers(PARSER)[command] if command else PARSER
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and not err
    text = " ".join(out.split())
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert all(name in text for name in action.choices)
            continue
        assert action.help, action
        names = action.option_strings or [action.metavar or action.dest]
        assert all(name in text for name in names) and action.help.split("%")[0].split()[0] in text


@pytest.mark.parametrize("command", subparsers(PARSER))
def test_an_unknown_option_is_refused_by_every_command_and_none_is_abbreviated(command, refusal):
    parser = subparsers(PARSER)[command]
    needed = ["x" for action in parser._actions if not action.option_strings and action.nargs in (None, "+")]
    needed += [
        word
        for action in parser._actions
        if action.required and action.option_strings
        for word in (action.option_strings[0], "x")
    ]
    assert refusal(command, *needed, "--zzzz").startswith("unknown option --zzzz (see ")
    for action in parser._actions:
        for option in action.option_strings:
            if option.startswith("--") and len(option) > 5:
                assert f"did you mean {option}?" in refusal(command, *needed, option[:-1])


def test_every_command_can_be_quiet_and_what_computes_takes_a_device():
    have = {name: {o for a in parser._actions for o in a.option_strings} for name, parser in subparsers(PARSER).items()}
    assert all("--quiet" in options for options in have.values())
    devices = {"demo", "train", "evaluate", "compare", "index", "search", "duplicates", "serve", "features"}
    assert {name for name, options in have.items() if "--device" in options} == devices


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"aurora-petl {aurora_petl.__version__}\n"


def test_the_version_stands_in_one_place():
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    assert "version" in settings["project"]["dynamic"] and "version" not in settings["project"]
    assert settings["tool"]["hatch"]["version"]["path"] == "src/aurora_petl/__init__.py"
    assert "\nversion:" not in (root / "CITATION.cff").read_text("utf-8")
