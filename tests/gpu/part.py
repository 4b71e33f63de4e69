"""One part in this process: ``python -m gpu.part NAME --out FILE``; a line of JSON a finding."""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

from gpu.bench import Bench


def main() -> None:
    """Measure, and write each finding as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="a folder; a file a part")
    parser.add_argument("--ends", type=float, required=True, help="by time.monotonic()")
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--dry-cpu", action="store_true")
    options = parser.parse_args()
    for name in options.names:
        started = time.monotonic()
        with (
            tempfile.TemporaryDirectory(prefix="rm_ray-gpu-") as folder,
            (options.out / f"{name}.jsonl").open("w") as file,
        ):
            bench = Bench.open(
                Path(folder),
                on_cpu=options.dry_cpu,
                ends=options.ends,
                lengths=options.lengths,
            )
            for finding in importlib.import_module(f"gpu.{name}").measure(bench):
                file.write(json.dumps(finding.to_dict()) + "\n")
                file.flush()
            file.write(json.dumps({"seconds": time.monotonic() - started}) + "\n")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
