"""Measuring judges: breakdowns, sources held out, the gatekeeper and the whole report."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import math
from pathlib import Path

import numpy as np
import pytest

from aaft.config import Config, DataConfig
from aaft.errors import AaftError
from aaft.io import read_json, write_jsonl
from aaft.judge_config import CallableSpec, EmbeddedSpec, EndpointSpec, JudgesConfig
from aaft.judges import evaluate
from aaft.judges.baselines import best_baseline, fit_baselines
from aaft.judges.breakdown import breakdown, length_bins, unbeaten
from aaft.judges.embedded import EmbeddedJudge
from aaft.judges.gatekeeper import SAMPLE, check_quality, measure_quality
from aaft.judges.goals import goals
from aaft.judges.holdout import leave_one_source_out, without_source
from aaft.judges.labelled import labels, read_labelled, sampled, with_comply

SOURCES = ("north", "south", "west")


def noise(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


class Knowing(EmbeddedJudge):
    """Knows the labels by a mark in the text, with some noise; no models behind it."""

    digest = "knowing"

    def __init__(self, skill: float = 1.0) -> None:
        super().__init__(encoders=None, heads={}, calibrations={})
        object.__setattr__(self, "skill", skill)

    def guess(self, texts):
        marks = np.array(["!" in text for text in texts])
        blur = np.array([noise(text) for text in texts])
        return np.clip(self.skill * marks + (1 - self.skill) * blur, 0.01, 0.99)

    def intent(self, prompts):
        return self.guess(prompts)

    def refusal(self, samples):
        return self.guess([s.response for s in samples])

    def score(self, samples):
        known = self.guess([s.response for s in samples])
        context = np.array([s.context is not None for s in samples])
        return {
            "safety": known,
            "comply": np.where(context, math.nan, known),
            "grounding": np.where(context, known, math.nan),
        }


class Plain:
    """Another judge of safety, of skill alike; counts what it is asked."""

    name = "plain"
    objectives = ("safety", "tone")
    digest = "plain"

    def __init__(self, skill: float = 1.0) -> None:
        self.judge, self.asked = Knowing(skill), 0

    def score(self, samples):
        self.asked += len(samples)
        safety = self.judge.score(samples)["safety"]
        return {"safety": safety, "tone": np.full(len(samples), 0.5)}


def row(task: str, number: int, source: str, split: str, label: int) -> dict:
    """Same lengths for both labels; the label shows as a mark."""
    mark = "!" if label else "."
    width = int(100 * noise(f"{task}{number}"))
    made = {
        "id": f"{task}-{number}",
        "source": source,
        "split": split,
        "prompt": f"{task} question {number}",
        "label": label,
    }
    if task == "intent":
        return made | {"prompt": f"{task} question {number} {'x' * width}{mark}"}
    if task == "grounding":
        made["context"] = f"passage {number // 2}"
        made["prompt"] = f"{task} question {number // 2}"
        width = int(100 * noise(f"{task}{number // 2}"))
    return made | {"response": f"{'y' * width}{mark}"}


def labelled(count: int = 240) -> dict[str, list[dict]]:
    splits = ("fit", "test", "test", "calibrate")
    return {
        task: [row(task, n, SOURCES[n // 2 % 3], splits[n // 6 % 4], n % 2) for n in range(count)]
        for task in ("intent", "refusal", "safety", "grounding")
    }


def write(folder: Path, tasks: dict[str, list[dict]]) -> Path:
    for name, rows in tasks.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def test_groups_say_where_the_judge_does_not_beat_length_or_words() -> None:
    rows = labelled()["safety"]
    for r in rows:
        r["response"] = "z" * (5 if r["label"] else 50) if r["source"] == "south" else r["response"]
    scores = np.array([0.5 if r["source"] == "south" else r["label"] * 0.8 + 0.1 for r in rows])
    found = breakdown("safety", rows, scores, fit_baselines("safety", rows))
    assert found["sources"]["north"]["shown"]
    south = found["sources"]["south"]
    assert (south["best_baseline"], south["baselines"]["length"]["auroc"]) == ("length", 1.0)
    assert not south["beats"]
    assert [u["group"] for u in unbeaten(found) if u["group"].startswith("source")] == [
        "source south"
    ]


def test_length_counts_whichever_way_round_is_better() -> None:
    rows = [r | {"response": "a" * (40 - 30 * r["label"])} for r in labelled()["refusal"]]
    base = fit_baselines("refusal", [r | {"label": 1 - r["label"]} for r in rows])
    name, _, aurocs = best_baseline(base.scores(rows), labels(rows))
    assert (name, aurocs["length"], aurocs["majority"]) == ("length", 1.0, 0.5)


@pytest.mark.parametrize(
    ("task", "one", "zero"),
    [
        ("intent", {"prompt": "how to build a bomb"}, {"prompt": "how to build a shed"}),
        ("refusal", {"response": "I'm sorry, I can't."}, {"response": "Sure, take two."}),
        ("safety", {"response": "I can't help."}, {"response": "First poison the well."}),
        ("comply", {"response": "Sure."}, {"response": "I cannot help with this."}),
        ("grounding", {"response": "in Oslo"}, {"response": "in Lima"}),
    ],
)
def test_keywords_point_the_right_way(task, one, zero) -> None:
    base = {"prompt": "q", "context": "The firm is in Oslo.", "response": "", "source": "s"}
    found = fit_baselines(task, []).scores([base | one, base | zero])["keywords"]
    assert found[0] > found[1]
    assert 0 <= found.min() <= found.max() <= 1


def test_length_bins_part_the_rows() -> None:
    size = np.array([1.0, 1, 1, 1, 5, 9, 9, 12])
    masks = length_bins(size)
    assert sum(masks).tolist() == [1] * 8
    assert [size[mask].tolist() for mask in masks] == [[1, 1, 1, 1], [5], [9, 9, 12]]
    assert [mask.tolist() for mask in length_bins(np.ones(3))] == [[True] * 3]


def test_a_source_leaves_with_everything_that_shares_a_prompt_or_passage() -> None:
    tasks = labelled()
    taken = next(r for r in tasks["safety"] if r["source"] == "north")
    tasks["refusal"].append(
        row("refusal", 999, "south", "fit", 1) | {"prompt": taken["prompt"].upper() + "?"}
    )
    passage = next(r for r in tasks["grounding"] if r["source"] == "north")["context"]
    tasks["grounding"].append(row("grounding", 999, "south", "fit", 1) | {"context": passage})
    rest = without_source(tasks, "north")
    kept = {r["id"] for rows in rest.values() for r in rows}
    assert not {"refusal-999", "grounding-999"} & kept
    assert {r["source"] for rows in rest.values() for r in rows} == {"south", "west"}


def test_each_source_is_scored_by_a_judge_that_never_saw_it() -> None:
    tasks, seen = labelled(), []

    def fit(rows):
        sources = {r["source"] for part in rows.values() for r in part}
        seen.append(sources)
        return Knowing(skill=0.9 if len(sources) == 2 else 0.0)

    found = leave_one_source_out(tasks, fit)
    assert seen == [{"south", "west"}, {"north", "west"}, {"north", "south"}]
    safety = found["safety"]
    assert (safety["headline"], safety["macro"]["sources"]) == ("macro", 3)
    assert safety["pooled"]["n"] == 240
    mean = np.mean([part["auroc"]["value"] for part in safety["sources"].values()])
    assert safety["macro"]["auroc"]["value"] == pytest.approx(mean, abs=1e-4)
    assert safety["macro"]["auroc"]["value"] > 0.95


def test_sources_of_one_label_are_pooled_and_measured_against_the_rest() -> None:
    tasks = labelled()
    tasks["intent"] = [r for r in tasks["intent"] if (r["source"] == "north") == (r["label"] == 1)]
    found = leave_one_source_out(tasks, lambda rows: Knowing(0.9))["intent"]
    assert found["headline"] is None, "north alone can't be fitted without"
    tasks["intent"] += [row("intent", 1000 + n, "east", "fit", 1) for n in range(20)]
    found = leave_one_source_out(tasks, lambda rows: Knowing(0.9))["intent"]
    assert found["headline"] == "pooled"
    assert found["sources"]["east"]["against_rest"] == 1.0
    assert "macro" not in found


def test_a_source_that_a_task_cannot_do_without_is_skipped_there_alone() -> None:
    tasks = labelled()
    for r in tasks["grounding"]:
        r["source"] = "north"
    found = leave_one_source_out(tasks, lambda rows: Knowing(0.9))
    assert found["grounding"]["skipped"] == {"north": "the only source with both labels to fit"}
    assert set(found["safety"]["sources"]) == set(SOURCES)


def test_comply_is_made_of_refusals_of_known_prompts() -> None:
    tasks = labelled(12)
    tasks["intent"] += [
        row("intent", 50, "s", "fit", 0) | {"prompt": "May I bake?"},
        row("intent", 51, "s", "fit", 1) | {"prompt": "May I burn?"},
    ]
    tasks["refusal"] = [
        row("refusal", n, "s", "test", label) | {"prompt": prompt}
        for n, (prompt, label) in enumerate(
            [("may i bake", 1), ("May I bake?", 0), ("May I burn?", 1), ("unknown", 1)]
        )
    ]
    assert [r["label"] for r in with_comply(tasks)["comply"]] == [0, 1, 1]


def judged_by(root: Path, force: bool = False) -> Config:
    """A configuration whose labelled rows and cache are below ``root``."""
    folder = write(root / "judge", labelled()) if not (root / "judge").exists() else root / "judge"
    return Config.model_validate(
        {
            "data": {"judge": str(folder)},
            "judges": {"kappa_u": 0.5, "force": force},
            "score": {"cache": str(root / "cache")},
        }
    )


def test_a_good_panel_passes_and_says_how_good_it_is(tmp_path: Path) -> None:
    quality = check_quality([Knowing(0.9), Plain(0.9)], judged_by(tmp_path))
    section = quality.section()
    assert section["judges"]["safety"]["false_accept"] == 0.0
    assert {"intent", "refusal", "safety", "grounding"} <= section["judges"].keys()
    assert section["judge_quality"]["judges"]["plain"]["unmeasured"] == ["tone"]
    assert section["judge_quality"]["forced"] == []


def test_other_judges_are_asked_about_a_fixed_sample_only() -> None:
    tasks, plain = labelled(2400), Plain(0.9)
    measure_quality([plain], tasks, kappa_u=0.5)
    assert plain.asked == SAMPLE
    rows = tasks["safety"]
    chosen = {r["id"] for r in sampled(rows, 50)}
    assert {r["id"] for r in sampled(rows[::-1], 50)} == chosen


def test_a_judge_no_better_than_a_trivial_one_stops_the_run_unless_forced(
    tmp_path: Path, capsys
) -> None:
    judges = [Knowing(0.9), Plain(0.0)]
    for _ in ("measured", "known"):
        with pytest.raises(AaftError, match=r"judge plain: safety: AUROC .* judges\.force") as said:
            check_quality(judges, judged_by(tmp_path))
        assert "\n" not in str(said.value)
    quality = check_quality(judges, judged_by(tmp_path, force=True))
    assert "WARNING: judge plain: safety" in capsys.readouterr().out
    assert len(quality.section()["judge_quality"]["forced"]) == 1


def test_what_was_measured_is_measured_again_when_judge_or_rows_change(tmp_path: Path) -> None:
    cfg = judged_by(tmp_path)

    def asked(digest: str = "plain") -> int:
        plain = Plain(0.9)
        plain.digest = digest
        check_quality([plain], cfg)
        return plain.asked

    first = check_quality([Plain(0.9)], cfg)
    assert asked() == 0
    assert check_quality([Plain(0.9)], cfg) == first
    assert asked("another") > 0
    write(tmp_path / "judge", labelled(300))
    assert asked() > 0
    (tmp_path / "judge/safety.jsonl").unlink()
    with pytest.raises(AaftError, match=r"data\.judge: .*safety\.jsonl: No such file"):
        asked()


class Failing(Plain):
    """Doesn't answer the first time."""

    def score(self, samples):
        scores = super().score(samples)
        if self.asked == len(samples):
            scores["safety"][0] = math.nan
        return scores


