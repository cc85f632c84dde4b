"""Our training stages beside plain TRL doing the same work: tokens a second, memory, share of matmul peak.

    make bench-training
    .venv/bin/python scripts/bench_training.py --hidden 512 --layers 8 --pairs 400

Each side runs in a process of its own with one thread, the two by turns, so that a busy machine disturbs both
alike; a round's ratio compares neighbours. The ratio of the two processor times stands beside it, and is the
one to read on a busy machine; tokens a second are those of processor time. Ours is the stage function that
`pit-train run` calls, timed from the first training step to the last; each side saves once, at the end. Plain
TRL is what its documentation shows: `SFTTrainer` on prompts and completions, `RLOOTrainer` with a reward
model as its reward function. For the loss over four sequences it has no trainer, so that side is
transformers' Trainer with all four in one right-padded batch, as TRL's RewardTrainer has its two. Both sides
have the same weights, pairs and batch size, and no gradient checkpointing; the optimizer is AdamW, plain
TRL's the fused one.

Tokens are those of the conversations, without padding, and for the gap reward those of all four sequences.
FLOPs are 6·N·T + 6·L·d·Σ t² (training; N without embeddings but with the head, T tokens, d width of
attention, t a sequence's length, half of whose square is masked), for RL 2·N for each token of generation,
scoring and both log-probabilities, and 6·N for learning; they are divided by time and by the rate of a 1024²
float32 matmul on the same thread. Work that prefixes share counts as done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
STAGES = ("sft", "gap_reward", "rl")
BARS = {"sft": 1.0, "gap_reward": 1.3, "rl": 0.95}
LENGTHS = {"prompt": 64, "reference": 96, "response": 96}
BATCH, STEPS, PROMPTS, SAMPLES = 32, 6, 8, 8


def settings(arguments: argparse.Namespace, output: Path) -> Any:
    """The configuration of both sides."""
    from training.config import load_config

    optimizer = f"{{kind: adamw, learning_rate: 0.0005, batch: {BATCH}, epochs: 1}}"
    overrides = [
        f"output={output}", "processes=1", "reader=null", "rl_policy=null", "reward=null", "saves=1",
        f"data.pairs={3 * arguments.pairs}", "data.heldout=24", "data.noise=0.7",
        f"base.model.hidden={arguments.hidden}", f"base.model.layers={arguments.layers}",
        f"base.model.mlp={arguments.hidden}", "base.model.vocabulary=1280",
        *(f"{name}.optimizer={optimizer}" for name in ("sft_policy", "sft_improver", "gap_reward")),
        "sft_improver.replay=0", "gap_reward.start=improver_sft",
        f"rl_improver={{steps: [{STEPS}, 0], prompts: {PROMPTS}, samples: {SAMPLES}, "
        "learning_rate: 0.0001, beta: 0.1}",
        *(f"length.{name}={value}" for name, value in LENGTHS.items()),
    ]  # fmt: skip
    return load_config(ROOT / "tests" / "training" / "tiny.yaml", overrides)


def prepare(arguments: argparse.Namespace, output: Path) -> None:
    """Data, and untrained checkpoints for the stages to start from."""
    from training.checkpoint import Provenance, publish
    from training.corpus import base_corpus, tokenizer_texts
    from training.models import load_reward_model, scratch_model
    from training.prepare import prepare_data
    from training.tokenizer import train_tokenizer

    config = settings(arguments, output)
    prepare_data(config)
    texts = tokenizer_texts(config, base_corpus(config))
    tokenizer = train_tokenizer(texts, config.base.model.vocabulary, 512)
    model = scratch_model(config, tokenizer, 512)
    nothing = Provenance(None, None, {}, {})
    for name, role in (("base", "policy"), ("policy", "policy"), ("improver_sft", "improver")):
        publish(output / name, model, tokenizer, config, role, [], nothing)  # type: ignore[arg-type]
    scorer = load_reward_model(output / "improver_sft", 1)
    publish(output / "gap_reward", scorer, tokenizer, config, "gap_reward", [], nothing)


def parts(output: Path, config: Any) -> tuple[Any, list[Any]]:
    from training.lengths import fitting_pairs
    from training.models import load_tokenizer
    from training.runtime import Worker

    worker = Worker(config, "bench", 0, 1, None)
    tokenizer = load_tokenizer(output / "base")
    return tokenizer, fitting_pairs(worker, tokenizer, "sft", report=False)


class Timed:
    """Replaces a trainer's `train`; the time is that of the steps, without building the trainer."""

    seconds = processor = 0.0
    trainer: Any = None

    def __call__(self, trainer: Any, worker: Any = None) -> None:
        self.trainer = trainer
        started, before = time.perf_counter(), time.process_time()
        trainer.train()
        self.seconds = time.perf_counter() - started
        self.processor = time.process_time() - before


