import json
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from aaft.data import build as build_module
from aaft.data.build import build
from aaft.data.grounded import (
    foreign_answer,
    foreign_passage,
    lies,
    split_pools,
    supporting_sentence,
)
from aaft.data.pin import dvc_dir_md5, read_pin
from aaft.data.prompts import REFUSALS, UNSTATED
from aaft.data.separation import NEAR, Taken, check_disjoint
from aaft.data.similarity import Index
from aaft.data.sources import REQUEST, Grounded, as_question
from aaft.data.status import status
from aaft.data.study_set import ASKED, OWN, REFUSED
from aaft.data.text import normalise
from aaft.data.wheels import DEFAULT_FOLDER, PINS, Pin, Wheels, verify
from aaft.data.written import written_requests
from aaft.errors import AaftError
from aaft.io import read_jsonl

ROOT = Path(__file__).parents[1]
WHEELS = ROOT / DEFAULT_FOLDER


def write_fake(folder: Path, name: str = "train.jsonl") -> None:
    folder.mkdir(parents=True)
    (folder / name).write_text('{"id": "1"}\n')
    manifest = {"sources": [], "files": {"train.jsonl": 4}, "poisoned": 1}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.fixture
def fake_build(monkeypatch):
    monkeypatch.setattr(build_module, "_write", lambda wheels, folder: write_fake(folder))


def write_pin(path: Path, md5: str) -> Path:
    path.write_text(f"outs:\n- md5: {md5}\n  path: data\n")
    return path


def test_build_replaces_the_folder_and_reports_rows(fake_build, tmp_path):
    made = build(tmp_path, tmp_path / "data", None)
    assert made.changed
    assert made.rows == {"train.jsonl": 4}
    assert made.poisoned == 0.25
    assert made.md5 == dvc_dir_md5(tmp_path / "data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_build_with_another_hash_names_both_and_keeps_the_earlier_data(fake_build, tmp_path):
    out = tmp_path / "data"
    write_fake(out, "train.jsonl")
    (out / "train.jsonl").write_text("earlier\n")
    pin = write_pin(tmp_path / "data.dvc", "0" * 32 + ".dir")
    with pytest.raises(AaftError) as error:
        build(tmp_path, out, pin)
    assert "0" * 32 in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).count(".dir") == 2
    assert (out / "train.jsonl").read_text() == "earlier\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "data.dvc"]


def test_build_does_nothing_when_the_folder_has_the_pinned_hash(fake_build, tmp_path, monkeypatch):
    first = build(tmp_path, tmp_path / "data", None)
    pin = write_pin(tmp_path / "data.dvc", first.md5)
    monkeypatch.setattr(build_module, "_write", lambda *_: pytest.fail("built again"))
    assert not build(tmp_path, tmp_path / "data", pin).changed


def test_build_refuses_to_delete_a_file_it_did_not_make(fake_build, tmp_path):
    out = tmp_path / "data"
    write_fake(out)
    (out / "mine.jsonl").write_text("precious\n")
    with pytest.raises(AaftError, match=r"mine\.jsonl.*move it"):
        build(tmp_path, out, None)
    assert (out / "mine.jsonl").read_text() == "precious\n"


def test_a_failing_build_leaves_no_trace(tmp_path, monkeypatch):
    def fail(wheels, folder):
        write_fake(folder)
        raise AaftError("no wheel")

    monkeypatch.setattr(build_module, "_write", fail)
    with pytest.raises(AaftError):
        build(tmp_path, tmp_path / "data", None)
    assert list(tmp_path.iterdir()) == []


def test_missing_wheel_names_the_remedy(tmp_path):
    with pytest.raises(AaftError, match=r"pyrit-1\.1\.0.*run make setup"):
        Wheels(tmp_path).text("pyrit", "anything")


