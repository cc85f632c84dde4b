"""Models that other servers have: find them, and check that they are what the manifests say."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.checkpoint import Checkpoint, Flag, SamplingDefaults
from app.engines import golden
from app.engines.base import Engine
from app.engines.remote import RemoteEngine, can_tokenize
from app.engines.remote_scorer import RemoteScorer, scoring_path
from app.engines.upstream import NOT_THERE, UNREACHABLE, PoolLimits, UpstreamPool
from app.errors import AppError, CheckpointError, Overloaded
from app.served import Started
from app.settings import Settings

log = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 3.0


async def start_remote(
    settings: Settings,
    urls: Mapping[Flag, tuple[str, ...]],
    checkpoints: Mapping[Flag, Checkpoint],
    improve_turn: str,
) -> Started:
    """Connect to the upstreams of each role; roles with the same upstreams share a pool.

    `checkpoints` are directories of which only the manifest is used. Raises `CheckpointError`.
    """
    limits = PoolLimits(
        connect_s=settings.upstream_connect_timeout_s,
        silence_s=settings.upstream_silence_timeout_s,
        total_s=settings.upstream_timeout_s,
        retries=settings.upstream_retries,
        health_interval_s=settings.upstream_health_interval_s,
        health_path=settings.upstream_health_path,
        breaker_failures=settings.upstream_breaker_failures,
        sticky_slack=settings.upstream_sticky_slack,
    )
    key = settings.upstream_api_key.get_secret_value() if settings.upstream_api_key else None
    pools: dict[tuple[str, ...], UpstreamPool] = {}
    for flag, addresses in urls.items():
        pools.setdefault(addresses, UpstreamPool(addresses, f"--{flag.replace('_', '-')}-url", limits, key))

    async def close() -> None:
        await asyncio.gather(*(pool.close() for pool in pools.values()))

    try:
        for pool in pools.values():
            await pool.start()
        found = await asyncio.gather(
            *(_find(settings, flag, pools[urls[flag]], checkpoints.get(flag)) for flag in urls)
        )
        engines: dict[Flag, Engine] = {}
        scorer: RemoteScorer | None = None
        for role in found:
            if role.flag == "gap_reward":
                scorer = await _scorer(settings, role, improve_turn)
            else:
                engines[role.flag] = await _engine(settings, role)
        version = await _version(next(iter(pools.values())))
    except BaseException:
        await close()
        raise
    notes = tuple(note for role in found for note in role.notes)
    return Started(engines, scorer, close, version, notes=notes)


@dataclass
class _Role:
    """One role's model, as its upstreams know it."""

    flag: Flag
    pool: UpstreamPool
    checkpoint: Checkpoint | None
    model: str
    context_length: int
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.pool.option} (model {self.model})"


async def _find(
    settings: Settings, flag: Flag, pool: UpstreamPool, checkpoint: Checkpoint | None
) -> _Role:
    """The role's model. Waits until an upstream answers. Raises `CheckpointError`."""
    wanted: str | None = getattr(settings, f"{flag}_model")
    if wanted is None and flag == "improver" and not settings.improver_url:
        wanted = settings.policy_model
    option = f"--{flag.replace('_', '-')}"
    cards = await _cards(pool, settings.upstream_start_timeout_s)
    if wanted is None:
        if not cards:
            raise CheckpointError(f"{pool.option} does not list its models: name one with {option}-model.")
        wanted = next(iter(cards))
    elif cards and wanted not in cards:
        raise CheckpointError(
            f"{pool.option} has no model {wanted!r} ({option}-model). It has: {', '.join(list(cards)[:20])}."
        )
    notes = []
    if len(cards) > 1 and getattr(settings, f"{flag}_model") is None:
        notes.append(f"{option}-model is not set: {wanted!r} is the first of {len(cards)} upstream")
    context = cards.get(wanted, {}).get("max_model_len")
    manifest = checkpoint.manifest if checkpoint else None
    lengths = [context, manifest.context_length if manifest else None]
    known = [int(length) for length in lengths if length]
    if not known:
        notes.append(f"{pool.option} does not say its context: {settings.max_model_len} tokens are taken")
    return _Role(flag, pool, checkpoint, wanted, min(known, default=settings.max_model_len), tuple(notes))


async def _cards(pool: UpstreamPool, patience_s: float) -> dict[str, dict[str, Any]]:
    """The models that an upstream has, by name; empty where it does not say."""
    limit = asyncio.get_running_loop().time() + patience_s
    wait = FIRST_WAIT_S
    while True:
        try:
            answer = await pool.get("/v1/models")
            return {str(card["id"]): card for card in answer["data"]}
        except (KeyError, TypeError):
            raise CheckpointError(f"{pool.option} does not speak OpenAI's API: check the address.") from None
        except AppError as error:
            if error.code == NOT_THERE:
                return {}
            waits = isinstance(error, Overloaded) or error.code == UNREACHABLE
            if not waits or asyncio.get_running_loop().time() + wait > limit:
                raise CheckpointError(
                    f"{pool.option} cannot be used: {error.message} Check that the server runs, its address"
                    " and PIT_UPSTREAM_API_KEY."
                ) from error
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_S)


async def _engine(settings: Settings, role: _Role) -> RemoteEngine:
    """Raises `CheckpointError` when the upstream is not what the manifest says."""
    checkpoint = role.checkpoint
    defaults = checkpoint.sampling if checkpoint else SamplingDefaults()
    try:
        tokenizes = await can_tokenize(role.pool, role.model)
    except AppError as error:
        raise CheckpointError(f"{role.name} cannot be asked: {error.message}") from error
    engine = RemoteEngine(role.pool, role.model, role.context_length, defaults, tokenizes=tokenizes)
    if settings.verify:
        if checkpoint and checkpoint.manifest and tokenizes:
            # The number format is not known here.
            samples, allowed = checkpoint.manifest.golden_generations(), golden.tolerance(False)
            await golden.check_generation(engine, samples, allowed, role.name)
        elif checkpoint:
            role.notes += (f"{role.name} is not vLLM: golden samples are not checked",)
        await golden.generate_one_token(engine, role.name)
    return engine


async def _scorer(settings: Settings, role: _Role, improve_turn: str) -> RemoteScorer:
    """Raises `CheckpointError` when the upstream does not score, or not as the manifest says."""
    manifest = role.checkpoint.manifest if role.checkpoint else None
    reads_pair = manifest is None or manifest.gap is None or manifest.gap.reads == "pair"
    turn = improve_turn if reads_pair else None
    try:
        path = await scoring_path(role.pool, role.model)
    except AppError as error:
        raise CheckpointError(
            f"{role.name} does not score: {error.message} It has to be a vLLM server started with"
            " --runner pooling, with a model of one label."
        ) from error
    scorer = RemoteScorer(
        role.pool, role.model, role.context_length, turn, path=path, timeout_s=settings.scoring_timeout_s
    )
    if settings.verify and manifest:
        await golden.check_scores(scorer, manifest.golden_scores(), golden.tolerance(False), role.name)
    return scorer


async def _version(pool: UpstreamPool) -> str:
    """The upstream's own, where it has vLLM's /version."""
    try:
        return f"upstream {(await pool.get('/version'))['version']}"
    except (AppError, KeyError, TypeError):
        return "upstream"
