"""Fine-tuning: the weights that a run begins from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from cli.recipes.setting import flag, refusal, setting

if TYPE_CHECKING:
    from pipeline.module import Weights


@frozen
class Finetune:
    """What a run begins from."""

    init: str | None = setting(
        None, "weights to begin from: .safetensors, .pt, or the folder of a run  [default: random ones]", fixed=True
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

    def __attrs_post_init__(self) -> None:
        for name in ("rename", "grow", "strict", "init_sha256"):
            if self.init is None and getattr(self, name) is not None:
                raise refusal(f"{flag(name)} is about weights to begin from; add --init FILE")
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
        pairs = dict(pair.split("=", 1) for pair in self.rename or ())
        return models.Weights(self._path, rename=pairs, grow=self.grow or "", strict=self.strict is not False)

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
        from pipeline import files

        try:
            return files.sha256(seal.checked(self._path))
        except OSError as e:
            raise refusal(f"can't read {self._path}, which the run begins from: {e.strerror or e}") from None
