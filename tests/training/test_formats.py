"""Every format of preference data, in the shape in which it is published, and how a row can be wrong."""

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.test_data import real
from training.data import PairStream, PreferencePair, load_pairs
from training.errors import DataError
from training.formats import Record, read_records, recognise
from training.formats.pairs import implicit_prompt

SUMMARY: dict[str, Any] = {
    "info": {"id": "t3_1", "post": " I lost my keys. ", "title": "Keys", "subreddit": "advice", "site": None},
    "summaries": [
        {"text": " Lost keys. ", "policy": "sup", "note": None},
        {"text": "A dog ran.", "policy": "ref", "note": None},
    ],
    "choice": 0,
    "worker": "w1",
    "batch": "batch3",
    "split": "train",
    "extra": {},
}
QA: dict[str, Any] = {
    "question": "Who wrote it?",
    "passages": [["The book", "It was written by Ann.", "In 1900."], ["Ann", "A writer."]],
    "prediction 1": "Ann wrote it.",
    "prediction 2": "Ann.",
    "prediction 3": "Bob.",
    "prediction 4": "Nobody.",
    "preference": [0, 1, 2, 1, 1, 1],
}
DEFACTO: dict[str, Any] = {
    "article": "A deal was reached in Hama.",
    "candidate": "A deal was reached in Homs.",
    "doc_id": 7,
    "has_error": True,
    "feedback": {"summary": "A deal was reached in Hama, reports say.", "evidence": "", "instruction": ""},
}
EXPLICIT = {"prompt": "Price?", "chosen": " 3 euros.", "rejected": "Dunno."}
TURN = {"role": "user", "content": "Price?"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def records(format: Any, path: Path) -> list[Record]:
    return [record for _, record in read_records(format, path)]


# ---------- published data sets


def test_summaries_become_a_prompt_with_title_and_two_summaries(tmp_path: Path) -> None:
    article = {**SUMMARY, "info": {"article": "News.", "title": None, "site": "cnn"}, "choice": 1}
    post, news = records("summaries", written(tmp_path / "a.jsonl", SUMMARY, article))
    assert post.prompts[0][0]["content"] == "Summarize this post.\n\nTitle: Keys\n\nI lost my keys."
    assert (post.chosen, post.rejected, post.source) == ("Lost keys.", "A dog ran.", "summaries/advice")
    assert news.prompts[0][0]["content"] == "Summarize this article.\n\nNews."
    assert (news.chosen, news.rejected) == ("A dog ran.", "Lost keys.")


def test_four_answers_become_six_comparisons(tmp_path: Path) -> None:
    loaded = load_pairs("fg_rlhf", written(tmp_path / "a.jsonl", QA))
    texts = [(pair.chosen, pair.rejected) for pair in loaded.pairs]
    assert texts == [
        ("Ann wrote it.", "Bob."),
        ("Nobody.", "Ann wrote it."),
        ("Ann.", "Bob."),
        ("Ann.", "Nobody."),
        ("Bob.", "Nobody."),
    ]
    assert (
        len(loaded.report.undecided) == 1 and "1 left out, people preferred neither" in loaded.report.text()
    )
    prompt = loaded.pairs[0].prompt[0]["content"]
    assert prompt == "Who wrote it?\n\nThe book\nIt was written by Ann.\nIn 1900.\n\nAnn\nA writer."


def test_a_correction_is_preferred_to_its_draft_and_a_right_draft_says_nothing(tmp_path: Path) -> None:
    right = {**DEFACTO, "feedback": {"summary": "", "evidence": ""}}
    loaded = load_pairs("defacto", written(tmp_path / "a.jsonl", DEFACTO, right))
    (pair,) = loaded.pairs
    assert (pair.chosen, pair.rejected) == ("A deal was reached in Hama, reports say.", DEFACTO["candidate"])
    assert pair.prompt[0]["content"].endswith("\n\nA deal was reached in Hama.")
    assert [place.line for place in loaded.report.undecided] == [2]


# ---------- TRL's preference types


@pytest.mark.parametrize(
    "row",
    [
        EXPLICIT,
        {"chosen": "Price? 3 euros.", "rejected": "Price? Dunno."},
        {"prompt": [TURN], "chosen": [answer("3 euros.")], "rejected": [answer("Dunno.")]},
        {"chosen": [TURN, answer("3 euros.")], "rejected": [TURN, answer("Dunno.")]},
        {"prompt": "Price?", "chosen": [TURN, answer("3 euros.")], "rejected": [TURN, answer("Dunno.")]},
        {"prompt": [TURN], "chosen": [TURN, answer("3 euros.")], "rejected": [TURN, answer("Dunno.")]},
        {"prompt": "Price?", "chosen": [answer("3 euros.")], "rejected": [answer("Dunno.")]},
    ],
    ids=["explicit", "implicit", "conversation", "implicit conversation", "both", "twice", "mixed"],
)
def test_the_four_types_say_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = load_pairs("preference", written(tmp_path / "a.jsonl", row)).pairs
    assert [dict(message) for message in pair.prompt] == [TURN]
    assert (pair.chosen, pair.rejected) == ("3 euros.", "Dunno.")


@given(st.text("ab c\n", max_size=30), st.text("ab c\n", max_size=30))
def test_an_implicit_prompt_is_a_common_beginning_that_cuts_no_word(chosen: str, rejected: str) -> None:
    cut = implicit_prompt(chosen, rejected)
    assert chosen[:cut] == rejected[:cut]
    assert implicit_prompt(rejected, chosen) == cut
    for text in (chosen, rejected):
        assert cut in (0, len(text)) or text[cut - 1].isspace() or text[cut].isspace()


# ---------- files


def rows(count: int) -> list[dict[str, str]]:
    rng = random.Random(3)
    texts = ["".join(rng.choices('ab "\\ü[]{},', k=rng.randint(0, 400))) for _ in range(count)]
    return [{"prompt": f"Say {i}.", "chosen": f"y{t}y", "rejected": f"n{t}n"} for i, t in enumerate(texts)]


def as_array(path: Path, content: Iterable[object]) -> Path:
    text = json.dumps(list(content), ensure_ascii=False, indent=1)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path) -> None:
    """700 rows, so that an array ends in the middle of its chunks many times."""
    from datasets import Dataset

    content = rows(700)
    Dataset.from_list(content).save_to_disk(str(tmp_path / "saved"))
    Dataset.from_list(content).to_parquet(str(tmp_path / "a.parquet"))
    files = [
        written(tmp_path / "a.jsonl", *content),
        written(tmp_path / "lines.json", *content),
        as_array(tmp_path / "a.json", content),
        as_array(tmp_path / "a.json.gz", content),
        tmp_path / "a.parquet",
        tmp_path / "saved",
    ]
    found = [load_pairs("preference", file).pairs for file in files]
    assert len(found[0]) == 700

    def texts(pairs: list[PreferencePair]) -> list[tuple[str, str, str]]:
        return [(pair.prompt[0]["content"], pair.chosen, pair.rejected) for pair in pairs]

    for other in found[1:]:
        assert texts(other) == texts(found[0])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1}', "line 1: not JSON: no comma after it"),
        ('[{"prompt": "a", "chosen": "b", "rejected": "c"},', "line 2: the array has no end"),
        ('[{"prompt": "a", "chosen": "b", "rejected": "c"}, 3]', "line 2: a JSON int, not an object"),
        ('[{"prompt": "a", "chosen": "b", "rejected": "c"}, {"a": }]', "line 2: not JSON"),
    ],
)
def test_a_broken_array_names_its_element(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=problem):
        load_pairs("preference", path)


