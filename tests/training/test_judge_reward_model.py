"""A reward model as a judge gives the numbers of a plain forward pass, whatever its kind; nothing is cut."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_tiny_checkpoint, make_tiny_tokenizer
from training.data import Message, PreferencePair
from training.errors import CheckpointError, ConfigError
from training.judges import Contest, MarginJudge, ScoreJudge
from training.judges.reward_model import reward_model_judge
from training.judges.settings import RewardModelSettings

WORDS = ["the", "price", "is", "24", "what", "lamp", "red", "no", "color", ":", "user", "assistant", "?", "."]
PROMPT = (Message(role="user", content="what is the price ?"),)
RESPONSES = ["the price is 24 .", "no", "the lamp is red . the color is red .", "24"]


def example(prompt: tuple[Message, ...] = PROMPT) -> PreferencePair:
    return PreferencePair("x", prompt, "the price is 24 .", "no", "test")


def word_tokenizer() -> Any:
    """Like that of BERT and DeBERTa: [CLS] first [SEP] second [SEP], with token types."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def encoder(directory: Path, kind: str, labels: int = 1, **changes: Any) -> Path:
    """A random BERT or DeBERTa-v2 classifier with a head large enough to tell texts apart."""
    import transformers

    common = {
        "vocab_size": 4 + len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 48, "type_vocab_size": 2, "pad_token_id": 0,
        "num_labels": labels, **changes,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**common)
    torch.manual_seed(1)
    model: Any = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    model.save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    return directory


