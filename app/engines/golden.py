"""The golden check: the served models must give again what training wrote into the manifest.

Token ids have to be equal, log-probabilities and scores within a tolerance: a difference between training
and serving (another tokenizer, another template, other weights, another kernel) stops the server instead of
answering differently.
"""

from collections.abc import Sequence

from app.checkpoint import GoldenGeneration, GoldenScore
from app.engines.base import Comparison, Engine, Message, Sampling, Scorer
from app.errors import AppError, CheckpointError

FLOAT32_TOLERANCE = 0.001
OTHER_TOLERANCE = 0.1


def tolerance(float32: bool) -> float:
    """Nats (or logits) that a served value may differ from the manifest's."""
    return FLOAT32_TOLERANCE if float32 else OTHER_TOLERANCE


async def check_generation(
    engine: Engine, samples: Sequence[GoldenGeneration], allowed: float, name: str
) -> None:
    """Raises `CheckpointError` for the first sample that differs."""
    for number, sample in enumerate(samples, 1):
        messages = [Message(role=m.role, content=m.content) for m in sample.messages]
        try:
            prompt = await engine.prepare(messages)
            if prompt.content != sample.prompt_ids:
                raise CheckpointError(
                    f"{name}: golden sample {number} is tokenized differently from training"
                    f" ({prompt.tokens} tokens, the"
                    f" manifest has {len(sample.prompt_ids)}). The tokenizer or the chat template has"
                    " changed."
                )
            logprobs = await engine.logprobs(sample.prompt_ids, sample.completion_ids)
        except AppError as error:
            raise CheckpointError(f"{name}: golden sample {number} cannot be run: {error.message}") from error
        worst = max(abs(got - want) for got, want in zip(logprobs, sample.logprobs, strict=True))
        if not worst <= allowed:  # a NaN must fail too
            raise CheckpointError(
                f"{name}: the log-probabilities of golden sample {number} differ from training by"
                f" {worst:.4f} nats, and"
                f" {allowed:g} is allowed. The weights or the number format differ: publish the checkpoint"
                " again."
            )


async def check_scores(scorer: Scorer, samples: Sequence[GoldenScore], allowed: float, name: str) -> None:
    """Raises `CheckpointError` for the first sample that differs."""
    comparisons = [
        Comparison(
            tuple(Message(role=m.role, content=m.content) for m in sample.messages),
            sample.candidate,
            sample.baseline,
        )
        for sample in samples
    ]
    for number, (comparison, sample) in enumerate(zip(comparisons, samples, strict=True), 1):
        if await scorer.encode(comparison) != sample.input_ids:
            raise CheckpointError(
                f"{name}: golden sample {number} is tokenized differently from training."
                " The tokenizer, the chat template or the improve turn has changed."
            )
    try:
        scores = await scorer.score(comparisons)
    except AppError as error:
        raise CheckpointError(f"{name}: the golden samples cannot be scored: {error.message}") from error
    for number, (got, sample) in enumerate(zip(scores.values, samples, strict=True), 1):
        if not abs(got - sample.score) <= allowed:
            raise CheckpointError(
                f"{name}: the score of golden sample {number} is {got:.4f}, the manifest says"
                f" {sample.score:.4f}"
                f" (allowed difference {allowed:g}). The weights differ: publish the checkpoint again."
            )


async def generate_one_token(engine: Engine, name: str) -> None:
    """A real generation, end to end. Raises `CheckpointError`."""
    try:
        prompt = await engine.prepare([{"role": "user", "content": "Hello"}])
        tokens = 0
        async for delta in engine.generate(prompt, Sampling(max_tokens=1, temperature=0.0)):
            tokens += delta.tokens
    except AppError as error:
        raise CheckpointError(f"{name}: a test generation failed: {error.message}") from error
    if tokens < 1:
        raise CheckpointError(f"{name}: a test generation gave no token.")
