"""Weights: tensors from a file under the names of a module, and a report of what does not fit."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor, nn

from pipeline import files
from pipeline.errors import ConfigError, first_line
from pipeline.text import some

Source: TypeAlias = str | Path | Mapping[str, Tensor]


@frozen
class Fit:
    """The names of a module beside those of a file."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """Names of the module that the file lacks."""
    unexpected: tuple[str, ...]
    """Names of the file that the module lacks."""
    differ: Mapping[str, str]
    """Names of both -> `(5, 64), here (10, 64)`, if shapes differ, or one is of floats and the other is not."""
    grown: tuple[str, ...]
    """Matched names whose last rows stay as initialised."""

    @property
    def initialised(self) -> tuple[str, ...]:
        """Names that stay as initialised."""
        return self.missing + tuple(self.differ)

    @property
    def exact(self) -> bool:
        return not (self.initialised or self.unexpected)

    def __str__(self) -> str:
        """`2 of 4 tensors; as initialised: 3.weight, 3.bias`."""
        parts = {"as initialised": self.initialised, "not used": self.unexpected, "grown": self.grown}
        told = [f"{what}: {some(names)}" for what, names in parts.items() if names]
        return "; ".join([f"{len(self.matched)} of {len(self.matched) + len(self.initialised)} tensors", *told])


@frozen(eq=False)
class Weights:
    """Weights to begin from: `forward.model(Net, weights=models.Weights("base.safetensors", strict=False))`.

    - `source`: a .safetensors file, a file of `torch.save(module.state_dict(), ...)`, or a state dict.
    - `rename`: names in the file -> names in the module. A name that ends with a dot, or is empty, is a prefix:
      {"module.": ""} strips it, {"": "model."} adds it. None: the prefixes by which most fits.
    - `grow`: patterns of tensors, separated by commas, that may have more rows here, such as an embedding of more
      tokens. Rows beyond the file's stay as initialised.
    - `strict`: raise ConfigError unless all names and shapes fit. With False, what does not fit stays as initialised,
      and `report` names it.

    >>> base, net = nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> print(Weights(base.state_dict(), rename={"": "0."}, strict=False).report(net))
    2 of 4 tensors; as initialised: 1.weight, 1.bias
    """

    source: Source
    rename: Mapping[str, str] | None = field(factory=dict, kw_only=True)
    grow: str = field(default="", kw_only=True)
    strict: bool = field(default=True, kw_only=True)

    @property
    def name(self) -> str:
        return "the state dict" if isinstance(self.source, Mapping) else str(self.source)

    def _tensors(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, renamed for a module with these."""
        found = self.source if isinstance(self.source, Mapping) else read(Path(self.source))
        rename = self.rename
        if rename is None:
            rename = {} if (pair := _suggested(own, found)) is None else dict([pair])
        named = {_renamed(name, rename): t for name, t in found.items()}
        for old in rename:
            if not any(_is_under(name, old) for name in found):
                raise ConfigError(f"{self.name} has no {old!r} to rename; it has {some(found)}")
        if len(named) < len(found):
            raise ConfigError(f"rename={dict(rename)} gives two tensors of {self.name} one name")
        return named

    def report(self, module: nn.Module) -> Fit:
        """What fits a module, and what does not."""
        own = _named(module)
        return self._fit(own, self._tensors(own))

    def into(self, module: nn.Module) -> Fit:
        """Load what fits into a module, in place. Raises ConfigError if nothing fits, or not all and `strict`."""
        own = _named(module)
        found = self._tensors(own)
        fit = self._fit(own, found)
        if not fit.matched or (self.strict and not fit.exact):
            raise ConfigError(f"{self.name} does not fit the module: {self._misfit(fit, own, found)}")
        values = {name: found[name] for name in fit.matched if name in found}
        for name in fit.grown:
            values[name] = torch.cat([found[name].to(own[name].dtype), own[name].detach()[len(found[name]) :]])
        module.load_state_dict(values, strict=False)
        return fit

    def _fit(self, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Fit:
        both = [name for name in own if name in found]
        equal = {name for name in both if _fits(own[name], found[name])}
        grown = {name for name in both if name not in equal and self._grows(name) and _longer(own[name], found[name])}
        good = equal | grown
        tied = {id(own[name]) for name in good}
        matched = {name for name in own if name in good or (name not in found and id(own[name]) in tied)}
        shapes = {name: f"{_kind(found[name])}, here {_kind(own[name])}" for name in both if name not in good}
        return Fit(
            matched=tuple(name for name in own if name in matched),
            missing=tuple(name for name in own if name not in found and name not in matched),
            unexpected=tuple(name for name in found if name not in own),
            differ=shapes,
            grown=tuple(name for name in both if name in grown),
        )

    def _grows(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern.strip()) for pattern in self.grow.split(","))

    def _misfit(self, fit: Fit, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
        """What does not fit, and what to write."""
        first = " is ".join(next(iter(fit.differ.items()), ()))
        parts = {f"it lacks {len(fit.missing)} ({some(fit.missing)})": fit.missing,
                 f"it has {len(fit.unexpected)} others ({some(fit.unexpected)})": fit.unexpected,
                 f"{len(fit.differ)} differ ({first})": fit.differ}  # fmt: skip
        told = ", ".join(text for text, names in parts.items() if names)
        if not self.rename and (pair := _suggested(own, found)) is not None:
            return f"{told}; write rename={{{pair[0]!r}: {pair[1]!r}}}"
        if fit.differ and all(_longer(own[name], found[name]) for name in fit.differ):
            return f"{told}; write grow={','.join(fit.differ)!r} to keep the rows beyond as initialised"
        if not fit.matched:
            return f"{told}; write rename={{'OLD.': 'NEW.'}} to map names"
        return f"{told}; write strict=False to begin with the {len(fit.matched)} that fit"


def changed(module: Any, change: Callable[[nn.Module], nn.Module]) -> Any:
    """A changed copy of a module; or, of a function that makes one, a function that makes it changed."""
    if isinstance(module, nn.Module):
        return change(copy.deepcopy(getattr(module, "_orig_mod", module)))

    def build() -> nn.Module:
        built = module()
        return change(getattr(built, "_orig_mod", built))

    return build


def loaded(module: Any, weights: Weights | Source) -> Any:
    """A copy of a module with these weights; or, of a function that makes one, a function that makes it with them.

    >>> base = nn.Linear(2, 1)
    >>> torch.equal(loaded(nn.Linear(2, 1), base.state_dict()).weight, base.weight)
    True
    """
    chosen = weights if isinstance(weights, Weights) else Weights(weights)

    def load(module: nn.Module) -> nn.Module:
        chosen.into(module)
        return module

    return changed(module, load)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Nothing in it is run. Raises ConfigError."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(files.plain(path))
        with files.opened(path) as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as e:
        raise ConfigError(f"can't read {path}: {e.strerror or e}") from None
    except Exception as e:  # safetensors, zip and pickle have errors of their own
        why = first_line(e) if path.suffix == ".safetensors" else "it is no file of tensors alone"
        raise ConfigError(f"can't read {path}: {why}; write it by torch.save(module.state_dict(), PATH)") from None
    for key in ("state_dict", "model"):
        found = found[key] if isinstance(found, Mapping) and isinstance(found.get(key), Mapping) else found
    tensors = {k: t for k, t in found.items() if isinstance(t, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise ConfigError(f"{path} holds no state dict; write it by torch.save(module.state_dict(), PATH)")
    return tensors


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in module.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}


def _is_under(name: str, old: str) -> bool:
    return name == old or (old[-1:] in ("", ".") and name.startswith(old))


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    old = max((old for old in rename if _is_under(name, old)), key=len, default=None)
    return name if old is None else rename[old] + name[len(old) :]


def _fits(own: Tensor, found: Tensor) -> bool:
    if nn.parameter.is_lazy(own):
        return True
    return own.shape == found.shape and own.is_floating_point() == found.is_floating_point()


def _longer(own: Tensor, found: Tensor) -> bool:
    """Whether it differs from the file's in having more rows."""
    return own.ndim == found.ndim > 0 and len(own) > len(found) and _fits(own[: len(found)], found)


def _kind(t: Tensor) -> str:
    shape = "lazy" if nn.parameter.is_lazy(t) else str(tuple(t.shape))
    return shape if t.is_floating_point() else f"{shape} {t.dtype}".replace("torch.", "")


def _suggested(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """A prefix in the file and its place in the module by which most fits, if that is more than without."""

    def heads(names: Iterable[str]) -> list[str]:
        """Prefixes of at least half of the names."""
        names = list(names)
        counts = Counter(name[: i + 1] for name in names for i, c in enumerate(name) if c == ".")
        return ["", *(head for head, count in counts.items() if 2 * count >= len(names))]

    def fitting(pair: tuple[str, str]) -> int:
        named = ((_renamed(name, dict([pair])), t) for name, t in found.items())
        return sum(name in own and _fits(own[name], t) for name, t in named)

    best = max(((old, new) for old in heads(found) for new in heads(own)), key=fitting)
    return best if fitting(best) > fitting(("", "")) else None
