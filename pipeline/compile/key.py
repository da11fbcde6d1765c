"""Keys: all that a compiled program depends on: the graph, its constants, the machine and the settings.

Each step is traced before its key is known, so a program from disk has the same graph.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch.fx import GraphModule

from pipeline import files
from pipeline.compile.passes import nodes
from pipeline.compile.tracing import Traced

_VARIABLES = ("TORCHINDUCTOR_", "TORCH_COMPILE", "CXX")


def identity(traced: Traced, settings: str) -> dict[str, Any] | None:
    """All that a program depends on, as JSON; None if the graph calls operations that its text does not define.

    `settings` are the backend's.
    """
    graph = hashlib.sha256()
    for module in traced.graph.modules():
        if isinstance(module, GraphModule):
            graph.update(module.code.encode())
    for node in nodes(traced.graph):
        if node.op == "call_function" and not _known(node.target):
            return None
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, Tensor):
            graph.update(repr((value.shape, value.stride(), value.dtype, value.device)).encode())
    for tensor in traced.constants:
        plain = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        graph.update(plain.view(torch.uint8).numpy().tobytes())
    return {**machine(), "graph": graph.hexdigest(), "settings": [*_settings(), settings]}


def _known(target: Any) -> bool:
    """Whether an operation is torch's or Python's, so that its version defines it."""
    builtin = str(getattr(target, "namespace", "")) in ("aten", "prims", "prim")
    return builtin or target is scan_op or target.__class__.__module__ == "builtins"


@cache  # constants of this process, from the files at its start
def machine() -> Mapping[str, Any]:
    """Versions, the code of the compile layer, and the processor."""
    try:
        described = files.read(Path("/proc/cpuinfo")).decode(errors="replace").split("\n\n")[0].splitlines()
        keep = ("vendor_id", "model name", "flags", "Features")
        processor = "\n".join(line for line in described if line.startswith(keep))
    except OSError:
        processor = platform.processor()
    code = hashlib.sha256()
    for path in sorted(p for p in Path(__file__).parent.rglob("*") if p.suffix in (".py", ".cpp")):
        code.update(files.read(path))
    return {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "processor": hashlib.sha256(processor.encode()).hexdigest()[:16],
        "pipeline": code.hexdigest()[:16],
    }


def _settings() -> list[str]:
    """Global settings of torch that compilers follow."""
    # Inductor sets the folder of its cache at import; no code depends on it.
    variables = {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES) and k != "TORCHINDUCTOR_CACHE_DIR"}
    numbers = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    kinds = torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.enabled
    return [repr(part) for part in (*numbers, *kinds, sorted(variables.items()))]
