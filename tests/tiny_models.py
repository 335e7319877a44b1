"""Real Hugging Face models and tokenizers, small enough to be built in a test: random weights, nothing downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

KINDS = ("llama", "gpt2", "qwen", "gemma", "mistral")

TEXTS = (
    "what should we do about the park in the city center?",
    "we should plant more trees and build a pond for the birds.",
    "the city could sell the land, it costs too much money to keep.",
    "ask the people who live nearby, they know best what they need!",
    "user assistant system hello world 0 1 2 3 4 5 6 7 8 9 yes no maybe",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_config(kind: str, vocab_size: int = 97, context: int = 128, **changes: Any) -> Any:
    """Return the configuration of a two-layer model of a family, with what makes that family's logits special."""
    import transformers

    common = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": context,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    if kind == "gpt2":
        shape = {"vocab_size": vocab_size, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": context}
        tokens = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
        return transformers.GPT2Config(**{**shape, **tokens, **changes})
    if kind == "gemma":  # soft-capped logits, alternating sliding-window layers
        special = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 20.0, "sliding_window": 8}
        return transformers.Gemma2Config(**{**common, **special, **changes})
    if kind == "mistral":  # every layer sees a sliding window
        return transformers.MistralConfig(**{**common, "sliding_window": 6, **changes})
    if kind == "qwen":  # tied head, biased attention
        return transformers.Qwen2Config(**{**common, "tie_word_embeddings": True, **changes})
    if kind == "cohere":  # scaled logits
        return transformers.CohereConfig(**{**common, "logit_scale": 0.25, **changes})
    if kind == "llama":
        return transformers.LlamaConfig(**{**common, **changes})
    raise ValueError(kind)


def tiny_model(kind: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """Return a random causal language model in evaluation mode; ``changes`` go to its configuration."""
    import torch
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    return model.eval()


def tiny_tokenizer(texts: Sequence[str] = TEXTS, vocab_size: int = 96, chat: bool = True) -> Any:
    """Return a byte-level BPE tokenizer trained on a few texts, with a chat template unless told otherwise.

    Ids 0, 1 and 2 are padding, begin and end of sequence. Its size is at most ``vocab_size`` plus the byte alphabet.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted({*"abcdefghijklmnopqrstuvwxyz?!.,0123456789", "\u0120"})
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast
