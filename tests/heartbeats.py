"""Heartbeats of ranks, for tests of who watches them."""

from rm_ray.tracking.heartbeat import Beat, HeartbeatReading, Phase


def reading(
    rank: int,
    *,
    phase: Phase = "training",
    ago: float = 1.0,
    moved: float = 1.0,
    step: int = 7,
    has_stepped: bool = True,
) -> HeartbeatReading:
    """Return what is known of a rank that was heard ``ago`` and went on ``moved`` seconds ago."""
    beat = Beat(
        rank=rank,
        pid=1000 + rank,
        node_id="node",
        phase=phase,
        step=step,
        num_beats=3,
        stack="",
        startup={"model": 4.0, "first step": 2.0} if has_stepped else {},
    )
    return HeartbeatReading(beat=beat, received=ago, moved=moved)