def forward(directory: Path, *texts: str) -> list[float]:
    """Logits of one input, without batch and padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(directory)(*texts, return_tensors="pt")
    with torch.no_grad():
        model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
        logits: list[float] = model(**inputs).logits[0].tolist()
    return logits


def judge_of(path: Path, **settings: Any) -> Any:
    return reward_model_judge(RewardModelSettings(path=str(path), **settings))


@pytest.mark.parametrize("kind", ["Bert", "DebertaV2"])
def test_an_encoder_reads_prompt_and_response_as_two_texts(tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = {}
    if kind == "DebertaV2":
        changes = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    path = encoder(tmp_path, kind, **changes)
    judge = judge_of(path)
    assert isinstance(judge, ScoreJudge)
    expected = [forward(path, "what is the price ?", response)[0] for response in RESPONSES]
    assert judge.scores([example()] * 4, RESPONSES) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01
    verdict = judge.judge([Contest(example(), RESPONSES[0], RESPONSES[1])])[0]
    assert verdict.value == (1 if expected[0] > expected[1] else -1)
    assert judge.settings["input"] == "text" and judge.settings["model"].startswith("sha256:")


def test_a_conversation_of_several_turns_names_who_speaks(tmp_path: Path) -> None:
    path = encoder(tmp_path, "Bert")
    prompt = (*PROMPT, Message(role="assistant", content="no"), Message(role="user", content="what ?"))
    text = "user: what is the price ?\nassistant: no\nuser: what ?"
    assert judge_of(path).scores([example(prompt)], ["24"]) == pytest.approx(
        [forward(path, text, "24")[0]], abs=1e-4
    )


def test_of_several_labels_one_means_better(tmp_path: Path) -> None:
    path = encoder(tmp_path, "Bert", labels=3)
    logits = torch.tensor(forward(path, "what is the price ?", "24"))
    expected = torch.logit(logits.softmax(0)[2]).item()
    for label in (2, "LABEL_2"):
        assert judge_of(path, label=label).scores([example()], ["24"]) == pytest.approx([expected], abs=1e-3)
    for wrong in (None, 3, "good"):
        with pytest.raises(CheckpointError, match=r"3 labels .LABEL_0, LABEL_1, LABEL_2.*must name the one"):
            judge_of(path, label=wrong)
    with pytest.raises(CheckpointError, match="be left out"):
        judge_of(encoder(tmp_path / "one", "Bert"), label=0)


def test_what_is_too_long_gets_no_verdict_and_nothing_is_cut(tmp_path: Path) -> None:
    path = encoder(tmp_path, "Bert")
    long = "the price is 24 . " * 9  # 45 + 5 + 3 tokens, of 48
    judge = judge_of(path)
    contests = [Contest(example(), "24", long), Contest(example(), "24", "no")]
    first, second = judge.judge(contests)
    assert (first.value, first.reason) == (None, "too long for the judge") and second.value in (1, -1)
    assert judge_of(path, max_tokens=8).scores([example()], ["24 ."]) == [None]  # 5 + 2 + 3


@pytest.mark.parametrize("labels", [1, 2])
def test_a_classifier_of_two_responses_reads_both_orders(tmp_path: Path, labels: int) -> None:
    path = encoder(tmp_path, "Bert", labels)
    judge = judge_of(path, kind="pairwise", **({"label": 1} if labels == 2 else {}))
    assert isinstance(judge, MarginJudge)

    def f(before: str, last: str) -> float:
        logits = forward(path, "what is the price ?", f"{before} [SEP] {last}")
        return logits[0] if labels == 1 else logits[1] - logits[0]

    a, b = RESPONSES[:2]
    margin = (f(b, a) - f(a, b)) / 2
    assert judge.margin([Contest(example(), a, b)]) == pytest.approx([margin], abs=1e-4)
    verdicts = judge.judge([Contest(example(), *each) for each in ((a, b), (b, a), (a, a))])
    sign = 1 if margin > 0 else -1
    assert [verdict.value for verdict in verdicts] == [sign, -sign, 0]


def test_a_gap_reward_of_this_project_reads_its_own_turn(tmp_path: Path) -> None:
    path = make_tiny_checkpoint(tmp_path, "gap_reward")
    from training.checkpoint import read_manifest

    golden = read_manifest(path)["golden"]
    judge = judge_of(path)
    assert isinstance(judge, MarginJudge)
    prompt = tuple(Message(role=m["role"], content=m["content"]) for m in golden[0]["messages"])
    contest = Contest(example(prompt), golden[0]["candidate"], golden[0]["baseline"])
    # The second sample is the first with candidate and baseline exchanged.
    margin = (golden[0]["score"] - golden[1]["score"]) / 2
    assert judge.margin([contest]) == pytest.approx([margin], abs=1e-4)
    assert judge.judge([contest])[0].value == (1 if margin > 0 else -1)


def test_a_decoder_reads_the_chat_and_padding_changes_nothing(tmp_path: Path) -> None:
    """Responses of different lengths in one batch: each gets the number that it gets alone."""
    path = make_tiny_checkpoint(tmp_path, "reward")
    texts = ["No.", "The price of the lamp is 24. The color is red.", "Red"]
    judge = judge_of(path)
    assert isinstance(judge, ScoreJudge) and judge.settings["input"] == "chat"
    together = judge.scores([example()] * 3, texts)
    alone = [judge_of(path).scores([example()], [text])[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-4)
    chat = [*PROMPT, Message(role="assistant", content=texts[1])]
    from transformers import AutoModelForSequenceClassification

    tokenizer = make_tiny_tokenizer()
    ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"]
    with torch.no_grad():
        logit = AutoModelForSequenceClassification.from_pretrained(path)(torch.tensor([ids])).logits[0, 0]
    assert together[1] == pytest.approx(logit.item(), abs=1e-4)


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    path = make_tiny_checkpoint(tmp_path, "policy")
    with pytest.raises(CheckpointError, match=r"has no score\.weight, so it is no trained classifier"):
        judge_of(path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        judge_of(tmp_path)
    with pytest.raises(ConfigError, match="'cuda:7' is not there"):
        judge_of(encoder(tmp_path, "Bert"), device="cuda:7")


def test_progress_counts_every_input(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    settings = RewardModelSettings(path=str(encoder(tmp_path, "Bert")))
    judge = reward_model_judge(settings, lambda done, total: heard.append((done, total)))
    judge.judge([Contest(example(), "24", "no")])
    assert heard[-1] == (2, 2)
