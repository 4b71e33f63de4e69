"""Which stream each worker gets; Ray Train's controller imports it, so it stays light."""

from __future__ import annotations

from typing import Any

from ray.train import DataConfig

from rm_ray.batches.stream import PlannedPairs, RankStream


class PerRankStreams(DataConfig):  # type: ignore[misc]
    """Hands every training worker the stream of its own rank."""

    def configure(
        self, datasets: dict[str, PlannedPairs], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, RankStream]]:
        """Return, for each rank, its stream of each dataset."""
        return [
            {
                name: RankStream(planned=planned, rank=rank, world_size=world_size)
                for name, planned in datasets.items()
            }
            for rank in range(world_size)
        ]
