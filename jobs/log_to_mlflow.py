"""Log a run to MLflow that was away: ``python jobs/log_to_mlflow.py ~/rm_ray/RUN``."""

import sys
from pathlib import Path

# Without this folder, where a file has the name of Python's own inspect.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rm_ray.commands.train import log_to_mlflow

if __name__ == "__main__":
    sys.exit(log_to_mlflow(sys.argv[1:]))