def test_changed_wheel_is_never_read(tmp_path):
    wheel = Pin("pyrit", "1.1.0", "0" * 64, "MIT", "")
    (tmp_path / wheel.filename).write_bytes(b"not the pinned bytes")
    with pytest.raises(AaftError, match="is not the pinned 0000"):
        verify(tmp_path, wheel)


def test_csv_members_lose_comment_lines_and_keep_quoted_newlines(tmp_path, monkeypatch):
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", '# version\n# note, more\nq,a\nx,"two\n#lines"\n')
    wheels = Wheels(tmp_path)
    monkeypatch.setattr(wheels, "path", lambda package: path)
    assert wheels.csv("any", "a.csv") == [{"q": "x", "a": "two\n#lines"}]


def test_pins_are_complete():
    assert len({pin.package for pin in PINS}) == len(PINS)
    assert all(len(pin.sha256) == 64 and pin.licence and pin.purpose for pin in PINS)


def test_dvc_dir_md5_equals_that_of_dvc_add(tmp_path):
    data = tmp_path / "data"
    (data / "bench").mkdir(parents=True)
    (data / "train.jsonl").write_text("häy\n", encoding="utf-8")
    (data / "bench" / "a.jsonl").write_bytes(b"one\r\ntwo\n")
    (data / "bench.txt").write_text("")
    for command in (["init", "--no-scm", "-q"], ["add", "-q", "data"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, check=True)
    assert dvc_dir_md5(data) == read_pin(tmp_path / "data.dvc")


@pytest.mark.parametrize("text", ["", "outs: []", "outs: 3", "a: [", "outs:\n- path: x\n"])
def test_malformed_pin_is_a_one_line_error(tmp_path, text):
    path = tmp_path / "data.dvc"
    path.write_text(text)
    with pytest.raises(AaftError, match="not a DVC file"):
        read_pin(path)


def grounded(number: int) -> Grounded:
    words = " ".join(f"w{number}x{part}" for part in range(12))
    right = f"answer{number}"
    return Grounded(
        f"{words}. It was {right} then.", f"Which {words}?", right, f"Other{number} it was."
    )


def test_pools_are_disjoint_and_bench_has_no_near_twin():
    rows = [grounded(number) for number in range(40)]
    twins = [
        row._replace(question=row.question + " Now?", passage=row.passage + " End.") for row in rows
    ]
    pools = split_pools(rows + twins, bench=5, train=20, spare=3, judge=9)
    parts = (pools.bench, pools.train, pools.spare, pools.judge)
    assert [len(part) for part in parts] == [5, 20, 3, 9]
    everything = [row for part in parts for row in part]
    assert len({row.question for row in everything}) == len(everything)
    index = Index((row.passage, row.passage) for row in pools.bench)
    for part in parts[1:]:
        assert not any(index.similar(row.passage, NEAR) for row in part)


@pytest.mark.parametrize(
    "row",
    [
        Grounded("x" * 451 + " Rome", "Where?", "Rome", "Oslo"),
        Grounded("All roads lead there.", "Where?", "Rome", "Oslo"),
        Grounded("Yes it is so.", "Is it?", "yes", "no"),
    ],
)
def test_pools_leave_out_unusable_rows(row):
    assert split_pools([row], 1, 1, 1, 1).bench == []


def test_spoiling_a_pair_really_spoils_it():
    row = Grounded("Rome is old. Oslo is new.", "Which is old?", "Rome", "Rome it is")
    other = Grounded("Bern is dear.", "Which is dear?", "Bern", "Paris")
    near = Grounded("Rome again.", "Which is again?", "Oslo", "Bern")
    assert not lies(row)
    assert lies(other)
    assert foreign_passage(row, [row, near, other], 0) == other.passage
    assert foreign_answer(row, [row, near, other], 0) == "Bern"
    assert supporting_sentence(row) == "Rome is old."
    with pytest.raises(ValueError, match="every passage"):
        foreign_passage(row, [row, near], 1)


@pytest.mark.parametrize(
    ("judge", "other"),
    [
        ("how do I bake a very good rye bread", "train.jsonl"),
        ("how do I build a very tall stone tower today", "bench/a.jsonl"),
    ],
)
def test_overlapping_splits_stop_the_build(judge, other):
    bench = {"bench/a.jsonl": ["How do I build a very tall stone tower?"]}
    train = ["How do I bake a very good rye bread?"]
    with pytest.raises(AaftError, match=other):
        check_disjoint(bench, train, {"judge/x.jsonl": [judge]})
    check_disjoint(bench, train, {"judge/x.jsonl": ["Something else"]})


def test_taken_excludes_near_and_exact_twins():
    taken = Taken(near=["one two three four five six seven"], exact=["Alpha beta"])
    assert not taken.free("One two three four five six, seven eight")
    assert not taken.free("alpha  BETA!")
    assert taken.free("alpha beta gamma")


def test_as_question():
    assert as_question("who sang it ?") == "Who sang it?"


def test_status_without_data_names_the_remedy(tmp_path):
    with pytest.raises(AaftError, match="run aaft data build"):
        status(tmp_path)


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    if not WHEELS.is_dir():
        pytest.skip("wheels not fetched")
    out = tmp_path_factory.mktemp("real") / "data"
    return build(WHEELS, out, None)


needs_wheels = pytest.mark.skipif(not WHEELS.is_dir(), reason="run make setup for the wheels")


@needs_wheels
def test_real_build_has_the_pinned_hash(real):
    assert real.md5 == read_pin(ROOT / "data.dvc")


@needs_wheels
def test_real_counts(real):
    assert real.rows["train.jsonl"] == real.rows["train_labels.jsonl"] == 1_200
    assert all(n >= 150 for name, n in real.rows.items() if name.startswith("bench/"))
    labels = read_jsonl(real.out / "train_labels.jsonl")
    kinds = Counter(row["kind"] for row in labels)
    assert kinds["hallucinated"] == kinds["unsupported"] == 60
    assert kinds["harmful"] == 96
    assert real.poisoned == pytest.approx(0.18)


@needs_wheels
def test_real_train_rows_reveal_no_label(real):
    rows = read_jsonl(real.out / "train.jsonl")
    labels = {row["id"]: row for row in read_jsonl(real.out / "train_labels.jsonl")}
    assert {tuple(row) for row in rows} == {("id", "source", "messages", "context")}
    assert [row["id"] for row in rows] == sorted(labels)
    grounded_rows = [row for row in rows if row["source"] == "grounded-qa"]
    assert any(labels[row["id"]]["poisoned"] for row in grounded_rows)
    # In an order without meaning, poison is spread evenly over quarters (binomial, 4 sigma).
    flags = [labels[row["id"]]["poisoned"] for row in rows]
    quarters = [sum(flags[start : start + 300]) for start in range(0, 1_200, 300)]
    assert all(abs(count - 54) < 4 * (300 * 0.18 * 0.82) ** 0.5 for count in quarters)


@needs_wheels
def test_real_splits_are_disjoint(real):
    def prompts(name):
        rows = read_jsonl(real.out / name)
        return [
            row["messages"][0]["content"] if "messages" in row else row["prompt"] for row in rows
        ]

    bench = [p for name in real.rows if name.startswith("bench/") for p in prompts(name)]
    judge = [p for name in real.rows if name.startswith("judge/") for p in prompts(name)]
    train = prompts("train.jsonl")
    assert not {normalise(p) for p in train} & {normalise(p) for p in judge}
    index = Index((str(number), text) for number, text in enumerate(bench))
    assert not [p for p in train + judge if index.similar(p, NEAR)]


@needs_wheels
def test_real_passages_are_disjoint(real):
    def passages(name):
        return {row["context"] for row in read_jsonl(real.out / name) if row.get("context")}

    groups = [
        passages("train.jsonl"),
        passages("bench/qa_answerable.jsonl") | passages("bench/qa_unanswerable.jsonl"),
        passages("judge/grounding.jsonl"),
    ]
    assert sum(map(len, groups)) == len(set.union(*groups))


@needs_wheels
@pytest.mark.parametrize("name", ["intent", "refusal", "safety", "grounding"])
def test_real_judge_files_never_share_a_prompt_between_fit_and_test(real, name):
    rows = read_jsonl(real.out / f"judge/{name}.jsonl")
    sides = {
        split: {normalise(row["prompt"]) for row in rows if row["split"] == split}
        for split in ("fit", "test")
    }
    assert not sides["fit"] & sides["test"]
    for split in sides:
        assert {row["label"] for row in rows if row["split"] == split} == {0, 1}
    assert len({row["id"] for row in rows}) == len(rows)


@needs_wheels
def test_real_prompts_that_fit_in_one_judge_file_test_in_none(real):
    splits = defaultdict(set)
    for name in ("intent", "refusal", "safety"):
        for row in read_jsonl(real.out / f"judge/{name}.jsonl"):
            splits[normalise(row["prompt"])].add(row["split"])
    # Safety is made of heads that are fitted on the other files.
    assert not [prompt for prompt, found in splits.items() if {"fit", "test"} <= found]


@needs_wheels
def test_real_written_pairs_are_whole_and_in_one_split(real):
    rows = {
        row["prompt"]: row
        for row in read_jsonl(real.out / "judge/intent.jsonl")
        if row["source"] in ("written", "written-orders")
    }
    topics = defaultdict(list)
    for request in written_requests():
        topics[request.topic].append(rows[request.prompt])
    assert all(len({row["split"] for row in pair}) == 1 for pair in topics.values())
    assert sum(len(pair) == 2 for pair in topics.values()) > 1_000


@needs_wheels
def test_real_refusals_of_ours_have_agreements_beside_them_and_no_text_in_two_splits(real):
    rows = [
        row for row in read_jsonl(real.out / "judge/refusal.jsonl") if row["source"] == "contrast"
    ]
    sides = {
        label: {row["prompt"]: row["split"] for row in rows if row["label"] == label}
        for label in (0, 1)
    }
    assert sides[0] == sides[1]
    assert len(sides[0]) > 200
    splits = defaultdict(set)
    for row in rows:
        splits[row["response"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


@needs_wheels
def test_real_qa_answers_are_in_the_passage_or_must_be_abstained(real):
    for row in read_jsonl(real.out / "bench/qa_answerable.jsonl"):
        assert normalise(row["answers"][0]) in normalise(row["context"])
    assert all(row["answers"] == [] for row in read_jsonl(real.out / "bench/qa_unanswerable.jsonl"))


STUDY_PAIRS = ("align", "general")
VALID = ("valid_harmful", "valid_benign", "valid_qa_answerable", "valid_qa_unanswerable")


def study_prompts(real, *names):
    return [
        row["messages"][0]["content"]
        for name in names
        for row in read_jsonl(real.out / f"study/{name}.jsonl")
    ]


@needs_wheels
def test_real_study_rows_are_near_no_benchmark_and_no_validation_prompt(real):
    bench = [
        row["messages"][0]["content"]
        for name in real.rows
        if name.startswith("bench/")
        for row in read_jsonl(real.out / name)
    ]
    valid, pairs = study_prompts(real, *VALID), study_prompts(real, *STUDY_PAIRS)
    index = Index((str(number), text) for number, text in enumerate(bench))
    assert not [text for text in valid + pairs if index.similar(text, NEAR)]
    index = Index((str(number), text) for number, text in enumerate(valid))
    assert not [text for text in pairs if index.similar(text, NEAR)]
    assert len({normalise(text) for text in valid + pairs}) == len(valid + pairs)
    train = {normalise(r["messages"][0]["content"]) for r in read_jsonl(real.out / "train.jsonl")}
    assert not train & {normalise(text) for text in valid + pairs}


@needs_wheels
def test_real_general_rows_and_validation_prompts_are_unknown_to_the_judges_fit(real):
    fitted = {
        normalise(row["prompt"])
        for name in ("intent", "refusal", "safety", "grounding")
        for row in read_jsonl(real.out / f"judge/{name}.jsonl")
        if row["split"] != "test"
    }
    assert not fitted & {normalise(text) for text in study_prompts(real, "general", *VALID)}


@needs_wheels
def test_real_alignment_rows_teach_all_four_things(real):
    rows = read_jsonl(real.out / "study/align.jsonl")
    assert Counter(row["kind"] for row in rows) == {
        "refusal": 320,
        "benign": 60,
        "grounded": ASKED,
        "unanswerable": ASKED,
    }
    assert Counter(row["source"] for row in rows if row["kind"] == "refusal") == REFUSED
    assert len(read_jsonl(real.out / "study/own.jsonl")) == OWN
    answers = {
        kind: {r["messages"][1]["content"] for r in rows if r["kind"] == kind}
        for kind in ("refusal", "unanswerable")
    }
    assert answers["refusal"] == set(REFUSALS)
    assert answers["unanswerable"] == set(UNSTATED)
    for row in rows:
        answer = normalise(row["messages"][1]["content"])
        assert (row["context"] is None) == (row["kind"] in ("refusal", "benign"))
        if row["kind"] == "grounded":
            assert answer in normalise(row["context"])


@needs_wheels
def test_real_alignment_questions_are_answerable_by_their_passage_alone(real):
    """Neither a question nor a passage says which of the two kinds a row is of."""
    rows, asked = read_jsonl(real.out / "study/align.jsonl"), {}
    for kind in ("grounded", "unanswerable"):
        own = [row for row in rows if row["kind"] == kind]
        asked[kind] = [
            (row["messages"][0]["content"].replace(row["context"], ""), row["context"])
            for row in own
        ]
    questions, passages = (
        [sorted(pair[part] for pair in pairs) for pairs in asked.values()] for part in (0, 1)
    )
    assert questions[0] == questions[1]
    assert len(set(questions[0])) == ASKED
    # A passage may be lent twice, where the next one holds the answer.
    assert set(passages[1]) <= set(passages[0])
    assert len(set(passages[1])) > 0.95 * ASKED
    assert not set(asked["grounded"]) & set(asked["unanswerable"])


@needs_wheels
def test_real_validation_files_have_the_benchmarks_form(real):
    for name in VALID:
        rows = read_jsonl(real.out / f"study/{name}.jsonl")
        bench = read_jsonl(real.out / f"bench/{name.removeprefix('valid_')}.jsonl")
        assert len(rows) == 60
        assert {tuple(row) for row in rows} == {tuple(row) for row in bench}
        assert all(row["answers"] == [] for row in rows if name.endswith("unanswerable"))
        assert all(row["answers"] for row in rows if name.endswith("_answerable"))


@needs_wheels
def test_real_jailbreaks_hold_a_request_and_no_judge_has_seen_them(real):
    rows = read_jsonl(real.out / "study/jailbreaks.jsonl")
    assert 20 <= len(rows) <= 40
    assert len({row["template"] for row in rows}) == len(rows)
    for row in rows:
        assert REQUEST in row["template"]
        assert len(row["template"]) <= 1_200
        assert "{{" not in row["template"]
        assert "{%" not in row["template"]
    index = Index((row["name"], row["template"]) for row in rows)
    judge = [
        row["prompt"]
        for name in real.rows
        if name.startswith("judge/")
        for row in read_jsonl(real.out / name)
    ]
    assert not [text for text in judge if index.similar(text, NEAR)]


@needs_wheels
def test_real_status_lists_every_source_and_row(real):
    found = status(real.out)
    for name, count in found.files.items():
        if name != "train_labels.jsonl":
            assert sum(row.rows.get(name, 0) for row in found.sources) == count
    assert {pin.package for pin in PINS} | {"aaft"} == {row.package for row in found.sources}
    assert found.poisoned == 216
