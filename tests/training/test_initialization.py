"""A model from scratch: what its heads attend to before the first step of training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from tests.training.helpers import tiny_config, tiny_language_model, tiny_tokenizer
from training.initialization import HEAD_SIZE, ROPE_THETA


def model(directory: Path, *overrides: str) -> Any:
    config = tiny_config(directory, "base.model.heads=4", *(f"base.model.{one}" for one in overrides))
    return tiny_language_model(config, tiny_tokenizer(config))


@pytest.mark.parametrize(("architecture", "found"), [("qwen3", 0.9), ("llama", 0.4)])
def test_induction_looks_at_neighbours_and_for_likes(tmp_path: Path, architecture: str, found: float) -> None:
    fresh = model(tmp_path, "start=induction", f"architecture={architecture}")
    fresh.set_attn_implementation("eager")
    once = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:60] + 1
    tokens = torch.cat([once, once.flip(0)])  # every token twice, 1 to 119 apart
    with torch.no_grad():
        before, alike, two_before = fresh(tokens[None], output_attentions=True).attentions[0][0, :3]
    places = torch.arange(120)
    for head, distance in ((before, 1), (two_before, 2)):
        assert (head.argmax(1)[2:] == places[2:] - distance).float().mean() > found
    likes = (alike.argmax(1)[60:] == places.flip(0)[60:]).float().mean()
    assert likes > found
    assert alike[places[60:], places[60:]].mean() < 0.2, "and not the token itself"


def test_copying_looks_for_likes_in_half_of_the_heads(tmp_path: Path) -> None:
    fresh = model(tmp_path, "start=copying")
    tokens = normalize(fresh.get_input_embeddings().weight.detach()[1:201], dim=1)  # 0 is padding
    for layer in fresh.model.layers:
        attention = layer.self_attn
        queries, keys = (
            normalize(p.weight.detach()[:HEAD_SIZE] @ tokens.T, dim=0).T
            for p in (attention.q_proj, attention.k_proj)
        )
        assert (queries @ keys.T).argmax(1).equal(torch.arange(200)), "a token attends to its like"
        other = 2 * HEAD_SIZE
        assert not attention.q_proj.weight[other:].equal(attention.k_proj.weight[other:])


@pytest.mark.parametrize("start", ["copying", "induction"])
def test_what_a_head_sees_it_hands_on(tmp_path: Path, start: str) -> None:
    fresh = model(tmp_path, f"start={start}")
    tokens = fresh.get_input_embeddings().weight.detach()[1:201]
    for layer in fresh.model.layers:
        attention = layer.self_attn
        handed_on = (attention.o_proj.weight @ attention.v_proj.weight @ tokens.T).T.detach()
        assert cosine_similarity(handed_on, tokens).min() > 0.5
    assert fresh.config.rope_parameters["rope_theta"] == ROPE_THETA
    assert fresh.model.rotary_emb.inv_freq[-1] < 1e-5