def test_a_directory_and_a_file_that_are_not_what_they_seem(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(DataError, match=r"a\.parquet: not Parquet"):
        load_pairs("preference", tmp_path / "a.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a directory that `datasets` did not save"):
        load_pairs("preference", tmp_path / "empty")
    DatasetDict({"train": Dataset.from_list(rows(3))}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match=r"several splits: train. Name one: .*splits/train"):
        load_pairs("preference", tmp_path / "splits")


@pytest.mark.parametrize(
    ("format", "row", "problem"),
    [
        ("summaries", {**SUMMARY, "choice": 2}, "choice must be 0 or 1, not 2"),
        ("summaries", {**SUMMARY, "choice": True}, "choice must be 0 or 1, not True"),
        ("summaries", {**SUMMARY, "summaries": [{"text": "a"}]}, "summaries must be a list of two"),
        ("summaries", {**SUMMARY, "info": {}}, "with a post or an article"),
        ("summaries", {**SUMMARY, "summaries": [{"text": 3}, {}]}, r"summaries\[0\].text must be text"),
        ("fg_rlhf", {**QA, "preference": [1]}, "a list of six numbers"),
        ("fg_rlhf", {**QA, "preference": [1, 1, 1, 1, 1, 3]}, "preference holds 3; known are 0, 1 and 2"),
        ("fg_rlhf", {**QA, "passages": "text"}, "passages must be a list of lists"),
        ("fg_rlhf", {"question": "?"}, "no key 'preference' and no key 'prediction 1'"),
        ("defacto", {**DEFACTO, "feedback": None}, "feedback must be an object"),
        ("preference", {"chosen": "Yes.", "rejected": "No."}, "no key 'prompt', and .* no common beginning"),
        (
            "preference",
            {"chosen": [answer("a")], "rejected": [answer("b")]},
            "must be a conversation that ends",
        ),
        ("preference", {"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt must be text, not int"),
        ("preference", {"prompt": 3, "chosen": [answer("a")], "rejected": []}, "prompt must be a list of m"),
        (
            "preference",
            {"prompt": "Other?", "chosen": [TURN, answer("a")], "rejected": [TURN, answer("b")]},
            "chosen is a conversation in which the prompt does not stand",
        ),
    ],
)
def test_a_row_that_is_not_of_the_format(
    tmp_path: Path, format: Any, row: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=f"a.jsonl, line 1: .*{problem}"):
        load_pairs(format, written(tmp_path / "a.jsonl", row))


# ---------- which format is it


@pytest.mark.parametrize(
    ("row", "format"),
    [
        (SUMMARY, "summaries"),
        (QA, "fg_rlhf"),
        (DEFACTO, "defacto"),
        (EXPLICIT, "preference"),
        ({"prompt": [TURN], "chosen": [answer("a")], "rejected": [answer("b")]}, "chat_pairs"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, "hh_rlhf"),
    ],
)
def test_a_format_is_known_by_its_first_row(tmp_path: Path, row: dict[str, Any], format: str) -> None:
    assert recognise(written(tmp_path / "a.jsonl", row)) == format


def test_tldr_with_its_prompt_written_out(tmp_path: Path) -> None:
    """The TL;DR comparisons as TRL publishes them: plain text, a space before each summary."""
    prompt = "SUBREDDIT: r/advice\n\nTITLE: Keys\n\nPOST: I lost my keys.\n\nTL;DR:"
    row = {"prompt": prompt, "chosen": " Lost keys.", "rejected": " A dog ran."}
    path = written(tmp_path / "a.jsonl", row)
    (pair,) = load_pairs(recognise(path), path).pairs
    assert (pair.prompt[0]["content"], pair.chosen, pair.rejected) == (prompt, "Lost keys.", "A dog ran.")


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"the keys text, which no format begins with\. Formats are chat_pairs, "
    ):
        recognise(written(tmp_path / "a.jsonl", {"text": "a"}))
    with pytest.raises(DataError, match="holds no row"):
        recognise(written(tmp_path / "b.jsonl"))


def test_prompts_that_two_files_share_are_counted(tmp_path: Path) -> None:
    changed = [row | {"rejected": "other"} if i == 5 else row for i, row in enumerate(rows(9))]
    streams = [
        PairStream("preference", written(tmp_path / "a.jsonl", *rows(6))),
        PairStream("preference", written(tmp_path / "b.jsonl", *changed[4:])),
    ]
    assert [len(list(stream)) for stream in streams] == [6, 5]
    assert streams[0].shared_with(streams[1]) == {"prompts": 2, "drafts": 1}


# ---------- the real files


@pytest.mark.parametrize(
    ("name", "format", "read", "kept"),
    [
        ("fg_rlhf/dev_feedback.json", "fg_rlhf", 3000, 1),
        ("defacto/train.jsonl", "defacto", 1000, 1),
        ("hh_rlhf/harmless-base.jsonl", "hh_rlhf", 1, 1),
        ("paradetox/dev.jsonl", "chat_pairs", 1, 1),
    ],
)
def test_real_files_are_recognised_and_load(name: str, format: str, read: int, kept: int) -> None:
    path = real(name)
    assert recognise(path) == format
    report = load_pairs(recognise(path), path).report
    assert report.read >= read and report.kept >= kept
    assert report.words["chosen"]["median"] > 0