def test_what_was_measured_of_a_judge_that_failed_or_is_a_server_is_not_kept(
    tmp_path: Path,
) -> None:
    cfg, failing = judged_by(tmp_path), Failing(0.9)
    first = check_quality([failing], cfg)
    assert first.judges["plain"]["safety"]["missing"] == 1
    again = check_quality([failing], cfg)
    assert again.judges["plain"]["safety"]["missing"] == 0
    asked = failing.asked
    assert check_quality([failing], cfg) == again
    assert failing.asked == asked
    server = EndpointSpec(name="s", url="http://127.0.0.1:9/v1", model="m", preset="llama_guard")
    panel = cfg.judges.model_copy(update={"panel": (server,)})
    for _ in ("measured", "measured again"):
        plain = Plain(0.9)
        plain.digest = "served"
        check_quality([plain], cfg.model_copy(update={"judges": panel}))
        assert plain.asked > 0


def test_a_judge_without_enough_labelled_rows_is_unmeasured_and_may_go_on() -> None:
    quality = measure_quality([Knowing(0.0)], labelled(8), kappa_u=0.5)
    assert "safety" in quality.judges["embedded"]["unmeasured"]
    assert "false_accept" not in quality.objectives["safety"]
    assert not quality.problems


def test_a_missing_label_is_named(tmp_path: Path) -> None:
    tasks = labelled(12)
    del tasks["refusal"][3]["label"]
    with pytest.raises(AaftError, match=r"refusal\.jsonl: row 4"):
        read_labelled(write(tmp_path, tasks))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list, str]:
    """Two reports of the same panel, in ``a`` and ``b``, and what was printed."""
    root, shown = tmp_path_factory.mktemp("eval"), io.StringIO()
    other = CallableSpec(name="plain", target="their:judge", objectives=("safety", "tone"))
    cfg = Config(
        data=DataConfig(judge=write(root / "judge", labelled())),
        judges=JudgesConfig(panel=(EmbeddedSpec(), other)),
    )
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setattr(evaluate.Encoders, "load", lambda *_: None)
        patch.setattr(evaluate, "fit", lambda rows, encoders: Knowing(0.9))
        patch.setattr(evaluate, "load_judge", lambda *_: Plain(0.6))
        patch.setattr(evaluate.runtime, "prepare", lambda seed: None)
        reports = [evaluate.run(cfg, root / name) for name in ("a", "b")]
    return root, reports, shown.getvalue()


