"""A model's weights with adapters -> the weights of the model without them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from rm_ray.model.tuning.lora import ADAPTER, Adapter


def merge_adapters(
    weights: Iterable[tuple[str, Tensor]], adapters: Sequence[Adapter], *, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield the classifier's weights by their names without adapters; merged ones in ``dtype``.

    ``W + scaling * B A`` (arXiv:2106.09685, p. 4) is computed in float32 from matrices rounded to
    ``dtype``, since training multiplies with those, and rounded once. A layer's three matrices
    follow each other in a model's state, so no more than those of one layer are held.
    """
    names = {adapter.layer: _matrices(adapter.layer) for adapter in adapters}
    owners = {name: adapter for adapter in adapters for name in names[adapter.layer]}
    waiting: dict[str, Tensor] = {}
    for name, tensor in weights:
        if name not in owners:
            yield name.replace(".base_layer.", "."), tensor
            continue
        waiting[name] = tensor
        adapter = owners[name]
        if all(each in waiting for each in names[adapter.layer]):
            base, first, second = (waiting.pop(each) for each in names[adapter.layer])
            change = adapter.scaling * (second.to(dtype).float() @ first.to(dtype).float())
            change = change.T if adapter.is_transposed else change
            yield f"{adapter.layer}.weight", (base.to(dtype).float() + change).to(dtype)
    assert not waiting, sorted(waiting)


def _matrices(layer: str) -> tuple[str, str, str]:
    """Return the names of a layer's base matrix, and of its adapter's first and second one."""
    first, second = (f"{layer}.lora_{i}.{ADAPTER}.weight" for i in "AB")
    return f"{layer}.base_layer.weight", first, second
