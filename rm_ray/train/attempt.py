"""One attempt at a run, in a process of its own: ``python -m rm_ray.train.attempt``.

The supervisor writes a task to its standard input, and later perhaps a reason to stop; when the
input ends, the supervisor is gone, and so must this be. What the attempt does and how it ends goes
back as lines of JSON through the file descriptor that is its only argument.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from typing import Any, TextIO

from rm_ray.errors import InputError, LostError, StoppedError, TrainingError
from rm_ray.logs import log_to_stdout
from rm_ray.recipe import parse_config
from rm_ray.train.attempts import Attempt
from rm_ray.train.going import Going
from rm_ray.train.run import train
from rm_ray.train.startup import Startup


def main() -> int:
    """Do what the task says; return 0 however the attempt ended, as long as that was told."""
    log_to_stdout()
    for number in (signal.SIGINT, signal.SIGTERM):
        # The supervisor says when to stop. Ray's processes would inherit it if they were ignored.
        signal.signal(number, lambda *_: None)
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)  # Ray's processes may outlive this one
    with os.fdopen(descriptor, "w", buffering=1) as supervisor:
        task = json.loads(sys.stdin.readline())
        lock = threading.Lock()

        def tell(changed: dict[str, Any]) -> None:
            with lock:
                supervisor.write(json.dumps(changed) + "\n")

        def give_up(cause: str) -> None:
            tell({"ending": "lost", "cause": cause})
            os._exit(0)  # Ray waits for a place for its workers, and would for ever

        going = Going(
            give_up=give_up,
            startup=Startup(began=task["began"]),
            number=task["number"],
            earlier=[Attempt(**entry) for entry in task["earlier"]],
            tell=tell,
        )
        threading.Thread(target=_obey, args=(sys.stdin, going), daemon=True).start()
        tell(_run(task, going))
    return 0


def _obey(orders: TextIO, going: Going) -> None:
    """Stop when told to; end at once when there is no one left to tell."""
    for line in orders:
        if not going.stop(line.strip()):
            going.tell({"ending": "stopped", "cause": line.strip()})
            os._exit(0)
    os._exit(1)


def _run(task: dict[str, Any], going: Going) -> dict[str, Any]:
    """Return how the attempt ended."""
    try:
        result = train(parse_config(task["config"]), going)
        return {"ending": "finished", "cause": "", "result": result}
    except StoppedError as stopped:
        return {"ending": "stopped", "cause": stopped.reason, "step": stopped.step}
    except InputError as error:
        return {"ending": "refused", "cause": str(error)}
    except TrainingError as error:
        return {"ending": "failed", "cause": str(error)}
    except LostError as error:
        what = {"cause": error.cause, "signature": error.signature, "skips": error.skips}
        return {"ending": "lost", **what}
    except OSError as error:  # a storage or network that fails may work the next time
        return {"ending": "lost", "cause": repr(error)}
    except Exception as error:  # a bug of ours: told as it is, and tried once more
        traceback.print_exc()
        return {"ending": "lost", "cause": repr(error), "signature": repr(error)}


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads that wait for an answer must not keep this process
