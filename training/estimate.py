"""The dry run: every check that needs no training, and what the run would take in memory and time.

In the pipeline it stands before everything, by `pit-train run CONFIG --dry-run`. No weights are loaded:
models are built without storage, from their configuration alone. What a stage costs is in costs.py.
"""

from __future__ import annotations

import math
import random
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from training import costs
from training.chat import Conversation, encode, gap_messages, improver_messages, reward_messages
from training.checks import read_model_config
from training.config import OptimizerConfig, RlConfig, RunConfig
from training.costs import PROCESS_BYTES, SHARED_BYTES, Shape, Work
from training.data import PreferencePair
from training.errors import ConfigError
from training.lengths import scratch_positions
from training.models import load_tokenizer, scratch_config, training_dtype
from training.paths import gap_reward_names
from training.pipeline import check_settings, stages
from training.prefix_tree import merge
from training.prepare import Reading, read_data
from training.synthetic import base_documents
from training.tokenizer import train_tokenizer

SAMPLE = 200
# Documents that a tokenizer is trained on, in a fifth of a second.
TEXTS = 1_000


@dataclass(frozen=True)
class StageEstimate:
    name: str
    parameters: int
    trainable: int
    examples: int
    steps: int
    tokens: int
    bytes: int
    seconds: float


def steps_of(optimizer: OptimizerConfig, examples: int) -> int:
    """Optimizer steps as the trainer counts them: the last batch of an epoch may be smaller."""
    return optimizer.steps or math.ceil((optimizer.epochs or 1) * math.ceil(examples / optimizer.batch))


def dry_run(config: RunConfig, console: Console) -> None:
    """Check, then print the data's report and the table; writes nothing.

    Raises:
        TrainingError: whatever would stop the run, all of it in one message.
    """
    check_settings(config)
    reading = Reading()
    sample = _sample(config, reading)
    console.print(reading.text())
    tokenizer, model = _base(config, sample)
    estimates = estimate(config, reading.pairs, sample, tokenizer, model)
    problems = [*_too_few(config, reading.pairs), *_no_room_on_disk(config, estimates)]
    if problems:
        raise ConfigError("\n  ".join(["the run would fail:", *problems]))
    console.print(table(config, estimates))


def _sample(config: RunConfig, reading: Reading) -> list[PreferencePair]:
    """So many pairs of the SFT part, each as likely as any other; `reading` counts all of them."""
    rng, sample = random.Random(config.seed), list[PreferencePair]()
    for name, pair in read_data(config, reading):
        if name == "sft":
            place = rng.randrange(reading.pairs[name])
            if len(sample) < SAMPLE:
                sample.append(pair)
            elif place < SAMPLE:
                sample[place] = pair
    return sample


def _base(config: RunConfig, sample: Sequence[PreferencePair]) -> tuple[Any, Any]:
    """The base's tokenizer (where it is not trained yet, one like it) and its model without storage."""
    source = config.base.path
    if source is None:
        finished = config.output / "base"
        positions = scratch_positions(config.length)
        if finished.is_dir():
            tokenizer = load_tokenizer(finished)
        else:
            texts = [m["content"] for document in _documents(config, sample, TEXTS) for m in document]
            tokenizer = train_tokenizer(
                [*texts, *[config.improve_turn] * 100], config.base.model.vocabulary, positions
            )
        return tokenizer, _meta(AutoModelForCausalLM, scratch_config(config, tokenizer, positions))
    tokenizer = load_tokenizer(source)
    return tokenizer, _meta(AutoModelForCausalLM, read_model_config(source))


def _meta(factory: Any, model_config: Any) -> Any:
    with torch.device("meta"):
        return factory.from_config(model_config)


def shape_of(config: RunConfig, model: Any) -> Shape:
    """A model's shape; with `model.adapter` only r·(in + out) of each linear layer trains."""
    text = model.config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    trainable = parameters
    if config.model.adapter is not None:
        wanted = config.model.adapter.targets
        trainable = sum(
            config.model.adapter.rank * (module.in_features + module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
            and name.split(".")[-1] not in ("lm_head", "score")
            and (wanted == "all-linear" or name.split(".")[-1] in wanted)
        )
        parameters += trainable
    embedding = text.vocab_size * text.hidden_size
    # The embedding is looked up, not multiplied; where it is tied it is the output's matrix too.
    matrices = parameters - (0 if getattr(text, "tie_word_embeddings", False) else embedding)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters,
        trainable,
        matrices,
        0 if getattr(model, "score", None) is not None else embedding,
        text.hidden_size,
        text.num_hidden_layers,
        text.num_attention_heads * size,
        text.intermediate_size,
        text.vocab_size,
    )