def ours(stage: str, config: Any) -> Timed:
    """The stage function, as the pipeline calls it, up to the end of its training."""
    import shutil

    from training import gap_reward, rl, sft
    from training.runtime import Worker

    module, function, name = {
        "sft": (sft, sft.train_improver, "improver_sft"),
        "gap_reward": (gap_reward, gap_reward.train_gap_reward, "gap_reward"),
        "rl": (rl, rl.train_improver, "improver"),
    }[stage]
    timed: Any = Timed()
    module.train = timed  # type: ignore[attr-defined]
    module.release_lm = module.release_reward_model = lambda *_, **__: None  # type: ignore[attr-defined]
    worker = Worker(config, name, 0, 1, None)
    shutil.rmtree(worker.directory, ignore_errors=True)
    worker.directory.mkdir(parents=True)
    function(worker)
    result: Timed = timed
    return result


def plain(stage: str, config: Any) -> Timed:
    """The same with TRL alone."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
    from trl import RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

    from training.chat import assistant, gap_messages, improver_messages
    from training.losses import gap_loss

    output, turn = config.output, config.improve_turn
    tokenizer, pairs = parts(output, config)
    common: dict[str, Any] = {
        "output_dir": str(output / "plain"), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "report_to": [], "save_strategy": "epoch", "learning_rate": 0.0005, "disable_tqdm": True,
        "seed": config.seed,
    }  # fmt: skip
    trainer: Any
    if stage == "sft":
        rows = [
            {"prompt": improver_messages(p.prompt, p.rejected, turn), "completion": [assistant(p.chosen)]}
            for p in pairs
        ]
        trainer = SFTTrainer(
            model=str(output / "base"),
            args=SFTConfig(**common, per_device_train_batch_size=BATCH, num_train_epochs=1),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    elif stage == "gap_reward":
        from training.lengths import reward_pairs
        from training.runtime import Worker

        model = AutoModelForSequenceClassification.from_pretrained(output / "improver_sft", num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        rewarded = reward_pairs(Worker(config, "bench", 0, 1, None), tokenizer, config.gap_reward.optimizer)
        four = [
            [
                gap_messages(p.prompt, candidate, baseline, turn)
                for candidate, baseline in (
                    (p.chosen, p.rejected), (p.chosen, p.chosen),
                    (p.rejected, p.rejected), (p.rejected, p.chosen),
                )
            ]
            for p in rewarded
        ]  # fmt: skip
        ids = [tokenizer.apply_chat_template(each, return_dict=False) for each in four]

        def collate(rows: list[dict[str, Any]]) -> Any:
            return tokenizer.pad({"input_ids": [s for row in rows for s in row["four"]]}, return_tensors="pt")

        class FourSequences(Trainer):  # type: ignore[misc]
            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
                scores = model(**inputs, use_cache=False).logits[:, 0].view(-1, 4)
                loss = gap_loss(*scores.unbind(1)).mean()
                return (loss, scores) if return_outputs else loss

        trainer = FourSequences(
            model=model,
            args=TrainingArguments(
                **common, per_device_train_batch_size=BATCH, num_train_epochs=1, remove_unused_columns=False
            ),
            train_dataset=Dataset.from_dict({"four": ids}),
            data_collator=collate,
        )
    else:
        from training.lengths import fitting_pairs
        from training.rl import draw
        from training.runtime import Worker

        rl_pairs = fitting_pairs(Worker(config, "bench", 0, 1, None), tokenizer, "rl", report=False)
        phase_0 = [(list(p.prompt), y) for p in rl_pairs for y in (p.rejected, p.chosen)]
        rows = [
            {"prompt": improver_messages(x, y, turn)} for x, y in draw(phase_0, STEPS * PROMPTS, config.seed)
        ]
        scorer = AutoModelForSequenceClassification.from_pretrained(output / "gap_reward", num_labels=1)
        trainer = RLOOTrainer(
            model=str(output / "improver_sft"),
            reward_funcs=scorer,
            reward_processing_classes=tokenizer,
            args=RLOOConfig(
                **common | {"learning_rate": 0.0001},
                per_device_train_batch_size=PROMPTS * SAMPLES, num_generations=SAMPLES, shuffle_dataset=False,
                max_completion_length=LENGTHS["response"], temperature=1.0, beta=0.1,
                normalize_advantages=True, num_train_epochs=1, model_init_kwargs={"dtype": "float32"},
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )  # fmt: skip
    torch.manual_seed(config.seed)
    timed = Timed()
    timed(trainer)
    return timed


def work(stage: str, config: Any) -> dict[str, float]:
    """Tokens of the stage's conversations, and FLOPs; the same for both sides."""
    from training.chat import encode, encode_completion, gap_messages, improver_messages
    from training.lengths import fitting_pairs
    from training.models import load_causal_lm
    from training.rl import draw
    from training.runtime import Worker

    tokenizer, pairs = parts(config.output, config)
    turn, worker = config.improve_turn, Worker(config, "bench", 0, 1, None)
    model = load_causal_lm(config.output / "base")
    parameters = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    shape = model.config
    width = shape.num_attention_heads * shape.head_dim
    if stage == "sft":
        lengths = [
            sum(
                map(
                    len, encode_completion(tokenizer, improver_messages(p.prompt, p.rejected, turn), p.chosen)
                )
            )
            for p in pairs
        ]
    elif stage == "gap_reward":
        pairs = fitting_pairs(worker, tokenizer, "reward", report=False)
        lengths = [
            len(ids)
            for p in pairs
            for ids in encode(
                tokenizer,
                [
                    gap_messages(p.prompt, candidate, baseline, turn)
                    for candidate in (p.chosen, p.rejected)
                    for baseline in (p.chosen, p.rejected)
                ],
            )
        ]  # fmt: skip
    else:
        pairs = fitting_pairs(worker, tokenizer, "rl", report=False)
        phase_0 = [(list(p.prompt), y) for p in pairs for y in (p.rejected, p.chosen)]
        prompts = [improver_messages(x, y, turn) for x, y in draw(phase_0, STEPS * PROMPTS, config.seed)]
        # Untrained, the model hardly ever ends before the limit.
        lengths = [
            len(ids) + LENGTHS["response"] for ids in encode(tokenizer, prompts, generation_prompt=True)
        ] * SAMPLES
    tokens = sum(lengths)
    # Generation, scoring, two log-probabilities (2·N each) and learning (6·N) in RL; else learning alone.
    times = (2 + 2 + 4 + 6) / 6 if stage == "rl" else 1.0
    squares = sum(t * t for t in lengths)
    logits = shape.vocab_size * shape.hidden_size if stage != "gap_reward" else 0
    flops = times * (6 * (parameters + logits) * tokens + 12 * shape.num_hidden_layers * width * squares / 2)
    return {"tokens": tokens, "flops": flops}


