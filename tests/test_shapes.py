"""What compilers make of shapes that vary, of any function, and of what another process compiled."""

import os

import pytest
import torch
from torch import nn

from pipeline import Pipeline, backward, evaluate, forward, loss, testing, update
from tests import forked


def test_torch_compile_finds_the_native_backend_by_name():
    """torch.compile(f, backend="pipe") computes what f does, gradients included, for other shapes too."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    made = torch.compile(module, backend="pipe")
    for size in (5, 6, 7):
        x = torch.randn(size, 8)
        results = []
        for f in (made, module):
            y = f(x)
            results.append((y.detach(), torch.autograd.grad(y.square().sum(), list(module.parameters()))))
        testing.same(*results, 1e-5)


def test_parts_of_computed_values_are_theirs():
    """Views of a part, and their clones, alone and times a matrix: each is the part, not the start of the whole."""

    def parts(v):
        each = v.double().softmax(-1)
        square = torch.outer(each, each + 1).softmax(-1)
        made = [each[1], (v.double() * 3).exp()[3:], each[3:], torch.select(each, 0, 2), square[0][3:], square[1, 2],
                square.diagonal()[2:], square.t()[2], each[::2], each[2].expand(3), each[3:].clone()]  # fmt: skip
        return [*made, *[part.clone().reshape(-1)[0] * torch.ones(4, 4) for part in made]]

    v = torch.randn(4, dtype=torch.float64)
    testing.same(torch.compile(parts, backend="pipe", fullgraph=True)(v), parts(v), 1e-6)


class Attending(nn.Module):
    """Tokens of any length, with dropout."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(13, 16), nn.Linear(16, 16), nn.Linear(16, 13)
        self.drop = nn.Dropout(0.2)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.drop(self.inner(x).relu())
        return self.head(torch.softmax(x @ x.transpose(1, 2) / 4, -1) @ x)


def lengths(sizes):
    for size, length in sizes:
        inputs = torch.arange(size * length).reshape(size, length) * 7 % 13
        yield {"inputs": inputs, "targets": (inputs + 1) % 13}


def tokens(model):
    return Pipeline(
        forward.model(model), loss.cross_entropy(dim=-1), evaluate.accuracy(dim=-1), backward.gradients(),
        update.sgd(0.1),
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "aot_eager"])
def test_sequences_of_many_lengths_take_three_graphs(backend):
    """From the third shape on, one graph has symbolic sizes: 10 lengths and 2 sizes of batches are 3 graphs, and
    equal."""
    step = tokens(Attending).compile(backend=backend)
    sizes = [(size, length) for length in range(5, 15) for size in (8, 3)]
    testing.compiled_equals_eager(step, step.pipe.init(0), lengths(sizes), tolerance=1e-4)
    graphs = step.report.graphs
    assert len(graphs) == 3
    assert [g.backend for g in graphs] == (["native", "native", "inductor"] if backend == "auto" else ["aot_eager"] * 3)
    assert "and other sizes" in str(graphs[-1])


class Pooling(Attending):
    """Its pooling needs the length as a number."""

    def forward(self, tokens):
        pooled = nn.functional.max_pool1d(self.embed(tokens).transpose(1, 2), 2, stride=1, padding=1)
        return self.head(pooled[..., : tokens.shape[1]].transpose(1, 2))


def test_sizes_that_are_needed_as_numbers_take_a_graph_each():
    """Where no symbol will do, each shape has a graph of its own, and the results are right."""
    step = tokens(Pooling).compile(backend="aot_eager")
    testing.compiled_equals_eager(step, step.pipe.init(0), lengths([(4, n) for n in range(5, 9)]), tolerance=1e-4)
    assert len(step.report.graphs) == 4


AGAIN = """
import torch
from torch._dynamo.utils import counters
from pipeline import Pipeline, backward, forward, loss, models, update
pipe = Pipeline(forward.model(lambda: models.mlp(4, 2)), loss.cross_entropy(), backward.gradients(), update.sgd(0.1))
pipe.compile(backend="inductor")(pipe.init(0), {"inputs": torch.ones(6, 4), "targets": torch.arange(6) % 2})
print(counters["aot_autograd"]["autograd_cache_hit"])
"""


def test_what_inductor_made_is_found_by_the_next_process(tmp_path):
    """Inductor's programs are kept in the library's cache, unless the user named a folder, and found there again."""
    env = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"} | {"PIPE_CACHE": str(tmp_path)}
    hits = []
    for _ in range(2):
        done = forked.run(env=env, code=AGAIN)
        assert done.returncode == 0, done.stderr
        hits.append(int(done.stdout))
        assert any((tmp_path / "inductor").rglob("*.py"))
    assert hits == [0, 1]
