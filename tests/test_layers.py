"""Imports point downwards only, and heavy packages stay in the layers that may have them."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "twinckpt"

# What each layer may import of twinckpt, itself included by the test. `errors` is below all.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "core": set(),
    "memory": {"core"},
    "net": {"core", "memory"},
    "agents": {"core", "memory", "net"},
    "checkpointer": {"core", "memory", "net"},
    "simulation": {"core"},
    "results": set(),
}
MAY_IMPORT["integrations"] = {"checkpointer"}
MAY_IMPORT["training"] = {"checkpointer", "results"}
MAY_IMPORT["analysis"] = {"core", "results"}
MAY_IMPORT["experiments"] = set(MAY_IMPORT) - {"analysis"}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
MAY_IMPORT["meeting"] = set()
MAY_IMPORT["run"] = {"meeting", "net"}

STANDARD_LIBRARY = set(sys.stdlib_module_names)
ONLY_THIRD_PARTY = {"errors": set(), "core": {"numpy"}, "results": {"psutil"}}
WITHOUT_TORCH = {"errors", "core", "memory", "net", "agents", "simulation", "results", "analysis"}
IN_TORCHRUNS_PROCESS = {"agents/rendezvous.py"}
ONLY_IN = {"pandas": {"analysis"}, "seaborn": {"analysis"}, "hydra": {"experiments"}}
ONLY_IN |= {"lightning": {"integrations"}, "transformers": {"integrations"}}

# The one module above its layer: it may start an agent (docs/decisions/0003).
MAY_ALSO_IMPORT = {"checkpointer/connect.py": {"agents"}}


def modules() -> list[str]:
    """Return the path of every module of a layer, relative to the package."""
    paths = (path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
    return [path for path in sorted(paths) if layer_of(path) in MAY_IMPORT]


def layer_of(path: str) -> str:
    """Return the package or top-level module that a path belongs to."""
    return path.split("/")[0].removesuffix(".py")


def imports(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the full dotted name of all that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*parents, *filter(None, [node.module])))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """Return what a module imports against the rules of its layer."""
    layer = layer_of(path)
    package = ("twinckpt", *path.split("/")[:-1])
    found = []
    for name in imports(source, package):
        top, _, rest = name.partition(".")
        if top == "twinckpt":
            imported = rest.split(".")[0]
            below = MAY_IMPORT[layer] | MAY_ALSO_IMPORT.get(path, set())
            allowed = imported in below | {layer, "errors"}
            if imported in MAY_IMPORT and not allowed:
                found.append(f"{layer} is not above {imported}: {name}")
            if imported not in MAY_IMPORT:
                found.append(f"not a layer, and the package itself is above them all: {name}")
        elif top not in STANDARD_LIBRARY:
            if layer in ONLY_THIRD_PARTY and top not in ONLY_THIRD_PARTY[layer]:
                found.append(f"{layer} must do without {name}")
            if top == "torch" and layer in WITHOUT_TORCH and path not in IN_TORCHRUNS_PROCESS:
                found.append(f"{layer} must do without {name}")
            if layer not in ONLY_IN.get(top, {layer}):
                found.append(f"only {', '.join(sorted(ONLY_IN[top]))} may import {name}")
    return found


@pytest.mark.parametrize("path", modules())
def test_imports_point_downwards(path):
    """A layer imports itself and those below it, wherever in a module the import stands."""
    assert violations(path, (SOURCE / path).read_text(encoding="utf-8")) == []


def test_every_package_is_a_layer():
    """A new package needs a line in the table."""
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages <= set(MAY_IMPORT)


def test_the_layers_have_no_cycle():
    """Everything below what is below is below."""
    for layer, below in MAY_IMPORT.items():
        assert all(layer not in MAY_IMPORT[lower] for lower in below)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/x.py", "import torch"),
        ("core/x.py", "import msgspec"),
        ("core/x.py", "from twinckpt.memory import slot"),
        ("core/x.py", "from twinckpt import net"),
        ("core/x.py", "from ..net import wire"),
        ("core/x.py", "from twinckpt import Checkpointer"),
        ("net/x.py", "def late():\n    import twinckpt.agents.root"),
        ("agents/x.py", "from torch.distributed import TCPStore"),
        ("analysis/x.py", "import torch"),
        ("analysis/x.py", "from twinckpt.experiments import save_cost"),
        ("training/x.py", "import pandas"),
        ("checkpointer/x.py", "from twinckpt.agents import worker"),
    ],
)
def test_an_upward_import_is_found(path, source):
    """The rules above do catch what they are for."""
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/x.py", "import numpy as np\nfrom twinckpt.errors import TwinckptError"),
        ("core/x.py", "from . import placement\nfrom .placement import ring"),
        ("agents/rendezvous.py", "import torch"),
        ("experiments/x.py", "import hydra, torch\nfrom twinckpt.agents import local_cluster"),
    ],
)
def test_a_downward_import_passes(path, source):
    """And nothing else."""
    assert violations(path, source) == []