def child(side: str, stage: str, arguments: argparse.Namespace, output: Path) -> None:
    """One side of one stage; prints its figures as the last line."""
    import torch

    torch.set_num_threads(1)
    config = settings(arguments, output)
    timed = (ours if side == "ours" else plain)(stage, config)
    print(json.dumps({"seconds": timed.seconds, "processor": timed.processor, "mib": peak_memory()}))


def peak_memory() -> float:
    """MiB that this process has held at most. Not `ru_maxrss`, which a child inherits from its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def matmul_peak() -> float:
    """FLOP/s of a 1024² float32 matmul on one thread."""
    import torch

    torch.set_num_threads(1)
    a = torch.randn(1024, 1024)
    best = 0.0
    for _ in range(20):
        started = time.perf_counter()
        a @ a
        best = max(best, 2 * 1024**3 / (time.perf_counter() - started))
    return best


def start(side: str, stage: str, arguments: argparse.Namespace, output: Path) -> dict[str, float]:
    from training.runtime import _WORKER_ENVIRONMENT

    command = [
        sys.executable, __file__, "--child", side, stage, "--output", str(output),
        "--pairs", str(arguments.pairs), "--hidden", str(arguments.hidden), "--layers", str(arguments.layers),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    environment["PYTHONPATH"] = str(ROOT)
    # As the pipeline's workers have it, for both sides.
    environment |= {name: value for name, value in _WORKER_ENVIRONMENT.items() if name.startswith("MALLOC")}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=arguments.timeout, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {side} {stage} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=640, help="about so many pairs a stage")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one side of one stage")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
    if arguments.child:
        child(arguments.child[0], arguments.child[1], arguments, arguments.output)
        return
    with tempfile.TemporaryDirectory(prefix="bench-training-") as directory:
        report(arguments, Path(directory))


def report(arguments: argparse.Namespace, output: Path) -> None:
    import torch
    import transformers
    import trl
    from rich.console import Console
    from rich.table import Table

    console = Console()
    transformers.utils.logging.disable_progress_bar()
    prepare(arguments, output)
    peak = matmul_peak()
    table = Table(
        title=f"hidden {arguments.hidden}, layers {arguments.layers}, one thread", title_justify="left"
    )
    for column in (
        "stage",
        "ours tokens/s",
        "TRL tokens/s",
        "ratio",
        "in processor time",
        "bar",
        "MiB ours / TRL",
        "of matmul peak",
    ):
        table.add_column(column)
    figures: dict[str, Any] = {"peak_gflops": peak / 1e9, "arguments": vars(arguments) | {"json": None}}
    config = settings(arguments, output)
    for stage in arguments.stages:
        amount = work(stage, config)
        sides: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
        for turn in range(arguments.rounds):
            # Who goes first changes: a machine that slows down favours neither.
            for side in ("ours", "plain") if turn % 2 == 0 else ("plain", "ours"):
                with console.status(f"{stage}, round {turn + 1}, {side}"):
                    run = start(side, stage, arguments, output)
                sides[side].append(run)
                console.print(
                    f"{stage}, round {turn + 1}, {side}: {run['seconds']:.1f} s, "
                    f"{run['processor']:.1f} s of a processor, {run['mib']:.0f} MiB"
                )
        ratios, own = (
            sorted(b[key] / a[key] for a, b in zip(sides["ours"], sides["plain"], strict=True))
            for key in ("seconds", "processor")
        )
        rate = {
            side: amount["tokens"] / median(run["processor"] for run in runs) for side, runs in sides.items()
        }
        memory = {side: median(run["mib"] for run in runs) for side, runs in sides.items()}
        share = {side: rate[side] * amount["flops"] / amount["tokens"] / peak for side in sides}
        figures[stage] = {
            "tokens": amount["tokens"], "ratios": ratios, "processor_ratios": own, "rate": rate,
            "mib": memory, "of_peak": share,
        }  # fmt: skip
        table.add_row(
            stage, f"{rate['ours']:,.0f}", f"{rate['plain']:,.0f}",
            *(f"{median(each):.2f} [{each[0]:.2f}, {each[-1]:.2f}]" for each in (ratios, own)),
            f"≥ {BARS[stage]:.2f}",
            f"{memory['ours']:.0f} / {memory['plain']:.0f}", f"{share['ours']:.0%} / {share['plain']:.0%}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"matmul peak {peak / 1e9:.0f} GFLOP/s a thread; torch {torch.__version__}, "
        f"transformers {transformers.__version__}, trl {trl.__version__}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
