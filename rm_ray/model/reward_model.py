"""The reward model: a decoder backbone and a scalar head on each sequence's last token."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rm_ray.batches.packing import PackedPairs
from rm_ray.batches.padding import PaddedPairs
from rm_ray.config.train_config import BUILTIN, Layout, ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.attention import PACKED_ATTENTION, head_size
from rm_ray.model.last_layer import trim_last_layer
from rm_ray.model.weight_files import list_some

logger = logging.getLogger(__name__)


class Float32Linear(nn.Linear):
    """A linear layer whose product is computed in float32, whatever the weights are stored in."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[..., hidden]`` of any float type to ``[..., out]`` float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight.float())


class RewardModel(nn.Module):
    """Scores the two conversations of each pair.

    Wraps a transformers sequence classifier of one label, so that what is trained is what its
    ``save_pretrained`` writes.
    """

    def __init__(self, classifier: PreTrainedModel, layout: Layout) -> None:
        super().__init__()
        self.classifier = classifier
        self._is_trimmed = layout == "packed" and trim_last_layer(classifier.base_model)

    def forward(self, pairs: PaddedPairs | PackedPairs) -> Tensor:
        """Return ``[2P]`` float32 rewards: of the chosen, then of the rejected conversations."""
        if isinstance(pairs, PackedPairs):
            hidden = self._read_packed(pairs)
            by_pair: Tensor = self.classifier.score(hidden).reshape(-1, 2)
            return by_pair.T.reshape(-1)
        hidden = self.classifier.base_model(
            input_ids=pairs.input_ids, attention_mask=pairs.attention_mask, use_cache=False
        ).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        rewards: Tensor = self.classifier.score(hidden[rows, pairs.last_positions])
        return rewards.squeeze(-1)

    def _read_packed(self, pairs: PackedPairs) -> Tensor:
        """Return the last layer's ``[2P, hidden]`` at each branch's last token."""
        hidden: Tensor = self.classifier.base_model(
            input_ids=pairs.input_ids,
            position_ids=pairs.position_ids,
            packed=pairs,
            use_cache=False,
        ).last_hidden_state[0]
        return hidden if self._is_trimmed else hidden[pairs.last_positions]


