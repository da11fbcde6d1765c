"""What the command prints on a narrow terminal: no word is broken, and no figure cut."""

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.progress import Plain, folded, narrowed
from pipeline import Pipeline, backward, forward, load, loss, models, progress, sources, update

WORDS = st.lists(st.text("abcxyz-/.", min_size=1, max_size=20), min_size=1, max_size=30)


def terminal(width):
    file = StringIO()
    return file, Plain(file=file, width=width, force_terminal=True, color_system=None, soft_wrap=True, highlight=False)


@given(WORDS, st.sampled_from(["", "data    ", "        "]), st.integers(45, 120))
def test_lines_are_broken_between_words(words, label, width):
    """Each line fits, what goes on stands below the text, and words are as they were."""
    lines = folded(label + " ".join(words), width).splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == " ".join([*label.split(), *words])
    assert all(line.startswith(" " * len(label)) and line[len(label)] != " " for line in lines[1:])


@given(WORDS, st.integers(80, 120))
def test_a_terminal_breaks_where_a_pipe_does_not(words, width):
    """A pipe gets one line, and a terminal the same words in lines that fit."""
    text, (file, say), pipe = "run     " + " ".join(words), terminal(width), StringIO()
    say.print(text)
    Plain(file=pipe, width=width, soft_wrap=True, highlight=False).print(text)
    assert pipe.getvalue() == f"{text}\n"
    assert file.getvalue().split() == text.split()
    assert max(map(len, file.getvalue().splitlines())) <= width


@pytest.mark.parametrize("width", [60, 80, 200])
def test_stages_on_a_narrow_terminal(width):
    """The table of stages keeps its columns and its names."""
    train, _ = sources.digits()
    pipe = Pipeline(
        load.batches(train, size=64), forward.model(lambda: models.mlp(64, 8, 10)), loss.cross_entropy(),
        backward.gradients(), update.clip_norm(1.0), update.adamw(0.01),
    )  # fmt: skip
    file, say = terminal(width)
    say.print(narrowed(str(pipe), say))
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert {line.split()[0] for line in lines if line[0] != " "} == {"stage", *(s.name for s in pipe.stages)}
    assert "weight_decay," in file.getvalue() if width < 200 else lines == str(pipe).splitlines()


@pytest.mark.parametrize("width", [50, 80])
def test_seconds_of_a_compilation_are_shown(width):
    """However narrow a terminal is, a compilation tells its seconds and what is compiled."""
    file, say = terminal(width)
    with progress.compiling(say, lambda: "227 operations of the train step by native", "--no-compile avoids it"):
        pass
    assert "compiling 0 s: 227 operations of" in file.getvalue()
    assert "avoids it" not in file.getvalue()
