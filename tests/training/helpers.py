"""Tiny models from training's own code, and a way to call a stage's functions without worker processes."""

from pathlib import Path
from typing import Any

from training.checkpoint import Provenance, generation_golden, publish, score_golden
from training.config import RunConfig, load_config
from training.data import PreferencePair
from training.runtime import Worker
from training.synthetic import make_pairs

TINY = Path(__file__).parent / "tiny.yaml"


def tiny_config(output: Path, *overrides: str) -> RunConfig:
    return load_config(TINY, [f"output={output}", *overrides])


def alone(config: RunConfig, stage: str) -> Worker:
    """The only worker of a stage, reporting to nobody."""
    config.output.mkdir(parents=True, exist_ok=True)
    return Worker(config, stage, 0, 1, None)


def pairs(count: int = 8) -> list[PreferencePair]:
    return make_pairs(count, seed=11)


def tiny_tokenizer(config: RunConfig) -> Any:
    from training.tokenizer import train_tokenizer

    texts = [text for pair in pairs(60) for text in (pair.prompt[0]["content"], pair.chosen, pair.rejected)]
    return train_tokenizer([*texts, config.improve_turn], 400, 512)


def tiny_language_model(config: RunConfig, tokenizer: Any) -> Any:
    from training.models import scratch_model

    return scratch_model(config, tokenizer, 512).eval()


def publish_tiny(config: RunConfig, role: str, directory: Path | None = None) -> Path:
    """An untrained checkpoint of `role`, written by training's `publish`."""
    from training.models import load_reward_model

    tokenizer = tiny_tokenizer(config)
    model = tiny_language_model(config, tokenizer)
    directory = directory or config.output / role
    provenance = Provenance(None, None, {"name": "tiny"}, {"loss": 1.0})
    golden: Any
    if role in ("policy", "improver"):
        golden = generation_golden(
            model, tokenizer, pairs(3), config.improve_turn if role == "improver" else None
        )
    else:
        source = config.output / "source_for_reward"
        model.save_pretrained(source)
        tokenizer.save_pretrained(source)
        model = load_reward_model(source, 1).eval()
        golden = score_golden(
            model,
            tokenizer,
            pairs(3),
            config.improve_turn if role == "gap_reward" else None,
            with_baseline=role == "gap_reward",
        )
    publish(directory, model, tokenizer, config, role, golden, provenance)  # type: ignore[arg-type]
    return directory
