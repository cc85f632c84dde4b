"""Loads and builds models: from scratch, a causal LM, a reward model that starts from a causal LM."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
    set_seed,
)

import training.kv_cache  # noqa: F401 - the cache of every model that samples here
from training.adapters import adapt, quantization, save_and_merge
from training.chat import PLAIN_TEMPLATE
from training.errors import CheckpointError
from training.initialization import HEAD_SIZE, ROPE_THETA, start_attention
from training.paths import base_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.config import RunConfig


@dataclass(frozen=True)
class Trained:
    """A model after training: what kind it is, and its weights.

    In `model` the weights may be divided between the processes. `state` has them whole, under the names of
    `model.state_dict()`; with FSDP and ZeRO-3 only in the main process, and on the CPU.
    """

    model: Any
    state: Mapping[str, torch.Tensor]

    def part(self, name: str) -> Trained:
        """The module of that name."""
        prefix = f"{name}."
        inside = {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}
        return Trained(getattr(self.model, name), inside)


def scratch_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase, positions: int) -> PreTrainedModel:
    """A freshly initialized language model, seeded."""
    model_config = scratch_config(config, tokenizer, positions)
    set_seed(config.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
    start_attention(model, config.base.model.start)
    return model


def scratch_token_classifier(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, positions: int, labels: Sequence[str], seed: int
) -> PreTrainedModel:
    """A freshly initialized model that labels tokens; its attention starts with induction. Seeded."""
    model_config = scratch_config(config, tokenizer, positions)
    model_config.id2label = dict(enumerate(labels))
    model_config.label2id = {label: i for i, label in enumerate(labels)}
    model_config.classifier_dropout = 0.0
    set_seed(seed)
    model: PreTrainedModel = AutoModelForTokenClassification.from_config(model_config, dtype=torch.float32)
    start_attention(model, "induction")
    return model


def scratch_config(config: RunConfig, tokenizer: PreTrainedTokenizerBase, positions: int) -> PretrainedConfig:
    """The configuration of a model from scratch, a language model or a classifier."""
    shape = config.base.model
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
    }
    architecture = Qwen3Config if shape.architecture == "qwen3" else LlamaConfig
    found: PretrainedConfig = architecture(**common)
    return found


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Raises `CheckpointError` when it cannot be loaded, has no chat template or no end token."""
    tokenizer: PreTrainedTokenizerBase = _tokenizer(source)
    if tokenizer.chat_template is None:
        raise CheckpointError(f"{source}: the tokenizer has no chat template; use an instruction-tuned model")
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{source}: the tokenizer has no end-of-sequence token")
    _separate_padding(tokenizer)
    return tokenizer


def load_reading_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that only reads (an encoder): without a chat template it gets a plain one.

    Raises:
        CheckpointError: it cannot be loaded, or has neither a chat template nor the tokens of the plain one.
    """
    tokenizer: PreTrainedTokenizerBase = _tokenizer(source)
    if tokenizer.chat_template is None:
        if tokenizer.cls_token is None or tokenizer.sep_token is None:
            raise CheckpointError(f"{source}: the tokenizer has neither a chat template nor [CLS] and [SEP]")
        tokenizer.chat_template = PLAIN_TEMPLATE
    _separate_padding(tokenizer)
    return tokenizer


def load_causal_lm(source: str | Path) -> PreTrainedModel:
    """A causal LM to read or write with: float32 on the CPU, bfloat16 on this process's GPU where it has one.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    return _placed(_load(AutoModelForCausalLM, source, _inference_dtype()))


def load_reward_model(source: str | Path, seed: int) -> PreTrainedModel:
    """A one-label sequence classifier to score with; from any other kind of model, its head is new and
    seeded."""
    return _placed(_load_scorer(source, seed, _inference_dtype()))