def load_config(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the architecture, with one label and no dropout.

    Raises:
        InputError: the model cannot be found or reached.
    """
    architecture = read_architecture(config, vocab_size=len(tokenizer))
    architecture.num_labels = 1
    architecture.problem_type = "regression"
    architecture.use_cache = False
    architecture.pad_token_id = None  # set once there is an embedding for it
    if not has_weights(config):
        architecture.bos_token_id = tokenizer.bos_token_id
        architecture.eos_token_id = tokenizer.eos_token_id
    _disable_dropout(architecture)
    return architecture


def read_architecture(config: ModelConfig, *, vocab_size: int = 1) -> PretrainedConfig:
    """Return a model's config as it is; ``vocab_size`` is that of the built-in one.

    Raises:
        InputError: it cannot be found or reached, has code of its own, or is quantized.
    """
    architecture = _read_config(config, vocab_size)
    if "quantization_config" in architecture.to_dict():
        raise InputError(
            f"model.name_or_path '{config.name_or_path}' is quantized (quantization_config in its "
            "config.json); choose the model that it was made from"
        )
    return architecture


def _read_config(config: ModelConfig, vocab_size: int) -> PretrainedConfig:
    name = config.name_or_path
    if name == BUILTIN:
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=2_048,
        )
    path = Path(name).expanduser()
    try:
        if path.suffix == ".json":
            fields = json.loads(path.read_text())
            return AutoConfig.for_model(**fields)
        source = str(path) if path.is_dir() else name
        return AutoConfig.from_pretrained(source, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "trust_remote_code" in str(error):
            raise InputError(
                f"model.name_or_path '{name}' is computed by code of its own (auto_map in its "
                "config.json), which is not run; choose a model of an architecture that "
                "transformers has"
            ) from None
        raise InputError(
            f"model.name_or_path '{name}' cannot be loaded: it must be a folder with config.json "
            "and weights, a config.json with model_type (random weights), or a name on the Hugging "
            "Face Hub that this machine can reach (HF_TOKEN for a gated one, HF_ENDPOINT for a "
            f"mirror; model.revision is {config.revision!r}). {reason}"
        ) from None


def _disable_dropout(architecture: PretrainedConfig) -> None:
    """Set every dropout probability of an architecture to zero (arXiv:1909.08593, p. 3)."""
    for name, value in architecture.to_dict().items():
        is_rate = "dropout" in name or name.endswith(("_pdrop", "_drop"))
        if is_rate and isinstance(value, float):
            setattr(architecture, name, 0.0)


def check_architecture(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the classifier without its weights, or refuse one that cannot be trained.

    Raises:
        InputError: it cannot be found, or has no sequence classification.
    """
    architecture = load_config(config, tokenizer)
    if type(architecture) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"model.name_or_path '{config.name_or_path}' is a {architecture.model_type}, for which "
            "transformers has no sequence classification; choose a decoder such as Llama or Qwen"
        )
    path = Path(config.name_or_path).expanduser()
    if path.is_dir() and not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
        raise InputError(
            f"model.name_or_path '{config.name_or_path}' is a folder without weights "
            "(*.safetensors, *.bin); name its config.json for random ones"
        )
    try:
        with torch.device("meta"):
            return _from_config(architecture, config.attention)
    except (ValueError, ImportError, TypeError, RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"model.name_or_path '{config.name_or_path}' with model.attention "
            f"'{config.attention}' cannot be built: {reason}"
        ) from None


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters outside of embeddings."""
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings)


def attention_weight(classifier: PreTrainedModel) -> float:
    """Return the work of one query-key product in all layers, in units of one token's other work.

    A product of a head of D takes 4 D FLOPs, a token 2 for each parameter but embeddings.
    """
    config = classifier.config.get_text_config()
    width = head_size(config)
    products = 4 * config.num_hidden_layers * config.num_attention_heads * width
    return float(products / (2 * count_parameters(classifier)))


def _from_config(architecture: PretrainedConfig, attention: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        architecture, dtype=torch.float32, attn_implementation=attention
    )
    return model


def has_weights(config: ModelConfig) -> bool:
    """Tell whether the model comes with weights, rather than from a config alone."""
    return config.name_or_path != BUILTIN and not config.name_or_path.endswith(".json")


def build_reward_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    layout: Layout = "packed",
    dtype: torch.dtype = torch.float32,
) -> RewardModel:
    """Build the model on the CPU, the same on every rank, for batches of a layout.

    Call it before ZeRO shards anything: the head and resized embeddings are initialised here.
    Weights that come from files are read in ``dtype``. Others are drawn in float32, the new head
    too, so that a draw is the same in every precision.

    Raises:
        InputError: the model cannot be loaded, or is not a decoder with a ``score`` head.
    """
    architecture = load_config(config, tokenizer)
    attention = PACKED_ATTENTION if layout == "packed" else config.attention
    torch.manual_seed(seed)
    try:
        if has_weights(config):
            path = Path(config.name_or_path).expanduser()
            classifier, told = AutoModelForSequenceClassification.from_pretrained(
                str(path) if path.is_dir() else config.name_or_path,
                config=architecture,
                revision=config.revision,
                dtype=_loading_dtype(architecture, tokenizer, dtype),
                attn_implementation=attention,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # as of a head, which is replaced
                output_loading_info=True,
            )
            _refuse_gaps(config, told)
        else:
            classifier = _from_config(architecture, attention)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model.name_or_path '{config.name_or_path}': {reason}") from None
    if not isinstance(classifier._modules.get("score"), nn.Linear):
        raise InputError(
            f"model.name_or_path '{config.name_or_path}' is a {architecture.model_type} without a "
            "'score' head on its last token; reward models are decoders (Llama, Qwen, GPT-NeoX ...)"
        )
    _fit_to_tokenizer(classifier, tokenizer)
    classifier.score = _new_head(classifier.score.in_features, seed)
    if config.recomputes:
        # There is no dropout, so that nothing random is computed again.
        classifier.activation_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": False}
        )
    return RewardModel(classifier, layout)


def _refuse_gaps(config: ModelConfig, told: dict[str, Any]) -> None:
    """See that every weight but the head's was read, as transformers tells.

    Raises:
        InputError: one was not, and would be trained from random values.
    """
    mismatched = {name for name, *_ in told["mismatched_keys"]}
    if gaps := {n for n in mismatched | set(told["missing_keys"]) if not n.startswith("score.")}:
        raise InputError(
            f"model.name_or_path '{config.name_or_path}' has no weights that fit for "
            f"{list_some(gaps)}; they would be trained from random values"
        )


def _loading_dtype(
    architecture: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> torch.dtype:
    """Return what to read weights in.

    An embedding that is added is drawn around the mean of the others: where the files hold more
    than ``dtype`` does, rounding would come before the draw, and it would be another one.
    """
    is_resized = architecture.get_text_config().vocab_size < len(tokenizer)
    return torch.float32 if is_resized and architecture.dtype != dtype else dtype


def build_without_weights(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    """Build the model as ``build_reward_model`` does, without memory for its weights.

    Raises:
        InputError: it cannot be found, or has no sequence classification.
    """
    classifier = check_architecture(replace(config, attention="sdpa"), tokenizer)
    _fit_to_tokenizer(classifier, tokenizer)
    return RewardModel(classifier, "padded")


def _fit_to_tokenizer(classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make room for an added pad token; rows that a model keeps spare are used, not cut."""
    embeddings = classifier.get_input_embeddings()
    if embeddings.num_embeddings < len(tokenizer):
        has_values = embeddings.weight.device.type != "meta"
        classifier.resize_token_embeddings(len(tokenizer), mean_resizing=has_values)
    classifier.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    classifier.config.pad_token_id = tokenizer.pad_token_id


def _new_head(hidden_size: int, seed: int) -> Float32Linear:
    """Return a head drawn from N(0, 1/sqrt(hidden + 1)) (arXiv:2009.01325, p. 11)."""
    head = Float32Linear(hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=1 / math.sqrt(hidden_size + 1), generator=generator)
    return head


def apply_liger(model: RewardModel, choice: str, *, on_gpu: bool) -> bool:
    """Swap in Liger's fused RMSNorm, SwiGLU and rotary kernels; tell whether it was done.

    Raises:
        InputError: ``choice`` is 'on' and there is no GPU, or no kernels for this architecture.
    """
    if choice == "off" or (choice == "auto" and not on_gpu):
        return False
    if not on_gpu:
        raise InputError(
            "model.liger is 'on', but Liger's Triton kernels need a GPU and the workers have none "
            "(cluster.use_gpu); use 'auto' or 'off'"
        )
    from liger_kernel.transformers.monkey_patch import (  # imports Triton, which needs a GPU
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    model_type = model.classifier.config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        if choice == "on":
            raise InputError(f"model.liger is 'on', but Liger has no kernels for '{model_type}'")
        logger.info("liger: no kernels for '%s', going on without", model_type)
        return False
    _apply_liger_kernel_to_instance(
        model.classifier, fused_linear_cross_entropy=False, cross_entropy=False
    )
    return True
