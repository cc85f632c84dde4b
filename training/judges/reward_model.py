"""A reward model as a judge: any sequence classifier, over one response or over two.

In the pipeline this serves evaluation only, with a reward model that training never used. The paper's is a
DeBERTa that reads prompt and response and gives one number: `kind: pointwise`, `input: text`. A gap reward of
this project reads both responses: `kind: pairwise`, margin ½ (f(x, a, b) − f(x, b, a)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, set_seed
from transformers.utils import logging as transformers_logging

from training.chat import PLAIN_TEMPLATE, encode, gap_messages, reward_messages
from training.checkpoint import MANIFEST, content_hash, read_manifest
from training.checks import positions, read_model_config
from training.data import Message, PreferencePair
from training.errors import CheckpointError, ConfigError
from training.judges.numbers import MarginJudge, ScoreJudge
from training.judges.protocol import Contest
from training.judges.settings import RewardModelSettings
from training.models import is_encoder, load_reading_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_A_BATCH = 16_384
"""Padded tokens in one forward pass."""

Row = dict[str, list[int]]
"""What a tokenizer gives for one input: `input_ids`, perhaps `token_type_ids`."""


def reward_model_judge(
    settings: RewardModelSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreJudge | MarginJudge:
    """Load the model. `progress` hears how many inputs of a call are done, of how many.

    Raises:
        CheckpointError: there is no such model, it is no classifier, or its labels do not say what is better.
        ConfigError: the device is not there.
    """
    reader = Reader(settings, progress)
    if reader.pairwise:
        return MarginJudge("reward_model", reader.margins, reader.record, settings.tolerance)
    return ScoreJudge("reward_model", reader.scores, reader.record, settings.tolerance)


class Reader:
    """The model, and how it reads a response or two.

    `record` holds what decides its numbers: the hash of its files (a hub name and its commit), and how it
    reads.
    """

    def __init__(self, settings: RewardModelSettings, progress: Callable[[int, int], None]) -> None:
        self._settings, self._progress = settings, progress
        self._tokenizer: Any = load_reading_tokenizer(settings.path)
        self._model = _load(settings)
        config = self._model.config
        config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        self._label = _label(settings, config)
        self._improve_turn: str | None = None
        self.pairwise = settings.kind == "pairwise"
        own_template = self._tokenizer.chat_template != PLAIN_TEMPLATE
        self._chat = settings.input == "chat" or (settings.input == "auto" and own_template)
        gap = _gap_reward(settings.path)
        if gap is not None and settings.kind != "pointwise":
            self.pairwise, self._chat = gap.get("reads") != "candidate", True
            self._improve_turn = gap["improve_turn"]
        limits = [settings.max_tokens, positions(config), self._tokenizer.model_max_length]
        self._limit = min(limit for limit in limits if limit is not None)
        directory = Path(settings.path)
        self.record = {
            "model": content_hash(directory) if directory.is_dir() else settings.path,
            "commit": getattr(config, "_commit_hash", None),
            "kind": "pairwise" if self.pairwise else "pointwise",
            "input": "chat" if self._chat else "text",
            "label": self._label,
            "max_tokens": self._limit if self._limit < 1e9 else None,
            "tolerance": settings.tolerance,
            "dtype": settings.dtype,
        }

    def scores(self, rows: Sequence[tuple[PreferencePair, str]]) -> list[float | None]:
        """The number of each response; None where prompt and response are too long. Shape (n,) → (n,)."""
        return self._read([self._encode(example.prompt, response) for example, response in rows])

    def margins(self, contests: Sequence[Contest]) -> list[float | None]:
        """½ (f(x, first, second) − f(x, second, first)) of each contest, where f says how much better the
        response read last is. Shape (n,) → (n,)."""
        orders = [(c, c.second, c.first) for c in contests] + [(c, c.first, c.second) for c in contests]
        found = self._read([self._encode(c.example.prompt, last, before) for c, before, last in orders])
        both = zip(found[: len(contests)], found[len(contests) :], strict=True)
        return [None if a is None or b is None else (a - b) / 2 for a, b in both]

    def _encode(self, prompt: Sequence[Message], last: str, before: str | None = None) -> Row:
        """The input with `last` as the response to judge, after the other one where there is one."""
        if self._chat and before is None:
            return {"input_ids": encode(self._tokenizer, [reward_messages(prompt, last)])[0]}
        if self._chat:
            turn = self._improve_turn or "Please improve your answer."
            return {"input_ids": encode(self._tokenizer, [gap_messages(prompt, last, str(before), turn)])[0]}
        # One message alone is its text, as such models were trained on questions and answers.
        texts = [message["content"] for message in prompt]
        if len(prompt) > 1:
            texts = [f"{message['role']}: {message['content']}" for message in prompt]
        responses = last if before is None else f"{before} {self._tokenizer.sep_token} {last}"
        found: Row = dict(self._tokenizer("\n".join(texts), responses, truncation=False, verbose=False))
        return {name: found[name] for name in ("input_ids", "token_type_ids") if name in found}

    @torch.inference_mode()
    def _read(self, rows: Sequence[Row]) -> list[float | None]:
        """The model's number for each input, None where it is too long. Inputs of like length share a batch:
        less padding."""
        found: list[float | None] = [None] * len(rows)
        lengths = [len(row["input_ids"]) for row in rows]
        order = sorted((i for i in range(len(rows)) if lengths[i] <= self._limit), key=lengths.__getitem__)
        options = {} if is_encoder(self._model) else {"use_cache": False}
        done = len(rows) - len(order)
        while order:
            size = max(1, TOKENS_A_BATCH // max(1, lengths[order[-1]]))
            batch, order = order[-size:], order[:-size]
            logits = self._model(**self._padded([rows[i] for i in batch]), **options).logits.float()
            for i, value in zip(batch, self._numbers(logits), strict=True):
                found[i] = value
            done += len(batch)
            self._progress(done, len(rows))
        return found

    def _padded(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Shapes: all (rows, longest), padded on the right."""
        longest = max(len(row["input_ids"]) for row in rows)
        padding = {"input_ids": self._tokenizer.pad_token_id, "token_type_ids": 0}
        padded = {
            name: [row[name] + [padding[name]] * (longest - len(row[name])) for row in rows]
            for name in rows[0]
        }
        padded["attention_mask"] = [[int(i < len(row["input_ids"])) for i in range(longest)] for row in rows]
        return {name: torch.tensor(value, device=self._model.device) for name, value in padded.items()}

    def _numbers(self, logits: torch.Tensor) -> list[float]:
        """From logits (rows, labels): the logit, or the log-odds of the label that means better."""
        if self._label is None:
            found = logits[:, 0]
        else:
            others = [i for i in range(logits.shape[1]) if i != self._label]
            found = logits[:, self._label] - logits[:, others].logsumexp(1)
        values: list[float] = found.tolist()
        if not all(map(math.isfinite, values)):
            raise CheckpointError(f"{self._settings.path}: a score is not a finite number; try dtype float32")
        return values


