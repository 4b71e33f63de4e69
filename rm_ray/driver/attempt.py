"""Entry point of an attempt's process: ``python -m rm_ray.driver.attempt DESCRIPTOR``.

The supervisor writes a task to standard input, and later a reason to stop, if any. At end of input
the supervisor is gone and this process exits. Progress and the ending go back as JSON Lines through
the file descriptor.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn, TextIO

from rm_ray.cluster.timeouts import LIVE_EVERY_S
from rm_ray.config.recipe import parse_config
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.drive import drive
from rm_ray.driver.orphans import end_orphans
from rm_ray.errors import InputError, LostError, StoppedError, TrainingError, is_refusal
from rm_ray.logs import log_to_stdout
from rm_ray.runs.attempts import Attempt
from rm_ray.runs.startup import Startup


def main() -> NoReturn:
    """Run the task; exit with 0 whenever the attempt's ending could be reported."""
    log_to_stdout()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Only the supervisor stops an attempt. SIG_IGN would be inherited by Ray's processes.
        signal.signal(number, lambda *_: None)
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)  # Ray's processes may outlive this one
    # Open until this process exits: the supervisor reads to its end, and then closes our input.
    supervisor = os.fdopen(descriptor, "w", buffering=1)
    task = json.loads(sys.stdin.readline())
    attempt_handle = AttemptHandle(
        number=task["number"],
        startup=Startup(began=task["began"]),
        earlier=[Attempt(**entry) for entry in task["earlier"]],
        supervisor=supervisor,
    )
    threading.Thread(target=_obey, args=(sys.stdin, attempt_handle), daemon=True).start()
    threading.Thread(target=_live, args=(attempt_handle,), daemon=True).start()
    attempt_handle.tell(_run(task, attempt_handle))
    sys.stdout.flush()
    os._exit(0)  # do not wait for blocked threads


def _obey(orders: TextIO, attempt_handle: AttemptHandle) -> None:
    """Stop when the supervisor asks; exit at once when the supervisor is gone."""
    for line in orders:
        if not attempt_handle.stop(line.strip()):
            attempt_handle.end("stopped", line.strip())
    end_orphans(())  # Ray's agents would keep looking for this process for a minute
    os._exit(1)


def _live(attempt_handle: AttemptHandle) -> None:
    """Send periodic signs of life, also while the attempt is waiting."""
    while True:
        time.sleep(LIVE_EVERY_S)
        attempt_handle.tell({"lives": True})


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
    except OSError as error:  # storage and network failures may be temporary
        if is_refusal(error):
            return {
                "ending": "refused",
                "cause": f"{error}; use another path, or give this user access",
            }
        return {"ending": "lost", "cause": repr(error), "is_outage": True}
    except Exception as error:  # a bug: report it as-is; the supervisor retries once
        traceback.print_exc()
        return {"ending": "lost", "cause": repr(error), "signature": repr(error)}


if __name__ == "__main__":
    main()
