"""Forward: a module's outputs as a pure function of its parameters, buffers, the batch, the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import is_dataclass
from typing import Any, TypeAlias

from attrs import field, frozen
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pipeline.element import Number
from pipeline.errors import StageError, WiringError, did_you_mean
from pipeline.module import NO_MODULE, Build, Module, Source, Weights, copied, loaded
from pipeline.stage import Stage, buffers_of, parts_of
from pipeline.state import State
from pipeline.tree import tree_map

Names: TypeAlias = str | tuple[str, ...] | Mapping[str, str]
"""One value; several by position; or several as {argument: value}."""


def _picker(stage: str, outputs: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """The names that a forward writes, and a function from a module's result to their values."""
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
    """A forward stage."""

    module: Module = field(kw_only=True)
    params: str = "params"
    buffers: str = "buffers"
    own: str = "params"
    """The name of the parameters that the module was created with."""
    inputs: Any = "inputs"
    outputs: Any = "outputs"

    def rename(self, **names: str) -> Stage:
        raise WiringError(f"stage {self.name!r} is renamed where it is made: forward.model(params=..., outputs=...)")

    def again(
        self, *, inputs: Names = "inputs", outputs: Names = "outputs", params: str | None = None, name: str = ""
    ) -> Model:
        """The same module and parameters, called on other values: a critic on real and on generated samples.

        `params` names parameters that another stage keeps, used with their buffers "<params>.buffers": the teacher of
        update.ema(writes="teacher"). They are differentiated only if a backward names them by `wrt`. In training the
        module is in train mode, so that BatchNorm uses the batch's statistics; its writes into buffers are dropped,
        because these belong to the other stage.

        >>> critic = model(lambda: nn.Linear(2, 1), inputs="real", outputs="score", params="critic")
        >>> critic.again(inputs="fake", outputs="fake_score").reads
        ('critic', 'critic.buffers', 'training', 'fake')
        """
        name = name or f"{self.name}.{'again' if params is None else params}"
        return _stage(self.module, inputs, outputs, params or self.params, name, own=self.own, hyper=self.hyper)

    def calling(self, module: Module) -> Model:
        """The same call of another module with the same tensors."""
        return _stage(module, self.inputs, self.outputs, self.params, self.name, own=self.own, hyper=self.hyper)

    def _keyed(self, values: Mapping[str, Any], given: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """Also protects tensors that the module holds besides parameters and buffers."""
        skeleton = self.module.skeleton(bool(values.get("training")))
        return super()._keyed(values, {**given, "held": skeleton.held})

    def state_dict(self, values: Mapping[str, Any] | State) -> dict[str, Tensor]:
        """The weights in a State or its tree, for the module's `load_state_dict`; tied ones under each name."""
        tensors = {**values[self.params], **values[self.buffers]}
        skeleton = self.module.skeleton().module
        owners = {id(t): name for name, t in [*skeleton.named_parameters(), *skeleton.named_buffers()]}
        return {name: tensors[owners[id(t)]] for name, t in skeleton.state_dict(keep_vars=True).items()}


def model(
    module: nn.Module | Build, *, inputs: Names = "inputs", outputs: Names = "outputs", params: str = "params",
    frozen: bool = False, train: bool | None = None, weights: Weights | Source | None = None,
    carry: str | Iterable[str] | Mapping[str, str | None] | None = None, name: str = "forward.model",
    hyper: Mapping[str, Number] | None = None,
) -> Model:  # fmt: skip
    """`outputs = module(inputs)`, for any nn.Module.

    - `module`: a factory, initialised from the run's seed (equal factories give equal weights), or an instance, whose
      weights are copied.
    - `inputs`: the value to call it on; several by position ("a", "b") or by keyword {"argument": "value"}.
    - `outputs`: the name of the result; several from a tuple by position ("outputs", "hidden"), or from a dict or an
      object by name {"logits": "outputs"}. A model that returns its own loss writes "loss".
    - `params`: the name of its parameters in State. Its buffers, with the parameters that have requires_grad=False, are
      "buffers" (or "<params>.buffers").
    - `frozen`: never trained, in eval mode: a teacher.
    - `train`: True puts all submodules into train mode, as module.train() does; False keeps eval mode for submodules
      given in it. The default keeps it too, with a warning, but trains a module that was given in eval mode as a whole.
    - `weights`: a file or a state dict to begin from, .safetensors or .pt, whose names and shapes have to fit;
      `models.Weights(file, strict=False)` and its other options take what fits.
    - `carry`: names or patterns of buffers that evaluation carries from batch to batch, as training does, starting from
      State; {"h": "epoch"} resets to zeros at each epoch and evaluation. Other buffers must not change in evaluation;
      {"h": None}, or () for all, discards their changes.
    - `hyper`: numbers or schedules, by the argument of the module that takes them as 0-d tensors in training:
      {"dropout": schedules.cosine(0.2)}. Evaluation leaves these arguments out.

    In training, State gets buffers and frozen parameters as the module leaves them, changed in place or assigned. Draws
    are a function of (seed, step). Raises WiringError for parameters with hooks, and StageError for writes into trained
    parameters.
    """
    if not isinstance(module, nn.Module) and not callable(module):
        raise WiringError(f"forward.model() {NO_MODULE} {type(module).__name__}")
    if weights is not None:
        module = loaded(module, weights)
    if frozen and train is not None:
        raise WiringError("forward.model(frozen=True) is in eval mode: leave out train=")
    if not isinstance(carry, Mapping):
        names = (carry,) if isinstance(carry, str) else tuple(carry or ())
        carry = {"*": None} if names == () and carry is not None else dict.fromkeys(names, "run")
    if wrong := {*carry.values()} - {"run", "epoch", None}:
        raise WiringError(f'forward.model(carry=...) is through a "run", an "epoch" or None, not {wrong.pop()!r}')
    return _stage(Module(module, frozen, train, carry), inputs, outputs, params, name, hyper=hyper or {})


def _stage(
    module: Module, inputs: Any, outputs: Any, params: str, name: str, own: str | None = None, *,
    hyper: Mapping[str, Number],
) -> Model:  # fmt: skip
    """A call of a module. Without `own`, it is the first call, which creates the module's tensors in State."""
    first = own is None
    read_only = (module.frozen and not any(module.carry.values())) or own not in (None, params)
    keywords: dict[str, str] = dict(inputs) if isinstance(inputs, Mapping) else {}
    positions = () if keywords else (inputs,) if isinstance(inputs, str) else tuple(inputs)
    kept = kept_params, kept_buffers = params, buffers_of(params)
    written, pick = _picker(name, outputs)

    def forward(params: Any, buffers: Any, training: bool, **values: Any) -> Any:
        copies = tree_map(copied, values)
        arguments = (*keywords, *(hyper if training else ()))
        args, kwargs = [copies[p] for p in positions], {argument: copies[argument] for argument in arguments}
        result, after = module.call(params, buffers, training, args, kwargs)
        if is_dataclass(kind := type(result)) and kind not in pytree.SUPPORTED_NODES:
            pytree.register_dataclass(kind)  # so that gradients flow through all its tensors
        picked = pick(result) if read_only else (*pick(result), after)
        return picked if len(picked) > 1 else picked[0]

    def create(seed: int, before: Callable[[], Mapping[str, Any]], tree: Mapping[str, Any]) -> dict[str, Any]:
        def example() -> tuple[list[Any], dict[str, Any]]:
            values = before()
            return [values[p] for p in positions], {argument: values[v] for argument, v in keywords.items()}

        return dict(zip(kept, module.create(seed, example), strict=True))

    return Model(
        name,
        forward,
        writes=written if read_only else (*written, kept_buffers),
        create=create if first else None,
        draws=True,
        keeps=kept if first else (),
        hyper=hyper,
        names={"params": kept_params, "buffers": kept_buffers, **{p: p for p in positions}, **keywords},
        module=module,
        params=kept_params,
        buffers=kept_buffers,
        own=own or params,
        inputs=inputs,
        outputs=outputs,
    )