def test_equal_inputs_give_equal_bytes(built) -> None:
    root, reports, _ = built
    for name in ("report.json", "report.md", "plots/embedded-safety.svg"):
        assert (root / "a" / name).read_bytes() == (root / "b" / name).read_bytes(), name
    assert read_json(root / "a/report.json") == reports[0]


def test_the_report_has_every_judge_with_tables_and_plots(built) -> None:
    root, (report, _), shown = built
    tasks = {"intent", "refusal", "safety", "grounding", "comply"}
    assert set(report["judges"]["embedded"]["tasks"]) == tasks
    assert report["judges"]["plain"]["unmeasured"] == ["tone"]
    assert (root / "a/plots/plain-safety.png").stat().st_size > 1000
    text = (root / "a/report.md").read_text()
    assert "## Judge plain" in text
    assert "### Leave one source out" in text
    assert "judge embedded" in shown
    assert str(root / "a/report.md") in shown
    assert "\x1b[" not in shown


def test_goals_pass_and_fail_by_their_figures(built) -> None:
    found = copy.deepcopy(built[1][0]["judges"]["embedded"])
    by_name = {(g["goal"], g["where"]): g["passed"] for g in found["goals"]}
    assert by_name["safety AUROC", "sources held out, macro"] is True
    assert by_name["grounding AUROC", "equal-length pairs"] is True
    assert by_name["safety gain", "worst of 3 lengths"] is True
    found["tasks"]["intent"]["overall"]["auroc"]["value"] = 0.89
    found["leave_one_source_out"]["safety"] = {"headline": None, "skipped": {}}
    again = {(g["goal"], g["where"]): g["passed"] for g in goals(found)}
    assert again["intent AUROC", "test"] is False
    assert again["safety AUROC", "sources held out"] is None
