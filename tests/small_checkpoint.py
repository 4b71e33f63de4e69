"""Checkpoints of two small files, as a run leaves them."""

from pathlib import Path

from rm_ray.runs.checkpoint_names import checkpoint_name
from rm_ray.runs.manifest import MANIFEST, Checkpoint, Manifest, describe_file
from rm_ray.storage import Storage


def write_checkpoint(run_folder: Storage, step: int, *, attempt: int = 1) -> Path:
    folder = Path(run_folder.join(checkpoint_name(step, attempt)))
    (folder / "data").mkdir(parents=True)
    (folder / "slices-00000.safetensors").write_bytes(bytes(range(256)) * 10)
    (folder / "data" / "trained_pairs.npz").write_bytes(b"ledger of %d" % step)
    files = {
        str(path.relative_to(folder)): describe_file(path)
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = Manifest(step=step, plan_fingerprint="plan", metrics={}, files=files)
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def described(step: int, metrics: dict[str, float], *, attempt: int = 1) -> Checkpoint:
    """Describe a checkpoint that has reference rewards, without writing it."""
    files = {"probes.json": {"size": 1}}
    manifest = Manifest(step=step, plan_fingerprint="plan", metrics=metrics, files=files)
    return Checkpoint(name=checkpoint_name(step, attempt), manifest=manifest)
