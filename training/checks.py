"""What can be refused before any work: files that are missing, models that cannot do their part.

In the pipeline this stands before the first stage and in the dry run: an encoder without room for the pairs
must not be found out when the gap reward's turn comes, hours later. No weights are loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from training.config import RunConfig

# Encoders of this family count positions from the padding token's index + 1.
_OFFSET_TYPES = ("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm")


def check_data_files(config: RunConfig) -> None:
    """Raises `DataError`: a data file of a run whose data is not prepared yet is not there."""
    if config.generation is not None or (config.output / "data" / "settings.json").exists():
        return
    for key in ("path", "heldout_path"):
        path: Path | None = getattr(config.data, key)
        if path is not None and not path.exists():
            raise DataError("no such file", path=path, advice=f"Set data.{key} to a file of preference pairs")


def check_models(config: RunConfig) -> None:
    """Check the models that the configuration names; where all come from scratch there is nothing to do.

    Raises:
        CheckpointError: one cannot be loaded, or has no chat template.
        ConfigError: the length budget does not fit.
    """
    if config.base.path is None and config.gap_reward.path is None:
        return
    # Only here: a run from scratch starts without torch.
    from training.adapters import quantization
    from training.lengths import check_reward_room, check_room
    from training.models import load_reading_tokenizer, load_tokenizer

    quantization(config.model.adapter)
    if config.base.path is not None:
        check_room(config, load_tokenizer(config.base.path), read_model_config(config.base.path))
    if config.gap_reward.path is not None:
        tokenizer = load_reading_tokenizer(config.gap_reward.path)
        check_reward_room(config, tokenizer, read_model_config(config.gap_reward.path))


def read_model_config(source: str) -> Any:
    """The transformers configuration of a directory or hub name.

    Raises:
        CheckpointError: there is none, or the directory has no weights.
    """
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{source}: no model could be loaded: {first}") from error
    directory = Path(source)
    if directory.is_dir() and not any(
        file for pattern in ("*.safetensors", "*.bin") for file in directory.glob(pattern)
    ):
        raise CheckpointError(f"{source}: no model could be loaded: the directory has no *.safetensors")
    return found


def positions(model_config: Any) -> int | None:
    """How many tokens a model can read; None where its positions have no limit."""
    text = model_config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:
        return None
    offset = text.pad_token_id + 1 if text.model_type in _OFFSET_TYPES else 0
    return int(limit) - offset
