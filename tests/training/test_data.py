"""Between a data file and training: nothing is lost unsaid, and no prompt leaks between the stages."""

import gzip
import json
import os
import tracemalloc
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import (
    LoadResult,
    Message,
    PairStream,
    PreferencePair,
    load_pairs,
    write_pairs,
)
from training.errors import ConfigError, DataError, TrainingError
from training.split import opening, split_by_prompt

DATA = Path(os.environ.get("PIT_DATA", Path(__file__).parents[3] / "shared" / "data"))


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real data file {name} is not here (set PIT_DATA to the directory that has it)")
    return path


def record(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "prompt": [{"role": "user", "content": "Price?"}],
        "chosen": [{"role": "assistant", "content": "The price is 3 euros."}],
        "rejected": [{"role": "assistant", "content": "3"}],
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def load(path: Path, *records: object, format: Any = "chat_pairs", limit: int | None = None) -> LoadResult:
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return load_pairs(format, path, limit)


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


# ---------- chat_pairs: what is read


def test_a_record_becomes_a_pair(file: Path) -> None:
    prompt = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Price?"},
    ]
    result = load(file, record(id="a-1", prompt=prompt, references=["Three euros."]))
    [pair] = result.pairs
    assert (pair.id, pair.chosen, pair.rejected) == ("a-1", "The price is 3 euros.", "3")
    assert list(pair.prompt) == prompt
    assert pair.references == ("Three euros.",)
    assert (result.report.read, result.report.kept, result.report.prompts) == (1, 1, 1)


def test_a_missing_id_is_the_line_and_blank_lines_count_as_lines(file: Path) -> None:
    result = load(file, record(), b"", record(rejected=answer("no")))
    assert [pair.id for pair in result.pairs] == ["pairs-1", "pairs-3"]


def test_only_newline_ends_a_line(file: Path) -> None:
    text = "one\u2028two\x0bthree\u0085four"
    [pair] = load(file, json.dumps(record(chosen=answer(text)), ensure_ascii=False).encode()).pairs
    assert pair.chosen == text


def test_gzip_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(record()).encode()))
    assert load_pairs("chat_pairs", path).report.kept == 1


def test_limit_counts_usable_pairs(file: Path) -> None:
    records = [record(rejected=answer("The price is 3 euros.")), record(), record(rejected=answer("x"))]
    assert [pair.id for pair in load(file, *records, limit=1).pairs] == ["pairs-2"]


