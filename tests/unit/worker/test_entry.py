import subprocess
import sys

HEAVY = ("accelerate", "deepspeed", "transformers")


def test_a_worker_imports_what_is_heavy_late_and_mlflow_or_bitsandbytes_never():
    """The first steps load during the heavy imports, and bitsandbytes can still be imported."""
    script = (
        "import importlib.util, sys, rm_ray.worker.entry, rm_ray.worker.data_config\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "import rm_ray.train.engine\n"
        "print([name for name in ('peft', 'bitsandbytes') if name in sys.modules])\n"
        "rm_ray.train.engine.import_deepspeed()\n"
        "print([name for name in ('deepspeed', 'mlflow') if name in sys.modules],\n"
        "      importlib.util.find_spec('mlflow') is not None)\n"
        "import bitsandbytes"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    early, on_peft, *_, late = done.stdout.splitlines()
    assert (early, on_peft, late) == ("[]", "['peft']", "['deepspeed'] True")
