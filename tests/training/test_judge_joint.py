"""ParaDetox's joint metric: each part by hand, chrF by the reference implementation."""

import random

import pytest

from tests.training.test_data import real
from training.data import Message, PreferencePair, load_pairs
from training.errors import DataError
from training.judges.fluency import FluencyJudge
from training.judges.joint import JointMetric, chrf, swear_words
from training.judges.toxicity import ToxicityJudge

THINGS = ("bus", "train", "movie", "song", "game", "soup", "shop", "law", "plan", "road")
RUDE = ("stupid", "crappy", "idiotic")
ENDS = ("today", "again", "for me", "as i said")


def pairs() -> list[PreferencePair]:
    """Toxic drafts with the insult that people take out."""
    ask = (Message(role="user", content="Write one comment."),)
    return [
        PreferencePair(f"{thing}{word}{end}", ask, f"The {thing} is not good {end}.",
                       f"the {word} {thing} is not good {end} .", "made")
        for thing in THINGS for word in RUDE for end in ENDS
    ]  # fmt: skip


@pytest.fixture(scope="module")
def metric() -> JointMetric:
    return JointMetric(ToxicityJudge(pairs()), pairs())


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [  # sentence_chrf of sacrebleu 2.6.0
        ("the bus is late", "the bus was late today", 0.39661652283947),
        ("abc", "abc", 1.0),
        ("no", "yes it is", 0.0),
        ("a", "ab", 0.5555555555555556),
        ("He was back home.", "he was back home and should have stayed there", 0.3157083412376089),
        ("", "abc", 0.0),
    ],
)
def test_chrf_is_that_of_sacrebleu(text: str, reference: str, score: float) -> None:
    assert chrf(text, reference) == pytest.approx(score, abs=1e-9)


def test_each_part_alone_can_spoil_a_rewrite(metric: JointMetric) -> None:
    some = pairs()[::12]
    human = metric.rate(some, [pair.chosen for pair in some])
    assert (human.non_toxic, human.content, human.fluent) == (100, 100, 100)
    assert human.joint.mean == 100 and human.joint.n == len(some)
    draft = metric.rate(some, [pair.rejected for pair in some])
    assert (draft.non_toxic, draft.kept, draft.fluent, draft.joint.mean) == (0, 100, 100, 0)
    other = metric.rate(some, ["The bus is not good today."] * len(some))
    assert other.non_toxic == 100 and 20 < other.content < 95 and other.joint.mean < 95
    broken = metric.rate(some, ["is good the not the the today"] * len(some))
    assert broken.non_toxic == 100 and broken.fluent == 0 and broken.joint.mean == 0
    assert metric.rate(some, [""] * len(some)).joint.mean == 0


def test_the_joint_figure_is_the_product_of_each_rewrite_not_of_the_means(metric: JointMetric) -> None:
    """Half clean and broken, half toxic and fluent: both parts are 50%, the product is 0."""
    some = pairs()[:10]
    texts = [pair.rejected if i % 2 else "is good the not the the today" for i, pair in enumerate(some)]
    found = metric.rate(some, texts)
    assert (found.non_toxic, found.fluent, found.joint.mean) == (50, 50, 0)


def test_the_rule_takes_out_what_people_take_out(metric: JointMetric) -> None:
    assert swear_words(pairs()) == set(RUDE)
    assert metric.without_swear_words("The STUPID, bus is not crappy .") == "The bus is not ."
    found = metric.figures(pairs()[::12], {"mine": [pair.chosen for pair in pairs()[::12]]})
    assert list(found.systems) == ["the draft", "a rule: without swear words", "mine"]
    assert found.systems["a rule: without swear words"].joint.mean == 100
    assert found.fluent == 100 and found.broken > 50


def test_fluency_sees_what_is_new_to_the_draft() -> None:
    judge = FluencyJudge(pairs())
    draft = "the quixotic zebra, it ponders"
    own, twice, strange = judge.probabilities(
        [draft, draft + " ponders ponders", "the qxyz zebra"], [draft] * 3
    )
    assert own > 0.5 > max(twice, strange)
    assert judge.probabilities([], []) == [] and judge.probabilities(["?!"], [draft]) == [0.0]
    with pytest.raises(DataError, match="at least 20"):
        FluencyJudge(pairs()[:5])


def test_a_broken_copy_is_never_the_text_alone() -> None:
    judge, rng = FluencyJudge(pairs()), random.Random(3)
    text = "the bus is not good today"
    copies = [judge.broken(text, rng) for _ in range(200)]
    assert sum(copy != text for copy in copies) > 190 and all(copies)
    assert judge.broken("bus", rng)


@pytest.mark.slow
def test_on_drafts_that_it_has_not_seen_people_beat_the_rule_and_the_rule_the_draft() -> None:
    train = load_pairs("chat_pairs", real("paradetox/train.jsonl")).pairs
    dev = load_pairs("chat_pairs", real("paradetox/dev.jsonl")).pairs
    found = JointMetric(ToxicityJudge(train), train).figures(dev, {"human": [pair.chosen for pair in dev]})
    draft, rule, human = found.systems.values()
    print(found)
    assert human.joint.low > rule.joint.high and rule.joint.low > 60 and draft.joint.high < 6
    assert found.fluent > 72 and found.broken > 80
