"""Files from a stranger: numbers that fit in nothing, wrong types, code that nobody named, bombs and broken formats."""

from __future__ import annotations

import gzip
import io
import json
import re
import resource
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.attack import made
from tests.attack.ground import Attack, Ground, Said

HUGE = 10**23
VALUES: dict[str, Any] = {
    "2**40": 2**40, "23 digits": HUGE, "-1": -1, "0": 0, "1e308": 1e308, "NaN": float("nan"), "Infinity": float("inf"),
    "a text": "x", "an empty text": "", "a list": [1, "a"], "a table": {"a": 1}, "true": True, "null": None,
    "a NUL": "a\0b", "a surrogate": "\udcff", "a way up": "../../../victim/file", "a path": "/etc/passwd",
    "a long text": "x" * 100_000, "a device": "/dev/zero", "deep": "[" * 30_000,
}  # fmt: skip
CODE = "import os, pathlib\npathlib.Path('RAN').write_text('')\ndef make(*a, **k): raise SystemExit(0)\nmake.ran = 1\n"
NAMED = ("code.py:make", "./code.py:make", "code:make", "CODE.py:make", "sub/../code.py:make", " code.py:make")
SETTINGS = (
    "data.source model.name pipeline.name optimizer.name loss.name schedule.name data.tokenizer data.test"
    " data.augment run.backend model.config run.best run.device run.out data.task"
)
FLAGS = (
    "--epochs --batch-size --hidden --lr --seed --seeds --set=keep --save-steps --set=save_minutes --ensemble --folds"
    " --set=fold --clip --ema --warmup --threads --minutes --patience --set=workers --accumulate --held-out"
    " --weight-decay --set=steps_per_call --momentum --set=timeout --set=split_seed --shard --set=smoothing --dropout"
)


def attacks(plan: Ground) -> Iterator[Attack]:
    yield from _json(plan)
    yield from _code(plan)
    yield from _settings()
    yield from _data()


# Files of a run


def _json(plan: Ground) -> Iterator[Attack]:
    for name, file in (
        ("run", "data.json"), ("table", "data.json"), ("run", "status.json"), ("run", "metrics.jsonl"),
        ("run", "checkpoints/step-000000004/checkpoint.json"), ("sweep", "sweep.json"), ("run", "config.toml"),
        ("sweep", "members/000/metrics.jsonl"), ("sweep", "members/000/status.json"), ("ensemble", "data.json"),
    ):  # fmt: skip
        path = plan.made / name / file
        if not path.exists():
            continue
        words = [w for w in made.commands(name) if w not in ("eval last", "train again", "export")]
        for at in _paths(_loaded(path)):
            for value in VALUES:
                for word in words:
                    what = f"{name}/{file}: {'.'.join(map(str, at)) or 'all'} is {value}"
                    yield Attack("hostile", word, what, partial(_put, name, file, at, value, word))


def _loaded(path: Path) -> Any:
    text = path.read_text()
    if path.suffix == ".toml":
        import tomllib

        return tomllib.loads(text)
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def _paths(found: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    pairs = found.items() if isinstance(found, dict) else enumerate(found[:2]) if isinstance(found, list) else ()
    for key, inner in pairs:
        yield from _paths(inner, (*at, key))


def _put(name: str, file: str, at: tuple[Any, ...], value: str, word: str, ground: Ground) -> None:
    made.data(ground)
    path = ground.copy(name) / file
    found: Any = _loaded(path)
    new = VALUES[value]
    if at:
        inner = found
        for key in at[:-1]:
            inner = inner[key]
        inner[at[-1]] = new
    else:
        found = [new] if path.suffix == ".jsonl" else new
    if path.suffix == ".toml":
        text = _toml(found) if isinstance(found, dict) else str(found)
    else:
        lines = found if path.suffix == ".jsonl" else [found]
        text = "\n".join(json.dumps(line) for line in lines) + "\n"
    if value == "deep":
        text = text.replace(json.dumps(new), "[" * 30_000 + "]" * 30_000)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    _bounded(ground, *made.commands(name)[word])


def _toml(found: dict[str, Any], inner: str = "") -> str:
    """TOML, of values too that a writer of TOML refuses."""
    plain = [f"{json.dumps(k)} = {_number(v)}" for k, v in found.items() if not isinstance(v, dict) or not v]
    tables = [(k, v) for k, v in found.items() if isinstance(v, dict) and v]
    return (
        "\n".join(plain)
        + "\n"
        + "".join(f"[{inner}{json.dumps(k)}]\n{_toml(v, f'{inner}{json.dumps(k)}.')}" for k, v in tables)
    )


def _number(value: Any) -> str:
    text = json.dumps(value)
    return {"NaN": "nan", "Infinity": "inf", "null": '"null"'}.get(text, text)


def _bounded(ground: Ground, *args: str) -> Said:
    return ground.pipe(*args, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28)))


