"""The core trains where nothing is installed but torch, transformers and what they need."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ABSENT = (
    "ray", "accelerate", "deepspeed", "liger_kernel", "datasets", "pyarrow", "pydantic", "tyro",
    "mlflow", "psutil", "trl", "peft",
)  # fmt: skip


def test_the_core_benchmark_runs_where_only_torch_and_transformers_are_installed(
    tmp_path: Path,
) -> None:
    # Python runs sitecustomize when it starts, so this holds in the processes it starts too.
    hide = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    without_ray = [sys.executable, "-c", "import ray"]
    assert subprocess.run(without_ray, env=environment, capture_output=True).returncode == 1
    command = [
        sys.executable, str(ROOT / "tests" / "benchmarks" / "core.py"), "--shares", "0.5",
        "--generated-tokens", "32", "--vocab", "64", "--hidden", "64", "--heads", "1",
        "--layers", "1", "--intermediate", "64", "--layouts", "packed", "--pairs-per-step", "4",
        "--tokens-per-micro-batch", "512", "--runs", "1", "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [[turn]] = json.loads(done.stdout.splitlines()[-1])[0]["turns"]
    assert turn["pairs"] == 4
    assert turn["computed"] == turn["distinct"]
    assert turn["loss"] > 0
