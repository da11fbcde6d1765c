"""The check of a new program: what is more than rounding is seen, and rounding is not taken for more."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compile import verify
from pipeline.compile.verify import check, distance
from pipeline.errors import CaptureError
from tests.strategies import normals, seeds, shapes


def descend(w, x):
    """A step: w is written into, and a metric is returned."""
    w.sub_(0.1 * x)
    return ((w * w).sum().view(1),)


def arguments(shape=(8,), seed=0):
    return [torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))[i].clone() for i in range(2)]


def called(function):
    """A function of tensors as a program, which takes a list."""
    return lambda args: function(*args)


def changed(change):
    """`descend` whose results are changed by `change(w, metric)`, which returns the new metric."""

    def program(args):
        (metric,) = descend(*args)
        return (change(args[0], metric),)

    return program


@given(shapes, seeds)
def test_equal_functions_pass_and_leave_the_arguments_alone(shape, seed):
    """A program that does what the plain function does passes, and both work on copies of what they write into."""
    args = arguments(shape, seed)
    before = [t.clone() for t in args]
    places = [t.data_ptr() for t in args]
    check(called(descend), descend, args, [0], False)
    assert all(torch.equal(t, b) for t, b in zip(args, before, strict=True))
    assert [t.data_ptr() for t in args] == places


def test_what_is_not_written_into_is_not_copied():
    """A program reads the very tensors that it will be bound to, but for those that it writes into."""
    args, seen = arguments(), []

    def program(given):
        seen.append([t.data_ptr() == a.data_ptr() for t, a in zip(given, args, strict=True)])
        return descend(*given)

    check(program, descend, args, [0], False)
    assert seen == [[False, True]]


@given(shapes, seeds, st.sampled_from([math.nan, math.inf, -math.inf, 7.5, 0.0]), st.integers(1, 9))
def test_pieces_of_a_tensor_measure_what_all_of_it_does(shape, seed, odd, piece):
    """A tensor compared some elements at a time is as far off, and as large, as in one."""
    a, b = arguments(shape, seed)
    b.view(-1)[seed % b.numel()] = odd
    whole = distance(a, b), verify._largest(b), verify._largest(a, b)
    with mock.patch.object(verify, "_PIECE", piece):
        assert (distance(a, b), verify._largest(b), verify._largest(a, b)) == whole
    assert distance(a, b) >= distance(a, a) == 0


def put(w, value):
    w[3] = value


WRONG = {
    "a wrong value": (lambda w, metric: (put(w, w[3] + 0.5), metric)[1], "(8,) is off by 0.5"),
    "a wrong metric": (lambda w, metric: metric * 1.5, "(1,) is off by "),
    "a nan": (lambda w, metric: (put(w, math.nan), metric)[1], "(8,) is off by inf"),
    "an infinity": (lambda w, metric: (put(w, math.inf), metric)[1], "(8,) is off by inf"),
    "a nan in the metric": (lambda w, metric: metric * math.nan, "(1,) is off by inf"),
    "another shape": (lambda w, metric: metric.view(1, 1), "(1,) is off by inf"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_more_than_rounding_is_refused(change, message):
    """The error says which tensor is off, and how far."""
    with pytest.raises(CaptureError) as caught:
        check(changed(change), descend, arguments(), [0], False)
    assert message in str(caught.value)


def test_a_dropped_write_is_refused():
    """A program that leaves a tensor as it was is off by as much as the step changes it."""
    w, x = arguments()
    with pytest.raises(CaptureError, match=rf"off by {0.1 * float(x.abs().max()):.3g}"):
        check(lambda args: descend(args[0].clone(), args[1]), descend, [w, x], [0], False)


def test_a_small_step_of_a_large_tensor_is_seen():
    """An error is measured by what the step changes, not by what is there: a small write may not be dropped."""
    w, x = arguments()
    w, x = w + 1, x / 1000
    with pytest.raises(CaptureError, match="off by"):
        check(lambda args: descend(args[0].clone(), args[1]), descend, [w, x], [0], False)


@given(st.integers(1, 3000), seeds)
def test_rounding_passes(n, seed):
    """A sum in another order, and values off by some units in the last place, pass at any size."""
    args = arguments((n,), seed)
    noise = torch.randn(n, generator=torch.Generator().manual_seed(seed + 1))

    def program(given):
        w, x = given
        w.sub_(x * 0.1)
        w.mul_(1 + 2e-7 * noise.clamp(-2, 2))
        return (w.flip(0).square().double().sum().float().view(1),)

    check(program, descend, args, [0], False)


@pytest.mark.parametrize("low", [False, True])
def test_less_precision_is_allowed_only_where_it_is_computed_in(low):
    """An error as of bfloat16 passes where a program computes in it, and nowhere else."""
    w, x = arguments()

    def program(args):
        return descend(args[0], args[1].bfloat16().float())

    if low:
        check(program, descend, [w, x], [0], low)
    else:
        with pytest.raises(CaptureError, match="off by"):
            check(program, descend, [w, x], [0], low)


def chaotic(w):
    """The logistic map, so often that its last bit decides on everything."""
    for _ in range(60):
        w.mul_(4 * (1 - w))
    return ()


def test_rounding_that_a_chaotic_step_makes_large_passes():
    """Where changes of the inputs in their last bits change the result as much, an error is no more than rounding."""
    args = [torch.rand(64) * 0.8 + 0.1]

    def program(given):
        given[0].mul_(1 + 2e-7)
        return chaotic(*given)

    expected, got = args[0].clone(), args[0].clone()
    chaotic(expected)
    program([got])
    assert distance(expected, got) > 0.5
    check(program, chaotic, args, [0], False)


def test_a_chaotic_step_may_not_be_anything():
    """What is further off than rounding moves the result is refused there too."""

    def program(given):
        return (chaotic(*given), given[0].add_(100))[0]

    with pytest.raises(CaptureError, match="off by 10"):
        check(program, chaotic, [torch.rand(64) * 0.8 + 0.1], [0], False)


def diverge(w, x):
    """A step of which some results are not finite."""
    w.sub_(x)
    w[0] = math.nan
    w[1] = math.inf
    return (w[:3] * 1,)


def test_what_is_not_finite_in_both_passes():
    """A nan or an infinity of the plain function is one of the program."""
    check(called(diverge), diverge, arguments(), [0], False)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_what_is_not_finite_hides_nothing(place):
    """Beside a nan, and in its place, another value is still refused."""

    def program(args):
        made = diverge(*args)
        args[0][place] = 17.0
        return made

    with pytest.raises(CaptureError, match="off by"):
        check(program, diverge, arguments(), [0], False)


def test_numbers_of_all_kinds():
    """Counts, truth values and complex numbers are compared too."""

    def count(step, z):
        step.add_(1)
        z.mul_(1j)
        return step > 3, z.imag.sum().view(1)

    args = [torch.tensor([3]), torch.randn(4, dtype=torch.complex64)]
    check(called(count), count, args, [0, 1], False)
    for wrong in (
        lambda step, z: (count(step, z), step.add_(1))[0],
        lambda step, z: (count(step, z)[0] ^ True, z.imag.sum().view(1)),
        lambda step, z: (count(step, z), z.copy_(z.real + 0j))[0],
    ):
        with pytest.raises(CaptureError, match="off by"):
            check(called(wrong), count, args, [0, 1], False)


values = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]))


@st.composite
def pairs(draw):
    """Two tensors of one shape, with some values that are not finite."""
    n = draw(st.integers(0, 6))
    rows = [draw(st.lists(values, min_size=n, max_size=n)) for _ in range(2)]
    return tuple(torch.tensor(row, dtype=torch.float64) for row in rows)


@given(pairs())
def test_distance_is_symmetric_and_zero_on_itself(pair):
    """Distance does not depend on the order, and is none from a tensor to its copy, whatever is in it."""
    a, b = pair
    assert distance(a, b) == distance(b, a) >= 0
    assert distance(a, a.clone()) == 0
    assert (distance(a, b) == 0) == torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


@given(shapes.flatmap(normals), seeds, st.floats(1e-3, 1e3), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_distance_is_the_largest_difference(t, seed, size, value):
    """One element that differs is the distance, and it is infinite where that is not finite in one tensor alone."""
    other, place = t.double(), seed % t.numel()
    other.view(-1)[place] += size
    assert distance(t, other) == pytest.approx(size)
    other.view(-1)[place] = value
    assert distance(t, other) == math.inf
    assert distance(t, t[None]) == math.inf
