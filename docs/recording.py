"""Record docs/pictures/killed.svg: a run is killed, resumed and verified. Needs pyte, of the extra `docs`.

The commands run in a real shell in a pseudo-terminal, in an empty folder, with an empty cache of compiled programs.
The picture shows the terminal's true output at its true times; only waits are shortened.

    python docs/recording.py
"""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import pyte

PICTURE = Path(__file__).parent / "pictures" / "killed.svg"
TRAIN = "pipe train --model convnet --dropout 0.1 --epochs 40 --save-steps 50 --out"
SCENES = (
    (f"{TRAIN} whole -q", ""),
    (f"{TRAIN} killed", "epoch 17/40"),
    ("pipe train --resume killed", ""),
    ("pipe train --resume killed --verify", ""),
    ("sha256sum whole/model.safetensors killed/model.safetensors", ""),
)
"""Commands, each with the text on the screen at which its process is killed."""

COLUMNS, ROWS, SHOWN = 96, 200, 24  # ROWS are those of the terminal, which never scrolls; SHOWN those of the picture
LONGEST_WAIT, LAST_FRAME = 1.0, 6.0  # seconds
LETTER, LINE, TITLE, MARGIN = 8.43, 19, 32, 14  # pixels
COLORS = {"red": "#ff6b6b", "green": "#7fd88f", "brown": "#e6c07b", "cyan": "#56c8d8"}


class Frame(NamedTuple):
    """What the terminal shows from a moment on."""

    seconds: float
    lines: tuple[str, ...]
    """Each as SVG, "" where it is empty."""


