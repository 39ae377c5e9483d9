"""One name of an option means the same in every command."""

import argparse

import pytest

from coordexp.cli import build_parser

PATHS = {"FOLDER", "FILE", "PATH", "JSON", "JSONL", "YAML", "IMAGE", "MODEL"}  # MODEL: a folder, or one on the hub


def kind(action: argparse.Action) -> str:
    """What the value of an option is: a flag, a number, a path, or what its metavariable says."""
    if action.nargs == 0:
        return "flag"
    if action.type in (int, float):
        return action.type.__name__
    words = set((action.metavar or action.dest.upper()).split("|"))
    value = "path" if words <= PATHS else "|".join(sorted(words))
    return f"{value}, repeated" if isinstance(action, argparse._AppendAction) else value


def kinds(parser: argparse.ArgumentParser) -> dict[str, dict[str, list[str]]]:
    """The kinds of each option, with the commands that have it."""
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found: dict[str, dict[str, list[str]]] = {}
    for command, options in commands.choices.items():
        for action in options._actions:
            for name in action.option_strings:
                found.setdefault(name, {}).setdefault(kind(action), []).append(command)
    return found


def test_an_option_has_one_kind_in_all_commands():
    found = kinds(build_parser())
    assert len(found) > 40 and len(found["--out"]["path"]) > 8
    assert {name: uses for name, uses in found.items() if len(uses) > 1} == {}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"metavar": "FILE"}, {"metavar": "NAME,..."}),
        ({"metavar": "FILE"}, {"action": "store_true"}),
        ({"metavar": "FILE"}, {"metavar": "FILE", "action": "append"}),
        ({"type": int}, {"type": float}),
    ],
)
def test_two_kinds_of_one_name_are_found(first, second):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    commands.add_parser("one").add_argument("--same", **first)
    commands.add_parser("two").add_argument("--same", **second)
    assert len(kinds(parser)["--same"]) == 2
