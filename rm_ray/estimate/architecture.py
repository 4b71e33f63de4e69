"""The sizes of a model that its memory depends on, read without its weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from rm_ray.config.sections.batch import Layout
from rm_ray.model.attention import head_size
from rm_ray.model.last_layer import is_trimmable


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a decoder with a scalar head."""

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

    @classmethod
    def of(cls, classifier: PreTrainedModel, *, vocab_size: int = 0) -> Architecture:
        """Read the sizes of a classifier whose embedding holds at least ``vocab_size`` tokens."""
        config = classifier.config.get_text_config()
        settings = config.to_dict()
        head = head_size(config)
        layers = next(m for m in classifier.base_model.modules() if isinstance(m, nn.ModuleList))
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
        )

    @property
    def num_parameters(self) -> int:
        """Elements of all weights."""
        return sum(self.parameters)

    @property
    def num_in_linears(self) -> int:
        """Elements of the layers' weights, which every position is multiplied with."""
        return self.num_layers * self.layer_parameters

    def trims(self, layout: Layout) -> bool:
        """Return whether the last layer computes only the positions that rewards are read from."""
        return layout == "packed" and self.is_trimmable
