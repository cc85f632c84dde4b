"""Loads and builds models: from scratch, a causal LM, a reward model that starts from a causal LM."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
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

from training.errors import CheckpointError
from training.initialization import HEAD_SIZE, ROPE_THETA, start_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.config import RunConfig


def scratch_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase, positions: int) -> PreTrainedModel:
    """A freshly initialized language model, seeded."""
    model_config = _scratch_config(config, tokenizer, positions)
    set_seed(config.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
    start_attention(model, config.base.model.start)
    return model


def scratch_token_classifier(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, positions: int, labels: Sequence[str]
) -> PreTrainedModel:
    """A freshly initialized model that labels tokens; its attention starts with induction. Seeded."""
    model_config = _scratch_config(config, tokenizer, positions)
    model_config.id2label = dict(enumerate(labels))
    model_config.label2id = {label: i for i, label in enumerate(labels)}
    model_config.classifier_dropout = 0.0
    set_seed(config.seed)
    model: PreTrainedModel = AutoModelForTokenClassification.from_config(model_config, dtype=torch.float32)
    start_attention(model, "induction")
    return model


def _scratch_config(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, positions: int
) -> PretrainedConfig:
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
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: no tokenizer could be loaded: {_first_line(error)}") from error
    if tokenizer.chat_template is None:
        raise CheckpointError(f"{source}: the tokenizer has no chat template; use an instruction-tuned model")
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{source}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(source: str | Path) -> PreTrainedModel:
    """A causal LM in float32 on a CPU and bfloat16 on a GPU; `CheckpointError` when it cannot be loaded."""
    return _load(AutoModelForCausalLM, source)


def load_reward_model(source: str | Path, seed: int) -> PreTrainedModel:
    """A one-label sequence classifier; from any other kind of model, its head is new and seeded."""
    set_seed(seed)
    # The head of a token classifier (the reader) has the same name and another shape.
    model = _load(AutoModelForSequenceClassification, source, num_labels=1, ignore_mismatched_sizes=True)
    model.config.get_text_config().pad_token_id = load_tokenizer(source).pad_token_id
    return model


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


def _load(factory: Any, source: str | Path, **arguments: Any) -> PreTrainedModel:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
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
