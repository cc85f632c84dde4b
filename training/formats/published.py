"""Formats of published data sets with human judgements of several responses, or corrections of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from training.formats.reading import Where
from training.formats.records import Record, asked, optional_text, require, text_of


def summaries_record(record: Mapping[str, Any], where: Where) -> Record:
    """OpenAI's summarize-from-feedback comparisons: two summaries of a post or an article, and the choice."""
    require(record, where, ("info", "summaries", "choice"))
    info, summaries, choice = record["info"], record["summaries"], record["choice"]
    if not isinstance(info, dict) or not (info.get("post") or info.get("article")):
        raise where.error("info must be an object with a post or an article")
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise where.error("summaries must be a list of two")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise where.error(f"choice must be 0 or 1, not {choice!r}")
    texts = []
    for i, summary in enumerate(summaries):
        if not isinstance(summary, dict):
            raise where.error(f"summaries[{i}] must be an object with a text")
        texts.append(text_of(summary.get("text"), f"summaries[{i}].text", where).strip())
    kind = "post" if info.get("post") else "article"
    title = info.get("title")
    parts = [f"Summarize this {kind}."]
    parts += [f"Title: {text_of(title, 'info.title', where)}"] if title else []
    parts.append(text_of(info[kind], f"info.{kind}", where).strip())
    source = f"summaries/{info.get('subreddit') or info.get('site') or kind}"
    return Record(
        None, (asked("\n\n".join(parts)),), texts[choice], texts[1 - choice], text_of(source, "source", where)
    )


def fg_rlhf_records(record: Mapping[str, Any], where: Where) -> Iterator[Record]:
    """Fine-Grained RLHF's QA feedback: the six comparisons of four answers (1: the first is preferred, 2: the
    second, 0: neither), with the passages that they were written from."""
    answers = [f"prediction {i}" for i in range(1, 5)]
    require(record, where, ("question", "preference", *answers))
    texts = [text_of(record[key], key, where).strip() for key in answers]
    preference = record["preference"]
    order = list(combinations(range(4), 2))
    if not isinstance(preference, list) or len(preference) != len(order):
        raise where.error("preference must be a list of six numbers, one for each two of the answers")
    passages = record.get("passages") or []
    if not isinstance(passages, list) or not all(isinstance(one, list) for one in passages):
        raise where.error("passages must be a list of lists: a title and its sentences")
    context = ["\n".join(text_of(s, "passages", where) for s in passage) for passage in passages]
    question = text_of(record["question"], "question", where).strip()
    prompt = asked("\n\n".join([question, *context]))
    for (a, b), preferred in zip(order, preference, strict=True):
        if preferred not in (0, 1, 2) or isinstance(preferred, bool):
            raise where.error(f"preference holds {preferred!r}; known are 0, 1 and 2")
        chosen, rejected = (b, a) if preferred == 2 else (a, b)
        name = f"fg_rlhf-{where.line}-{a + 1}-{b + 1}"
        yield Record(name, (prompt,), texts[chosen], texts[rejected], undecided=preferred == 0)


def defacto_record(record: Mapping[str, Any], where: Where) -> Record:
    """DeFacto: a summary (the draft, y_l), where it had an error its correction (y_w), and the article."""
    require(record, where, ("article", "candidate", "feedback"))
    feedback = record["feedback"]
    if not isinstance(feedback, dict):
        raise where.error("feedback must be an object")
    corrected = text_of(feedback.get("summary") or "", "feedback.summary", where).strip()
    article = text_of(record["article"], "article", where).strip()
    draft = text_of(record["candidate"], "candidate", where).strip()
    prompt = asked(f"Summarize this article in one sentence.\n\n{article}")
    name = optional_text(record, "doc_id", where)
    # An empty correction says that the summary is right as it stands.
    return Record(name, (prompt,), corrected or draft, draft, undecided=not corrected)