# Code that nobody named


def _code(plan: Ground) -> Iterator[Attack]:
    places: dict[str, tuple[str, Callable[[Path, str], None]]] = {}
    for setting in SETTINGS.split():
        table, _, key = setting.partition(".")
        places[f"{table}.{key} of a run"] = "run", partial(_set, "config.toml", (table, key))
        places[f"{table}.{key} of a sweep"] = "sweep", partial(_set, "config.toml", (table, key))
        places[f"{table}.{key} of a member"] = "sweep", partial(_set, "members/000/config.toml", (table, key))
    for key in ("data", "model", "pipeline", "optimizer", "schedule", "loss", "model.name", "data.source"):
        places[f"settings.{key} as older files have it"] = "run", partial(_set, "config.toml", ("settings", key))
        places[f"a row of sweep.json: {key}"] = "sweep", partial(_row, key)
        places[f"an axis of sweep.json: {key}"] = "sweep", partial(_axis, key)
    for key in (("fixed", "source"), ("fixed", "task"), ("fitted", "targets", "task")):
        places[f"{'.'.join(key)} of data.json"] = "run", partial(_set, "data.json", key)
    for place, (name, change) in places.items():
        for named in NAMED:
            commands = {
                **made.commands(name),
                "show": ("show", f"{name}/config.toml"),
                "bench": ("bench", f"{name}/config.toml", "--seconds", "0.05"),
                "train a file": ("train", f"{name}/config.toml", "--out", "o", "-q"),
                "train another name": ("train", f"{name}/config.toml", "--data", "mine.py:data", "--out", "o", "-q"),
            }
            for word, args in commands.items():
                if (word == "sweep on" and "member" in place) or ("mine.py:data" in args and "data.source" in place):
                    continue
                yield Attack("hostile", word, f"code: {place} is {named!r}", partial(_name, name, change, named, args))


def _set(file: str, at: tuple[str, ...], folder: Path, named: str) -> None:
    path = folder / file
    found = _loaded(path)
    inner = found
    for key in at[:-1]:
        inner = inner.setdefault(key, {})
    inner[at[-1]] = named
    path.write_text(_toml(found) if path.suffix == ".toml" else json.dumps(found))


def _row(key: str, folder: Path, named: str) -> None:
    path = folder / "sweep.json"
    found = _loaded(path)
    found["rows"] = [{**row, key: named} for row in found["rows"]]
    path.write_text(json.dumps(found))


def _axis(key: str, folder: Path, named: str) -> None:
    path = folder / "sweep.json"
    found = _loaded(path)
    found |= {"rows": [{key: named}], "widths": [], "axes": [{**found["axes"][0], "name": key, "values": [named]}]}
    path.write_text(json.dumps(found))


def _name(name: str, change: Callable[[Path, str], None], named: str, args: tuple[str, ...], ground: Ground) -> None:
    made.data(ground)
    folder = ground.copy(name)
    for file in ("code.py", "CODE.py", "sub/code.py"):
        (ground.here / file).parent.mkdir(exist_ok=True)
        (ground.here / file).write_text(CODE)
    (ground.here / "mine.py").write_text(
        "import torch\ndef data(): return {'inputs': torch.randn(60, 4), 'targets': torch.randint(0, 3, (60,))}\n"
    )
    if "mine.py:data" in args:  # one name of two is on the command line
        _set("config.toml", ("data", "source"), folder, "mine.py:data")
    if args[0] == "sweep":  # so that all of it is done again
        for there in ("chunks", "members"):
            shutil.rmtree(folder / there)
    change(folder, named)
    said = ground.pipe(*args)
    if (ground.here / "RAN").exists():
        ground.fault("ran", "code ran that was not named", said)


# Settings


def _settings() -> Iterator[Attack]:
    flags = FLAGS.split()
    values = (
        "99999999999999999999999",
        "9999999999999",
        "-1",
        "0",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "0x10",
        "",
        " 1",
        "1,1e999",
        "0.1..1:log:99999999999",
        "1" * 5000,
        "1_0",
        "٣",
        "a\u0000b",
    )
    for command in ("train", "sweep", "show"):
        for flag in flags:
            for value in values:
                if "\0" not in value:
                    yield Attack("hostile", command, f"{flag} {value[:30]!r}", partial(_flag, command, flag, value))


