"""Trained adapters -> a folder that peft loads, with the head in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.tuning.lora import ADAPTER, HEAD, peft_config, without_adapters
from rm_ray.pretrained import adapter_of, base_model

WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
"""peft's prefix of every name in ``WEIGHTS``."""


_README = """\
# LoRA adapters of a reward model

The adapters and the head that a run trained on `{base}`. They are loaded onto that model:

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer{imported}

folder = "."  # of this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(
    {base!r}, revision={revision!r}, num_labels=1, dtype={dtype!r}{in_bits}
)
if model.get_input_embeddings().num_embeddings < len(tokenizer):
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
model.config.pad_token_id = tokenizer.pad_token_id
model = PeftModel.from_pretrained(model, folder).eval()

question = {{"role": "user", "content": "What is 2 + 2?"}}
answers = ["4", "It is 5, as everybody knows."]
batch = tokenizer.apply_chat_template(
    [[question, {{"role": "assistant", "content": answer}}] for answer in answers],
    return_dict=True, return_tensors="pt", padding=True,
)
rewards = model(**batch.to(model.device)).logits[:, 0]
```

{whole}"""

_MERGING = """\
A whole model, which needs neither peft nor `{base}`:

```python
model.merge_and_unload().save_pretrained("merged")
tokenizer.save_pretrained("merged")
```
"""

_NF4 = """,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype={dtype!r},
    ),"""

_NF4_ALONE = """\
The base is in 4 bits (bitsandbytes' NF4), as in training: on the unquantized base, the adapters
give other rewards. A whole model is what the run exports with `lora.export` 'merged' or 'both';
merged here, it would be rounded to 4 bits again.
"""


def refuse_baseless(config: ModelConfig) -> None:
    """Check that a model's adapters can be loaded onto it elsewhere.

    Raises:
        InputError: its weights are random or merged, so nobody else has them.
    """
    model = base_model(config)
    if adapter_of(config) is not None:
        raise InputError(
            f"lora.export must be 'merged' with model.name_or_path '{config.name_or_path}', which "
            "is an adapter: an adapter on top of it would need the model that both make"
        )
    if not model.has_weights:
        raise InputError(
            f"lora.export must be 'merged' with {model.text}, whose weights are random: an adapter "
            "is loaded onto a base model from a folder or the Hub"
        )


def write_adapter(
    classifier: PreTrainedModel,
    weights: Iterable[tuple[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    lora: LoraConfig,
    config: ModelConfig,
    dtype: torch.dtype,
) -> None:
    """Write adapters, head and trained embeddings in ``dtype``, peft's configuration and tokenizer.

    ``weights`` are the classifier's, by its names, with adapters; only what is written is held. A
    README.md says how to load it.
    """
    bare = without_adapters(classifier)
    embeddings = next(
        name for name, module in bare.named_modules() if module is bare.get_input_embeddings()
    )
    whole = [HEAD, *[embeddings.rpartition(".")[2]] * lora.train_embeddings]
    kept = (HEAD, *[embeddings] * lora.train_embeddings)
    state = {
        f"{_PREFIX}{name.replace(f'.{ADAPTER}.', '.')}": tensor.detach().to(dtype).contiguous()
        for name, tensor in weights
        if ".lora_" in name or name.rpartition(".")[0] in kept
    }
    model = base_model(config)
    base = str(model.path.resolve()) if model.kind == "folder" else model.name
    described = peft_config(
        bare,
        lora,
        task_type="SEQ_CLS",
        modules_to_save=whole,
        base_model_name_or_path=base,
        revision=config.revision,
        inference_mode=True,
    )
    tokenizer.save_pretrained(folder)
    described.save_pretrained(folder)
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    name = str(dtype).removeprefix("torch.")
    is_nf4 = config.quantization == "nf4"
    text = _README.format(
        base=base,
        revision=config.revision,
        dtype=name,
        imported=", BitsAndBytesConfig" if is_nf4 else "",
        in_bits=_NF4.format(dtype=name) if is_nf4 else "",
        whole=_NF4_ALONE if is_nf4 else _MERGING.format(base=base),
    )
    (folder / "README.md").write_text(text)
