"""Where a result came from: code, versions, hardware, configuration, seeds.

Collected once by the process that writes the samples. It never imports torch and never fails
because something is not there (no git, no GPU): the field then says so with null.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from twinckpt.results.atomic import write_text

PACKAGES = (
    "twinckpt", "torch", "numpy", "msgspec", "xxhash", "psutil", "safetensors",
    "hydra-core", "omegaconf", "snakemake", "pandas", "scipy", "seaborn", "matplotlib",
)  # fmt: skip


def collect(
    config: Mapping[str, Any],
    seeds: Sequence[int] = (),
    extra: Mapping[str, Any] | None = None,
    source_dir: Path | None = None,
) -> dict[str, Any]:
    """Return all that is stored beside a result. `config` is resolved (plain JSON types).

    git is asked in `source_dir`; by default in the directory of this package, or in the current
    one if the package is not inside a checkout.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(source_dir),
        "python": platform.python_version(),
        "packages": package_versions(),
        "hardware": hardware(),
        "config": dict(config),
        "config_sha256": config_sha256(config),
        "seeds": list(seeds),
        **(extra or {}),
    }


def write_provenance(path: Path, provenance: Mapping[str, Any]) -> None:
    """Write a provenance as JSON, sorted and atomically."""
    write_text(Path(path), json.dumps(provenance, indent=2, sort_keys=True, default=str) + "\n")


def read_provenance(path: Path) -> dict[str, Any]:
    """Read a provenance; raises `ValueError` naming the file if it is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a provenance file ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a provenance file (not a JSON object)")
    return content


def config_sha256(config: Mapping[str, Any]) -> str:
    """SHA-256 of the configuration as canonical JSON: the order of keys does not matter."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def git_state(source_dir: Path | None = None) -> dict[str, Any]:
    """Return `commit` (None outside a checkout) and `dirty` (tracked files differ from it)."""
    for directory in [source_dir] if source_dir else [Path(__file__).parent, Path.cwd()]:
        commit = _output(["git", "-C", str(directory), "rev-parse", "HEAD"])
        if commit:
            changes = _output(
                ["git", "-C", str(directory), "status", "--porcelain", "--untracked-files=no"]
            )
            return {"commit": commit, "dirty": None if changes is None else changes != ""}
    return {"commit": None, "dirty": None}


def package_versions() -> dict[str, str | None]:
    """Installed versions of the packages results depend on; null where not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, memory in bytes, names of GPUs, kernel."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu_model": cpu_model(),
        "num_cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpu_names(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    brand = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    return brand or platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """Names of NVIDIA GPUs; empty without one (or without its driver's `nvidia-smi`)."""
    names = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return [line.strip() for line in names.splitlines() if line.strip()] if names else []


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, encoding="utf-8"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