def _flag(command: str, flag: str, value: str, ground: Ground) -> None:
    made.data(ground)
    args = [command, "--data", "arrays.npz", f"{flag}={value}"]
    for name, usual in (("--epochs", "1"), ("--hidden", "4")):
        if name != flag:
            args += [name, usual]
    if command == "sweep" and flag != "--lr":
        args += ["--lr", "0.1,0.2"]
    if command != "show":
        args += ["--no-compile", "-q", "--out", "o"]
        if (flag, command) == ("--epochs", "train"):
            args += ["--minutes", "0.005"]  # so many may be asked for
    said = _bounded(ground, *args)
    begun = "is not finite" in said.err  # it was trained, and went wrong
    if said.code == 2 and command == "train" and not begun and list((ground.here / "o").glob("*.toml")):
        ground.fault("left", "a run's folder was made before it was refused", said)


# Data


def _data() -> Iterator[Attack]:
    for word, write in DATA.items():
        for command in ("train", "show", "init", "eval", "predict", "sweep"):
            yield Attack("hostile", command, f"data: {word}", partial(_read, word, write, command))


def _read(word: str, write: Callable[[Path], str], command: str, ground: Ground) -> None:
    file = write(ground.here)
    small = ("--epochs", "1", "--hidden", "4", "--no-compile", "-q", "--batch-size", "8")
    if command in ("eval", "predict"):
        name = "table" if "csv" in file else "text" if "txt" in file or "json" in file else "run"
        ground.copy(name)
        made.data(ground) if name == "run" and file != "arrays.npz" else None
        _bounded(ground, command, name, "--data", file)
    elif command == "init":
        _bounded(ground, command, file, "--out", "out.toml")
    elif file.endswith(".json"):
        (ground.here / "text.txt").write_text("the quick brown fox " * 40)
        _bounded(
            ground,
            command,
            "--data",
            "text.txt",
            "--tokenizer",
            file,
            "--model",
            "lstm",
            "--width",
            "4",
            "--context",
            "4",
        )
    else:
        more = ("--lr", "0.1,0.2", "--out", "o") if command == "sweep" else ("--out", "o") if command == "train" else ()
        _bounded(ground, command, "--data", file, *(a for a in small if command != "show" or a != "-q"), *more)


def _npy(shape: tuple[int, ...], kind: str = "<f4", content: bytes = bytes(64)) -> bytes:
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def _npz(folder: Path, inputs: bytes, targets: bytes, compress: bool = False) -> str:
    with zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
        file.writestr("inputs.npy", inputs)
        file.writestr("targets.npy", targets)
    return "data.npz"


def _ints(*values: int) -> bytes:
    return _npy((len(values),), "<i8", struct.pack(f"<{len(values)}q", *values))


def _rows(n: int) -> bytes:
    return _npy((n, 2), "<f4", bytes(8 * n))


def _file(folder: Path, name: str, content: bytes | str) -> str:
    (folder / name).write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
    return name


def _bomb(folder: Path) -> str:
    with gzip.open(folder / "data.csv.gz", "wb", compresslevel=1) as file:
        file.write(b"a,b\n")
        block = b"1,2\n" * (1 << 18)
        for _ in range(200):
            file.write(block)
    return "data.csv.gz"


def _zeros(folder: Path) -> str:
    packed = zlib.compressobj(9, wbits=31)
    content = b"".join(packed.compress(bytes(1 << 24)) for _ in range(64)) + packed.flush()
    return _file(folder, "data.csv.gz", content)


def _zip_bomb(folder: Path) -> str:
    return _npz(folder, _npy((1 << 27, 2), "<f4", bytes(1 << 28)), _ints(*range(8)), True)


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * min(width, 4)) for _ in range(min(height, 4))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _images(folder: Path, bad: bytes) -> str:
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(6):
            (folder / "images" / name / f"{i}.png").write_bytes(_png(4, 4))
    (folder / "images/cat/9.png").write_bytes(bad)
    return "images"


