"""Command `completion`: print a script that completes commands, options and choices in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from coordexp.cli.arguments import Commands, subparser

ZSH = """\
autoload -Uz +X compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
"""
# $command is the command on the line, if it is complete; a word that nothing matches is completed to the name of a file
SCRIPT = """\
_coordexp() {
  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command="" words="" index
  if [[ "$current" == "=" ]]; then current=""
  elif [[ "$previous" == "=" ]]; then previous="${COMP_WORDS[COMP_CWORD-2]}"; fi
  for ((index = 1; index < COMP_CWORD; index++)); do
    case "${COMP_WORDS[index]}" in
      --plugin) ((++index)) ;;
      -*) ;;
      *) command="${COMP_WORDS[index]}"; break ;;
    esac
  done
  COMPREPLY=()
  case "$command $previous" in
    " --plugin") return ;;
@choices@
    *)
      case "$command $current" in
@words@
      esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _coordexp coordexp
"""


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "completion",
        "Print a script that completes commands, options and choices in a shell.",
        "source <(coordexp completion bash)    # in ~/.bashrc; `zsh` in ~/.zshrc",
    )
    parser.add_argument("shell", choices=("bash", "zsh"), metavar="bash|zsh", help="shell that reads the script")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    from coordexp.cli import build_parser, plugin_parser

    print((ZSH if args.shell == "zsh" else "") + script(build_parser(plugin_parser())), end="")


def script(parser: argparse.ArgumentParser) -> str:
    """Script for bash, or zsh with its bashcompinit, that completes the command line of `parser`."""
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parsers = {"": parser, **commands.choices}
    choices = [line for command, found in parsers.items() for line in _choices(command, found)]
    words = [line for command, found in parsers.items() for line in _words(command, found)]
    return SCRIPT.replace("@choices@", "\n".join(choices)).replace("@words@", "\n".join(words))


def _choices(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """A branch for each option of a command that takes one of several values."""
    for action in parser._actions:
        if action.option_strings and action.choices:
            names = "|".join(f'"{command} {name}"' for name in action.option_strings)
            yield f"    {names}) words='{' '.join(map(str, action.choices))}' ;;"


def _words(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """The branches for the options of a command, and for its arguments if they are one of several values."""
    options = [next((n for n in a.option_strings if n.startswith("--")), "") for a in parser._actions]
    yield f"""        "{command} -"*) words='{" ".join(filter(None, options))}' ;;"""
    arguments = [str(choice) for a in parser._actions if not a.option_strings for choice in a.choices or ()]
    if arguments:
        yield f"""        "{command} "*) words='{" ".join(arguments)}' ;;"""
