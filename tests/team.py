"""A few processes that run the same function of `tests.on_mesh` together, as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests import forked

ROOT = Path(__file__).parent.parent
TEAM = "from tests import team; team.main()"


def launch(count, function, *args, timeout=240, check=True):
    """What process 0's function returned, of `count` processes; their errors, where they failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "made.pt"
        port = _free()
        started = []
        for rank in range(count):
            env = {
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_PORT": port,
                "MASTER_ADDR": "localhost", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
            }  # fmt: skip
            started.append(forked.Process(function, out, *args, env=env, cwd=ROOT, code=TEAM))
        try:
            said = [p.communicate(timeout=timeout) for p in started]
        finally:
            for p in started:
                p.kill()
                p.wait()
        codes = [p.returncode for p in started]
        if check:
            assert codes == [0] * count, "\n".join(err for _, err in said)[-4000:]
            return torch.load(out) if out.exists() else None
        return codes, said


@contextlib.contextmanager
def started(command, **options):
    """A process, which does not outlive the test."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def _free():
    import socket

    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


def main():
    from tests import on_mesh

    torch.set_num_threads(1)
    name, out, *args = sys.argv[1:]
    made = getattr(on_mesh, name)(*args)
    if os.environ["RANK"] == "0":
        torch.save(made, out)