def test_reading_holds_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("w") as lines:
        for n in range(600):
            long = answer(f"{n} " + "word " * 4_000)
            lines.write(json.dumps(record(chosen=long)) + "\n")
    assert path.stat().st_size > 12_000_000
    stream = PairStream("chat_pairs", path)
    tracemalloc.start()
    assert sum(1 for _ in stream) == 600
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000
    assert stream.report().words["chosen"] == {"median": 4001, "p95": 4001, "max": 4001}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_word_counts_are_those_of_the_sorted_list(counts: list[int]) -> None:
    from training.data import _words

    ordered, last = sorted(counts), len(counts) - 1
    expected = {"median": ordered[last // 2], "p95": ordered[round(0.95 * last)], "max": ordered[-1]}
    assert _words(Counter(counts)) == expected


# ---------- what is left out, and said


def test_what_is_no_preference_is_left_out_and_reported_with_its_line(file: Path) -> None:
    result = load(
        file,
        record(id="good"),
        record(id="same", rejected=answer("The price is 3 euros.")),
        record(id="blank", chosen=answer(" \n")),
        record(id="again"),
        record(id="no-draft", rejected=answer("")),
        record(id="other-way", chosen=answer("3"), rejected=answer("The price is 3 euros.")),
    )
    report = result.report
    assert [pair.id for pair in result.pairs] == ["good", "other-way"]
    assert [(place.line, place.id) for place in report.identical] == [(2, "same")]
    assert [(place.line, place.id) for place in report.empty] == [(3, "blank"), (5, "no-draft")]
    assert [(place.line, place.id) for place in report.duplicates] == [(4, "again")]
    assert [(place.line, place.id) for place in report.ties] == [(6, "other-way")]
    assert report.read == 6 and report.kept == 2


def test_the_report_prints_counts_and_lines_and_is_json(file: Path) -> None:
    report = load(file, record(), *[record(chosen=answer("3"))] * 10).report
    text = report.text(shown=2)
    assert "11 pairs read, 1 kept, 1 prompts" in text
    assert "10 left out, both responses are the same: line 2, 3 and 8 more" in text
    assert "tie" not in text and "different prompts" not in text
    as_json = json.loads(json.dumps(report.as_dict()))
    assert as_json["identical"] == {
        "count": 10, "lines": list(range(2, 12)), "ids": [f"pairs-{n}" for n in range(2, 12)],
    }  # fmt: skip
    assert as_json["sha256"].startswith("sha256:") and len(as_json["sha256"]) == 71


def test_a_file_without_a_usable_pair_is_an_error_that_says_why(file: Path) -> None:
    with pytest.raises(
        DataError, match=r"(?s)no usable preference pair.*1 left out, both responses are the same"
    ):
        load(file, record(chosen=answer("3")))
    with pytest.raises(DataError, match="the file holds no line"):
        load(file)


# ---------- bad input

GOOD = record()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"prompt": [', "not JSON: Expecting value at column 13"),
        (b'{"prompt": "\xff"}', r"not UTF-8 \(byte 13 of the line\). Convert"),
        (b"[" * 100_000, "JSON that cannot be read"),
        (b"[" + b"1" * 5000 + b"]", "JSON that cannot be read"),
        (b"[1]", "a JSON list, not an object"),
        (record(chosen=None), "no key 'chosen' .keys: prompt, rejected.. Is this the right format"),
        (record(prompt=[]), "prompt must be a list of messages, at least one"),
        (record(prompt="Price?"), "prompt must be a list of messages"),
        (record(prompt=[{"role": "user"}]), r"prompt\[0\] must be a message"),
        (record(prompt=[{"role": "human", "content": "x"}]), "has role 'human'; known are system, user"),
        (record(prompt=answer("x")), "last message of the prompt has role assistant, it must be user"),
        (record(chosen=[{"role": "user", "content": "x"}]), "chosen must be one assistant message"),
        (record(rejected=answer("x") * 2), "rejected must be one assistant message"),
        (record(chosen=[{"role": "assistant", "content": None}]), r"chosen\[0\] must be text, not NoneType"),
        (record(chosen=answer("a\ud83d")), "half of a surrogate pair"),
        (record(references="x"), "references must be a list of strings, not str"),
        (record(references=[1]), "references must be text, not int"),
        (record(id=["x"]), "id must be text, not list"),
    ],
)
def test_a_bad_line_is_an_error_with_path_line_and_advice(file: Path, line: object, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        load(file, GOOD, GOOD, line)
    assert str(caught.value).startswith(f"{file}, line 3: ")
    assert (caught.value.path, caught.value.line) == (file, 3)
    assert isinstance(caught.value, TrainingError)


def test_a_file_that_cannot_be_read_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file\. Set the data path"):
        load_pairs("chat_pairs", tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="a directory that `datasets` did not save"):
        load_pairs("chat_pairs", tmp_path)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(record()).encode())[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        load_pairs("chat_pairs", cut)


def test_an_unknown_format_or_limit_is_a_configuration_error(file: Path) -> None:
    with pytest.raises(ConfigError, match="'csv' is unknown; choose one of chat_pairs, hh_rlhf"):
        load(file, record(), format="csv")
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        load(file, record(), limit=0)


# ---------- hh_rlhf


def hh(*turns: str) -> str:
    """A conversation; the speakers alternate unless a turn begins with its own."""
    names = ("Human: ", "Assistant: ")
    return "".join(
        f"\n\n{turn if turn.startswith(names) else names[index % 2] + turn}"
        for index, turn in enumerate(turns)
    )


def test_hh_text_is_split_before_the_last_assistant_turn(file: Path) -> None:
    pair = {
        "chosen": hh("Hi", "Hello.\n\nWell?", "Price?", "3 euros."),
        "rejected": hh("Hi", "Hello.\n\nWell?", "Price?", "No."),
    }
    [loaded] = load(file, pair, format="hh_rlhf").pairs
    assert loaded.prompt == (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello.\n\nWell?"),
        Message(role="user", content="Price?"),
    )
    assert (loaded.chosen, loaded.rejected) == ("3 euros.", "No.")


def test_hh_turns_of_one_speaker_in_a_row_are_one_message(file: Path) -> None:
    start = ("Hi", "Hello.", "Assistant: Well?", "Human: Price?")
    pair = {"chosen": hh(*start, "Assistant: 3"), "rejected": hh(*start, "Assistant: No.")}
    [loaded] = load(file, pair, format="hh_rlhf").pairs
    assert [message["role"] for message in loaded.prompt] == ["user", "assistant", "user"]
    assert loaded.prompt[1]["content"] == "Hello.\n\nWell?"


def test_hh_pairs_with_differing_prompts_are_reported_not_kept(file: Path) -> None:
    good = {"chosen": hh("Hi", "Hello."), "rejected": hh("Hi", "No.")}
    differing = {"chosen": hh("Hi", "Hello.", "Price?", "3"), "rejected": hh("Hi", "No.")}
    unasked = {"chosen": hh("Hi", "A", "Assistant: B"), "rejected": hh("Hi", "A", "Assistant: C")}
    result = load(file, good, differing, unasked, format="hh_rlhf")
    assert [pair.id for pair in result.pairs] == ["pairs-1"]
    assert [place.line for place in result.report.differing_prompts] == [2]
    assert [place.line for place in result.report.unasked] == [3]
    assert "1 left out, the two conversations have different prompts: line 2" in result.report.text()


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ("Human: Hi\n\nAssistant: Hello.", "does not begin with"),
        ("", "does not begin with"),
        ("Once" + hh("Hi", "Hello."), "does not begin with"),
        (hh("Assistant: Hello."), "does not begin with"),
        (hh("Hi", "Hello.", "Price?"), 'does not end with an "Assistant:" turn'),
        (3, "chosen must be text, not int"),
    ],
)
def test_text_that_is_not_hh_is_an_error(file: Path, chosen: object, says: str) -> None:
    with pytest.raises(DataError, match=f"line 1: .*{says}"):
        load(file, {"chosen": chosen, "rejected": hh("Hi", "No.")}, format="hh_rlhf")


