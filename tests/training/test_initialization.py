"""A model from scratch: what its heads attend to before the first step of training."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.training.helpers import tiny_config, tiny_language_model, tiny_tokenizer
from training.initialization import ROPE_THETA


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_heads_start_with_the_circuits_of_induction(tmp_path: Path, architecture: str) -> None:
    config = tiny_config(tmp_path, "base.model.heads=4", f"base.model.architecture={architecture}")
    model = tiny_language_model(config, tiny_tokenizer(config))
    model.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(1)
    once = torch.randperm(200, generator=generator)[:60] + 1
    tokens = torch.cat([once, once.flip(0)])  # every token twice, at distances from 1 to 119
    with torch.no_grad():
        first_layer = model(tokens[None], output_attentions=True).attentions[0][0]
    before, alike, two_before = (head.argmax(1) for head in first_layer[:3])
    places = torch.arange(120)
    assert before[2:].equal(places[2:] - 1)
    assert two_before[2:].equal(places[2:] - 2)
    likes = places.flip(0)[60:]
    assert (alike[60:] == likes).float().mean() > (0.9 if architecture == "qwen3" else 0.5)
    assert (alike[:60] != places[:60])[1:].float().mean() > 0.9, "without a like, not itself either"


def test_what_a_head_sees_it_hands_on(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "base.model.heads=2")
    model = tiny_language_model(config, tiny_tokenizer(config))
    tokens = model.get_input_embeddings().weight.detach()[1:201]
    for layer in model.model.layers:
        attention = layer.self_attn
        handed_on = (attention.o_proj.weight @ attention.v_proj.weight @ tokens.T).T.detach()
        assert cosine_similarity(handed_on, tokens).min() > 0.5
    assert model.config.rope_parameters["rope_theta"] == ROPE_THETA
    assert model.model.rotary_emb.inv_freq[-1] < 1e-5
