"""A causal language model and a sentence encoder small enough to make inside a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def tokenizer() -> Any:
    """Byte-level tokenizer with a chat template; pad equals end, as in SmolLM2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", chat_template=CHAT
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIALS[1:]})
    return fast


def policy(layers: int = 2, seed: int = 0) -> Any:
    """Randomly initialised Llama of about 30,000 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer()),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=0,
            pad_token_id=0,
            tie_word_embeddings=True,
            initializer_range=0.3,
        )
    ).eval()


def save_policy(folder: Path) -> Path:
    """Write the tiny policy as a Hugging Face directory."""
    policy().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_encoder(folder: Path) -> Path:
    """Write a tiny BERT encoder as a Hugging Face directory."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    fast = tokenizer()
    BertModel(
        BertConfig(
            vocab_size=len(fast),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=512,
        )
    ).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