# ---------- the real files


def test_paradetox_loads_with_its_repeated_rewrites_reported() -> None:
    result = load_pairs("chat_pairs", real("paradetox/train.jsonl"))
    assert (result.report.read, result.report.kept, len(result.report.duplicates)) == (15609, 15220, 389)
    dev = load_pairs("chat_pairs", real("paradetox/dev.jsonl")).pairs
    assert len(dev) == 582 and all(pair.chosen in pair.references for pair in dev)


def test_disfl_qa_loads_with_its_empty_draft_reported() -> None:
    report = load_pairs("chat_pairs", real("disfl_qa/train.jsonl")).report
    assert (report.read, report.kept, [place.line for place in report.empty]) == (7180, 7179, [6009])


def test_hh_rlhf_loads_in_its_original_form_with_differing_prompts_reported() -> None:
    result = load_pairs("hh_rlhf", real("hh_rlhf/harmless-base.jsonl"))
    assert (result.report.read, result.report.kept) == (1778, 1770)
    assert [place.line for place in result.report.differing_prompts] == [970, 1314, 1507, 1509, 1566]
    assert [place.line for place in result.report.empty] == [67, 716, 850]
    assert max(len(pair.prompt) for pair in result.pairs) > 5
    for pair in result.pairs:
        roles = [message["role"] for message in pair.prompt]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


