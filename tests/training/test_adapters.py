"""LoRA over one base, an encoder as gap reward, the pointwise ablation: trained for a few real steps."""

import asyncio
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from app.checkpoint import read_checkpoint
from app.engines import golden
from app.engines.transformers_scorer import TransformersScorer
from tests.training.helpers import alone, publish_tiny, tiny_config
from training.checkpoint import read_manifest
from training.config import RunConfig
from training.errors import CheckpointError, ConfigError
from training.prepare import prepare_data

pytestmark = pytest.mark.slow

LORA = (
    "reader=null", "model.adapter.rank=4",
    *(f"{section}.optimizer={{learning_rate: 0.01, batch: 8, steps: 4}}"
      for section in ("sft_policy", "sft_improver", "reward", "gap_reward")),
)  # fmt: skip


def prepared(output: Path, *overrides: str) -> RunConfig:
    """A run whose base is published and whose data is ready."""
    config = tiny_config(output, *overrides)
    publish_tiny(config, "policy", config.output / "base")
    prepare_data(config)
    return config


def train(config: RunConfig, function: Any, stage: str) -> Path:
    worker = alone(config, stage)
    worker.directory.mkdir(parents=True)
    function(worker)
    return config.output / stage


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """All stages but the policy's RL, as adapters over one base."""
    from training import gap_reward, reward, rl, sft

    config = prepared(tmp_path_factory.mktemp("lora") / "run", *LORA)
    train(config, sft.train_policy, "policy_sft")
    train(config, sft.train_improver, "improver_sft")
    train(config, reward.train_reward, "reward")
    train(config, gap_reward.train_gap_reward, "gap_reward")
    train(config, sft.promote_policy, "policy")
    train(config, rl.train_improver, "improver")
    return config


@pytest.mark.parametrize("stage", ["policy_sft", "policy", "improver", "reward", "gap_reward"])
def test_a_checkpoint_is_the_base_with_its_adapter(lora: RunConfig, stage: str) -> None:
    """What an engine with adapters computes is what the merged weights compute."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    factory, options = (
        (AutoModelForSequenceClassification, {"num_labels": 1})
        if "reward" in stage
        else (AutoModelForCausalLM, {})
    )
    base = factory.from_pretrained(lora.output / "base", **options)
    published = factory.from_pretrained(lora.output / stage)
    base.config.pad_token_id = published.config.pad_token_id
    ids = torch.tensor([read_manifest(lora.output / "base")["golden"][0]["prompt_ids"]])
    with torch.inference_mode():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, lora.output / stage / "adapter").eval()(ids).logits
        merged = published.eval()(ids).logits
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(plain, merged, atol=1e-3)


def test_the_improver_goes_on_with_the_adapter_of_its_fine_tuning(lora: RunConfig) -> None:
    """RL's anchor is the fine-tuned improver, not the base: the first KL is 0 though the two differ."""
    from safetensors.torch import load_file

    before, after = (
        load_file(lora.output / stage / "adapter" / "adapter_model.safetensors")
        for stage in ("improver_sft", "improver")
    )
    assert before.keys() == after.keys()
    assert all(before[name].shape == after[name].shape for name in before)
    records = [json.loads(line) for line in (lora.output / "metrics.jsonl").read_text().splitlines()]
    first = next(r for r in records if r["stage"] == "improver" and "kl" in r)
    assert abs(first["kl"]) < 1e-5


def test_a_save_of_the_gap_reward_holds_only_what_trains(lora: RunConfig) -> None:
    from safetensors.torch import load_file

    (save,) = (lora.output / "stages" / "gap_reward").glob("checkpoint-*/model.safetensors")
    names = load_file(save)
    assert names and all("lora_" in name or "score" in name for name in names)


def test_an_adapter_of_another_rank_is_refused(lora: RunConfig) -> None:
    from training.models import causal_lm_to_train

    other = tiny_config(lora.output, *LORA, "model.adapter.rank=8")
    with pytest.raises(ConfigError, match=r"adapter: .*lora_A.* does not fit"):
        causal_lm_to_train(other, lora.output / "policy_sft")


def test_targets_that_the_model_does_not_have_are_named(lora: RunConfig) -> None:
    from training.models import causal_lm_to_train

    other = tiny_config(lora.output, *LORA, "model.adapter.targets=[query]")
    with pytest.raises(ConfigError, match=r"targets.*query"):
        causal_lm_to_train(other, lora.output / "base")


def test_four_bits_without_their_library_are_refused(
    lora: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import adapters

    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    config = tiny_config(lora.output, *LORA, "model.adapter.quantize=nf4")
    with pytest.raises(ConfigError, match=r"pip install 'pit-serve\[qlora\]'"):
        adapters.quantization(config.model.adapter)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.adapter.rank=4"], "reader would be another one"),
        (["reader=null", "model.adapter.rank=4"], "sft_policy.optimizer.kind must be adamw"),
    ],
)
def test_what_does_not_go_with_adapters(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, *overrides)


