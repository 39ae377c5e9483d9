"""Completion of the command line in bash, which runs the script, and zsh."""

import subprocess

import pytest

from coordexp.cli import main
from coordexp.evaluation.external_predictions import PREDICTION_FORMATS

READ_REPLIES = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _coordexp; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture
def completed(capsys):
    """Completions of the last of some words in bash."""
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def complete(*words: str) -> list[str]:
        command = ["bash", "-u", "-c", f"{script}\n{READ_REPLIES}", "bash", "coordexp", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout.split()

    return complete


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ev"], ["evaluate"]),
        (["--plugin", "own.py", "ev"], ["evaluate"]),
        (["--ver"], ["--version"]),
        (["detect", "photos", "--score-"], ["--score-threshold"]),
        (["evaluate", "--format", "coc"], ["coco"]),
        (["evaluate", "--format", "=", "coc"], ["coco"]),
        (["evaluate", "--format", "="], list(PREDICTION_FORMATS)),
        (["completion", ""], ["bash", "zsh"]),
        (["detect", "photos"], []),  # the name of a file, which bash completes by itself
        (["--plugin", ""], []),
    ],
)
def test_bash_completes_commands_options_and_choices(completed, words, expected):
    assert completed(*words) == expected


def test_the_script_for_zsh_loads_the_completion_of_bash_before_using_it(capsys):
    assert main(["completion", "zsh"]) == 0
    printed = capsys.readouterr().out
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert printed.endswith(script) and "\nbashcompinit\n" in printed.removesuffix(script)