def test_paradetox_drafts_do_not_leak_between_the_parts() -> None:
    pairs = load_pairs("chat_pairs", real("paradetox/train.jsonl")).pairs
    with pytest.raises(DataError, match="Set split_key to prompt\\+rejected"):
        split_by_prompt(pairs)
    parts = split_by_prompt(pairs, split_key="prompt+rejected")
    drafts = [{pair.rejected for pair in part} for part in parts]
    assert not drafts[0] & drafts[1] and not drafts[1] & drafts[2] and not drafts[0] & drafts[2]
    assert all(abs(len(part) / len(pairs) - 1 / 3) < 0.02 for part in parts)


def test_hh_rlhf_conversations_of_one_opening_stay_in_one_part() -> None:
    """The file has 1,769 prompts but 1,667 openings: split by prompt, some would stand in two parts."""
    pairs = load_pairs("hh_rlhf", real("hh_rlhf/harmless-base.jsonl")).pairs

    def openings(split_key: Any) -> list[set[str]]:
        return [{opening(pair) for pair in part} for part in split_by_prompt(pairs, split_key=split_key)]

    def shared(parts: list[set[str]]) -> int:
        return sum(len(a & b) for a, b in combinations(parts, 2))

    assert len(set().union(*openings("opening"))) == 1667
    assert shared(openings("opening")) == 0 < shared(openings("prompt"))


# ---------- laws

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


@st.composite
def pair_lists(draw: st.DrawFn) -> list[PreferencePair]:
    prompts = draw(st.lists(texts, min_size=1, max_size=30))
    return [
        PreferencePair(
            f"p-{index}",
            (Message(role="user", content=text),),
            draw(texts),
            draw(texts),
            "made",
            tuple(draw(st.lists(texts, max_size=2))),
        )
        for index, text in enumerate(prompts)
    ]


@st.composite
def conversations(draw: st.DrawFn) -> list[PreferencePair]:
    """Few openings, after a system message or not, and various ways to go on."""
    openings = draw(st.lists(texts, min_size=2, max_size=4))
    found = []
    for index in range(draw(st.integers(1, 20))):
        prompt = [Message(role="system", content=draw(texts))] if draw(st.booleans()) else []
        prompt.append(Message(role="user", content=draw(st.sampled_from(openings))))
        for _ in range(draw(st.integers(0, 2))):
            prompt += [
                Message(role="assistant", content=draw(texts)),
                Message(role="user", content=draw(texts)),
            ]
        found.append(PreferencePair(f"p-{index}", tuple(prompt), draw(texts), draw(texts), "made"))
    return found


def split_or_none(pairs: list[PreferencePair], **options: Any) -> tuple[list[PreferencePair], ...] | None:
    try:
        return split_by_prompt(pairs, **options)
    except DataError:  # a part is empty: allowed, and tested above
        return None


def prompt_of(pair: PreferencePair) -> str:
    return pair.prompt[0]["content"]


@given(pairs=pair_lists(), seed=st.integers(0, 50), key=st.sampled_from(["prompt", "prompt+rejected"]))
def test_law_the_parts_hold_every_pair_once_in_order_and_share_no_key(
    pairs: list[PreferencePair], seed: int, key: str
) -> None:
    parts = split_or_none(pairs, seed=seed, split_key=key, fractions=(0.5, 0.5))
    if parts is None:
        return
    assert Counter(pair.id for part in parts for pair in part) == Counter(pair.id for pair in pairs)
    for part in parts:
        assert [pair.id for pair in part] == [pair.id for pair in pairs if pair in part]
    keys = [{(prompt_of(p), p.rejected if key != "prompt" else "") for p in part} for part in parts]
    assert not keys[0] & keys[1]


