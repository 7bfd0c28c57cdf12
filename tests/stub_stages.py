"""Stand-ins for the stages, copied as ``aaft/__main__.py`` into a test's workspace.

They write files of the right form in no time. The seed in ``params.yaml`` makes ``score`` fail:
13 as bad input does, 14 by SIGKILL, 15 by a bug; at 16 its judge moved; at 17 somebody ends the
flow. ``evaluate.limit: 1`` makes the candidate worse.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import yaml

METRICS = ("harmful_rate", "qa_em")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def validate(params: dict, build: Path) -> None:
    write(build / "clean.jsonl", Path(params["data"]["train"]).read_text())
    write(build / "quarantine.jsonl", "")
    write(build / "data_docs/index.html", "docs")


def score(params: dict, build: Path) -> None:
    if params["seed"] == 13:
        print("error: data/train.jsonl: line 3: no response; delete the row", file=sys.stderr)
        sys.exit(2)
    if params["seed"] == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    if params["seed"] == 15:
        raise ZeroDivisionError("a bug")
    if params["seed"] == 17:
        Path("stage.pid").write_text(str(os.getpid()))
        os.kill(int(os.environ["FLOW"]), signal.SIGTERM)
        time.sleep(60)
    write(build / "alignment.parquet", "parquet")
    write(build / "candidates.jsonl", "")
    write(build / "conservative.jsonl", "")
    write(build / "counterfactuals.jsonl", "")
    write(build / "twins.jsonl", "")
    write(build / "siblings.jsonl", "")
    anchors = {"a": {"safety": 0.9 if params["seed"] != 16 else 0.4}}
    judges = {"embedded": {"digest": "d", "scores": anchors}}
    write(build / "anchors.json", json.dumps(judges))
    write(build / "judges/safety.json", "{}")


def train(params: dict, build: Path) -> None:
    shutil.copytree("fixture/adapter", build / "adapter", dirs_exist_ok=True)
    write(build / "adapter/note.txt", str(params["train"]["learning_rate"]))
    write(
        build / "history.jsonl", lines([{"step": 1, "loss": {"nll": 2.0}}, {"step": 2, "loss": 1}])
    )
    write(build / "gates.parquet", "parquet")
    write(build / "review.jsonl", "")


def evaluate(params: dict, build: Path) -> None:
    good = {"reference": 0.0, "candidate": 0.0 if params["evaluate"]["limit"] else 1.0}
    rows = [
        {
            "model": model,
            "benchmark": metric,
            "id": str(number),
            "prompt": f"p{number}",
            "response": "r",
            "scores": {metric: 1.0 - value if metric == "harmful_rate" else value},
        }
        for model, value in good.items()
        for metric in METRICS
        for number in range(40)
    ]
    write(build / "results.jsonl", lines(rows))


def gate(params: dict, build: Path) -> None:
    passed = params["evaluate"]["limit"] is None
    entry = {"difference": 0.0, "low": 0.0, "high": 0.0, "margin": 0.0, "n": 40}
    entry |= {"better": "lower", "reference": 1.0, "candidate": 0.0}
    entry["verdict"] = "PASS" if passed else "FAIL"
    verdict = {
        "verdict": entry["verdict"],
        "confidence": 0.95,
        "metrics": dict.fromkeys(METRICS, entry),
    }
    write(build / "verdict.json", json.dumps(verdict))


def main() -> None:
    stage = sys.argv[1]
    params = yaml.safe_load(Path("params.yaml").read_text())
    build = Path("build", stage)
    globals()[stage](params, build)
    rate = {metric: {"value": 0.5, "n": 40, "low": 0.4, "high": 0.6} for metric in METRICS}
    report = {"candidate": rate, "reference": rate} if stage == "evaluate" else {}
    write(build / "report.json", json.dumps(report))
    print(f"{stage}: ran")


if __name__ == "__main__":
    main()
