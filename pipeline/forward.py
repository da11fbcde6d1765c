"""Forward: a module's outputs as a pure function of its parameters, its buffers, the batch, the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import is_dataclass
from typing import Any, TypeAlias

from attrs import field, frozen
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.errors import StageError, WiringError, did_you_mean
from pipeline.module import NO_MODULE, Build, Module, copied
from pipeline.stage import Stage, buffers_of, parts_of
from pipeline.state import State
from pipeline.tree import tree_map

Names: TypeAlias = str | tuple[str, ...] | Mapping[str, str]
"""A value; several by position; or several by other names."""


def _picker(stage: str, outputs: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """The names that a forward writes, and how to take their values from what a module returned."""
    if isinstance(outputs, str):
        return (outputs,), lambda result: (result,)

    def by_position(result: Any) -> tuple[Any, ...]:
        if not isinstance(result, tuple | list) or len(result) < len(outputs):
            raise StageError(stage, f"returns {parts_of(result)}, which has no parts {', '.join(outputs)} by position")
        return tuple(result[: len(outputs)])

    def by_name(result: Any) -> tuple[Any, ...]:
        has = result if isinstance(result, Mapping) else {k: getattr(result, k) for k in outputs if hasattr(result, k)}
        for key in outputs:
            if has.get(key) is None:
                raise StageError(stage, f"returns {parts_of(result)}, which has no {key!r}{did_you_mean(key, has)}")
        return tuple(has[key] for key in outputs)

    if isinstance(outputs, Mapping):
        return tuple(outputs.values()), by_name
    return tuple(outputs), by_position


@frozen(eq=False, repr=False)
class Model(Stage):
    """A forward stage; `module` is what it calls."""

    module: Module = field(kw_only=True)
    """The module parted from its tensors."""
    params: str = "params"
    buffers: str = "buffers"
    own: str = "params"
    """The parameters that the module was made with."""
    inputs: Any = "inputs"
    outputs: Any = "outputs"

    def rename(self, **names: str) -> Stage:
        raise WiringError(f"stage {self.name!r} is renamed where it is made: forward.model(params=..., outputs=...)")

    def again(
        self, *, inputs: Names = "inputs", outputs: Names = "outputs", params: str | None = None, name: str = ""
    ) -> Model:
        """The same module with the same parameters, called on other values: a critic on what is real and what is not.

        With `params`, the name under which another stage keeps such parameters, it is called with those, and with their
        buffers, "<params>.buffers": a teacher that update.ema(writes="teacher") makes. Nothing is differentiated with
        respect to them unless a backward says so by `wrt`. In training it is in train mode as well, so that BatchNorm
        takes the batch's own statistics, and what it writes into its buffers is left out: they are the other stage's.

        >>> critic = model(lambda: nn.Linear(2, 1), inputs="real", outputs="score", params="critic")
        >>> critic.again(inputs="fake", outputs="fake_score").reads
        ('critic', 'critic.buffers', 'training', 'fake')
        """
        name = name or f"{self.name}.{'again' if params is None else params}"
        return _stage(self.module, inputs, outputs, params or self.params, name, own=self.own)

    def calling(self, module: Module) -> Model:
        """The same call of another module, which takes the same tensors."""
        return _stage(module, self.inputs, self.outputs, self.params, self.name, own=self.own)

    def under_key(self, values: Mapping[str, Any], given: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """What the module holds besides parameters and buffers is not to be written into either."""
        skeleton = self.module.skeleton(bool(values.get("training")))
        return super().under_key(values, {**given, "held": skeleton.held})

    def state_dict(self, values: Mapping[str, Any] | State) -> dict[str, Tensor]:
        """The weights in a State, or in its tree, under the module's own names, as `load_state_dict` takes them, tied
        ones under each name."""
        tensors = {**values[self.params], **values[self.buffers]}
        skeleton = self.module.skeleton().module
        owners = {id(t): name for name, t in [*skeleton.named_parameters(), *skeleton.named_buffers()]}
        return {name: tensors[owners[id(t)]] for name, t in skeleton.state_dict(keep_vars=True).items()}


def model(
    module: nn.Module | Build, *, inputs: Names = "inputs", outputs: Names = "outputs", params: str = "params",
    frozen: bool = False, train: bool | None = None,
    carry: str | Iterable[str] | Mapping[str, str | None] | None = None, name: str = "forward.model",
) -> Model:  # fmt: skip
    """`outputs = module(inputs)`, for any nn.Module.

    - `module`: a factory, initialised from the run's seed (two factories of one kind begin alike), or an instance,
      whose weights are copied and never touched.
    - `inputs`: the value it is called on; several as positions ("a", "b") or as keywords {"argument": "value"}.
    - `outputs`: the name of what it returns; of several parts, those of a tuple by position ("outputs", "hidden"), or
      those of a dict or an object by name {"logits": "outputs"}. A model that returns its own loss writes "loss".
    - `params`: the name under which State keeps its parameters; its buffers are kept as "buffers" (or
      "<params>.buffers"), with the parameters that have requires_grad=False.
    - `frozen`: a module that is only read, in eval mode: a teacher.
    - `train`: True trains all parts, as module.train() does; False leaves those that came in eval mode in it. By
      default they stay in it with a warning, unless the module came so as a whole.
    - `carry`: the buffers, by names or patterns, that evaluation carries from batch to batch as training does, from
      State's values on; {"h": "epoch"} begins with zeros in each epoch and each evaluation. Others may not change in
      evaluation, but those that are left as State has them: {"h": None}, or () for all.

    In training, buffers and frozen parameters come back as the module leaves them, written in place or assigned anew;
    what it draws is a function of (seed, step). Raises WiringError for parameters with hooks, and StageError where it
    writes into a trained one.
    """
    if not isinstance(module, nn.Module) and not callable(module):
        raise WiringError(f"forward.model() {NO_MODULE} {type(module).__name__}")
    if frozen and train is not None:
        raise WiringError("forward.model(frozen=True) is in eval mode: leave out train=")
    if not isinstance(carry, Mapping):
        names = (carry,) if isinstance(carry, str) else tuple(carry or ())
        carry = {"*": None} if names == () and carry is not None else dict.fromkeys(names, "run")
    if wrong := {*carry.values()} - {"run", "epoch", None}:
        raise WiringError(f'forward.model(carry=...) is through a "run", an "epoch" or None, not {wrong.pop()!r}')
    return _stage(Module(module, frozen, train, carry), inputs, outputs, params, name)


def _stage(parted: Module, inputs: Any, outputs: Any, params: str, name: str, own: str | None = None) -> Model:
    """A call of a module; the first one in a pipeline, which is no call with its `own` parameters again, or with
    others, brings its tensors into State."""
    first = own is None
    read_only = (parted.frozen and not any(parted.carry.values())) or own not in (None, params)
    keywords: dict[str, str] = dict(inputs) if isinstance(inputs, Mapping) else {}
    positions = () if keywords else (inputs,) if isinstance(inputs, str) else tuple(inputs)
    kept = kept_params, kept_buffers = params, buffers_of(params)
    written, picked = _picker(name, outputs)

    def forward(params: Any, buffers: Any, training: bool, **values: Any) -> Any:
        given = tree_map(copied, values)
        args, kwargs = [given[p] for p in positions], {argument: given[argument] for argument in keywords}
        result, after = parted.call(params, buffers, training, args, kwargs)
        if is_dataclass(kind := type(result)) and kind not in pytree.SUPPORTED_NODES:
            pytree.register_dataclass(kind)  # so that gradients go through all tensors in it
        parts = picked(result) if read_only else (*picked(result), after)
        return parts if len(parts) > 1 else parts[0]

    def create(seed: int, before: Callable[[], Mapping[str, Any]], tree: Mapping[str, Any]) -> dict[str, Any]:
        def example() -> tuple[list[Any], dict[str, Any]]:
            values = before()
            return [values[p] for p in positions], {argument: values[v] for argument, v in keywords.items()}

        return dict(zip(kept, parted.create(seed, example), strict=True))

    return Model(
        name,
        forward,
        writes=written if read_only else (*written, kept_buffers),
        create=create if first else None,
        draws=True,
        keeps=kept if first else (),
        names={"params": kept_params, "buffers": kept_buffers, **{p: p for p in positions}, **keywords},
        module=parted,
        params=kept_params,
        buffers=kept_buffers,
        own=own or params,
        inputs=inputs,
        outputs=outputs,
    )