def _load(settings: RewardModelSettings) -> PreTrainedModel:
    """The classifier with all of its weights on its device. A head that is not in the checkpoint would be
    random: such a model is refused."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    read_model_config(settings.path)
    transformers_logging.disable_progress_bar()  # of loading
    set_seed(0)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            settings.path, dtype=getattr(torch, settings.dtype), output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{settings.path}: no classifier could be loaded: {first}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{settings.path}: the checkpoint has no {', '.join(missing[:3])}, so it is no trained "
            "classifier; give a reward model"
        )
    try:
        placed: PreTrainedModel = model.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"evaluation.reward_model.device: {device!r} is not there; try cpu") from error
    return placed


def _label(settings: RewardModelSettings, config: Any) -> int | None:
    """The index of the label that means better; None for a model with one number."""
    count, wanted = config.num_labels, settings.label
    if count == 1 and wanted is None:
        return None
    names = {str(name): int(index) for index, name in config.id2label.items()}
    index = names.get(wanted, -1) if isinstance(wanted, str) else wanted
    if index is None or not 0 <= index < count or count == 1:
        raise CheckpointError(
            f"{settings.path}: the model has {count} label{'s' if count > 1 else ''} ({', '.join(names)}); "
            f"evaluation.reward_model.label is {wanted!r}, and must "
            + ("name the one that means better" if count > 1 else "be left out")
        )
    return index


def _gap_reward(path: str) -> dict[str, Any] | None:
    """What the manifest of a gap reward of this project says; None for another model."""
    directory = Path(path)
    if not (directory / MANIFEST).is_file():
        return None
    manifest = read_manifest(directory)
    if manifest["role"] != "gap_reward":
        return None
    return {"improve_turn": manifest["improve_turn"], **(manifest["gap"] or {})}
