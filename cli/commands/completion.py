"""`pipe completion`: the script by which a shell completes our commands."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    r"""Print the script that completes commands, options and values in a SHELL.

    \b
    bash   echo 'eval "$(pipe completion bash)"' >> ~/.bashrc
    zsh    echo 'eval "$(pipe completion zsh)"' >> ~/.zshrc
    fish   pipe completion fish > ~/.config/fish/completions/pipe.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(ctx.find_root().command, {}, "pipe", "_PIPE_COMPLETE").source())