def estimate(
    config: RunConfig, sizes: dict[str, int], sample: Sequence[PreferencePair], tokenizer: Any, model: Any
) -> list[StageEstimate]:
    """An estimate for every stage of the pipeline, in its order, from the sizes of the data's parts."""
    shape = shape_of(config, model)
    scorer = shape
    if config.gap_reward.path is not None:
        other = _meta(AutoModelForSequenceClassification, read_model_config(config.gap_reward.path))
        scorer = shape_of(config, other)
    rate = costs.matmul_rate(1024, shape.hidden, max(shape.hidden, shape.mlp))
    works = _works(config, sizes, sample, tokenizer)
    return [_stage(config, name, work, shape, scorer, rate) for name, work in works]


def _stage(
    config: RunConfig, name: str, work: Work, shape: Shape, scorer: Shape, rate: float
) -> StageEstimate:
    width, checkpointing = training_dtype(config).itemsize, config.model.gradient_checkpointing
    scores = name in ("reader", "reward", "calibrate") or name.startswith("gap_reward")
    own = scorer if name == "calibrate" or name.startswith("gap_reward") else shape
    if scores:
        own = replace(own, matrices=own.matrices - own.head)
    if name == "calibrate":
        tokens = work.batch * work.length * config.gap_reward.ensemble
        memory = costs.PROCESS_BYTES + width * own.parameters
        seconds = costs.forward_flops(own, tokens, work.length) / (costs.EFFICIENCY * rate)
        return StageEstimate(name, own.parameters, 0, work.examples, 0, int(tokens), memory, seconds)
    rows = _in_memory(config, name, work)
    tokens = work.steps * work.batch * work.length
    kind = _optimizer_kind(config, name)
    memory = (
        PROCESS_BYTES + width * (own.parameters + own.trainable) + costs.optimizer_bytes(own, kind, width)
    )
    memory += costs.activation_bytes(own, rows * work.length, width, checkpointing=checkpointing)
    flops = costs.training_flops(own, tokens, work.length, checkpointing=checkpointing)
    memory += 0 if scores else costs.logits_bytes(rows * (work.generated or work.length), own.vocabulary)
    seconds = costs.STAGE_SECONDS + work.steps * own.layers * costs.STEP_SECONDS_PER_LAYER
    if work.generated:
        judges = config.gap_reward.ensemble if name == "improver" else 1
        # An anchor, and the reward models; all of them only read.
        memory += width * (shape.parameters + judges * scorer.parameters)
        flops += costs.forward_flops(shape, tokens, work.length)
        flops += judges * costs.forward_flops(scorer, tokens, work.length)
        together = math.ceil(work.batch / config.process_count)
        steps = costs.decode_seconds(shape, together, work.generated, work.length, rate)
        seconds += work.steps * steps
    seconds += flops / (costs.EFFICIENCY * rate * config.process_count)
    return StageEstimate(
        name, own.parameters, own.trainable, work.examples, work.steps, int(tokens), memory, seconds
    )


def _section(config: RunConfig, name: str) -> Any:
    sections = {
        "base": config.base,
        "policy_sft": config.sft_policy,
        "improver_sft": config.sft_improver,
        "reader": config.reader,
        "reward": config.reward,
        "policy": config.rl_policy,
        "improver": config.rl_improver or config.dpo_improver,
    }
    if name.startswith("improver_rft"):
        return config.rft_improver
    return config.gap_reward if name.startswith("gap_reward") else sections[name]


def _in_memory(config: RunConfig, name: str, work: Work) -> float:
    """Examples that a process has in memory at once."""
    section = _section(config, name)
    micro = getattr(getattr(section, "optimizer", section), "micro_batch", None)
    share = work.batch / config.process_count
    return min(share, micro) if micro else share


def _optimizer_kind(config: RunConfig, name: str) -> str:
    section = getattr(_section(config, name), "optimizer", None)
    return section.kind if section is not None else "adamw"


