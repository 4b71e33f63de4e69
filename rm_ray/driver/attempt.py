"""One attempt at a run, in a process of its own: ``python -m rm_ray.driver.attempt``.

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
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from rm_ray.config.recipe import parse_config
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.drive import drive
from rm_ray.driver.orphans import end_orphans
from rm_ray.errors import InputError, LostError, StoppedError, TrainingError, is_refusal
from rm_ray.logs import log_to_stdout
from rm_ray.runs.attempts import Attempt, Ending
from rm_ray.runs.startup import Startup

LIVE_EVERY_S = 5.0


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

        def end(ending: Ending, cause: str) -> None:
            tell({"ending": ending, "cause": cause})
            os._exit(0)  # Ray may still be waiting for a place for its workers

        attempt_handle = AttemptHandle(
            end=end,
            startup=Startup(began=task["began"]),
            number=task["number"],
            earlier=[Attempt(**entry) for entry in task["earlier"]],
            tell=tell,
        )
        threading.Thread(target=_obey, args=(sys.stdin, attempt_handle), daemon=True).start()
        threading.Thread(target=_live, args=(tell,), daemon=True).start()
        tell(_run(task, attempt_handle))
    return 0


def _obey(orders: TextIO, attempt_handle: AttemptHandle) -> None:
    """Stop when told to; end at once when there is no one left to tell."""
    for line in orders:
        if not attempt_handle.stop(line.strip()):
            attempt_handle.end("stopped", line.strip())
    end_orphans(())  # agents of Ray would look for it for a minute
    os._exit(1)


def _live(tell: Callable[[dict[str, Any]], None]) -> None:
    """Say now and then that this process lives, also while its work is to wait."""
    while True:
        time.sleep(LIVE_EVERY_S)
        tell({"lives": True})


def _run(task: dict[str, Any], attempt_handle: AttemptHandle) -> dict[str, Any]:
    """Return how the attempt ended."""
    try:
        result = drive(parse_config(task["config"]), attempt_handle)
        return {"ending": "finished", "cause": "", "result": result}
    except StoppedError as stopped:
        saved = {"step": stopped.step, "saved_step": stopped.saved_step}
        return {"ending": "stopped", "cause": stopped.reason, **saved}
    except InputError as error:
        return {"ending": "refused", "cause": str(error)}
    except TrainingError as error:
        return {"ending": "failed", "cause": str(error)}
    except LostError as error:
        what = {"cause": error.cause, "signature": error.signature, "skips": error.skips}
        return {"ending": "lost", "is_outage": error.is_outage, **what}
    except OSError as error:  # a storage or network that fails may work the next time
        if is_refusal(error):
            return {
                "ending": "refused",
                "cause": f"{error}; give this user another path, or rights",
            }
        return {"ending": "lost", "cause": repr(error), "is_outage": True}
    except Exception as error:  # a bug of ours: told as it is, and tried once more
        traceback.print_exc()
        return {"ending": "lost", "cause": repr(error), "signature": repr(error)}


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads that wait for an answer must not keep this process
