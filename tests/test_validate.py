import json

import pytest

from aaft.config import Config, Paths
from aaft.data.pin import file_md5
from aaft.data.stage import run
from aaft.errors import AaftError
from aaft.io import read_json, read_jsonl, write_jsonl

BENCH_PROMPT = "Please tell me how the old stone bridge of the town was built"


def row(number: int, **changes):
    made = {
        "id": f"r{number}",
        "source": "made",
        "prompt": f"Question number {number} about thing {number * 7}?",
        "response": f"Answer {number}",
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


class House:
    """A small project: rows in, the stage's files out."""

    def __init__(self, folder):
        self.folder, self.train = folder, folder / "train.jsonl"
        self.out = folder / "build" / "validate"
        bench = {"id": "b1", "source": "s", "messages": [{"role": "user", "content": BENCH_PROMPT}]}
        write_jsonl(folder / "bench" / "harmful.jsonl", [bench])
        question = {
            **bench,
            "id": "b2",
            "question": "In which year was the second mill of Ulm burnt?",
        }
        question["messages"] = [{"role": "user", "content": f"Passage: x. {question['question']}"}]
        write_jsonl(folder / "bench" / "qa.jsonl", [question])

    def validate(self, rows=None, **limits):
        if rows is not None:
            write_jsonl(self.train, rows)
        cfg = Config.model_validate(
            {
                "data": {"train": str(self.train), "bench": self.folder / "bench"},
                "validate": limits,
            }
        )
        return run(cfg, Paths(self.folder / "build"))

    def quarantine(self):
        return read_jsonl(self.out / "quarantine.jsonl")

    def outputs(self):
        return {
            path: path.read_bytes()
            for path in sorted(self.out.rglob("*"))
            if path.is_file() and path.name != "quarantine.jsonl"
        }


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


GOOD = [row(number) for number in range(60)]


def test_good_rows_pass_and_keep_their_content(house):
    report = house.validate([*GOOD, row(99, context="thing 693")])
    assert report["rows"] == {"in": 61, "accepted": 61, "quarantined": 0}
    assert report["sources"] == {"made": 61}
    assert report["with_context"] == 1
    assert report["characters"]["response"]["min"] == len("Answer 1")
    assert report["data"]["train_md5"] == file_md5(house.train)
    assert report == read_json(house.out / "report.json")
    clean = read_jsonl(house.out / "clean.jsonl")
    assert clean[-1]["messages"][0]["content"] == GOOD[0]["prompt"].replace("0", "99", 1).replace(
        "thing 0", "thing 693"
    )
    assert clean[-1]["context"] == "thing 693"
    assert house.quarantine() == []


def test_report_and_clean_rows_are_the_same_every_time(house):
    house.validate(GOOD)
    names = ("report.json", "clean.jsonl", "quarantine.jsonl")
    first = [(house.out / name).read_bytes() for name in names]
    house.validate(GOOD)
    assert [(house.out / name).read_bytes() for name in names] == first


STRUCTURAL = {
    "missing response": (row(77, response=None), "response: missing"),
    "empty response": (row(77, response=""), "response: missing"),
    "duplicate id": (row(3, prompt="Other?"), "id: used before"),
    "1 MB prompt": (row(77, prompt="x" * 1_000_000), "prompt: longer than 8000 characters"),
    "long response": (row(77, response="x" * 9_000), "response: longer than 8000 characters"),
    "wrong type": (row(77, response=5), "response: expected text, got int"),
    "no prompt": (row(77, prompt=None), "messages: missing"),
}


@pytest.mark.parametrize(("bad", "reason"), STRUCTURAL.values(), ids=STRUCTURAL)
def test_structural_fault_stops_with_row_field_and_remedy_and_keeps_outputs(house, bad, reason):
    house.validate(GOOD)
    before = house.outputs()
    with pytest.raises(AaftError) as error:
        house.validate([*GOOD, bad], max_bad_fraction=1.0)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in (f"{house.train}: line 61", f"(id {bad['id']!r})", reason, "1 unusable row of 61"):
        assert part in message
    assert "quarantine.jsonl" in message
    assert house.outputs() == before
    assert [entry["line"] for entry in house.quarantine()] == [61]


def test_unreadable_lines_stop_and_all_are_listed(house):
    lines = [json.dumps(entry).encode() for entry in GOOD[:3]]
    house.train.write_bytes(b"\n".join([lines[0], b'{"id": "\xff"}', lines[1], b"{oops", lines[2]]))
    with pytest.raises(
        AaftError, match="line 2: line: invalid UTF-8 at byte 8; 2 unusable rows of 5"
    ):
        house.validate()
    assert [entry["line"] for entry in house.quarantine()] == [2, 4]


CONTENT = {
    "blank": (row(77, response="  \n"), "response: blank"),
    "echo": (row(77, response=row(77)["prompt"]), "response: same as the prompt"),
    "control": (row(77, response="a\x00b"), "response: control characters"),
    "replacement": (row(77, prompt="caf\ufffd?"), "prompt: undecodable characters"),
    "leak": (row(77, prompt=BENCH_PROMPT.upper() + "!"), "in benchmark harmful.jsonl (id b1"),
    "leaked question": (
        row(77, prompt="In which year was the second mill of Ulm burnt?"),
        "in benchmark qa.jsonl (id b2",
    ),
}


@pytest.mark.parametrize(("bad", "reason"), CONTENT.values(), ids=CONTENT)
def test_content_fault_is_quarantined_with_its_reason(house, bad, reason):
    report = house.validate([*GOOD, bad])
    assert report["rows"] == {"in": 61, "accepted": 60, "quarantined": 1}
    (entry,) = house.quarantine()
    assert entry["line"] == 61
    assert entry["id"] == "r77"
    assert entry["row"] == bad
    assert reason in entry["reasons"][0]
    assert not entry["structural"]
    assert "r77" not in {clean["id"] for clean in read_jsonl(house.out / "clean.jsonl")}
    assert sum(report["reasons"].values()) == 1


def test_leaks_are_counted_by_benchmark(house):
    report = house.validate([*GOOD, row(77, prompt=BENCH_PROMPT)])
    assert report["contamination"] == {
        "threshold": 0.8,
        "rows": 1,
        "by_file": {"harmful.jsonl": 1},
    }
    assert report["reasons"] == {"prompt: in benchmark harmful.jsonl": 1}


def test_contamination_threshold_decides(house):
    words = BENCH_PROMPT.split()
    near = row(77, prompt=" ".join(["Now", *words[1:]]))
    assert house.validate([*GOOD, near], contamination_threshold=0.9)["rows"]["quarantined"] == 0
    assert house.validate([*GOOD, near], contamination_threshold=0.7)["rows"]["quarantined"] == 1


def test_repeated_rows_without_ids_are_quarantined_once(house):
    twin = {"prompt": "Again and again?", "response": "Yes, again."}
    report = house.validate([*GOOD, twin, twin])
    assert report["reasons"] == {"messages: repeats an earlier row": 1}
    assert house.quarantine()[0]["line"] == 62


def test_too_many_content_faults_stop_and_keep_outputs(house):
    house.validate(GOOD)
    before = house.outputs()
    bad = [row(100 + number, response=" ") for number in range(3)]
    with pytest.raises(AaftError) as error:
        house.validate([*GOOD, *bad])
    message = str(error.value)
    assert "line 61 (id 'r100'): response: blank" in message
    assert "3 bad rows of 63" in message
    assert "max_bad_fraction 0.02" in message
    assert house.outputs() == before
    assert len(house.quarantine()) == 3
    assert house.validate(max_bad_fraction=0.05)["rows"]["accepted"] == 60


def test_all_faults_of_a_row_are_reported(house):
    house.validate([*GOOD, row(77, prompt="\x00", response="\ufffd\x01")])
    assert house.quarantine()[0]["reasons"] == [
        "prompt: control characters",
        "response: control characters",
        "response: undecodable characters",
    ]


def test_data_docs_can_be_opened_and_hold_no_text_of_rows(house):
    house.validate([*GOOD, row(77, prompt="The secret word is xyzzyplugh, isn't it?")])
    index = house.out / "data_docs" / "index.html"
    assert "<html" in index.read_text(encoding="utf-8")
    pages = list((house.out / "data_docs").rglob("*.html"))
    assert len(pages) >= 3
    assert not [page for page in pages if "xyzzyplugh" in page.read_text(encoding="utf-8")]
    assert not list(house.out.glob(".*"))


def test_odd_data_is_a_warning_not_a_stop(house):
    rows = [row(number, response="The same for all") for number in range(60)]
    report = house.validate(rows)
    assert report["expectations"]["success"]
    assert [(entry["column"], entry["severity"]) for entry in report["expectations"]["failed"]] == [
        ("rows_with_response", "warning")
    ]


def test_no_rows_and_no_benchmarks_are_one_line_errors(house):
    with pytest.raises(AaftError, match=r"no rows; check data\.train"):
        house.validate([])
    for path in (house.folder / "bench").iterdir():
        path.unlink()
    with pytest.raises(AaftError, match="no benchmark files; run aaft data build"):
        house.validate(GOOD)
