"""What a request asks of vLLM, in vLLM's words, and what vLLM says about its tokens, in ours."""

from collections.abc import Sequence
from typing import Any

from app.engines.base import Constraint, FinishReason, Sampling, TokenLogprob
from app.errors import BadRequest


def sampling_params(
    sampling: Sampling, *, structured_outputs: Any = None, skip_special_tokens: bool = True
) -> Any:
    """vLLM's `SamplingParams` of a streamed completion. Raises `BadRequest` for what it refuses.

    `structured_outputs` are vLLM's own, where a tool call needs them; else they follow from the constraint.
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import RequestOutputKind

    optional: dict[str, Any] = {}
    if sampling.top_k:
        optional["top_k"] = sampling.top_k
    if sampling.repetition_penalty:
        optional["repetition_penalty"] = sampling.repetition_penalty
    if sampling.logit_bias:
        optional["logit_bias"] = dict(sampling.logit_bias)
    try:
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop=list(sampling.stop) or None,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logprobs=sampling.logprobs,
            structured_outputs=structured_outputs or constrained(sampling.constraint),
            skip_special_tokens=skip_special_tokens,
            output_kind=RequestOutputKind.DELTA,
            **optional,
        )
    except (VLLMClientError, ValueError) as error:
        raise refused(error) from None


def constrained(constraint: Constraint | None) -> Any:
    """vLLM's `StructuredOutputsParams` of a constraint."""
    from vllm.sampling_params import StructuredOutputsParams

    if constraint is None:
        return None
    if constraint.schema is None:
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(json=dict(constraint.schema))


def refused(error: Exception) -> BadRequest:
    """What vLLM refuses about a request, without its text: that may hold a part of the prompt."""
    parameter = getattr(error, "parameter", None)
    if parameter == "logit_bias":
        return BadRequest(
            "logit_bias names a token that the model's vocabulary does not have.", param="logit_bias"
        )
    text = str(error).lower()
    if any(word in text for word in ("schema", "grammar", "structural")):
        return BadRequest(
            "The engine cannot turn the JSON schema into a grammar. Check its types, and leave out keywords"
            " that are rarely used.",
            param="response_format",
        )
    if "vocabulary" in text:
        return BadRequest("A token id of the prompt is not in the model's vocabulary.", param="prompt")
    return BadRequest(
        f"The engine refuses this request{f': see {parameter}' if parameter else ''}.", param=parameter
    )


def token_logprobs(token_ids: Sequence[int], rows: Sequence[Any] | None) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of some tokens. The chosen token comes first among the likeliest, as vLLM has
    it, so `top` may be one longer than what was asked for."""
    if rows is None:
        return ()
    found = []
    for token_id, row in zip(token_ids, rows, strict=True):
        top = tuple((one.decoded_token or "", one.logprob) for one in row.values())
        chosen = row[token_id]
        found.append(TokenLogprob(chosen.decoded_token or "", chosen.logprob, top))
    return tuple(found)


def finish_reason(reason: str | None) -> FinishReason | None:
    """vLLM's finish reasons in OpenAI's words; an abort ends the stream by closing, never by a reason."""
    return None if reason is None else "length" if reason == "length" else "stop"
