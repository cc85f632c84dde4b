"""Tiny, valid checkpoints built in the test session: random weights, a real tokenizer, a real manifest.

Nothing is downloaded. A checkpoint of a few hundred thousand parameters takes well under a second to write,
and vLLM serves it like any other.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
IMPROVE_TURN = "Please improve your answer."
VOCABULARY = 320
CORPUS = [
    "Please tell me the price and the color of the lamp. The lamp has price 24 and color red.",
    "Please improve your answer. Hello! The price of the lamp is 24. The color of the lamp is red. Have a"
    " nice day.",
    "Give feedback on your answer. Rewrite your answer with this feedback. Make it more helpful, correct"
    " and polite.",
]
GENERATING_ROLES = ("policy", "improver", "policy+improver")


def sha256_file(path: Path) -> str:
    """Return `sha256:` and the hex digest of a file's bytes."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def make_tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens with the project's special tokens and chat
    template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _tiny_config(context_length: int, hidden: int, layers: int, **extra: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        max_position_embeddings=context_length,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
        **extra,
    )


def _ids(tokenizer: Any, messages: list[dict[str, str]], generation: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _golden_generation(model: Any, tokenizer: Any, improves: bool) -> list[dict[str, Any]]:
    import torch

    golden = []
    for question in ("What is the price?", "Tell me the color of the lamp.", "Hello"):
        messages = [{"role": "user", "content": question}]
        if improves:
            messages += [
                {"role": "assistant", "content": "It is 24."},
                {"role": "user", "content": IMPROVE_TURN},
            ]
        prompt_ids = _ids(tokenizer, messages, generation=True)
        completion_ids = _ids(tokenizer, [{"role": "assistant", "content": "The price is 24."}], False)[1:]
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids + completion_ids])).logits[0]
        logprobs = torch.log_softmax(logits.float(), -1)
        start = len(prompt_ids) - 1
        golden.append(
            {
                "messages": messages,
                "prompt_ids": prompt_ids,
                "completion_ids": completion_ids,
                "logprobs": [logprobs[start + i, t].item() for i, t in enumerate(completion_ids)],
            }
        )
    return golden


def _golden_gap(model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    import torch

    golden = []
    for candidate, baseline in (("The price is 24.", "No."), ("No.", "The price is 24."), ("Red.", "Red.")):
        messages = [{"role": "user", "content": "What is the price?"}]
        chat = [
            *messages,
            {"role": "assistant", "content": baseline},
            {"role": "user", "content": IMPROVE_TURN},
            {"role": "assistant", "content": candidate},
        ]
        input_ids = _ids(tokenizer, chat, generation=False)
        with torch.no_grad():
            score = model(torch.tensor([input_ids])).logits[0, 0].item()
        golden.append(
            {
                "messages": messages,
                "candidate": candidate,
                "baseline": baseline,
                "input_ids": input_ids,
                "score": score,
            }
        )
    return golden


def write_manifest(
    directory: Path, role: str, golden: list[dict[str, Any]], **changes: Any
) -> dict[str, Any]:
    """Write `pit.json` for the files that lie in `directory`, and return it. `changes` replace whole
    fields."""
    found = [path for path in sorted(directory.iterdir()) if path.is_file() and path.name != "pit.json"]
    files = {path.name: sha256_file(path) for path in found}
    manifest: dict[str, Any] = {
        "format": 1,
        "role": role,
        "improve_turn": IMPROVE_TURN,
        "context_length": 256,
        "length_budget": {"prompt": 96, "reference": 64, "response": 64},
        "gap": None,
        "base": None,
        "anchor": None,
        "files": files,
        "golden": golden,
        "data": {"name": "tiny", "seed": 0, "sha256": "sha256:" + "0" * 64, "pairs": 0},
        "metrics": {},
        "config_hash": "sha256:" + "0" * 64,
        "created": "2026-11-23T16:00:00Z",
        "version": "0.1.0",
    }
    if role == "gap_reward":
        manifest["gap"] = {"centering": "self", "calibration": {"a": 4.0, "b": 0.0, "ece": 0.02, "n": 100}}
    manifest.update(changes)
    (directory / "pit.json").write_text(json.dumps(manifest, indent=1))
    return manifest


def _adapted(base: Path, adapter: Path) -> Any:
    """The model in `base` with a random adapter, saved and merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    targets = ["q_proj", "v_proj", "down_proj"]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model: Any = get_peft_model(LlamaForCausalLM.from_pretrained(base), lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.save_pretrained(adapter)
    (adapter / "README.md").unlink(missing_ok=True)
    return model.merge_and_unload().eval()


def make_tiny_checkpoint(
    directory: Path,
    role: str = "policy",
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    manifest: bool = True,
    base: Path | None = None,
    **changes: Any,
) -> Path:
    """Write a random checkpoint of `role` into `directory`, with its golden samples, and return the
    directory.

    `base`: the weights are those of this directory under a random adapter, which is kept in `adapter/`.
    `hidden` must be a multiple of 64 (the head size). `manifest=False` leaves `pit.json` out; `changes`
    replace fields of the manifest.
    """
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM, LlamaForSequenceClassification

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tiny_tokenizer()
    context_length = int(changes.get("context_length", 256))
    torch.manual_seed(seed)
    if role in GENERATING_ROLES:
        model: Any = LlamaForCausalLM(_tiny_config(context_length, hidden, layers)).eval()
        if base:
            model = _adapted(base, directory / "adapter")
        golden = _golden_generation(model, tokenizer, improves=role == "improver")
        model.generation_config = GenerationConfig(
            do_sample=True, temperature=0.7, eos_token_id=1, pad_token_id=0, max_new_tokens=48
        )
    else:
        model = LlamaForSequenceClassification(
            _tiny_config(context_length, hidden, layers, num_labels=1)
        ).eval()
        # Random weights give almost equal scores; a larger head makes the gaps visible in tests.
        with torch.no_grad():
            model.score.weight.mul_(20.0)
        golden = _golden_gap(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if manifest:
        write_manifest(directory, role, golden, **changes)
    return directory
