"""Gradient centralization."""

from __future__ import annotations

from torch import Tensor

from pipeline.stage import Stage
from pipeline.update.rule import Params
from pipeline.update.select import Which, chosen


def centralize(*, only: Which = "*") -> Stage:
    """Shift the gradient of each output unit of a matrix or a convolution to mean 0.

    Source: Yong et al., Gradient centralization (2020), equation 1.

    >>> import torch
    >>> centralize()({"w": torch.ones(2, 3)}, {"w": torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])})["w"].tolist()
    [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """

    def function(params: Params, grads: Params) -> Params:
        def centred(g: Tensor) -> Tensor:
            return g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g

        own = chosen(name, only, params)
        return {k: centred(g) if k in own else g for k, g in grads.items()}

    name = "update.centralize"
    return Stage(name, function, writes=("grads",))
