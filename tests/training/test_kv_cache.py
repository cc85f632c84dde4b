"""The cache with room holds what the library's own holds, whatever happens to it in between."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

from training.kv_cache import ROOM, RoomyLayer

STEPS = st.lists(
    st.one_of(
        st.integers(1, 5), st.just(ROOM + 3), st.sampled_from(["crop", "reorder", "gradient", "reset"])
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(STEPS, st.integers(0, 1000))
def test_it_holds_the_same_keys_and_values(steps: list[int | str], seed: int) -> None:
    torch.manual_seed(seed)
    own, theirs = RoomyLayer(), DynamicLayer()
    for step in steps:
        if isinstance(step, int) or step == "gradient":
            k, v = (torch.randn(2, 3, step if isinstance(step, int) else 1, 4) for _ in range(2))
            with torch.set_grad_enabled(step == "gradient"):
                found, wanted = own.update(k, v), theirs.update(k, v)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        for layer in (own, theirs):
            if step == "reset":
                layer.reset()
            elif step == "crop" and layer.get_seq_length() > 1:
                layer.crop(1)
            elif step == "reorder" and layer.get_seq_length():
                layer.reorder_cache(torch.tensor([1, 0]))
        assert own.get_seq_length() == theirs.get_seq_length()


@pytest.fixture
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def test_a_model_samples_the_same_tokens_with_it(model: Qwen3ForCausalLM) -> None:
    assert {type(layer) for layer in DynamicCache(config=model.config).layers} == {RoomyLayer}
    ids, mask = torch.tensor([[0, 5, 7], [3, 4, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])

    def sampled(**cache: Cache) -> list[list[int]]:
        torch.manual_seed(1)
        found: list[list[int]] = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, max_new_tokens=20, **cache
        ).tolist()
        return found

    assert sampled() == sampled(past_key_values=Cache(layer_class_to_replicate=DynamicLayer))


def test_a_model_can_be_trained_through_it(model: Qwen3ForCausalLM) -> None:
    ids = torch.tensor([[5, 7, 9]])
    first = model(input_ids=ids[:, :2], use_cache=True)
    model(input_ids=ids[:, 2:], past_key_values=first.past_key_values).logits.sum().backward()
    assert model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0
