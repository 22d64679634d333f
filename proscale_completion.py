"""``proscale completion``: print what has bash complete the names of commands, and then files.

For every new shell: echo 'eval "$(proscale completion)"' >> ~/.bashrc

A module beside the package, because importing that takes seconds, which a new shell has no time
for.
"""

import argparse

from proscale_cli import COMMANDS

# Without a reply of its own, the function leaves the word to bash, which completes files.
_SCRIPT = """\
_proscale() {{
    COMPREPLY=()
    [ "$COMP_CWORD" -gt 1 ] || COMPREPLY=($(compgen -W "{names}" -- "${{COMP_WORDS[1]}}"))
}}
complete -o default -F _proscale proscale"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has none."""


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    print(_SCRIPT.format(names=" ".join(COMMANDS)))
