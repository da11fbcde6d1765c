"""Fine-tuning: the weights that a run begins from, and what of them is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from cli.recipes.setting import at_least, below_one, flag, refusal, setting

if TYPE_CHECKING:
    from torch import nn

    from pipeline.module import Build, Weights
    from pipeline.stage import Stage

OF = {
    "rename": "init", "grow": "init", "strict": "init", "init_sha256": "init", "lora_targets": "lora",
    "lora_alpha": "lora", "lora_dropout": "lora", "lora_full": "lora", "thaw": "freeze",
}  # fmt: skip
"""A setting -> the one that it needs."""


@frozen
class Finetune:
    """What a run begins from, and what of it is trained."""

    init: str | None = setting(
        None,
        "weights to begin from: .safetensors, .pt, or the folder of a run or of transformers  [default: random ones]",
        fixed=True,
    )
    rename: tuple[str, ...] | None = setting(
        None, "with --init: OLD=NEW, of names in the file; one that ends with a dot, or is empty, is a prefix",
        fixed=True,
    )  # fmt: skip
    grow: str | None = setting(
        None, "with --init: patterns of tensors that may have more rows here, such as an embedding", fixed=True
    )
    strict: bool | None = setting(
        None, "with --init: refuse a file unless all names and shapes fit  [default: on]", fixed=True
    )
    init_sha256: str | None = setting(
        None, "with --init: the file's checksum, without which it is refused; a run records it", fixed=True
    )

    lora: int | None = setting(
        None, "rank of trained additions to layers that are frozen  [default: none]", at_least(1), fixed=True
    )
    lora_targets: str | None = setting(
        None, 'with --lora: layers by name, the end of it, or pattern: "q_proj,blocks.*"  [default: all linear ones]',
        fixed=True,
    )  # fmt: skip
    lora_alpha: float | None = setting(
        None, "with --lora: they count alpha / rank  [default: rank]", at_least(0, True), fixed=True
    )
    lora_dropout: float | None = setting(None, "with --lora: of their inputs  [default: 0]", below_one, fixed=True)
    lora_full: str | None = setting(
        None, "with --lora: modules that are trained in full, such as a new head, likewise by name", fixed=True
    )
    freeze: str | None = setting(
        None, 'parameters that are not trained, by patterns of their names: "body.*,!*.bias"', fixed=True
    )
    thaw: int | None = setting(
        None, "with --freeze: epochs after which they are trained  [default: never]", at_least(1), fixed=True
    )

    def __attrs_post_init__(self) -> None:
        for name, of in OF.items():
            if getattr(self, of) is None and getattr(self, name) is not None:
                raise refusal(f"{flag(name)} needs {flag(of)}; add it")
        if self.lora is not None and self.freeze is not None:
            raise refusal("--lora freezes all but its additions; leave out --freeze, or see --set lora_full")
        for pair in self.rename or ():
            if "=" not in pair:
                raise refusal(f"--rename {pair!r} is no OLD=NEW, such as module.= or =model.")

    def sealed(self) -> Finetune:
        """With the checksum of the file."""
        return self if self.init is None or self.init_sha256 is not None else evolve(self, init_sha256=self._sha256())

    def weights(self) -> Weights | None:
        """The weights to begin from. Raises ConfigError if the file is gone or is another."""
        from pipeline import models

        if self.init is None:
            return None
        if self.init_sha256 not in (None, now := self._sha256()):
            raise refusal(
                f"{self.init} is another file than the run began from: its SHA-256 is {now[:12]}, not "
                f"{str(self.init_sha256)[:12]}; bring that back, or name another by --init in a new run"
            )
        pairs: Any = dict(pair.split("=", 1) for pair in self.rename or ())
        if self.rename is None and Path(self.init, "config.json").is_file():
            pairs = None  # of transformers, whose models we wrap
        return models.Weights(self._path, rename=pairs, grow=self.grow or "", strict=self.strict is not False)

    def built(self, build: Build, weights: Weights | None = None) -> Build:
        """A function that makes the module with these weights, and what is frozen and added."""
        from pipeline.module.weights import changed

        def change(module: nn.Module) -> nn.Module:
            own = dict(module.named_parameters())
            random = () if weights is None else weights.into(module).initialised
            result = self._trained(module)
            for name in random:
                if name in own and not own[name].requires_grad:
                    instead = "--set lora_full" if self.lora is not None else "!NAME in --freeze"
                    raise refusal(f"{name} is not in {self.init}, and would be frozen at random values; see {instead}")
            return result

        plain = self.init is None and self.lora is None and self.freeze is None
        return build if plain else changed(build, change)

    def rule(self, rule: Stage, batches: int | None) -> Stage:
        """The update of all parameters, those that thaw included, by the update of others."""
        from pipeline import update

        if self.freeze is None or self.thaw is None:
            return rule
        if batches is None:
            raise refusal("--thaw needs data of a known length")
        return update.groups({self.freeze: update.thawed(rule, at=self.thaw * batches)}, otherwise=rule)

    def _trained(self, module: nn.Module) -> nn.Module:
        """The module with its additions, or with parameters frozen."""
        from pipeline import models
        from pipeline.text import some
        from pipeline.update.select import holds

        if self.lora is not None:
            adapted: nn.Module = models.lora(
                lambda: module, self.lora, self.lora_targets, alpha=self.lora_alpha, dropout=self.lora_dropout or 0.0,
                full=self.lora_full or (),
            )()  # fmt: skip
            return adapted
        if self.freeze is not None and self.thaw is None:
            own = dict(module.named_parameters())
            chosen = [name for name, p in own.items() if holds(self.freeze, name, p)]
            if len(chosen) in (0, len(own)):
                which = "all" if chosen else "none"
                raise refusal(f"--freeze {self.freeze!r} matches {which} of the parameters {some(own)}")
            for name in chosen:
                own[name].requires_grad_(False)
        return module

    @property
    def intact(self) -> bool:
        """Whether the file is there, as it was."""
        from pipeline.errors import ConfigError

        try:
            return self.init is None or self._sha256() == self.init_sha256
        except ConfigError:
            return False

    @property
    def _path(self) -> Path:
        """The file; in a run's folder, the weights of its best epoch, or else the last."""
        from cli.folder import BEST, WEIGHTS

        path = Path(self.init or "")
        return next((path / name for name in (BEST, WEIGHTS) if (path / name).is_file()), path)

    def _sha256(self) -> str:
        from cli import seal
        from cli.folder import WEIGHTS
        from pipeline import files

        if (path := self._path).is_dir():
            pickled = next(
                (f" ({p.name} is read from no folder: a pickle may run code)" for p in path.glob("*.bin")), ""
            )
            parts = " in one file" if any(path.glob("*.safetensors")) else ""
            raise refusal(
                f"{path} has no {WEIGHTS}{parts}{pickled}; write it by transformers' model.save_pretrained(FOLDER, "
                "max_shard_size='1TB')"
            )
        try:
            return files.sha256(seal.checked(path))
        except OSError as e:
            raise refusal(f"can't read {self._path}, which the run begins from: {e.strerror or e}") from None
