"""The identity of a program: the same for the same graph, and another for all that could make another program."""

import json

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.compile import key
from pipeline.compile.tracing import trace
from tests.strategies import float_dtypes, seeds, shapes

X = torch.zeros(3, 4)


def scaled(factor=2.0, held=None):
    """A function of one tensor, with a number and a tensor in it."""
    held = torch.tensor([1.0, 2.0, 3.0, 4.0]) if held is None else held
    return lambda x: (x * factor + held,)


def identity(function=None, x=X, settings=""):
    return key.identity(trace(function or scaled(), [x]), settings)


@given(shapes, float_dtypes, seeds, st.floats(-10, 10))
def test_a_function_traced_again_has_the_same_identity(shape, dtype, seed, factor):
    """The identity depends on neither the trace, nor where tensors lie, nor what is in the arguments."""
    held = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    first = identity(scaled(factor, held), torch.zeros(shape, dtype=dtype), "s")
    assert identity(scaled(factor, held.clone()), torch.ones(shape, dtype=dtype), "s") == first
    assert json.loads(json.dumps(first)) == first


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_another_number_is_another_program(a, b):
    """A number in a function is part of the graph, to its last bit."""
    assume(a != b)
    assert identity(scaled(a)) != identity(scaled(b))


@given(st.integers(0, 3), st.integers(0, 31))
def test_another_bit_of_a_held_tensor_is_another_program(place, bit):
    """A tensor that a function holds is part of its identity, to its last bit."""
    held = torch.arange(4.0)
    other = held.clone()
    other.view(torch.int32)[place] ^= 1 << bit if bit < 31 else -(2**31)
    assert identity(scaled(held=held)) != identity(scaled(held=other))


OTHER = {
    "shape": torch.zeros(5, 4),
    "dtype": torch.zeros(3, 4, dtype=torch.float64),
    "strides": torch.zeros(4, 3).T,
}


@pytest.mark.parametrize("x", OTHER.values(), ids=OTHER)
def test_another_argument_is_another_program(x):
    """Code is made for one shape, one dtype and one layout of each argument."""
    assert identity(x=x) != identity()


@pytest.mark.parametrize("dtype", [torch.int16, torch.bfloat16])
def test_held_tensors_of_the_same_bytes_are_told_apart(dtype):
    """The dtype of a held tensor counts too, and so does its shape."""
    held = torch.tensor([[1.0], [2.0]], dtype=torch.float16)
    same = held.view(dtype)
    assert identity(scaled(held=same), torch.zeros(2, 2)) != identity(scaled(held=held), torch.zeros(2, 2))
    assert identity(scaled(held=held.T), torch.zeros(2, 2)) != identity(scaled(held=held), torch.zeros(2, 2))


def test_held_tensors_that_are_views_count_as_what_they_show():
    """Of a conjugate, what it stands for is hashed, not the storage that it shares."""
    held = torch.randn(4, dtype=torch.complex64)
    x = torch.zeros(3, 4, dtype=torch.complex64)
    assert identity(scaled(held=held.conj()), x) != identity(scaled(held=held), x)


def test_the_number_of_threads_and_other_settings_count():
    """What a compiler follows besides the graph is part of the identity."""
    threads, before = torch.get_num_threads(), identity()
    try:
        torch.set_num_threads(threads + 1)
        assert identity() != before
    finally:
        torch.set_num_threads(threads)
    assert identity(settings="another") != before
    assert identity() == before


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        (torch.set_float32_matmul_precision, ("highest", "medium")),
        (torch.use_deterministic_algorithms, (False, True)),
        (torch.set_default_dtype, (torch.float32, torch.float64)),
    ],
)
def test_what_torch_was_told_counts(setting, value):
    """Another precision, determinism or default dtype is another program, and back again the same."""
    usual, other = value
    traced = trace(scaled(), [X])
    before = key.identity(traced, "")
    try:
        setting(other)
        assert key.identity(traced, "") != before
    finally:
        setting(usual)
    assert key.identity(traced, "") == before


def test_variables_of_the_compiler_count_but_not_its_cache(monkeypatch):
    """Inductor's variables and the C++ compiler are part of the identity; where Inductor keeps files is not."""
    before = identity()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert identity() == before
    monkeypatch.setenv("CXX", "another")
    named = identity()
    monkeypatch.setenv("TORCHINDUCTOR_FREEZING", "1")
    assert len({json.dumps(i) for i in (before, named, identity())}) == 3


def test_another_machine_counts(monkeypatch):
    """The versions and the processor are in there by name."""
    assert identity()["torch"] == torch.__version__
    here = dict(key.machine())
    before = identity()
    for name in here:
        monkeypatch.setattr(key, "machine", lambda name=name: {**here, name: "another"})
        assert identity() != before


def test_what_python_made_has_no_identity():
    """The text of a graph does not tell what an operation made in Python does, so its program is not kept."""

    @torch.library.custom_op("pipeline_tests::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    doubled.register_fake(torch.empty_like)
    assert identity(lambda x: (doubled(x),)) is None
    assert identity(lambda x: (x * 2,)) is not None
