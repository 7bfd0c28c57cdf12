import datetime
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaft.config import DataConfig
from aaft.data.records import draft, iter_rows, load_records, read_clean
from aaft.errors import AaftError
from aaft.io import write_jsonl


def config(path) -> DataConfig:
    return DataConfig(train=str(path))


def save(tmp_path, *rows):
    path = tmp_path / "train.jsonl"
    write_jsonl(path, rows)
    return path


def test_both_formats_give_the_same_record(tmp_path):
    chat = {
        "messages": [
            {"role": "user", "content": "Hi?"},
            {"role": "assistant", "content": "Ho."},
        ],
        "id": "a",
    }
    first, second = load_records(
        config(save(tmp_path, chat, {"id": 2, "prompt": "Hi?", "response": "Ho."}))
    )
    assert (first.id, second.id) == ("a", "2")
    assert first.prompt == second.prompt == "Hi?"
    assert first.response == second.response == "Ho."
    assert first.source == "user"
    assert first.context is None


def test_prompt_is_the_last_user_message():
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    record = draft({"messages": messages}).record()
    assert record.prompt == "three"
    assert record.response == "four"
    assert len(record.prompt_messages) == 4


def test_a_missing_id_is_a_digest_of_the_text_alone():
    one = draft({"prompt": "a", "response": "b"})
    assert one.id == draft({"response": "b", "prompt": "a", "extra": 1}).id
    assert one.id != draft({"prompt": "a", "response": "c"}).id
    assert not one.own_id


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_clean_rows_round_trip(tmp_path_factory, prompt, response):
    row = {"id": "x", "prompt": f"c {prompt}", "response": response, "context": "c"}
    record = draft(row).record()
    path = tmp_path_factory.mktemp("clean") / "clean.jsonl"
    write_jsonl(path, [record.row()])
    assert read_clean(path) == [record]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "messages: missing"),
        ({"messages": "text"}, "messages: expected a non-empty list"),
        ({"messages": []}, "messages: expected a non-empty list"),
        ({"messages": ["text"]}, "messages[0]: expected an object"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role: 'bot'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: expected text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages: no user message"),
        ({"prompt": 3, "response": "x"}, "prompt: expected text, got int"),
        ({"prompt": "x", "response": ["y"]}, "response: expected text, got list"),
        ({"prompt": "x", "response": "y", "id": 1.5}, "id: expected text, got float"),
        ({"prompt": "x", "response": "y", "id": True}, "id: expected text, got bool"),
        ({"prompt": "x", "response": "y", "context": 1}, "context: expected text, got int"),
        ({"prompt": "x", "response": "y", "context": "z"}, "context: not in the user's message"),
        ({"prompt": "x", "response": "y", "source": 1}, "source: expected text, got int"),
    ],
)
def test_a_wrong_shape_names_the_field(tmp_path, row, fault):
    assert draft(row).fault.startswith(fault)
    with pytest.raises(AaftError, match="line 1"):
        load_records(config(save(tmp_path, row)))


def test_unreadable_lines_are_counted_not_hidden(tmp_path):
    path = tmp_path / "train.jsonl"
    good = json.dumps({"prompt": "a", "response": "b"}).encode()
    path.write_bytes(
        b"\n".join(
            [good, b"", b"{bad", b"\xff\xfe", b"[1]", rb'{"prompt": "\ud800"}', b'{"a": NaN}']
        )
    )
    rows = list(iter_rows(config(path)))
    assert [row.line for row in rows] == [1, 3, 4, 5, 6, 7]
    faults = [row.fault for row in rows]
    assert faults[0] == ""
    assert rows[0].value is not None
    expected = [
        "not JSON",
        "invalid UTF-8 at byte 0",
        "not a JSON object",
        "half of",
        "not JSON (NaN",
    ]
    assert all(fault.startswith(start) for fault, start in zip(faults[1:], expected, strict=True))
    with pytest.raises(AaftError, match="line 3: not JSON"):
        load_records(config(path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}], "line 1: response: missing"),
        ([{"prompt": "a", "response": ""}], "line 1: response: missing"),
        ([{"id": "x", "prompt": "a", "response": "b"}] * 2, "line 2: id: 'x' is used before"),
        ([], "no rows"),
    ],
)
def test_load_records_stops_at_the_first_bad_row(tmp_path, rows, message):
    with pytest.raises(AaftError, match=message):
        load_records(config(save(tmp_path, *rows)))


def test_missing_file_names_the_parameter(tmp_path):
    with pytest.raises(AaftError, match=r"none\.jsonl: no such file; check data\.train"):
        load_records(config(tmp_path / "none.jsonl"))


def test_clean_rows_before_validate_name_the_stage(tmp_path):
    with pytest.raises(AaftError, match="run aaft validate first"):
        read_clean(tmp_path / "clean.jsonl")


def test_hub_rows_are_read_like_file_rows(monkeypatch):
    rows = [{"prompt": "a", "response": "b", "when": datetime.date(2020, 1, 1), "x": float("nan")}]
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return rows

    monkeypatch.setitem(
        __import__("sys").modules, "datasets", SimpleNamespace(load_dataset=load_dataset)
    )
    (record,) = load_records(DataConfig(train="someone/some-set", split="train[:1]"))
    assert record.response == "b"
    assert asked == [("someone/some-set", "train[:1]")]
    (raw,) = iter_rows(DataConfig(train="someone/some-set"))
    assert raw.value["when"] == "2020-01-01"
    assert raw.value["x"] is None


@pytest.mark.parametrize("error", [ConnectionError("no\nnetwork"), ValueError("Unknown split")])
def test_hub_errors_are_one_line(monkeypatch, error):
    def load_dataset(name, split):
        raise error

    monkeypatch.setitem(
        __import__("sys").modules, "datasets", SimpleNamespace(load_dataset=load_dataset)
    )
    with pytest.raises(AaftError, match="someone/some-set") as caught:
        load_records(DataConfig(train="someone/some-set"))
    assert "\n" not in str(caught.value)