class Terminal:
    """A shell in a pseudo-terminal, with all that it showed."""

    def __init__(self, folder: str) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)
        self.frames: list[Frame] = []
        self.shell, self.tty = pty.fork()
        if self.shell == 0:
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            settings = {"PATH": path, "PS1": "$ ", "TERM": "xterm-256color", "PIPE_CACHE": f"{folder}/cache"}
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--noprofile", "--norc"], {**os.environ, **settings})
        fcntl.ioctl(self.tty, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.wait_for_prompt()

    def read(self, seconds: float) -> None:
        """Show what comes within so many seconds."""
        if select.select([self.tty], [], [], seconds)[0]:
            self.show(os.read(self.tty, 65536))

    def show(self, data: bytes) -> None:
        self.stream.feed(data)
        lines = tuple(as_svg(self.screen.buffer[row]) for row in range(ROWS))
        if not self.frames or lines != self.frames[-1].lines:
            self.frames.append(Frame(time.monotonic(), lines))

    def wait_for_prompt(self, kill_at: str = "") -> None:
        """Read until the shell asks for the next command; kill its process once `kill_at` is on the screen."""
        while self.screen.display[self.screen.cursor.y].rstrip() != "$":
            self.read(1.0)
            if kill_at and any(kill_at in line for line in self.screen.display):
                self.kill()
                kill_at = ""

    def kill(self) -> None:
        """Kill -9 the process in the foreground, and write that on the screen."""
        command = ["kill", "-9", str(os.tcgetpgrp(self.tty))]
        subprocess.run(command, check=True)
        self.show(f"\r\n\x1b[31m# in another terminal: {' '.join(command)}\x1b[0m\r\n".encode())

    def run(self, command: str, kill_at: str) -> None:
        """Type a command, wait until it has ended, and give a reader time."""
        for letter in command:
            os.write(self.tty, letter.encode())
            self.read(0.03)
        time.sleep(LONGEST_WAIT)
        os.write(self.tty, b"\n")
        self.read(0.5)
        self.wait_for_prompt(kill_at)
        time.sleep(LONGEST_WAIT)


def as_svg(line: dict[int, pyte.screens.Char]) -> str:
    """The letters of one line with their colors, "" of an empty one."""
    letters = [line[column] for column in range(COLUMNS)]
    if not "".join(char.data for char in letters).strip():
        return ""
    while letters[-1].data == " ":
        letters.pop()
    spans, start = [], 0
    for color, group in groupby(letters, lambda char: COLORS.get(char.fg, f"#{char.fg}")):
        text = "".join(char.data for char in group)
        place = f'x="{start * LETTER:.0f}" textLength="{len(text) * LETTER:.0f}" lengthAdjust="spacingAndGlyphs"'
        fill = "" if color == "#default" else f' fill="{color}"'
        spans.append(f"<tspan {place}{fill}>{escape(text, quote=False)}</tspan>")
        start += len(text)
    return "".join(spans)


def shortened(frames: list[Frame]) -> list[Frame]:
    """The same frames, from second 0, with no longer wait between two of them than LONGEST_WAIT."""
    seconds = [0.0]
    for before, after in pairwise(frames):
        seconds.append(seconds[-1] + min(after.seconds - before.seconds, LONGEST_WAIT))
    return [frame._replace(seconds=at) for frame, at in zip(frames, seconds, strict=True)]


def picture(frames: list[Frame]) -> str:
    """An SVG that shows the frames in turn, for ever, by CSS alone. Without animation it shows the last."""
    whole = frames[-1].seconds + LAST_FRAME
    styles: dict[tuple[tuple[str, str], ...], str] = {}

    def animated(values: list[tuple[float, str]]) -> str:
        """A CSS class with this value from each time on, as `property:value`."""
        steps = tuple((f"{100 * at / whole:.2f}%", value) for at, value in values)
        return styles.setdefault(steps, f"a{len(styles)}")

    body = []
    for row in range(ROWS):
        changes = [(f.seconds, f.lines[row]) for f in frames]
        changes = [next(group) for _, group in groupby(changes, lambda change: change[1])]
        ends = [at for at, _ in changes[1:]] + [None]
        for (at, svg), end in zip(changes, ends, strict=True):
            if svg:
                values = [(0.0, "visibility:hidden"), (at, "visibility:visible")]
                values += [(end, "visibility:hidden")] if end is not None else []
                name, hidden = animated(values), "" if end is None else ' visibility="hidden"'
                body.append(f'<text class="{name}" y="{row * LINE}"{hidden}>{svg}</text>')

    def scrolled(frame: Frame) -> str:
        used = max((row for row, line in enumerate(frame.lines) if line), default=0) + 1
        return f"transform:translateY({-LINE * max(0, used - SHOWN)}px)"

    scrolls = [(f.seconds, scrolled(f)) for f in frames]
    window = animated([next(group) for _, group in groupby(scrolls, lambda scroll: scroll[1])])
    css = "".join(
        f"@keyframes {name}{{{''.join(f'{at}{{{value}}}' for at, value in steps)}}}.{name}{{animation-name:{name}}}"
        for steps, name in styles.items()
    )
    width, height = COLUMNS * LETTER + 2 * MARGIN, SHOWN * LINE + TITLE + MARGIN
    return f"""<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width:.0f} {height}" \
role="img" \
aria-label="A terminal: a training is killed, resumed and verified; its weights are those of a run without that">
<style>text{{white-space:pre;font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#d6deeb}}
@media(prefers-reduced-motion:no-preference){{[class]{{animation:{whole:.1f}s step-end infinite}}{css}}}</style>
<rect width="100%" height="100%" rx="8" fill="#0b1220"/>
<text x="{MARGIN}" y="21" style="fill:#7f8ea3;font-size:12px">a real run, by docs/recording.py; waits of more than \
{LONGEST_WAIT:.0f} s are shortened</text>
<svg x="{MARGIN}" y="{TITLE}" width="{width - MARGIN:.0f}" height="{SHOWN * LINE + 6}" overflow="hidden">
<g class="{window}" style="{scrolls[-1][1]}"><g transform="translate(0 14)">
{chr(10).join(body)}
</g></g></svg></svg>
"""


def main() -> None:
    """Record all scenes, and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(folder)
        for command, kill_at in SCENES:
            terminal.run(command, kill_at)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(shortened(terminal.frames)), encoding="utf-8")
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB, {len(terminal.frames)} frames")
    print(*(line.rstrip() for line in terminal.screen.display if line.strip()), sep="\n")


if __name__ == "__main__":
    main()