def _works(
    config: RunConfig, sizes: dict[str, int], pairs: Sequence[PreferencePair], tokenizer: Any
) -> list[tuple[str, Work]]:
    turn, gap_turn = config.improve_turn, config.gap_turn

    def mean(conversation: Callable[[PreferencePair], Conversation]) -> float:
        return statistics.fmean(_lengths(tokenizer, [conversation(pair) for pair in pairs]))

    policy = mean(lambda p: reward_messages(p.prompt, p.chosen))
    improver = mean(lambda p: reward_messages(improver_messages(p.prompt, p.rejected, turn), p.chosen))
    pair_length = mean(lambda p: gap_messages(p.prompt, p.chosen, p.rejected, gap_turn))
    prompt = mean(lambda p: list(p.prompt))
    answer = min(policy - prompt, config.length.response)
    # Generation goes on until the longest of a batch has ended, and one that does not end is cut there.
    longest = float(config.length.response)
    tree = statistics.fmean(_tree(config, tokenizer, pair) for pair in pairs)
    found: list[tuple[str, Work]] = []
    for stage in stages(config):
        name = stage.name
        if name == "base":
            assert config.base.optimizer is not None
            count = config.base.recitation_first + config.base.documents
            documents = _documents(config, pairs, SAMPLE)
            length = _padded(documents, tokenizer, config.base.optimizer.batch, config)
            found.append((name, _supervised(config.base.optimizer, count, length)))
        elif name in ("policy_sft", "improver_sft"):
            sft = config.sft_policy if name == "policy_sft" else config.sft_improver
            count = int(sizes["sft"] * (1 + sft.replay))
            found.append(
                (name, _supervised(sft.optimizer, count, policy if name == "policy_sft" else improver))
            )
        elif name == "reader":
            assert config.reader is not None
            length = (policy + pair_length) / 2
            found.append((name, _supervised(config.reader.optimizer, config.reader.exercises, length)))
        elif name == "reward":
            assert config.reward is not None
            found.append((name, _supervised(config.reward.optimizer, sizes["reward"], 2 * policy)))
        elif name.startswith("gap_reward"):
            count = int(sizes["reward"] * (1 + config.gap_reward.contrast))
            found.append((name, _supervised(config.gap_reward.optimizer, count, tree)))
            if name == gap_reward_names(config)[-1]:
                # Both orders, and some responses against themselves (calibrate.py); nothing is learned.
                rows = 2 * sizes["heldout"] + 2 * min(500, sizes["heldout"])
                found.append(("calibrate", Work(sizes["heldout"], 0, rows, pair_length)))
        elif name.startswith("improver_rft"):
            assert config.rft_improver is not None
            rft = config.rft_improver
            # Sampling and judging before it are not counted, here and for DPO.
            found.append((name, _supervised(rft.optimizer, rft.prompts, improver)))
        elif name == "improver" and config.dpo_improver is not None:
            dpo = config.dpo_improver
            # Both sequences of a pair, by the model and by its reference.
            found.append((name, _supervised(dpo.optimizer, dpo.prompts, 2 * improver)))
        elif name == "improver" and config.rl_improver is not None:
            found.append((name, _rl(config.rl_improver, improver - answer + longest, longest)))
        elif config.rl_policy is not None:
            found.append((name, _rl(config.rl_policy, prompt + longest, longest)))
        else:
            found.append((name, Work(0, 0, 0, 0)))
    return found


def _supervised(optimizer: OptimizerConfig, examples: int, length: float) -> Work:
    steps = steps_of(optimizer, examples)
    if optimizer.steps:
        examples = min(examples, steps * optimizer.batch)
    return Work(examples, steps, optimizer.batch, length)


def _rl(rl: RlConfig, length: float, answer: float) -> Work:
    steps = sum(rl.steps)
    return Work(steps * rl.prompts, steps, rl.prompts * rl.samples, length, answer)


def _documents(config: RunConfig, pairs: Sequence[PreferencePair], count: int) -> list[Conversation]:
    """Like the base model's; as many as there are pairs, or for the help desk `count`."""
    if config.data.format == "helpdesk":
        return list(base_documents(count, config.seed, config.base.recitation_share))
    return [reward_messages(improver_messages(p.prompt, p.chosen, ""), p.chosen) for p in pairs]


