"""Tokenizers with chat templates of every kind, as published models have them."""

from tokenized_groups import BUILTIN, NO_END, WITH_BEGIN
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rm_ray.data.sources.synthetic import build_tokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer

TRIMMED = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + (m['content'] | trim) "
    "+ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
"""Begins with BOS, trims contents, and ends turns with a token that is not EOS, as Llama 3."""

WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are of help.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Without BOS, with a system turn of its own and a line break after the last token, as Qwen."""

INSTRUCTIONS = (
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set s = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (s if loop.first else '') + m['content'] + ' [/INST] ' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""BOS before each question, EOS after each answer, no generation prompt, as Llama 2."""


def made(template: str, *tokens: str, bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    """Return the built-in tokenizer with other special tokens; plain text gets BOS, if any."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.add_special_tokens({"eos_token": eos, **({"bos_token": bos} if bos else {})})
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {
    "builtin": BUILTIN,
    "builtin with BOS": WITH_BEGIN,
    "without an end of turn": load_tokenizer("builtin", chat_template=NO_END),
    "Llama 3's": made(
        TRIMMED,
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
    ),
    "Qwen's": made(WITH_SYSTEM, "<|im_start|>", "<|im_end|>", bos=None, eos="<|im_end|>"),
    "SmolLM2's, whose BOS opens every turn": made(
        WITH_SYSTEM, "<|im_end|>", bos="<|im_start|>", eos="<|im_end|>"
    ),
    "Llama 2's": made(INSTRUCTIONS, bos="<s>", eos="</s>"),
}
