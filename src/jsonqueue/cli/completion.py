"""``jsonqueue completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from jsonqueue.cli.app import cli, command
from jsonqueue.cli.console import Settings

__all__ = ["completion"]


@command("completion", of_queue=False, short_help="Print the script that completes commands in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(settings: Settings, shell: str) -> None:
    """Print the script that completes commands and options of jsonqueue in a shell.

    \b
    bash:  jsonqueue completion bash > ~/.local/share/bash-completion/completions/jsonqueue
    zsh:   jsonqueue completion zsh > ~/.zfunc/_jsonqueue        (a folder of your fpath)
    fish:  jsonqueue completion fish > ~/.config/fish/completions/jsonqueue.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    settings.console.line(found(cli, {}, "jsonqueue", "_JSONQUEUE_COMPLETE").source())
