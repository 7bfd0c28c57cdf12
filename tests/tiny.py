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


def policy(layers: int = 2, seed: int = 0, *, tied: bool = True, inner: int = 48) -> Any:
    """Randomly initialised Llama of about 30,000 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer()),
            hidden_size=32,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=0,
            pad_token_id=0,
            tie_word_embeddings=tied,
            initializer_range=0.3,
        )
    ).eval()


def save_policy(folder: Path) -> Path:
    """Write the tiny policy as a Hugging Face directory."""
    policy().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_encoder(folder: Path, kind: str = "bert") -> Path:
    """Write a tiny encoder as a Hugging Face directory.

    ``kind``: "bert", or "mpnet", which adds a relative bias and counts positions from 2 on.
    """
    import torch
    from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

    torch.manual_seed(1)
    fast = tokenizer()
    config, model, positions = {
        "bert": (BertConfig, BertModel, 512),
        "mpnet": (MPNetConfig, MPNetModel, 514),
    }[kind]
    model(
        config(
            vocab_size=len(fast),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=positions,
        )
    ).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def of_two_minds(seed: int = 15) -> Any:
    """A policy that says "s" or "u" at every step, and nothing else.

    Entry 0 of the hidden state is the same everywhere; from it the two letters get their lead.
    """
    import torch

    model, fast = policy(seed=seed, tied=False), tokenizer()
    yes, no = (fast.convert_tokens_to_ids(letter) for letter in "su")
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 2.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        head = model.get_output_embeddings().weight
        lean = head[yes].clone()
        head.zero_()
        head[yes], head[no] = lean, -lean
        head[[yes, no], 0] = 60.0
    return model


def save_classifier(folder: Path, labels: list[str], **config: Any) -> Path:
    """Write a tiny BERT sequence classifier with these labels as a Hugging Face directory."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(2)
    fast = tokenizer()
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(fast),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=128,
            initializer_range=0.3,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            **config,
        )
    ).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def save_guard(folder: Path, template: str, seed: int = 3) -> Path:
    """Write a tiny causal model with a guard's chat template."""
    policy(seed=seed).save_pretrained(folder)
    fast = tokenizer()
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def save_gguf(path: Path, model: Any, fast: Any) -> Path:
    """Write a tiny Llama and its byte-level tokenizer as one GGUF file for llama.cpp."""
    import gguf
    import numpy as np

    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(fast.get_vocab().items(), key=lambda item: item[1])
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.NORMAL}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([kinds[token in fast.all_special_tokens] for token, _ in vocabulary])
    writer.add_token_merges(["a b"])  # none is not allowed; this one joins nothing known
    writer.add_eos_token_id(fast.eos_token_id)
    writer.add_bos_token_id(fast.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(fast.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if part in name:  # llama.cpp turns neighbouring pairs, transformers turns halves
                rows, width = values.shape
                halves = values.reshape(count, 2, rows // count // 2, width)
                values = halves.swapaxes(1, 2).reshape(rows, width)
        target = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(target, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
