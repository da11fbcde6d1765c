"""Curves of runs."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from pipeline import PipeError, Report, log, plot

ROWS = st.lists(
    st.fixed_dictionaries({
        "train/loss": st.floats(0.01, 5), "validate/loss": st.one_of(st.none(), st.floats(0.01, 5)),
        "validate/accuracy": st.floats(0, 1), "train/update ratio/0": st.floats(0, 1),
    }),
    min_size=1, max_size=60,
)  # fmt: skip


DIRECTIONS = {"loss": "low", "accuracy": "high", "ema.loss": "low"}


def numbered(rows):
    return [{"epoch": i, "step": i, **row, "better": DIRECTIONS} for i, row in enumerate(rows, 1)]


@given(ROWS)
def test_each_metric_has_a_panel_with_its_points(rows):
    """Training and held-out curves have the rows' own numbers; of the best epochs that of the lowest loss is marked, or
    the last."""
    rows = numbered(rows)
    figure = plot.curves(rows)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert [*lines["training"].get_ydata()] == [r["train/loss"] for r in rows]
    known = [(r["epoch"], r["validate/loss"]) for r in rows if r["validate/loss"] is not None]
    if known:
        assert [*zip(lines["held-out"].get_xdata(), lines["held-out"].get_ydata(), strict=True)] == known
    best = max(r["validate/accuracy"] for r in rows)
    epoch, name, value = plot.best_epoch(rows)
    assert (name, value) == ("accuracy", best)
    losses = {r["epoch"]: r["validate/loss"] or 9 for r in rows if r["validate/accuracy"] == best}
    assert epoch == max(e for e, loss in losses.items() if loss == min(losses.values()))
    if len(rows) > 1:
        assert f"best: epoch {epoch}" in [line.get_label() for line in figure.axes[1].lines]


@pytest.mark.parametrize("count", [1, 20, 5000, 10_000])
def test_a_curve_is_legible_with_any_number_of_points(count):
    """Few are marked; of many, means and ranges of stretches are drawn, so that the file stays small."""
    rows = numbered([{"train/loss": 1 / (i + 1), "validate/loss": 2 / (i + 1)} for i in range(count)])
    figure = plot.curves(rows)
    lines = [line for line in figure.axes[0].lines if line.get_label() in ("training", "held-out")]
    assert all(0 < len(line.get_xdata()) <= plot.POINTS for line in lines)
    assert [bool(line.get_marker().strip("None")) for line in lines] == [count == 1, count <= plot.FEW]
    text = plot.svg(figure)
    assert text == plot.svg(plot.curves(rows))
    assert len(text) < 500_000


def test_several_runs_are_told_apart():
    """By colour and mark, in their held-out curves, with one legend."""
    runs = {f"run-{k}": numbered([{"validate/accuracy": 0.1 * k, "train/loss": 0.5}] * 3) for k in range(8)}
    figure = plot.curves(runs, metrics=["accuracy", "loss"])
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == [*runs]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 8
    assert len({line.get_marker() for line in lines}) == 8
    assert [axes.get_legend() is not None for axes in figure.axes] == [True, False]


def test_equal_runs_are_seen_beneath_each_other():
    """The first one is the widest."""
    rows = numbered([{"validate/loss": 0.5}, {"validate/loss": 0.4}])
    other = numbered([{"validate/loss": 0.5}, {"validate/loss": 0.3}])
    lines = plot.curves({"a": rows, "b": other, "c": rows}).axes[0].lines
    assert lines[0].get_linewidth() > lines[1].get_linewidth() == lines[2].get_linewidth()


def test_a_schedule_keeps_its_shape():
    """A learning rate that falls to nearly 0 is linear; a loss that falls as far is not."""
    falling = [{"train/loss": x, "train/learning rate": x} for x in (1.0, 0.5, 1e-4)]
    figure = plot.curves(numbered(falling), metrics=["loss", "learning rate"])
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]


def test_reports_are_taken_as_rows_are():
    """Those inside an epoch are left out; where there is nothing to draw, it is said."""
    inside, whole = (Report(1, 1, 1, 1, 1, complete, {"loss": 0.5}) for complete in (False, True))
    assert len(plot.curves([inside, whole]).axes) == 1
    with pytest.raises(PipeError, match="no complete epoch"):
        plot.curves([inside])
    with pytest.raises(PipeError, match="did you mean 'loss'"):
        plot.curves([whole], metrics=["los"])


def test_the_best_epoch_is_by_what_is_said():
    """Of a metric of any name, by its own direction or better=; without either it is refused, or none is marked."""
    rows = [
        Report(e, 3, e, 1, 1, True, {}, {"wer": w}, better={"wer": "low"}) for e, w in enumerate([0.5, 0.2, 0.4], 1)
    ]

    def marked(rows, **options):
        return [line.get_label() for line in plot.curves(rows, best="wer", **options).axes[0].lines][-1]

    assert (marked(rows), marked(rows, better="high")) == ("best: epoch 2", "best: epoch 1")
    rows = [evolve(r, better={}) for r in rows]
    assert plot.best_epoch([log.line(r) for r in rows]) is None
    with pytest.raises(PipeError, match="nothing says whether 'wer' is better high or low"):
        marked(rows)
    assert marked(rows, better="low") == "best: epoch 2"


def test_other_views_of_a_metric_are_in_its_panel():
    """An average, or the members of an ensemble, beside what they are of, under their own names."""
    views = [{"validate/ema.loss": 3 / e, "validate/ema.r2": 0.5} for e in (1, 2)]
    rows = numbered([{"train/loss": 1 / e, "validate/loss": 2 / e, **v} for e, v in enumerate(views, 1)])
    panels = {axes.get_title(): axes for axes in plot.curves(rows, best="ema.loss").axes}
    assert set(panels) == {"loss", "ema.r2"}
    drawn = {line.get_label(): list(line.get_ydata()) for line in panels["loss"].get_lines()}
    assert drawn["ema"] == [3, 1.5]
    assert drawn["best: epoch 2"] == [1.5]
