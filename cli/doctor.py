"""What training needs of a machine: versions, compiler, cores, memory, disk, cache."""

from __future__ import annotations

import os
import platform
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen

from cli.program_cache import size
from cli.version import own_version
from pipeline import files, memory, place
from pipeline.compile import cache
from pipeline.compile.backends import native
from pipeline.errors import PipeError

SMALL_MEMORY, SMALL_DISK = 2**30, 2**30
"""Free bytes below which training may fail."""
NO_MEMORY, NO_DISK = 2**28, 2**25
"""Free bytes below which it does."""
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
"""Instructions of processors that matter, as Linux names them."""


@frozen
class Check:
    """Something that training needs."""

    name: str
    found: str
    state: str = "ok"
    """ok, slow or stops."""
    advice: str = ""


def examined() -> list[Check]:
    """All checks, in the order in which they are shown."""
    folders = {"temp": Path(tempfile.gettempdir()), "runs": Path("runs") if Path("runs").is_dir() else Path()}
    return [
        Check("versions", f"pipe-train {own_version()}, torch {torch.__version__}, Python {platform.python_version()}"),
        compiler(), headers(), cores(), processor(), gpu(), programs(), free_memory(),
        *(disk(name, folder) for name, folder in folders.items()),
    ]  # fmt: skip


def facts(found: Sequence[Check]) -> dict[str, Any]:
    """The checks as one object; `ok` if nothing stops training."""
    return {"ok": all(check.state != "stops" for check in found), "checks": [asdict(check) for check in found]}


def lines(found: Sequence[Check]) -> list[str]:
    """The checks, then advice for each that is slow or stops training."""
    shown = [f"{check.name:<10}{check.found}" for check in found]
    bad = [f"{check.state:<6}{check.name}: {check.advice}" for check in found if check.state != "ok"]
    return [*shown, "", *(bad or ["all is well"])]


def compiler() -> Check:
    try:
        name, seconds = native.trial()
    except PipeError as e:
        return Check(
            "compiler", str(e), "slow", "runs are uncompiled without one; install g++ or set CXX to a compiler"
        )
    return Check("compiler", f"{name}, which compiles three lines in {seconds:.1f} s")


def headers() -> Check:
    path = Path(sysconfig.get_paths()["include"], "Python.h")
    if path.exists():
        return Check("headers", str(path))
    return Check("headers", f"no {path}", "slow", "--backend inductor needs it; install Python's headers (python3-dev)")


def cores() -> Check:
    """Cores of the machine, and how many of them this process gets."""
    have, may, quota, given = os.cpu_count() or 1, len(os.sched_getaffinity(0)), _quota(), torch.get_num_threads()
    usable = min(may, max(int(quota), 1)) if quota else may
    found = f"{usable} of {have} cores, {given} threads, load {os.getloadavg()[0]:.1f}"
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked and not (asked.isdecimal() and 1 <= int(asked) <= usable):
        return Check("cores", found, "slow", f"OMP_NUM_THREADS={asked} is not from 1 to {usable}; unset it")
    if given > usable:
        why = f"this container may use {quota:g} cores, and torch starts {given} threads"
        return Check("cores", found, "slow", f"{why}; set OMP_NUM_THREADS={usable}")
    if asked and int(asked) < usable:
        return Check("cores", found, "slow", f"OMP_NUM_THREADS={asked} leaves {usable - int(asked)} unused; unset it")
    if os.getloadavg()[0] > have:
        return Check("cores", found, "slow", "other processes take the cores; wait for them")
    return Check("cores", found)


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The cores that the control group of this process may use; None if it has no limit."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = files.read(root / "cpu.max").split()
        return None if limit == b"max" else int(limit) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = (files.read(root / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
        return int(limit) / int(period) if int(limit) > 0 else None
    return None


def processor() -> Check:
    words: set[str] = set()
    with suppress(OSError):
        for line in files.read(Path("/proc/cpuinfo")).decode(errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                words = {*line.split()}
                break
    known = [name for name in INSTRUCTIONS if name in words]
    found = f"{platform.machine()}: {', '.join(known) or 'no vectors known'}"
    if platform.machine() == "x86_64" and words and "avx2" not in words:
        return Check(
            "processor", found, "slow", "it has no AVX2, so kernels are several times as slow; take a newer one"
        )
    return Check("processor", found)


def gpu() -> Check:
    device = place.resolve("auto")
    if device.type != "cpu":
        free = memory.size(place.free_memory(device))
        return Check(
            "GPU", f"{torch.cuda.get_device_name(device)}, {free} free" if device.type == "cuda" else str(device)
        )
    if not Path("/dev/nvidia0").exists():
        return Check("GPU", "none")
    why = (
        f"torch {torch.__version__} is built without CUDA"
        if torch.version.cuda is None
        else "its driver does not answer"
    )
    return Check("GPU", f"one that torch does not see: {why}", "slow", "install torch with CUDA, or the driver")


def programs() -> Check:
    """The cache of compiled programs."""
    folder = cache.folder()
    found = f"{folder}, {memory.size(size(folder))} in {len(cache.folders())} programs"
    if not cache.usable():
        why = cache.refusal() or "it can't be written; set PIPE_CACHE to a folder of your own"
        return Check("cache", f"{found}, none of which is loaded", "slow", f"each run compiles again: {why}")
    return Check("cache", f"{found}, which are loaded")


def free_memory() -> Check:
    free = memory.free()
    return Check("memory", f"{memory.size(free)} free", *_short(free, NO_MEMORY, SMALL_MEMORY, "end other processes"))


def disk(name: str, folder: Path) -> Check:
    """Space and rights in a folder."""
    path = folder.resolve()
    try:
        status = os.statvfs(path)
    except OSError as e:
        return Check(name, f"{path}: {e.strerror}", "stops", "make the folder")
    free = status.f_bavail * status.f_frsize
    found = f"{path}, {memory.size(free)} free"
    if not os.access(path, os.W_OK | os.X_OK):
        other = "set TMPDIR to another folder" if name == "temp" else "give another folder by --out"
        return Check(name, f"{found}, not writable", "stops", other)
    if name == "temp" and status.f_flag & os.ST_NOEXEC:
        return Check(name, f"{found}, noexec", "slow", "programs are not run from there; set TMPDIR to another folder")
    return Check(name, found, *_short(free, NO_DISK, SMALL_DISK, "remove files, such as old runs, or pipe cache clear"))


def _short(free: float, least: float, small: float, advice: str) -> tuple[str, str]:
    """The state and the advice for so many free bytes."""
    if free >= small:
        return "ok", ""
    return ("stops" if free < least else "slow"), f"{memory.size(free)} is too little; {advice}"