def bert(directory: Path, *, plain: bool = True) -> Path:
    """An encoder of its own kind and tokenizer, without a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(
        ["user: assistant: please improve your answer"],
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=special),
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if plain:
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=600,
    )  # fmt: skip
    BertModel(config).save_pretrained(directory)
    return directory


async def serve(config: RunConfig) -> None:
    """The server computes the scores that training wrote down."""
    from training.checkpoint import update_manifest

    directory = config.output / "gap_reward"
    reads = "candidate" if config.gap_turn is None else "pair"
    calibration = {"a": 1.0, "b": 0.0, "ece": 0.0, "n": 1}
    update_manifest(directory, {"gap": {"reads": reads, "centering": "self", "calibration": calibration}})
    checkpoint = read_checkpoint(directory, "gap_reward")
    assert checkpoint.manifest is not None
    scorer = TransformersScorer(checkpoint, timeout_s=30)
    await golden.check_scores(scorer, checkpoint.manifest.golden_scores(), 1e-4, "--gap-reward")
    await scorer.close()


@pytest.mark.parametrize("adapter", [(), LORA])
def test_an_encoder_as_gap_reward(tmp_path: Path, adapter: tuple[str, ...]) -> None:
    from training.gap_reward import train_gap_reward

    path = bert(tmp_path / "bert")
    optimizer = "gap_reward.optimizer={learning_rate: 0.001, batch: 4, steps: 3}"
    config = prepared(tmp_path / "run", *adapter, f"gap_reward.path={path}", optimizer)
    directory = train(config, train_gap_reward, "gap_reward")
    assert json.loads((directory / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
    sample = read_manifest(directory)["golden"][0]
    assert sample["input_ids"][0] == 2  # [CLS]
    assert sample["input_ids"].count(3) == 4  # [SEP] after prompt, baseline, improve turn, candidate
    asyncio.run(serve(config))


def test_a_model_that_cannot_be_given_a_template_is_refused(tmp_path: Path) -> None:
    from training.models import load_reading_tokenizer

    with pytest.raises(CheckpointError, match=r"neither a chat template nor \[CLS\]"):
        load_reading_tokenizer(bert(tmp_path / "bert", plain=False))


def test_the_pointwise_ablation_reads_the_candidate_alone(tmp_path: Path) -> None:
    from training.chat import encode, reward_messages
    from training.gap_reward import train_gap_reward
    from training.models import load_tokenizer

    config = prepared(
        tmp_path / "run", "gap_reward.loss=pointwise", f"gap_reward.path={tmp_path / 'run' / 'base'}"
    )
    directory = train(config, train_gap_reward, "gap_reward")
    sample = read_manifest(directory)["golden"][0]
    alone_ = reward_messages(sample["messages"], sample["candidate"])
    assert sample["input_ids"] == encode(load_tokenizer(directory), [alone_])[0]
    asyncio.run(serve(config))


def test_packed_examples_do_not_see_each_other(tmp_path: Path) -> None:
    """A packed row has the loss of its examples, each alone."""
    from datasets import Dataset
    from trl import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from training.models import load_causal_lm

    config = prepared(tmp_path / "run")
    model = load_causal_lm(config.output / "base").eval()
    rows = [list(range(20, 32)), list(range(60, 90)), list(range(100, 108))]
    packed = pack_dataset(Dataset.from_dict({"input_ids": rows, "labels": rows}), 64, "bfd")
    assert len(packed) == 1
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(list(packed))
    with torch.inference_mode():
        together = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits[0]
        order = batch["input_ids"][0].tolist()
        for row in rows:
            start = order.index(row[0])
            alone_ = model(torch.tensor([row])).logits[0]
            assert torch.allclose(together[start : start + len(row)], alone_, atol=1e-5)


@pytest.mark.parametrize("padding", ["none", "end"])
def test_the_token_that_ends_a_conversation_is_never_padding(tmp_path: Path, padding: str) -> None:
    """Reward models of transformers read the last token that is not padding: RL and the server must agree."""
    from training.gap_reward import pad_right, score
    from training.models import load_reward_model, load_tokenizer

    config = prepared(tmp_path / "run")
    path = config.output / "base"
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("pad_token", None)
    if padding == "end":
        settings["pad_token"] = settings["eos_token"]
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer, model = load_tokenizer(path), load_reward_model(path, 1).eval()
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    sequence = [20, 30, 40, tokenizer.eos_token_id]
    with torch.inference_mode():
        inputs = pad_right([sequence], tokenizer.pad_token_id)
        last = model.score(model.base_model(**inputs).last_hidden_state[:, -1]).item()
    alone_, beside = score(model, [sequence, [*sequence, *sequence]], tokenizer.pad_token_id)
    assert alone_ == pytest.approx(last, abs=1e-5)
    assert beside != pytest.approx(last, abs=1e-5)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install 'pit-serve[qlora]'")
def test_four_bits_train_and_publish_whole_weights(tmp_path: Path) -> None:
    """QLoRA, also on a CPU: nf4 holds the base while stages train; what they publish is whole."""
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from training import gap_reward, rl, sft
    from training.models import causal_lm_to_train

    four = (*LORA, "model.adapter.quantize=nf4", "reward=null", "rl_policy=null")
    config = prepared(tmp_path / "run", *four)
    held = causal_lm_to_train(config, config.output / "base")
    assert any(isinstance(module, Linear4bit) for module in held.modules())
    train(config, sft.train_policy, "policy_sft")
    train(config, sft.promote_policy, "policy")
    train(config, sft.train_improver, "improver_sft")
    train(config, gap_reward.train_gap_reward, "gap_reward")
    improver = train(config, rl.train_improver, "improver")
    ids = torch.tensor([read_manifest(config.output / "base")["golden"][0]["prompt_ids"]])
    with torch.inference_mode():
        base = AutoModelForCausalLM.from_pretrained(config.output / "base")
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, improver / "adapter").eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(improver).eval()(ids).logits
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(plain, merged, atol=1e-3)
    asyncio.run(serve(config))
