"""What the properties are tried on. Tensors come from a drawn seed, so that an example is a few small numbers."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from pipeline import schedules, update

seeds = st.integers(0, 2**31 - 1)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
samples = st.integers(1, 200)
batch_sizes = st.integers(1, 64)
learning_rates = st.floats(1e-4, 0.5)
fractions = st.floats(0.0, 0.95)
float_dtypes = st.sampled_from([torch.float32, torch.float64])


def normals(shape, dtype=torch.float32) -> st.SearchStrategy[Tensor]:
    """Standard normal tensors of one shape."""
    return seeds.map(lambda s: torch.randn(shape, generator=torch.Generator().manual_seed(s), dtype=dtype))


def labels(shape, classes: int) -> st.SearchStrategy[Tensor]:
    """int64 tensors of one shape with values in 0..classes-1."""
    return seeds.map(lambda s: torch.randint(classes, shape, generator=torch.Generator().manual_seed(s)))


@st.composite
def classification(draw, dtype=torch.float32, extra: int = 2):
    """Logits (B, C, ...) with up to `extra` more dimensions, not all of C, and class indices (B, ...)."""
    batch, classes = draw(st.integers(1, 12)), draw(st.integers(2, 6))
    rest = tuple(draw(st.lists(st.integers(1, 4), max_size=extra)))
    classes += {*rest} == {classes}  # shapes that do not tell where the classes are
    return draw(normals((batch, classes, *rest), dtype)), draw(labels((batch, *rest), classes))


@st.composite
def regression(draw, dtype=torch.float32):
    """Outputs and targets of one shape, or (B, 1) and (B,)."""
    shape = draw(shapes)
    outputs, targets = draw(normals(shape, dtype)), draw(normals(shape, dtype))
    return (outputs, targets) if draw(st.booleans()) else (outputs.reshape(-1, 1), targets.flatten())


@st.composite
def batches(draw, features: int = 4, classes: int | None = 3, dtype=torch.float32):
    """A Batch for a model of `features` inputs: class indices (B,), or values (B, 1) where classes is None."""
    size = draw(st.integers(1, 16))
    targets = normals((size, 1), dtype) if classes is None else labels((size,), classes)
    return {"inputs": draw(normals((size, features), dtype)), "targets": draw(targets)}


def widths(features: int = 4, outputs: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    """The widths of an MLP with up to two hidden layers."""
    return st.lists(st.integers(1, 8), max_size=2).map(lambda hidden: (features, *hidden, outputs))


@st.composite
def parameters(draw, dtype=torch.float64, dimensions=None):
    """Named tensors, as a module's parameters; all of so many dimensions, where that is given."""
    alike = shapes if dimensions is None else st.tuples(*[st.integers(1, 5)] * dimensions)
    return {
        f"p{i}": draw(normals(shape, dtype)) for i, shape in enumerate(draw(st.lists(alike, min_size=1, max_size=3)))
    }


@st.composite
def cuts(draw, n: int):
    """Sizes, each at least 1, of the batches that n samples are cut into."""
    ends = sorted({*draw(st.lists(st.integers(1, n), max_size=4)), n})
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


_kinds = st.one_of(
    st.builds(schedules.constant, learning_rates),
    st.builds(schedules.linear, learning_rates, st.integers(1, 30)),
    st.builds(schedules.polynomial, learning_rates, power=st.floats(0.5, 3.0), end=fractions),
    st.builds(schedules.step, learning_rates, st.integers(1, 30), fractions),
    st.builds(schedules.multi_step, learning_rates, st.lists(st.integers(1, 30), max_size=3), fractions),
    st.builds(schedules.exponential, learning_rates, st.floats(0.5, 1.0)),
    st.builds(schedules.cosine, learning_rates, st.integers(10, 50), st.integers(0, 9), st.floats(0.0, 1.0)),
    st.builds(schedules.cosine_restarts, learning_rates, st.integers(1, 9), st.integers(1, 3), fractions),
    st.builds(schedules.one_cycle, learning_rates, pct_start=st.floats(0.0, 1.0)),
    st.builds(schedules.one_cycle_momentum, pct_start=st.floats(0.0, 1.0)),
    st.builds(schedules.warmup_stable_decay, learning_rates, warmup=st.floats(0.0, 0.5), decay=st.floats(0.0, 0.5)),
    st.builds(schedules.piecewise, st.just({0: 0.1, 5: 0.3, 20: 0.0}), interpolate=st.booleans()),
    st.builds(schedules.reduce_on_plateau, learning_rates),
)
all_schedules = st.recursive(
    _kinds,
    lambda inner: st.one_of(
        st.builds(schedules.warmup, inner, share=st.floats(0.0, 1.0)),
        st.builds(schedules.warmup, inner, epochs=st.integers(0, 3)),
        st.builds(lambda a, b: schedules.sequence([a, b], [7]), inner, inner),
        st.builds(schedules.product, inner, inner),
    ),
    max_leaves=3,
)
"""Of positive values up to their base; some need a run's length, and an epoch's."""

updates = st.one_of(
    st.builds(update.sgd, learning_rates, momentum=fractions, weight_decay=st.floats(0.0, 0.1)),
    st.builds(update.adam, learning_rates, betas=st.tuples(fractions, fractions)),
    st.builds(update.adamw, learning_rates, betas=st.tuples(fractions, fractions)),
)
