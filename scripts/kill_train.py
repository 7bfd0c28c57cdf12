"""Kill the train stage at random moments and compare what it ends with to an uninterrupted run.

    python scripts/kill_train.py --kills 20 --out build/kill [--set train.checkpoint_steps=5 ...]

Needs build/validate and build/score, which are only read. One run goes through undisturbed and
says how long training takes. Then the stage is started again and again and killed by SIGKILL after
a time drawn uniformly from 0 to that; a run that finishes first is compared and begun anew. In the
end the stage is left to finish. Exits with 1 when any finished run differs from the first.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

from aaft.io import file_digest

ADAPTER, WHOLE = "adapter/adapter_model.safetensors", "adapter/model.safetensors"


def main() -> int:
    """Run the experiment; 0 when all finished runs are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for both runs")
    parser.add_argument("--build", type=Path, default=Path("build"), help="finished stages")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    command = [sys.executable, "-m", "aaft", "train", "--params", str(args.params)]
    command += [word for override in args.overrides for word in ("--set", override)]

    whole, killed = (prepared(args.out / name, args.build) for name in ("whole", "killed"))
    began = time.monotonic()
    subprocess.run([*command, "--build", str(whole)], check=True)
    seconds = time.monotonic() - began
    want = outcome(whole)
    print(f"uninterrupted: {seconds:.1f} s\n{show(want)}", flush=True)

    draw, different, kills, finished = random.Random(args.seed), 0, 0, 0
    while True:
        process = subprocess.Popen([*command, "--build", str(killed)])
        after = draw.uniform(0, seconds) if kills < args.kills else None
        try:
            code = process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            print(f"kill {kills} after {after:.1f} s: {left(killed)}", flush=True)
            continue
        if code:
            print(f"error: train ended with {code}", file=sys.stderr)
            return 1
        finished += 1
        got = outcome(killed)
        different += got != want
        print(f"finished after {kills} kills\n{show(got)}", flush=True)
        if kills >= args.kills:
            break
        (killed / "train/report.json").unlink()
        (killed / ADAPTER).unlink(missing_ok=True)
    print(f"{kills} kills, {finished} finished runs, {different} differ from the uninterrupted one")
    return int(different > 0)


def prepared(folder: Path, build: Path) -> Path:
    """A build folder whose inputs are links to those of ``build``."""
    folder.mkdir(parents=True)
    for stage in ("validate", "score"):
        (folder / stage).symlink_to((build / stage).resolve(), target_is_directory=True)
    return folder


def outcome(build: Path) -> dict[str, str]:
    """SHA-256 of the weights and of what is told about them."""
    train = build / "train"
    weights = ADAPTER if (train / ADAPTER).is_file() else WHOLE
    names = (weights, "history.jsonl", "gates.parquet", "review.jsonl", "report.json")
    return {name: file_digest(train / name) for name in names}


def show(digests: dict[str, str]) -> str:
    """A line a file."""
    return "\n".join(f"  {digest}  {name}" for name, digest in digests.items())


def left(build: Path) -> str:
    """What a killed run left to go on from."""
    found = sorted(path.name for path in (build / "train/checkpoints").glob("*"))
    return ", ".join(found) or "no checkpoint"


if __name__ == "__main__":
    sys.exit(main())
