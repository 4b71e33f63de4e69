"""Time limits of ranks and attempts, in seconds, and their order.

The watch kills ranks that make no progress. PyTorch's collectives, in which ranks may wait for
another rank's storage or model, must time out last: their error would end a healthy run.
"""

from __future__ import annotations

SILENT_AFTER_S = 30.0
"""A process without a heartbeat for this long is stopped, or its machine is lost."""

STALLED_AFTER_S = 45.0
"""Ranks that finish no micro-batch for this long hang, unless one has taken longer before."""

SLOWER = 5.0
"""A stall lasts longer than this multiple of the slowest micro-batch so far."""

SLOWER_THAN_FIRST = 2.0
"""The same multiple for the first step's micro-batches, which are slower; used until a later one
is known."""

LOOK_EVERY_S = 2.0
"""Interval between two looks of the watch."""

LOOKS = 3
"""Consecutive looks that must agree that a machine has come or gone."""

LIVE_EVERY_S = 5.0
"""Interval between two signs of life of an attempt's process."""

QUIET_FOR_S = 120.0
"""An attempt that sends no sign of life, or no progress while training, for this long is killed."""

RENDEZVOUS_S = 300.0
"""Limit for forming PyTorch's process group; every worker has imported torch by then."""

COMPANY_S = 120.0
"""Maximum delay between the first and the last rank's start."""

EXCHANGE_S = 120.0
"""Limit for the first exchange, once all ranks have arrived."""

CONNECT_S = 180.0
"""Limit for ranks that make no progress while connecting, if they do not give up themselves."""

FIRST_STEP_S = 900.0
"""Limit for the first step, which compiles kernels.

Ranks have connected before it: the world group at startup, DeepSpeed's groups when it takes the
model.
"""

DATA_S = 600.0
"""Limit for waiting for data."""

SLOW_S = 3_600.0
"""Limit for reading, writing or gathering a model, and for a storage to answer at all."""

UPLOAD_S = 3_600.0
"""Limit for copying a checkpoint, in addition to the time for which the storage may fail."""

MARGIN_S = 600.0
"""Margin of a collective's timeout over everything that may delay a rank."""


def collective_limit(storage_patience_s: float) -> float:
    """Return the timeout of PyTorch's collectives, in seconds.

    It exceeds a checkpoint to a slow or failing storage, and an export, for which rank 0 writes the
    model and then the reference rewards.
    """
    return max(SLOW_S, UPLOAD_S + 2 * storage_patience_s) + MARGIN_S
