"""Is a step on a mesh as fast as PyTorch's DistributedDataParallel and FSDP2, and as small?

`python -m benchmarks.mesh`. The same work on two processes (gloo, one thread each), in turn within one run: a round is
so many steps of each contender, and a ratio is of one round. All begin anew, on the same samples, a new order each
epoch. Memory is each process's peak beyond what it had before the contender began, in a run of its own: once it trains,
and at the start, with compiling.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import report
from pipeline import Pipeline, backward, evaluate, forward, load, loss, models, place, sources, update

PROCESSES = 2
CONTENDERS = ("ours, data parallel", "DistributedDataParallel", "ours, sharded", "FSDP2")
AGAINST = {"ours, data parallel": "DistributedDataParallel", "ours, sharded": "FSDP2"}
ROUNDS = {"mlp": 21, "gpt": 11, "large": 4}
STEPS = {"mlp": 100, "gpt": 10, "large": 2}

GPT: dict[str, dict[str, Any]] = {
    "gpt": {"vocabulary": 256, "context": 64, "width": 128, "heads": 4, "depth": 4},
    "large": {"vocabulary": 4096, "context": 64, "width": 512, "heads": 8, "depth": 8},
}


def data(case: str) -> tuple[dict[str, Tensor], int, Callable[[], nn.Module], int]:
    """Samples, the batch size, the model, and the dimension of the classes."""
    if case == "mlp":
        train, _ = sources.digits()
        return dict(train.tensors), 64, lambda: models.mlp(64, 128, 10), 1
    options = GPT[case]
    tokens = torch.randint(options["vocabulary"], (256, options["context"] + 1))
    made = {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
    return made, 8, lambda: models.transformer(**options), -1


def ours(case: str, shard: int) -> Callable[[int], None]:
    tensors, size, build, dim = data(case)
    pipe = Pipeline(
        load.batches(tensors, size=size, drop_last=True),
        place.mesh("cpu", shard=shard),
        forward.model(build),
        loss.cross_entropy(dim=dim),
        evaluate.accuracy(dim=dim),
        backward.gradients(),
        update.clip_norm(1.0),
        update.adamw(1e-3),
    )
    program, state = pipe.compile(), pipe.init(0)
    program.prepare(state)
    held = {"state": state, "at": 0}

    def steps(count: int) -> None:
        assert pipe.load is not None
        assert pipe.load.batches
        for _ in range(count):
            epoch, k = divmod(held["at"], pipe.load.batches)
            held["state"], _ = program.advance(held["state"], epoch, k, 1)
            held["at"] += 1

    return steps


def theirs(case: str, sharded: bool) -> Callable[[int], None]:
    """The loop as the documentation of torch has it, with the accuracy and the loss of an epoch added up."""
    tensors, size, build, dim = data(case)
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    module: nn.Module = build()
    if sharded:
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
        for block in getattr(module, "blocks", ()):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
    else:
        module = nn.parallel.DistributedDataParallel(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    sums = torch.zeros(2)
    order: dict[str, Any] = {"at": 0, "indices": torch.empty(0, dtype=torch.int64)}
    n = len(tensors["inputs"]) // size

    def steps(count: int) -> None:
        for _ in range(count):
            k = order["at"] % n
            if k == 0:
                order["indices"] = torch.randperm(
                    len(tensors["inputs"]), generator=torch.Generator().manual_seed(order["at"])
                )
            own = order["indices"][k * size : (k + 1) * size][rank * size // world : (rank + 1) * size // world]
            inputs, targets = tensors["inputs"][own], tensors["targets"][own]
            optimizer.zero_grad()
            outputs = module(inputs).movedim(dim, 1)
            value = F.cross_entropy(outputs, targets)
            value.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                sums.add_(torch.stack([value, (outputs.argmax(1) == targets).float().mean()]))
            order["at"] += 1

    return steps


def made(name: str, case: str) -> Callable[[int], None]:
    if name.startswith("ours"):
        return ours(case, PROCESSES if "sharded" in name else 1)
    return theirs(case, name == "FSDP2")


def peak() -> float:
    """The most megabytes that were resident since the start, or since `forget()`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def worker(path: str, case: str, names: list[str]) -> None:
    """In each process: rounds of seconds a step, and megabytes."""
    torch.set_num_threads(1)
    place.mesh("cpu")  # connects
    if case == "parts":
        measured = parts()
        if dist.get_rank() == 0:
            Path(path).write_text(json.dumps(measured), encoding="utf-8")
        return
    before = peak()
    contenders = {name: made(name, case) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for steps in contenders.values():
        steps(STEPS[case])
    begun = peak() - before
    forget()
    for _ in range(ROUNDS[case]):
        for name, steps in contenders.items():
            dist.barrier()
            began = time.perf_counter()
            steps(STEPS[case])
            dist.barrier()
            seconds[name].append((time.perf_counter() - began) / STEPS[case])
    if dist.get_rank() == 0:
        Path(path).write_text(
            json.dumps({"seconds": seconds, "begun": begun, "peak": peak() - before}), encoding="utf-8"
        )


SIZES = {"4 B": 1, "8 MB": 2**21, "32 MB": 2**23}


def parts() -> dict[str, dict[str, float]]:
    """Seconds of each collective by the bytes that a process has before it (all-reduce, reduce-scatter) or after it."""
    group, found = dist.group.WORLD, dict[str, dict[str, float]]()
    for words, numbers in SIZES.items():
        whole, part = torch.ones(max(numbers, PROCESSES)), torch.ones(max(numbers // PROCESSES, 1))
        calls: dict[str, Callable[[], Any]] = {
            "all-reduce": lambda whole=whole: dist.all_reduce(whole, group=group),
            "all-gather": lambda whole=whole, part=part: dist.all_gather_into_tensor(whole, part, group=group),
            "reduce-scatter": lambda whole=whole, part=part: dist.reduce_scatter_tensor(part, whole, group=group),
        }
        for name, call in calls.items():
            times = []
            for _ in range(15):
                dist.barrier()
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
            found.setdefault(name, {})[words] = statistics.median(times)
    return found


def launched(case: str, names: list[str]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
        own = ["-m", "benchmarks.mesh", "worker", file.name, case, *names]
        subprocess.run([*command, *own], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found: dict[str, Any] = json.loads(Path(file.name).read_text(encoding="utf-8"))
        return found


def main(cases: list[str]) -> None:
    results: dict[str, Any] = {}
    lines = ["| work | contender | us a step | quartiles | against | ratio | MB training | MB at the start |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for case in cases or list(STEPS):
        timed = launched(case, list(CONTENDERS))["seconds"]
        for name in CONTENDERS:
            memory = launched(case, [name])  # what is compiled is in Inductor's cache since the run before
            us = [1e6 * x for x in timed[name]]
            other = AGAINST.get(name)
            ratio = None
            if other is not None:
                ratio = statistics.median(a / b for a, b in zip(timed[name], timed[other], strict=True))
            low, middle, high = statistics.quantiles(us, n=4)
            results.setdefault(case, {})[name] = {
                "us": middle, "quartiles": [low, high], "against": other, "ratio": ratio, "training MB": memory["peak"],
                "start MB": memory["begun"], "rounds": len(us), "steps": STEPS[case],
            }  # fmt: skip
            lines.append(
                f"| {case} | {name} | {middle:,.0f} | {low:,.0f} to {high:,.0f} | {other or ''} | "
                f"{'' if ratio is None else f'{ratio:.2f}'} | {memory['peak']:,.0f} | {memory['begun']:,.0f} |"
            )
            print(lines[-1], flush=True)
    collectives = launched("parts", [])
    lines += ["", f"| collective | {' | '.join(SIZES)} |", f"| --- {'| --- ' * len(SIZES)}|"]
    lines += [f"| {k} | {' | '.join(f'{1e3 * x:.2f} ms' for x in v.values())} |" for k, v in collectives.items()]
    print("\n".join(lines[-4:]))
    if not cases:
        about = (
            "Two processes of one machine, gloo, one thread each; `python -m benchmarks.mesh`. Megabytes are beyond "
            "what a process\nhad before: mlp has 9,610 parameters, gpt 0.9 M, large 29.5 M."
        )
        text = "\n".join([about, "", *lines])
        question = str(__doc__).splitlines()[0]
        report.save("mesh", question, text, processes=PROCESSES, cases=results, collectives=collectives)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        main(sys.argv[1:])
