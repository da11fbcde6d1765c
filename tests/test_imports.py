"""The direction of imports, read from the source."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STEPS = ["load", "place", "forward", "loss", "backward", "update", "evaluate"]
BANDS = {
    "values": ["errors", "alike", "beside", "files", "ids", "text", "means", "memory", "html", "mesh", "random", "tree",
               "schedules", "direction", "draws", "module", "order", "pace", "state"],
    "stages": ["element", "stage", "shapes", "joint", *STEPS, "models", "sources", "passing", "trackers", "log", "plot",
               "progress", "until"],
    "pipeline": ["names", "wiring", "description"],
    "programs": ["programs", "resident", "compile"],
    "runs": ["pipe", "loop", "profiling", "sweeps", "ensembles", "checkpoint", "runs", "testing", "__init__"],
}  # fmt: skip
"""The modules of `pipeline` by band; a band imports from itself and from those above it."""
BAND = {name: i for i, names in enumerate(BANDS.values()) for name in names}
FILES = sorted((ROOT / "pipeline").rglob("*.py"))
COMMAND = sorted((ROOT / "cli").rglob("*.py"))
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES + COMMAND}


def imported(nodes):
    """The modules of ours that these nodes of a file import."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names if node.module in MODULES)


def top(path):
    """The name of a file's module in `pipeline`, or of the package it is in there."""
    return path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_bands_import_from_those_above_them(path):
    """A file imports from its own band and those above it, and never the command; a step imports no other step."""
    tree, here = ast.parse(path.read_text()), top(path)
    assert not [name for name in imported(ast.walk(tree)) if name.startswith("cli")]
    for name in {top(MODULES[name]) for name in imported(tree.body)} - {here}:
        assert BAND[name] <= BAND[here], f"{here} imports {name}"
        assert not {here, name} <= {*STEPS}, f"{here} imports {name}"


def test_no_imports_go_in_circles():
    """Whatever the bands allow, two files never need each other; `prepare` raises CycleError."""
    needs = {name: {*imported(ast.parse(path.read_text()).body)} - {name} for name, path in MODULES.items()}
    TopologicalSorter(needs).prepare()


@pytest.mark.parametrize(
    ("what", "home"),
    [
        ("torch._inductor", "native.py"),
        ("import _inductor", "native.py"),
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
    "pipeline/beside.py": "the folder of temporary files of a process of ours",
    "pipeline/sources/pixels.py": "Pillow, on a file that files opened",
    "pipeline/sources/files.py": "gzip and members of an archive, on a file that files opened",
    "pipeline/compile/backends/library.py": "a private copy of a library that was checked, which is loaded by a path",
    "pipeline/compile/cache.py": "a folder of this process alone, for compilers whose cache others may write",
    "pipeline/compile/backends/native.py": "the compiler's workshop, a new folder of ours alone",
    "pipeline/compile/backends/text.py": "sources that are part of the library",
    "cli/folder.py": "the name of a new run is free if its folder can be made",
    "cli/processes.py": "what is written to nowhere, where an output is closed",
    "cli/prediction_files.py": "a member of an archive, in a file that files opened",
    "cli/handover/predict.py": "it runs in a folder that has none of our code, as do the next ones",
    "cli/handover/text.py": "as that",
    "cli/handover/table.py": "as that",
    "cli/handover/images.py": "as that",
    "cli/version.py": "a file that is part of the command",
    "cli/ending.py": "what is closed when a command begins",
    "cli/doctor.py": "the name of the folder of temporary files, whose space it shows",
}


def opens(tree):
    """Functions that open files themselves, called or imported by a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = getattr(getattr(node.func, "value", None), "id", None)
            if name in OPENS and owner != "files":
                yield name
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {getattr(node, "module", None), *(alias.name for alias in node.names)}
            yield from modules & {"shutil", "tempfile"}


@pytest.mark.parametrize("path", FILES + COMMAND, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_opened_in_one_place(path):
    """All reading and writing goes through pipeline/files.py, with exceptions that each have a reason."""
    name = str(path.relative_to(ROOT))
    calls = set(opens(ast.parse(path.read_text())))
    assert not calls or name in MAY_OPEN, calls


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