def _idx(folder: Path, count: int) -> str:
    (folder / "idx").mkdir()
    (folder / "idx/train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + bytes(784))
    (folder / "idx/train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + bytes(1))
    return "idx"


def _json_file(text: str) -> Callable[[Path], str]:
    return lambda folder: _file(folder, "tokenizer.json", text)


def _table(text: str) -> Callable[[Path], str]:
    return lambda folder: _file(folder, "data.csv", text)


def _pickled(folder: Path) -> str:
    import numpy as np

    out = io.BytesIO()
    np.save(out, np.array([{}, _Marks(str(folder / "RAN"))], dtype=object))
    return _npz(folder, out.getvalue(), _ints(0, 1))


class _Marks:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


DATA: dict[str, Callable[[Path], str]] = {
    "a label of 2**40": lambda f: _npz(f, _rows(9), _ints(*range(8), 2**40)),
    "a label of 2**62": lambda f: _npz(f, _rows(9), _ints(*range(8), 2**62)),
    "a label of -1": lambda f: _npz(f, _rows(9), _ints(*range(8), -1)),
    "an .npz of 32 TiB": lambda f: _npz(f, _npy((1 << 42, 2)), _ints(*range(8))),
    "an .npz of more than 2**64": lambda f: _npz(f, _npy((1 << 60, 1 << 60)), _ints(*range(8))),
    "an .npz of negative shape": lambda f: _npz(f, _npy((-4, 2)), _ints(*range(8))),
    "an .npz of no samples": lambda f: _npz(f, _npy((0, 2), content=b""), _npy((0,), "<i8", b"")),
    "an .npz of samples without numbers": lambda f: _npz(f, _npy((8, 0), content=b""), _ints(*range(8))),
    "an .npz of objects": _pickled,
    "an .npz of records": lambda f: _npz(f, _npy((8,), "|V16", bytes(128)), _ints(*range(8))),
    "an .npz of 40 dimensions": lambda f: _npz(f, _npy((1,) * 40), _ints(*range(8))),
    "an .npz with code for a header": lambda f: _npz(f, _npy((8, 2)).replace(b"False", b"exit()"), _ints(*range(8))),
    "an .npz that is cut": lambda f: _file(f, "data.npz", b"PK\x03\x04" + bytes(40)),
    "an .npz bomb": _zip_bomb,
    "a gz bomb of rows": _bomb,
    "a gz bomb of zeros": _zeros,
    "a gz that is cut": lambda f: _file(f, "data.csv.gz", gzip.compress(b"a,b\n1,2\n" * 100)[:40]),
    "no gz": lambda f: _file(f, "data.csv.gz", "a,b\n1,2\n"),
    "100,000 columns": _table(",".join(f"c{i}" for i in range(100_000)) + "\n" + ",".join("1" * 100_000) + "\n"),
    "a line of 20 MB": _table("a,b\n1," + "x" * 20_000_000 + "\n2,y\n"),
    "a quote that does not end": _table('a,b\n1,"x\n' + "2,y\n" * 50),
    "NUL bytes": _table("a,b\n1,\0\n\0,2\n" * 9),
    "no UTF-8": _table("a,b\n1,\udcff\udcfe\n" * 9),
    "numbers of 400 digits": _table("a,b\n" + f"{'9' * 400},1\n2,0\n" * 9),
    "dates beyond": _table("a,b\n" + "9999999-99-99,1\n0000-00-00,0\n" * 9),
    "each row longer": _table("a,b\n" + "".join("1," * i + "1\n" for i in range(30))),
    "a header alone": _table("a,b\n"),
    "nothing": _table(""),
    "one name twice": _table("a,a\n1,2\n2,1\n" * 5),
    "infinity and NaN": _table("a,b\n" + "inf,1\nnan,0\n-inf,1\n1e999,0\n" * 5),
    "values of 1e308": _table("a,b\n" + "1e308,1e308\n-1e308,-1e308\n1,2.5\n" * 8),
    "a huge PNG": lambda f: _images(f, _png(2**31 - 1, 2**31 - 1)),
    "a large PNG": lambda f: _images(f, _png(60_000, 60_000)),
    "a PNG of no width": lambda f: _images(f, _png(0, 4)),
    "a PNG that is cut": lambda f: _images(f, _png(4, 4)[:50]),
    "no PNG": lambda f: _images(f, b"GIF89a" + b"\xff" * 20),
    "idx of 2**31 images": lambda f: _idx(f, 2**31 - 1),
    "a parquet file that is none": lambda f: _file(f, "data.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1"),
    "a parquet file that is empty": lambda f: _file(f, "data.parquet", b""),
    "a tokenizer of braces": _json_file("{}"),
    "a tokenizer that is cut": _json_file('{"version": "1.0", "model": {"type": "BPE"'),
    "a tokenizer of depth": _json_file("[" * 100_000),
    "a tokenizer of unknown kind": _json_file('{"version": "1.0", "model": {"type": "Evil", "vocab": {}}}'),
    "a tokenizer with ids of 2**31": _json_file(
        '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,'
        '"post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"the":2147483647,"x":0},"unk_token":"x"}}'
    ),
    "a text of one letter": lambda f: _file(f, "data.txt", "a"),
    "a text without UTF-8": lambda f: _file(f, "data.txt", b"\xff\xfe" * 300),
    "an empty text": lambda f: _file(f, "data.txt", ""),
}  # fmt: skip
assert all(re.fullmatch(r"[\w ,.*>-]+", word) for word in DATA)
