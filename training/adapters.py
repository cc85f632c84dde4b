"""LoRA adapters: every stage then trains a small adapter over the one base model (peft).

A published checkpoint holds the merged weights, which any engine loads, and in `adapter/` the adapter alone,
for engines that serve several over one base. A stage that starts from another's checkpoint goes on with its
adapter, so each is always one adapter over the base.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from transformers import BitsAndBytesConfig

from training.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from training.config import AdapterConfig
    from training.models import Trained

DIRECTORY = "adapter"


def adapt(base: PreTrainedModel, config: AdapterConfig, source: Path, *, scores: bool) -> PeftModel:
    """Put an adapter on a base model: that of the checkpoint `source` where it has one, else a new one.

    `scores`: the base is a sequence classifier, whose head trains whole beside the adapter; it is kept only
    from an adapter that had it.

    Raises:
        ConfigError: the model has no module of the names in `targets`.
    """
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
    )
    if config.quantize:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    try:
        model: PeftModel = get_peft_model(base, lora)
    except ValueError as error:
        raise ConfigError(f"model.adapter.targets={config.targets}: {str(error).splitlines()[0]}") from error
    if (source / DIRECTORY).is_dir():
        _load_into(model, source / DIRECTORY)
    return model


def _load_into(model: PeftModel, directory: Path) -> None:
    wanted, found = get_peft_model_state_dict(model), load_peft_weights(str(directory), device="cpu")
    for name, value in found.items():
        if name not in wanted or wanted[name].shape != value.shape:
            raise ConfigError(
                f"{directory}: {name} does not fit model.adapter; train that stage again (--retrain)"
            )
    # A causal LM's adapter has no score head: that stays as it was made.
    set_peft_model_state_dict(model, {**wanted, **found})


def quantization(config: AdapterConfig | None) -> dict[str, Any]:
    """Keyword arguments for `from_pretrained`.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if config is None or config.quantize is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "model.adapter.quantize=nf4 needs bitsandbytes: pip install 'pit-serve[qlora]', or leave it out"
        )
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        )
    }


def save_and_merge(trained: Trained, directory: Path, load_base: Callable[[], PreTrainedModel]) -> Any:
    """Save the adapter to `directory`; return it merged into a base that is neither quantized nor patched."""
    # A trainer may have put a frozen copy beside it (the KL anchor).
    state = dict(trained.state)
    trained.model.save_pretrained(str(directory), selected_adapters=["default"], state_dict=state)
    (directory / "README.md").unlink(missing_ok=True)  # a form that nobody has filled in
    return PeftModel.from_pretrained(load_base(), str(directory)).merge_and_unload()
