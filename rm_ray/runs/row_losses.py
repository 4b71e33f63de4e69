"""The losses of rows over the epochs of a run, in the folder of a finished run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from rm_ray.errors import InputError
from rm_ray.runs.layout import PAIR_LOSSES
from rm_ray.storage import Storage

_FILE = "losses.npz"
_COLUMNS = ("fragment", "row", "floor", "losses")


@dataclass(frozen=True, kw_only=True)
class RowLosses:
    """Losses of N rows in E epochs; a row is named by its origin and number, as in a quarantine."""

    origins: tuple[str, ...]
    """Files or splits, by their numbers in ``fragment``."""
    fragment: np.ndarray
    """``[N]``."""
    row: np.ndarray
    """``[N]`` number of each row in its origin."""
    floor: np.ndarray
    """``[N]`` the least loss that a row's labels allow: above 0 for soft ones and ties."""
    losses: np.ndarray
    """``[E, N]`` float32; NaN where a row was not trained on, or has no loss."""
    has_margins: bool = False
    """Whether a row has a margin, on which its loss may depend."""

    def write(self, run_folder: Storage) -> None:
        """Write the losses into a run's folder, 4 bytes per row and epoch besides its place."""
        columns = {name: vars(self)[name] for name in _COLUMNS}
        with tempfile.TemporaryDirectory(prefix="rm_ray-losses-") as folder:
            origins, margins = np.array(self.origins), np.array(self.has_margins)
            file = Path(folder) / _FILE
            np.savez_compressed(file, origins=origins, has_margins=margins, **columns)
            run_folder.upload(Path(folder), PAIR_LOSSES)

    @classmethod
    def read(cls, run_folder: Storage) -> RowLosses | None:
        """Read what ``write`` wrote; None if the run kept no losses, or is not finished.

        Raises:
            InputError: the file is damaged.
        """
        name = f"{PAIR_LOSSES}/{_FILE}"
        if not run_folder.exists(name):
            return None
        try:
            with run_folder.local_copy(name) as path, path.open("rb") as file:
                stored = np.load(file, allow_pickle=False)
                columns = {column: stored[column] for column in _COLUMNS}
                return cls(
                    origins=tuple(stored["origins"].tolist()),
                    has_margins=bool(stored["has_margins"]),
                    **columns,
                )
        except (ValueError, KeyError, EOFError, OSError, BadZipFile) as error:
            raise InputError(
                f"{run_folder.join(name)} cannot be read ({error}); without run.keep_pair_losses, "
                "name the run's export instead"
            ) from None
