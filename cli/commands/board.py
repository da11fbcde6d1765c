"""`pipe board`: the runs of folders as one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import as_json, completion
from cli.recipes.setting import refusal

if TYPE_CHECKING:
    from cli.board import Board


@click.command("board")
@click.argument("folders", nargs=-1, metavar="[FOLDER...]", shell_complete=completion.runs)
@click.option("--out", metavar="FILE", help="[default: FOLDER/board.html; of several board.html here]")
@click.option("--serve", is_flag=True, help="serve the page to this machine, live, until Ctrl-C")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="of --serve; 0 is a free one  [default: 8765]")
def command(folders: tuple[str, ...], out: str | None, serve: bool, port: int | None) -> as_json.Found:
    """Write one HTML page of all runs in FOLDERs, and in their sweeps: a table to filter and sort, curves over each
    other, parallel coordinates, reports.

    FOLDER is runs/ by default. The page needs no network.
    """
    if serve and out is not None:
        raise refusal("--serve writes no file: leave out --out")
    if not serve and port is not None:
        raise refusal("--port is of --serve: add it")
    from cli.board import Board
    from cli.output import written
    from cli.progress import tell

    roots = [Path(folder) for folder in folders or ("runs",)]
    if serve:
        _serve(Board(roots), 8765 if port is None else port)
        return {"folders": [str(root) for root in roots]}
    path = Path(out) if out is not None else (roots[0] if len(roots) == 1 else Path()) / "board.html"
    board = Board(roots, path.parent)
    with written(path) as file:
        file.write(board.page().encode())
    tell(str(path))
    return {"folders": [str(root) for root in roots], "file": str(path)}


def _serve(board: Board, port: int) -> None:
    from cli.board_server import Server
    from cli.progress import tell

    with Server(board, port) as server:
        tell(f"{server.url} shows {', '.join(map(str, board.folders))}; Ctrl-C ends it")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt as e:
            if e.args:  # another signal
                raise
