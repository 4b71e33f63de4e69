"""The sizes of a model that its memory depends on, read without its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from rm_ray.config.sections.batch import Layout
from rm_ray.model.attention import head_size
from rm_ray.model.last_layer import is_trimmable


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The trained part of a model whose other weights are frozen."""

    trained: tuple[int, ...]
    """Elements of each trained tensor, in module order."""

    num_layers: int
    """The last layers, which gradients pass through; 0 if only the head is trained."""

    in_matrices: int
    """Elements of the frozen matrices in layers, which may be quantized."""

    adapted: tuple[str, ...] = ()
    """Linear layers with an adapter, such as 'q_proj'; empty without LoRA."""

    rank: int = 0
    """Rank of the adapters; 0 without LoRA."""

    trains_embeddings: bool = False

    @classmethod
    def of(cls, classifier: PreTrainedModel) -> Tuning | None:
        """Read what requires gradients; None if everything does."""
        parameters = list(classifier.parameters())
        if all(parameter.requires_grad for parameter in parameters):
            return None
        layers = _layers(classifier)
        first = next((i for i, layer in enumerate(layers) if _is_trained(layer)), len(layers))
        embeddings = _is_trained(classifier.get_input_embeddings())
        adapters = [
            (name.split(".")[-2], parameter)
            for name, parameter in layers.named_parameters()
            if name.endswith("lora_A")
        ]
        return cls(
            trained=tuple(p.numel() for p in parameters if p.requires_grad),
            num_layers=len(layers) - (0 if embeddings else first),
            in_matrices=sum(
                p.numel() for p in layers.parameters() if p.dim() == 2 and not p.requires_grad
            ),
            adapted=tuple(dict.fromkeys(name for name, _ in adapters)),
            rank=max((len(parameter) for _, parameter in adapters), default=0),
            trains_embeddings=embeddings,
        )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a decoder with a scalar head, and with its adapters if there are any."""

    family: str
    """The model type in transformers, such as 'llama'."""

    num_layers: int

    hidden: int
    """Width of the hidden states between layers."""

    intermediate: int
    """Width of the feed-forward."""

    num_heads: int

    query_width: int
    """Query heads times head size."""

    key_width: int
    """Key (or value) heads times head size."""

    parameters: tuple[int, ...]
    """Elements of each parameter tensor, in module order, the embedding first."""

    layer_parameters: int
    """Elements of one layer, all tensors together."""

    largest_in_layer: int
    """Elements of the largest tensor in a layer."""

    is_trimmable: bool
    """Whether the last layer can compute only the positions that rewards are read from, if pairs
    are packed."""

    parallel_residual: bool = False
    """Whether attention and feed-forward read the same input."""

    tuning: Tuning | None = None
    """What is trained if the rest is frozen; None if everything is trained."""

    @classmethod
    def of(cls, classifier: PreTrainedModel, *, vocab_size: int = 0) -> Architecture:
        """Read the sizes of a classifier whose embedding holds at least ``vocab_size`` tokens.

        What requires gradients is trained (``outline_trained``).
        """
        config = classifier.config.get_text_config()
        settings = config.to_dict()
        head = head_size(config)
        layers = _layers(classifier)
        of_layer = [parameter.numel() for parameter in layers[0].parameters()]
        embedding = classifier.get_input_embeddings()
        missing = max(0, vocab_size - embedding.num_embeddings) * embedding.embedding_dim
        sizes = [parameter.numel() for parameter in classifier.parameters()]
        return cls(
            family=config.model_type,
            num_layers=len(layers),
            hidden=config.hidden_size,
            intermediate=settings.get("intermediate_size") or 4 * config.hidden_size,
            num_heads=config.num_attention_heads,
            query_width=config.num_attention_heads * head,
            key_width=(settings.get("num_key_value_heads") or config.num_attention_heads) * head,
            parameters=(sizes[0] + missing, *sizes[1:]),
            layer_parameters=sum(of_layer),
            largest_in_layer=max(of_layer),
            is_trimmable=is_trimmable(classifier.base_model),
            parallel_residual=bool(settings.get("use_parallel_residual")),
            tuning=Tuning.of(classifier),
        )

    @property
    def num_parameters(self) -> int:
        """Elements of all weights."""
        return sum(self.parameters)

    @property
    def num_trained(self) -> int:
        """Elements of the trained weights."""
        return self.num_parameters if self.tuning is None else sum(self.tuning.trained)

    @property
    def num_frozen(self) -> int:
        """Elements of the frozen weights."""
        return self.num_parameters - self.num_trained

    @property
    def num_reached(self) -> int:
        """Layers that gradients pass through."""
        return self.num_layers if self.tuning is None else self.tuning.num_layers

    def of_trained(self) -> Architecture:
        """Return what is trained, as if it were a model: its gradients and optimizer state."""
        if self.tuning is None:
            return self
        trained, num_layers = self.tuning.trained, max(1, self.tuning.num_layers)
        per_layer = -(-sum(trained) // num_layers)
        return replace(
            self,
            parameters=trained,
            num_layers=num_layers,
            layer_parameters=min(per_layer, self.layer_parameters),
            largest_in_layer=max(trained),
            tuning=None,
        )

    @property
    def num_in_linears(self) -> int:
        """Elements of the layers' weights, which every position is multiplied with."""
        return self.num_layers * self.layer_parameters

    def trims(self, layout: Layout) -> bool:
        """Return whether the last layer computes only the positions that rewards are read from."""
        return layout == "packed" and self.is_trimmable


def _layers(classifier: PreTrainedModel) -> nn.ModuleList:
    return next(m for m in classifier.base_model.modules() if isinstance(m, nn.ModuleList))


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
