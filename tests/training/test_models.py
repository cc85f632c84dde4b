"""A model from scratch: how its attention starts."""

from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity, normalize

from tests.training.helpers import tiny_config, tiny_language_model, tiny_tokenizer
from training.models import HEAD_SIZE, ROPE_THETA


def test_attention_starts_as_copying(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "base.model.heads=2")
    model = tiny_language_model(config, tiny_tokenizer(config))
    tokens = normalize(model.get_input_embeddings().weight.detach()[1:201], dim=1)  # 0 is padding
    for layer in model.model.layers:
        attention = layer.self_attn
        queries, keys = (
            normalize(p.weight.detach()[:HEAD_SIZE] @ tokens.T, dim=0).T
            for p in (attention.q_proj, attention.k_proj)
        )
        assert (queries @ keys.T).argmax(1).equal(torch.arange(200)), "a token attends to its like"
        handed_on = (attention.o_proj.weight @ attention.v_proj.weight @ tokens.T).T.detach()
        assert cosine_similarity(handed_on, tokens).min() > 0.5, "and hands on what it sees"
        assert not attention.q_proj.weight[HEAD_SIZE:].equal(attention.k_proj.weight[HEAD_SIZE:])
    assert model.config.rope_parameters["rope_theta"] == ROPE_THETA
    assert model.model.rotary_emb.inv_freq[-1] < 1e-5
