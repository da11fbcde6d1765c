"""The arrows of the house, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STEPS = {"load", "place", "forward", "loss", "backward", "update", "evaluate"}
LAYERS = [
    {"errors", "files", "ids", "text", "means"},
    {"mesh", "memory", "html"},
    {"random", "tree", "skeleton", "schedules", "direction"},
    {"draws"},
    {"module"},
    {"stage"},
    {"state", "order", "pace", "joint"},
    {"log", "until"},
    {"plot"},
    {"sources", "models"},
    STEPS,
    {"sharding"},
    {"run", "hyper", "wiring", "resident", "batchnorm"},
    {"whole"},
    {"compose"},
    {"checkpoint", "diagnose", "compile"},
    {"alone"},
    {"pipe"},
    {"members"},
    {"ensembles"},
    {"loop", "runs"},
    {"testing"},
    {"__init__"},
]
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
FILES = sorted((ROOT / "pipeline").rglob("*.py"))


def module(path):
    return path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")


def imported(tree):
    """Modules of the library that a file imports when it is imported itself."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
            parts = node.module.split(".")[1:]
            yield from parts[:1] or [alias.name for alias in node.names]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    """A file imports only from layers below its own, and a step imports no other step."""
    here = module(path)
    for name in imported(ast.parse(path.read_text())):
        assert name == here or LAYER[name] < LAYER[here], f"{here} imports {name}"


@pytest.mark.parametrize(
    ("what", "home"),
    [
        ("_inductor", "native.py"),
        ("torch.compile(", "torch.py"),
        (" print(", None),
        ("pickle.", None),
        (".cuda(", None),
        ('.to("', "place.py"),
        ('device="', "place.py"),
    ],
)
def test_each_thing_has_one_home(what, home):
    """One file calls torch.compile, one knows Inductor, and nothing in the library prints or unpickles."""
    for path in FILES:
        code = "\n".join(ast.unparse(node) for node in _code(path))
        if path.name != home:
            assert what not in code, path


OPENS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "mkdtemp", "mkstemp", "rmtree",
         "copyfile", "move", "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory"}  # fmt: skip
MAY_OPEN = {
    "pipeline/files.py": "the one home",
    "pipeline/sources/pixels.py": "Pillow, on a file that files opened",
    "pipeline/sources/files.py": "gzip and members of an archive, on a file that files opened",
    "pipeline/compile/backends/library.py": "a private copy of a library that was checked, which is loaded by a path",
    "pipeline/compile/cache.py": "a folder of this process alone, for compilers whose cache others may write",
    "pipeline/compile/backends/native.py": "the compiler's workshop, a new folder of ours alone",
    "pipeline/compile/backends/text.py": "sources that are part of the library",
    "cli/folder.py": "the name of a new run is free if its folder can be made",
    "cli/processes.py": "what is written to nowhere, where an output is closed",
    "cli/prediction_files.py": "a member of an archive, in a file that files opened",
    "cli/version.py": "a file that is part of the command",
    "cli/ending.py": "what is closed when a command begins",
}


def opens(tree):
    """Names of what reads or writes files by itself, as a file calls or imports them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            of = getattr(getattr(node.func, "value", None), "id", None)
            if name in OPENS and of != "files":
                yield name
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {getattr(node, "module", None), *(alias.name for alias in node.names)}
            yield from modules & {"shutil", "tempfile"}


@pytest.mark.parametrize(
    "path", sorted([*FILES, *(ROOT / "cli").rglob("*.py")]), ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_are_opened_in_one_place(path):
    """All that is read or written goes through pipeline/files.py, but for what has a reason."""
    name = str(path.relative_to(ROOT))
    found = set(opens(ast.parse(path.read_text())))
    assert not found or name in MAY_OPEN, found


def _code(path):
    """A file without its docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0].value.value = ""
    return tree.body


def test_help_does_not_import_torch():
    """`pipe --help` is quick because torch is imported only by the commands that need it."""
    code = """
import sys
sys.argv = ["pipe", "--help"]
from cli.main import main
try:
    main()
except SystemExit:
    pass
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
