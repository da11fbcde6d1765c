import collections

import numpy as np
import pytest
import torch

from pipeline import fit, place, stage, update
from pipeline.errors import DeviceError
from tests import pipes

gpu = torch.cuda.is_available()


def batches(n):
    return [{"inputs": torch.full((2, 3), float(i)), "targets": torch.tensor([i, i])} for i in range(n)]


def test_auto_is_the_gpu_where_there_is_one():
    """The device "auto" is the first GPU, or the CPU where there is none."""
    assert place.resolve("auto").type == ("cuda" if gpu else "cpu")
    assert place.on().device == place.resolve("auto")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_the_cpu_changes_nothing(device):
    """What is on the CPU already is placed there as the same tensors, in the same order."""
    stage, data = place.on(device), batches(3)
    assert stage.device == torch.device("cpu")
    for placed, batch in zip(stage.ahead(iter(data)), data, strict=True):
        assert all(placed[name] is tensor for name, tensor in batch.items())
    tree = {"a": [torch.zeros(2)], "b": (torch.ones(()), "text", 3)}
    moved = stage.tree(tree)
    assert moved["a"][0] is tree["a"][0]
    assert moved["b"] == tree["b"]


def test_nothing_is_read_that_nobody_asked_for():
    """On the CPU a batch is taken when it is asked for, not before."""
    taken = []
    ahead = place.on("cpu").ahead(taken.append(i) or b for i, b in enumerate(batches(3)))
    next(ahead)
    assert taken == [0]


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_another_device_gets_batches_one_ahead(n):
    """Off the CPU all batches arrive, in order, each sent before the one ahead of it is used."""
    taken = []
    ahead = place.Place("place.on", device=torch.device("meta")).ahead(
        taken.append(i) or {"inputs": torch.zeros(i)} for i in range(n)
    )
    seen = [(batch["inputs"].device.type, len(batch["inputs"]), len(taken)) for batch in ahead]
    assert seen == [("meta", i, min(i + 2, n)) for i in range(n)]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cud", "unknown device 'cud'; did you mean 'cuda'"),
        ("cpuu", "unknown device 'cpuu'; did you mean 'cpu'"),
        ("tpu9000", "unknown device 'tpu9000'"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("meta", "device 'meta' is not supported; known: auto, cpu, cuda"),
        ("cuda:99", "cuda:99"),
    ],
)
def test_a_device_that_is_none(device, message):
    """An unknown device raises a DeviceError with the nearest one that is known."""
    with pytest.raises(DeviceError, match=message):
        place.on(device)


@pytest.mark.skipif(gpu, reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda", 1)])
def test_a_gpu_that_is_not_there(device):
    """Without a GPU, asking for one raises a DeviceError that says what to use."""
    with pytest.raises(DeviceError, match="no CUDA GPU on this machine; use auto or cpu"):
        place.on(device)


def test_bf16_computes_in_it_and_keeps_float32_weights():
    """Under bf16 products are bfloat16; weights, gradients, metrics and the State's dtypes are as without; it learns as
    well."""
    seen = []

    @stage
    def look(outputs, grads):
        seen.append((outputs.dtype, {g.dtype for g in grads.values()}))

    runs = {}
    for precision in ("fp32", "bf16"):
        pipe = pipes.digits(update.sgd(0.1)).replace("place.on", place.on("cpu", precision=precision))
        state, metrics = pipe.insert(look, after="backward.gradients").step(pipe.init(0))
        assert {p.dtype for p in state.params.values()} == {torch.float32}
        assert metrics["loss"].dtype == torch.float64
        [*_, last] = fit(pipe, epochs=2, validate=pipes.TEST, compile=False)
        runs[precision] = last.validate["loss"]
    assert seen == [(torch.float32, {torch.float32}), (torch.bfloat16, {torch.float32})]
    assert runs["bf16"] != runs["fp32"]
    assert runs["bf16"] == pytest.approx(runs["fp32"], rel=0.02)
    with pytest.raises(DeviceError, match=r"unknown precision 'bf6'.*bf16"):
        place.on("cpu", precision="bf6")


def test_a_batch_is_placed_as_people_have_it():
    """Tensors, arrays and numbers, nested in whatever, become tensors; what is none of these stays behind."""
    pair = collections.namedtuple("pair", "a b")
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2, 1), torch.ones(1, 1)])
    batch = {
        "x": torch.ones(2), "array": np.ones((2, 3)), "count": 3, "rate": 0.5, "flag": True, "number": np.float32(2),
        "deep": {"ids": ["a", "b"], "parts": (torch.zeros(2), "c", [1])}, "pair": pair(1, None), "name": "d",
        "words": ["e", "f"], "none": None, "packed": packed, "more": {"text": "g"},
    }  # fmt: skip
    placed = place.on("cpu").batch(batch)
    assert set(placed) == set(batch) - {"name", "words", "more"}
    assert placed["array"].dtype == torch.float32
    assert (placed["count"].dtype, placed["rate"].dtype, placed["flag"].dtype) == (
        torch.int64, torch.float64, torch.bool,
    )  # fmt: skip
    assert placed["number"].shape == ()
    assert placed["deep"]["parts"][1] is None
    assert placed["deep"]["parts"][2][0] == 1
    assert set(placed["deep"]) == {"parts"}
    assert placed["pair"] == (1, None)
    assert placed["pair"].b is None
    assert placed["none"] is None
    assert torch.equal(placed["packed"].batch_sizes, packed.batch_sizes)
