"""Each worker's stream. Keep imports light: Ray Train's controller imports this module."""

from __future__ import annotations

from typing import Any

from ray.train import DataConfig

from rm_ray.batches.stream import PlannedGroups, RankStream


class PerRankStreams(DataConfig):  # type: ignore[misc]
    """Gives each worker the stream of its rank."""

    def configure(
        self, datasets: dict[str, PlannedGroups], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, RankStream]]:
        """Return each rank's streams by dataset."""
        return [
            {
                name: RankStream(planned=planned, rank=rank, world_size=world_size)
                for name, planned in datasets.items()
            }
            for rank in range(world_size)
        ]
