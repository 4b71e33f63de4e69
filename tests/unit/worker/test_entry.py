import subprocess
import sys

HEAVY = ("accelerate", "deepspeed", "transformers")


def test_a_worker_s_entry_point_imports_nothing_heavy():
    """The first steps load during the heavy imports."""
    script = (
        "import sys, rm_ray.worker.entry, rm_ray.worker.data_config\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
