"""Prompts and sampling: token ids, the room they leave for a response, and how it is sampled."""

from app.engines.base import Constraint, Engine, Prompt, Sampling
from app.engines.chat import most_tokens
from app.errors import ContextTooLong
from app.improve.options import Models, Options, derive_seed
from app.improve.turns import Phase, Turn

DEFAULT_MAX_TOKENS = 512
SMALLEST_ROOM = 16
"""A response that would have less room than this, in tokens, is not started."""


class Prompts:
    """Answers the loop's questions about the prompts of one request."""

    def __init__(self, models: Models, options: Options) -> None:
        self.models, self.options = models, options
        self._prepared: tuple[Turn, Prompt] | None = None

    async def prepare(self, turn: Turn) -> Prompt:
        """The prompt of a turn; its length is known where a token budget needs it.

        The last one is kept: candidates that run side by side read the same prompt.
        """
        if self._prepared is None or self._prepared[0] != turn:
            count = self.options.max_total_tokens is not None
            self._prepared = (turn, await self.models.engine(turn.model).prepare(turn.messages, count=count))
        return self._prepared[1]

    async def tokens(self, turn: Turn, *, exact: bool) -> int:
        """The length of a turn's prompt; unless it has to be `exact`, or where its engine cannot tokenize, an
        upper bound, which costs nothing."""
        engine = self.models.engine(turn.model)
        known = self._prepared[1].tokens if self._prepared and self._prepared[0] == turn else None
        if known is None and exact:
            known = (await engine.prepare(turn.messages, count=True)).tokens
        return min(engine.context_length, most_tokens(turn.messages) if known is None else known)

    def room(self, engine: Engine, prompt: Prompt) -> int | None:
        """`max_tokens` for a response to this prompt, or None when the response does not fit.

        A `max_tokens` of the request is kept as it is; the checkpoint's own default gives way to a long
        prompt. A prompt of unknown length is taken to fit: the engine says if it does not.
        """
        left = engine.context_length - (prompt.tokens or 0)
        if self.options.max_tokens is not None:
            return self.options.max_tokens if self.options.max_tokens <= left else None
        wanted = engine.defaults.max_tokens or DEFAULT_MAX_TOKENS
        return min(wanted, left) if left >= min(wanted, SMALLEST_ROOM) else None

    def sampling(
        self, engine: Engine, max_tokens: int, index: int, candidate: int, phase: Phase
    ) -> Sampling:
        """The request's sampling over the checkpoint's. Iteration, candidate and phase make the seed differ;
        a response is generated in the form that it must have."""
        options, defaults = self.options, engine.defaults
        schema = options.keep.json_schema if options.keep and phase != "feedback" else None
        return Sampling(
            max_tokens=max_tokens,
            temperature=defaults.temperature if options.temperature is None else options.temperature,
            top_p=defaults.top_p if options.top_p is None else options.top_p,
            top_k=defaults.top_k,
            repetition_penalty=defaults.repetition_penalty,
            seed=derive_seed(options.seed, index, candidate, phase),
            stop=options.stop,
            constraint=None if schema is None else Constraint(schema),
            stream_interval=options.stream_interval,
        )

    async def check_room(self, turn: Turn, blame: str) -> tuple[int, int]:
        """Tokens of the turn's prompt (0 when not known) and of its response. `blame` is the field to shorten
        when they do not fit."""
        engine = self.models.engine(turn.model)
        prompt = await self.prepare(turn)
        tokens, room = prompt.tokens or 0, self.room(engine, prompt)
        if room is not None:
            return tokens, room
        wanted = self.options.max_tokens or min(
            engine.defaults.max_tokens or DEFAULT_MAX_TOKENS, SMALLEST_ROOM
        )
        lower = ", or lower max_tokens" if self.options.max_tokens else ""
        raise ContextTooLong(
            f"The conversation takes {tokens} tokens for the {turn.model}, and its response needs {wanted};"
            " its context"
            f" holds {engine.context_length}. Shorten {blame} by {tokens + wanted - engine.context_length}"
            f" tokens or more{lower}.",
            param=blame,
        )