@given(pairs=conversations(), seed=st.integers(0, 50))
def test_law_no_opening_stands_in_two_parts(pairs: list[PreferencePair], seed: int) -> None:
    parts = split_or_none(pairs, seed=seed, split_key="opening", fractions=(0.5, 0.5))
    if parts is None:
        return
    assert Counter(pair.id for part in parts for pair in part) == Counter(pair.id for pair in pairs)
    openings = [{next(m["content"] for m in p.prompt if m["role"] == "user") for p in part} for part in parts]
    assert not openings[0] & openings[1]


@given(pairs=pair_lists(), more=pair_lists(), seed=st.integers(0, 50), order=st.randoms())
def test_law_a_prompt_keeps_its_part_whatever_stands_around_it(
    pairs: list[PreferencePair], more: list[PreferencePair], seed: int, order: Any
) -> None:
    grown = pairs + more
    order.shuffle(grown)
    before = split_or_none(pairs, seed=seed, fractions=(0.3, 0.7))
    after = split_or_none(grown, seed=seed, fractions=(0.3, 0.7))
    if before is None or after is None:
        return
    for old, new in zip(before, after, strict=True):
        assert {prompt_of(pair) for pair in old} <= {prompt_of(pair) for pair in new}


def test_the_split_is_the_same_in_every_process_and_another_with_another_seed() -> None:
    pairs = [
        PreferencePair(str(n), (Message(role="user", content=f"q{n}"),), "a", "b", "made") for n in range(12)
    ]
    parts = split_by_prompt(pairs, seed=1)
    # Written down once: a change here moves every published split.
    assert [[pair.id for pair in part] for part in parts] == [
        ["1", "4", "6", "7"],
        ["3", "5", "11"],
        ["0", "2", "8", "9", "10"],
    ]
    assert split_by_prompt(pairs, seed=2) != parts


def test_a_constant_prompt_is_split_by_its_drafts() -> None:
    ask = (Message(role="user", content="Write one comment."),)
    pairs = [PreferencePair(str(n), ask, f"good {n}", f"draft {n // 2}", "made") for n in range(60)]
    with pytest.raises(DataError, match=r"60 pairs with .* the same key.*Set split_key to prompt\+rejected"):
        split_by_prompt(pairs)
    parts = split_by_prompt(pairs, split_key="prompt+rejected")
    assert sum(len({pair.rejected for pair in part}) for part in parts) == 30
    with pytest.raises(DataError, match="Use more data"):
        split_by_prompt(pairs[:2], split_key="prompt+rejected")
    with pytest.raises(DataError, match=r"the same key.*Set split_key to prompt, all conversations"):
        split_by_prompt(pairs, split_key="opening")


@pytest.mark.parametrize("fractions", [(), (0.5, 0.6), (1.0, 0.0), (-0.5, 1.5), (float("nan"), 1.0)])
def test_impossible_fractions_are_a_configuration_error(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and sum to 1"):
        split_by_prompt([], fractions)


def test_an_unknown_split_key_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"'id' is unknown; choose one of prompt, prompt.rejected, opening"):
        split_by_prompt([], split_key="id")  # type: ignore[arg-type]


@given(pairs=pair_lists())
def test_law_what_is_written_is_read_back(pairs: list[PreferencePair], tmp_path_factory: Any) -> None:
    usable = {
        (prompt_of(p), p.chosen, p.rejected): p
        for p in pairs
        if p.chosen != p.rejected and p.chosen.strip() and p.rejected.strip()
    }
    if not usable:
        return
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_pairs(path, usable.values())
    assert load_pairs("chat_pairs", path).pairs == list(usable.values())
    assert [entry.name for entry in path.parent.iterdir()] == ["pairs.jsonl"]
