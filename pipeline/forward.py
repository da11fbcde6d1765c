"""Forward: a module's outputs as a pure function of its parameters, its buffers, the batch, the seed and the step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.errors import WiringError
from pipeline.stage import Stage
from pipeline.state import tree_map

Build = Callable[[], nn.Module]


@frozen(eq=False)
class Module:
    """A module parted from its tensors: skeletons hold no storage (meta device), so that nothing can change them."""

    build: Build | nn.Module
    frozen: bool

    def real(self, seed: int) -> nn.Module:
        """The module with its first weights: an instance as it is, a factory's initialised from the seed."""
        if isinstance(self.build, nn.Module):
            return self.build
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.build()
        if not isinstance(module, nn.Module):
            raise WiringError(
                f"forward.model() takes an nn.Module or a function that makes one, not {type(module).__name__}"
            )
        return module

    def skeleton(self, training: bool = False, real: nn.Module | None = None) -> nn.Module:
        """The module without storage, in train or eval mode. Made once."""
        if self not in _SKELETONS:
            real = real or self.real(0)
            evaluated = _without_storage(real).eval()
            trained = evaluated if self.frozen else _without_storage(real)
            # Where the module as a whole trains, parts of it that do not, such as frozen BatchNorms, were meant so.
            _SKELETONS[self] = evaluated, trained if trained.training or self.frozen else trained.train()
        return _SKELETONS[self][training]

    def create(self, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of the trained parameters, and of the buffers and what `requires_grad=False` has frozen."""
        module = self.real(seed)
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
            raise WiringError("the module has lazy parameters; call it once on a batch, then pass the instance")
        self.skeleton(real=module)
        named = dict(module.named_parameters())
        for name, p in named.items():
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                raise WiringError(
                    f"parameter {name!r} has a hook, which a function of State can't call: remove it, and put a stage "
                    "that changes grads[...] after backward.gradients()"
                )
        params = {k: p.detach().clone() for k, p in named.items() if p.requires_grad or self.frozen}
        buffers = {
            k: p.detach().clone() for k, p in {**named, **dict(module.named_buffers())}.items() if k not in params
        }
        return params, buffers


_SKELETONS: WeakKeyDictionary[Module, tuple[nn.Module, nn.Module]] = WeakKeyDictionary()
"""In eval mode and in train mode."""


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _without_storage(module: nn.Module) -> nn.Module:
    """A copy on the meta device. Tensors are handed to deepcopy as if copied before, so that tied ones stay tied."""
    copies: dict[int, Tensor] = {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    for p in module.parameters():
        copies[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(module, copies)


class _Ending(nn.Module):
    """A module that returns tensors of its own beside its outputs: one that it assigned anew is lost where it ends."""

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        result = self.module(*args, **kwargs)
        after = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return result, {name: after[name] for name in self.names}


@frozen(eq=False)
class Model(Stage):
    """A forward stage; `module` is what it calls."""

    module: Module = field(kw_only=True)
    """The module parted from its tensors."""
    params: str = "params"
    buffers: str = "buffers"

    def rename(self, **names: str) -> Stage:
        raise WiringError(
            f"stage {self.name!r} is renamed where it is made: forward.model(..., params=..., outputs=...)"
        )

    def state_dict(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weights under the module's own names, as `load_state_dict` takes them, tied weights under each name."""
        tensors = {**values[self.params], **values[self.buffers]}
        skeleton = self.module.skeleton()
        owners = {id(t): name for name, t in [*skeleton.named_parameters(), *skeleton.named_buffers()]}
        return {name: tensors[owners[id(t)]] for name, t in skeleton.state_dict(keep_vars=True).items()}


def model(
    module: nn.Module | Build,
    *,
    inputs: str | tuple[str, ...] | Mapping[str, str] = "inputs",
    outputs: str = "outputs",
    params: str = "params",
    frozen: bool = False,
    name: str = "forward.model",
) -> Model:
    """`outputs = module(inputs)`, for any nn.Module.

    - `module`: a factory, initialised from the run's seed (two factories of one kind begin alike), or an instance,
      whose weights are copied and never touched.
    - `inputs`: the value it is called on; several as positions ("a", "b") or as keywords {"argument": "value"}.
    - `params`: the name under which State keeps its parameters; its buffers are kept as "buffers" (or
      "<params>.buffers"), with the parameters that have requires_grad=False.
    - `frozen`: a module that is only read, in eval mode: a teacher.

    In training, buffers and frozen parameters come back as the module leaves them, written in place or assigned anew;
    what it draws is a function of (seed, step). Parts of an instance that are in eval mode stay in it, unless it is as
    a whole. Raises WiringError for parameters with hooks, and StageError where it writes into a trained one.
    """
    if not isinstance(module, nn.Module) and not callable(module):
        raise WiringError(
            f"forward.model() takes an nn.Module or a function that makes one, not {type(module).__name__}"
        )
    parted = Module(module, frozen)
    positions: tuple[str, ...] = ()
    keywords: dict[str, str] = {}
    if isinstance(inputs, Mapping):
        keywords = dict(inputs)
    else:
        positions = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    kept_params, kept_buffers = params, "buffers" if params == "params" else f"{params}.buffers"

    def forward(params: Any, buffers: Any, training: bool, **values: Any) -> Any:
        # A module may write into what it is given, so it is given copies; a compiled graph drops those it does not
        # need.
        given = {k: b.clone() for k, b in buffers.items()}
        args = tuple(tree_map(_copied, values[p]) for p in positions)
        kwargs = {argument: tree_map(_copied, values[argument]) for argument in keywords}
        module = parted.skeleton(training and not frozen)
        if frozen or not training:
            result = functional_call(module, {**params, **given}, args, kwargs)
            return result if frozen else (result, buffers)
        given = {f"module.{name}": t for name, t in {**params, **given}.items()}
        made: tuple[Any, dict[str, Tensor]] = functional_call(_Ending(module, buffers), given, args, kwargs)
        return made

    def create(seed: int) -> dict[str, Any]:
        return dict(zip((kept_params, kept_buffers), parted.create(seed), strict=True))

    return Model(
        name,
        forward,
        writes=(outputs,) if frozen else (outputs, kept_buffers),
        create=create,
        draws=True,
        keeps=(kept_params, kept_buffers),
        names={"params": kept_params, "buffers": kept_buffers, **{p: p for p in positions}, **keywords},
        module=parted,
        params=kept_params,
        buffers=kept_buffers,
    )
