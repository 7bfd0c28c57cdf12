"""Resolve pyproject.toml into hash-pinned lock files: ``make lock``.

    python scripts/lock.py UV [--upgrade]

UV is the uv program, which resolves for every platform at once and lists the hashes of all files
of each version. Pins already in the lock files stay where pyproject.toml still allows them.

requirements.lock       everything, on every platform
requirements-cuda.lock  what the public Linux build of torch needs besides; several gigabytes, so
                        set-up installs it only where that build was chosen
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path("requirements.lock")
CUDA_LOCK = Path("requirements-cuda.lock")
CPU_BUILDS = Path("requirements-torch-cpu.txt")
CUDA_NAMES = re.compile(r"(nvidia|cuda)-|triton==")
HEADER = "# Written by `make lock` from pyproject.toml; do not edit.\n"


def pip_index() -> list[str]:
    """The index in pip's own configuration, so that a mirror serves the resolver too."""
    for name in (":env:.index-url", "global.index-url"):
        command = [sys.executable, "-m", "pip", "config", "get", name]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return ["--default-index", result.stdout.strip()]
    return []


def resolve(uv: str, known: str) -> list[str]:
    """Pins of pyproject.toml with the ``dev`` extra, one text block a package.

    ``known`` holds earlier pins to keep; empty takes the newest versions allowed.
    """
    command = [uv, "pip", "compile", "--quiet", "--no-config", "--universal"]
    command += ["--python-version", "3.11", "--extra", "dev", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "pyproject.toml", *pip_index()]
    with tempfile.TemporaryDirectory() as folder:
        # uv keeps the pins that it finds in an existing output file.
        output = Path(folder, "lock.txt")
        output.write_text(known)
        subprocess.run([*command, "--output-file", str(output)], check=True, stdout=subprocess.PIPE)
        blocks = re.split(r"^(?=[a-z0-9])", output.read_text(), flags=re.MULTILINE)
    return [block for block in blocks if "==" in block]


def main() -> None:
    """Write both lock files."""
    uv, upgrade = sys.argv[1], "--upgrade" in sys.argv[2:]
    known = "" if upgrade else "".join(p.read_text() for p in (LOCK, CUDA_LOCK) if p.exists())
    pins = resolve(uv, known)
    cuda = [pin for pin in pins if CUDA_NAMES.match(pin)]
    LOCK.write_text(HEADER + "".join(pin for pin in pins if pin not in cuda))
    CUDA_LOCK.write_text(HEADER + "".join(cuda))
    print(f"{LOCK}: {len(pins) - len(cuda)} packages; {CUDA_LOCK}: {len(cuda)} packages")
    torch = next(pin.split()[0] for pin in pins if pin.startswith("torch=="))
    if f"{torch}+" not in CPU_BUILDS.read_text():
        print(f"{CPU_BUILDS} is not about {torch}: update it by hand")


if __name__ == "__main__":
    main()
