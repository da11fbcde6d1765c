"""An accelerator for tests, `torch.device("sim")`, on any machine: see device.cpp.

It is there for who asks for it by name; "auto" takes it only within `sim.chosen()`.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import subprocess
import tempfile
import types
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("device.cpp")


@functools.cache
def load() -> torch.device:
    """The device, registered with torch; its library is compiled once for a machine, which takes 15 s."""
    built = _built()
    torch.ops.load_library(str(built))
    torch.utils.rename_privateuse1_backend("sim")
    module = types.ModuleType("torch.sim")
    facts = {
        "is_available": torch.ops.sim.is_available,
        "is_initialized": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda seed: None,
        "mem_get_info": lambda device=None: (2**33, 2**34),
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
    }
    for name, function in facts.items():
        setattr(module, name, function)
    torch._register_device_module("sim", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.ops.sim.setup()
    return torch.device("sim", 0)


def _built() -> Path:
    """The library, in a folder of this user's."""
    root = Path(torch.__file__).parent
    flags = [
        "-O1",
        "-std=c++20",
        "-shared",
        "-fPIC",
        "-w",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
    ]
    include = [f"-I{root / 'include'}", f"-I{root / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    key = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {flags}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"pipe-sim-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} is somebody else's"
    built = folder / f"{key}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            part = built.with_suffix(".part")
            libraries = [f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
            compiler = os.environ.get("CXX", "g++")
            subprocess.run([compiler, *flags, *include, str(SOURCE), "-o", str(part), *libraries], check=True)
            part.replace(built)
    return built


@contextlib.contextmanager
def switched(name: str, on: bool | int, off: bool | int):
    """Within it, one of the device's switches is on."""
    switch = getattr(torch.ops.sim, name)
    switch(on)
    try:
        yield
    finally:
        switch(off)


def chosen():
    """Within it, the device is what "auto" means."""
    return switched("available", True, False)


def hurried():
    """Within it, what waits for the device is an error."""
    return switched("forbid_waits", True, False)


def without_float64():
    """Within it, the device has no float64."""
    return switched("float64", False, True)


def host_numbers():
    """Within it, 0-d tensors of the host mix with the device's, as on a GPU: torch.vmap makes such of Python's
    numbers."""
    return switched("host_numbers", True, False)


def limited(size: int):
    """Within it, so many bytes more can be allocated."""
    return switched("limit", size, 0)