def _padded(documents: list[Conversation], tokenizer: Any, batch: int, config: RunConfig) -> float:
    """The mean over batches of a batch's longest document: what stands in the corpus's order is padded."""
    lengths, size = _lengths(tokenizer, documents), max(1, batch // config.process_count)
    return statistics.fmean(max(lengths[i : i + size]) for i in range(0, len(lengths), size))


def _lengths(tokenizer: Any, conversations: list[Conversation]) -> list[int]:
    return [len(ids) for ids in encode(tokenizer, conversations)]


def _tree(config: RunConfig, tokenizer: Any, pair: PreferencePair) -> int:
    """Tokens that the gap reward's loss reads for a pair: shared prefixes once (prefix_tree.py), but all of
    each sequence in another model, which may be an encoder."""
    gap = config.gap_reward
    wanted = ("wl", "ww", "ll", "lw") if gap.loss == "five_terms" else ("wl", "lw")
    texts = {"w": pair.chosen, "l": pair.rejected}
    found = [gap_messages(pair.prompt, texts[n[0]], texts[n[1]], config.gap_turn) for n in wanted]
    rows = encode(tokenizer, found)
    return sum(map(len, rows)) if gap.path is not None else len(merge(rows).tokens)


def _too_few(config: RunConfig, sizes: dict[str, int]) -> list[str]:
    """Parts that do not fill one batch of a stage that reads them."""
    wanted = [
        ("sft", config.sft_policy.optimizer.batch, "sft_policy"),
        ("sft", config.sft_improver.optimizer.batch, "sft_improver"),
        ("reward", config.gap_reward.optimizer.batch, "gap_reward"),
        ("heldout", 3, "golden samples"),
    ]
    if config.rl_improver is not None:
        wanted.append(("rl", config.rl_improver.prompts, "rl_improver"))
    if config.reward is not None and config.rl_policy is not None:
        wanted += [
            ("reward", config.reward.optimizer.batch, "reward"),
            ("rl", config.rl_policy.prompts, "rl_policy"),
        ]
    return [
        f"{user}: part {part} has {sizes[part]} pairs, fewer than the {count} of one batch; "
        "give more pairs, another data.split or a smaller batch"
        for part, count, user in wanted
        if sizes[part] < count
    ]


def disk_bytes(config: RunConfig, estimates: Sequence[StageEstimate]) -> int:
    """Every stage's weights, and beside them the largest stage's save with two moments of each weight."""
    width = training_dtype(config).itemsize
    saves = [width * (e.parameters + 2 * e.trainable) for e in estimates]
    return sum(width * e.parameters for e in estimates) + max(saves)


def _no_room_on_disk(config: RunConfig, estimates: Sequence[StageEstimate]) -> list[str]:
    place = next(p for p in (config.output.absolute(), *config.output.absolute().parents) if p.exists())
    free, needed = shutil.disk_usage(place).free, disk_bytes(config, estimates)
    if needed <= free:
        return []
    return [f"output={config.output}: about {_size(needed)} are needed, {_size(free)} are free; free some"]


def table(config: RunConfig, estimates: Sequence[StageEstimate]) -> Table:
    count = config.process_count
    found = Table(title=f"{config.name}: dry run, {count} processes", title_justify="left")
    for column in ("stage", "parameters", "train", "examples", "steps", "tokens", "each", "in sum", "time"):
        found.add_column(column, justify="left" if column == "stage" else "right")
    for e in estimates:
        counts = (e.parameters, e.trainable, e.examples, e.steps, e.tokens)
        found.add_row(
            e.name,
            *map(_count, counts),
            _size(e.bytes),
            _size(SHARED_BYTES + count * e.bytes),
            _clock(e.seconds),
        )
    found.caption = (
        f"In all {_clock(costs.START_SECONDS + sum(e.seconds for e in estimates))}, "
        f"{_size(disk_bytes(config, estimates))} on disk. Fitted to runs of a 0.9M-parameter model on two "
        "free CPU cores (docs/LOG.md); for other sizes and accelerators nothing was measured."
    )
    return found


def _count(value: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return str(value)


def _size(value: int) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**28 else f"{value / 2**20:.1f} MiB"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
