"""What `tests.forked` imports once, for all its processes: what a run of `pipe` imports."""

import matplotlib.backends.backend_svg
import matplotlib.figure
import sympy
import torch._dynamo
import torch.distributed.tensor

import cli.commands.train
import cli.main
import cli.training
import tests.forked

__all__ = ["cli", "matplotlib", "sympy", "tests", "torch"]