def causal_lm_to_train(config: RunConfig, source: Path | str) -> Any:
    """The causal LM of `source` (the base, or a stage's checkpoint), all of it or an adapter to train.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    adapter = config.model.adapter
    if adapter is None:
        return _load(AutoModelForCausalLM, source, training_dtype(config))
    set_seed(config.seed)
    base = _load(AutoModelForCausalLM, base_source(config), _frozen_dtype(config), **quantization(adapter))
    return adapt(base, adapter, Path(source), scores=False)


def rl_model(config: RunConfig, anchor: Path) -> Any:
    """What TRL's trainers take: a path, from which they load the model and the anchor of its KL; or an
    adapter, of which they keep a frozen copy as the anchor."""
    return str(anchor) if config.model.adapter is None else causal_lm_to_train(config, anchor)


def reward_model_to_train(config: RunConfig, source: Path | str, seed: int) -> Any:
    """A one-label sequence classifier that starts from `source`, all of it or an adapter to train.

    `source` is the base, a stage's checkpoint, or another model altogether (`gap_reward.path`).
    """
    adapter = config.model.adapter
    if adapter is None:
        return _load_scorer(source, seed, training_dtype(config))
    base = _load_scorer(_scorer_base(config, source), seed, _frozen_dtype(config), **quantization(adapter))
    return adapt(base, adapter, Path(source), scores=True)


def plain_causal_lm(config: RunConfig, trained: Trained, directory: Path) -> Any:
    """What a stage trained, as an ordinary causal LM: without trainer's patches, its adapter merged.

    The adapter alone, where there is one, is saved in `directory`.
    """
    if isinstance(trained.model, PeftModel):
        base, dtype = base_source(config), _frozen_dtype(config)
        return save_and_merge(trained, directory, lambda: _load(AutoModelForCausalLM, base, dtype))
    return plain_model(AutoModelForCausalLM, trained)


def plain_reward_model(
    config: RunConfig, trained: Trained, source: Path | str, seed: int, directory: Path
) -> Any:
    """The same for a reward model that started from `source` with `seed`."""
    if isinstance(trained.model, PeftModel):
        base, dtype = _scorer_base(config, source), _frozen_dtype(config)
        return save_and_merge(trained, directory, lambda: _load_scorer(base, seed, dtype))
    return plain_model(AutoModelForSequenceClassification, trained)


def plain_model(factory: Any, trained: Trained) -> Any:
    """A model of an auto class with the whole weights, on the CPU."""
    plain: Any = factory.from_config(trained.model.config, dtype=trained.model.dtype)
    plain.load_state_dict(trained.state)
    return plain


def training_dtype(config: RunConfig) -> torch.dtype:
    """Of weights that train: bfloat16 only where the configuration says so, it loses small updates."""
    return torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32


def is_encoder(model: Any) -> bool:
    """Whether a sequence classifier is an encoder: decoders score the last token with `score`."""
    return not hasattr(model, "score")


def recommend_sampling(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float, max_new_tokens: int
) -> None:
    """Set what generation_config.json will say: servers take their defaults from it."""
    model.generation_config = GenerationConfig(
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer(source: str | Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: no tokenizer could be loaded: {_first_line(error)}") from error


def _separate_padding(tokenizer: Any) -> None:
    """Pad with another token than the one that ends a conversation.

    transformers' reward models read the last token that is not padding, and would read the one before the
    end. Padding is masked everywhere, so any other token will do.
    """
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return
    others = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.sep_token, *tokenizer.all_special_tokens)
    known = [token for token in others if token is not None and token != tokenizer.eos_token]
    tokenizer.pad_token = (
        known[0] if known else tokenizer.convert_ids_to_tokens(int(tokenizer.eos_token_id == 0))
    )


def _inference_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def _placed(model: Any) -> Any:
    """On the GPU that is this process's own (accelerate sets it), where there is one."""
    return model.to("cuda") if torch.cuda.is_available() else model


def _frozen_dtype(config: RunConfig) -> torch.dtype:
    return _inference_dtype() if config.model.dtype == "auto" else training_dtype(config)


def _scorer_base(config: RunConfig, source: Path | str) -> str:
    """What a reward model's adapter lies over: the base, or the model that `gap_reward.path` names."""
    path = config.gap_reward.path
    # A later generation trains no other reward than the gap reward.
    return path if path and (config.generation or str(source) == path) else base_source(config)


def _load_scorer(source: str | Path, seed: int, dtype: torch.dtype, **arguments: Any) -> PreTrainedModel:
    set_seed(seed)
    # The head of a token classifier (the reader) has the same name and another shape.
    model = _load(
        AutoModelForSequenceClassification,
        source,
        dtype,
        num_labels=1,
        ignore_mismatched_sizes=True,
        **arguments,
    )
    model.config.get_text_config().pad_token_id = load_reading_tokenizer(source).pad_token_id
    return model


def _load(factory: Any, source: str | Path, dtype: torch.dtype, **arguments: Any) -> PreTrainedModel:
    try:
        with _quiet_new_head():
            model: PreTrainedModel = factory.from_pretrained(str(source), dtype=dtype, **arguments)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: no model could be loaded: {_first_line(error)}") from error
    return model


@contextmanager
def _quiet_new_head() -> Iterator[None]:
    """A reward head that does not come from the causal LM is meant, not a mistake worth a warning."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
