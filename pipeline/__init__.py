"""Training composed from pure step functions.

The modules are the steps of the training loop, in its order; a Pipeline is a sequence of their stages.
"""

from functools import partial
from types import ModuleType

from torch import dtype

from pipeline import (
    backward,
    checkpoint,
    evaluate,
    forward,
    load,
    log,
    loss,
    mesh,
    models,
    order,
    place,
    plot,
    schedules,
    sources,
    until,
    update,
)
from pipeline.compile import Compiled
from pipeline.ensembles import Ensemble, ensemble
from pipeline.errors import PipeError
from pipeline.loop import fit
from pipeline.pipe import Pipeline
from pipeline.plot import Reports
from pipeline.profiling import profile
from pipeline.runs import load_run
from pipeline.schedules import Schedule
from pipeline.stage import Stage, stage
from pipeline.state import Batch, Report, State
from pipeline.sweeps import Sweep, sweep

__all__ = [
    "Batch",
    "Compiled",
    "Ensemble",
    "PipeError",
    "Pipeline",
    "Report",
    "Reports",
    "Schedule",
    "Stage",
    "State",
    "Sweep",
    "backward",
    "checkpoint",
    "ensemble",
    "evaluate",
    "fit",
    "forward",
    "load",
    "load_run",
    "log",
    "loss",
    "mesh",
    "models",
    "order",
    "place",
    "plot",
    "profile",
    "schedules",
    "sources",
    "stage",
    "sweep",
    "until",
    "update",
]


def _public(module: ModuleType) -> list[str]:
    """What completion shows of a module: its `__all__`, or else its own functions, classes and dtypes."""
    own = [
        name for name, x in vars(module).items()
        if not name.startswith("_")
        and (isinstance(x, dtype) or str(getattr(x, "__module__", "")).startswith(module.__name__))
    ]  # fmt: skip
    return sorted(getattr(module, "__all__", own))


for _module in [x for x in [*globals().values()] if isinstance(x, ModuleType)]:
    if _module.__name__.removeprefix(f"{__name__}.") in __all__:
        vars(_module)["__dir__"] = partial(_public, _module)
