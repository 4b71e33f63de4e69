"""Breaks a worker on purpose, once its step is imported: a hang, a bug, a loss that is not finite,
a full object store.

Python imports this module at its start where its folder is on PYTHONPATH.
"""

import importlib.util
import os
import signal
import sys
import time
from importlib.abc import MetaPathFinder

HUNG = os.environ.get("HANGS_ONCE")
"""A file that the rank which hangs leaves behind, and which keeps it from hanging again."""

FILLS_STORE = os.environ.get("FILLS_STORE")

FAILS_AT = os.environ.get("FAILS_AT_STEP")

SPOILS = os.environ.get("SPOILS_STEP")
"""A step, counted from 0, whose margins are not numbers on rank 0."""


DIES_IN, DIED = os.environ.get("DIES_IN"), os.environ.get("DIED")
"""Where a worker dies, and the file that it leaves behind."""

DAWDLES = os.environ.get("DAWDLES")
"""A file that is there once an evaluation has begun, each of whose steps takes seconds."""

KEPT = []
"""References to objects that keep Ray's object store full."""


def hang():
    """Hold the other ranks up, as a rank that has lost its way does."""
    while True:
        time.sleep(1)


def die():
    """End at once, as a lost machine does; not again in the next attempt."""
    if not os.path.exists(DIED):
        open(DIED, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)


def dying(function, place, *, is_before=True):
    """Return a function that dies before or after the real one, where this is the place for it."""

    def does(*arguments, **options):
        if is_before and place == DIES_IN:
            die()
        result = function(*arguments, **options)
        if not is_before and place == DIES_IN:
            die()
        return result

    return does


class DyingObjective:
    """An objective that dies before one of its calls, counted from 1."""

    def __init__(self, objective, at_call):
        self.objective, self.at_call, self.calls = objective, at_call, 0
        self.parts = objective.parts

    def __call__(self, rewards, labels):
        self.calls += 1
        if self.calls == self.at_call:
            die()
        return self.objective(rewards, labels)


def break_loop(module):
    """Let a worker die in the place asked for, once."""
    from rm_ray.checkpoint import save
    from rm_ray.worker import checkpoints

    checkpoints.restore_checkpoint = dying(checkpoints.restore_checkpoint, "restore")
    save.write_content = dying(save.write_content, "save", is_before=False)
    save.mark_staged = dying(save.mark_staged, "seal", is_before=False)
    save.upload_staged = dying(save.upload_staged, "upload")
    module.build_compute = dying(module.build_compute, "start-up", is_before=False)
    module.export = dying(module.export, "export")
    module.training_result = dying(module.training_result, "end")


def break_evaluation(module):
    """Let a worker die between two micro-batches of an evaluation, once, or take long over each."""
    real = module.evaluate_held_out

    def slowly(steps):
        for step in steps:
            open(DAWDLES, "w").close()
            time.sleep(3)
            yield step

    def evaluate_held_out(engine, objective, steps, *arguments, **options):
        if DIES_IN == "evaluation":
            objective = DyingObjective(objective, at_call=1)
        if DAWDLES:
            steps = slowly(steps)
        return real(engine, objective, steps, *arguments, **options)

    module.evaluate_held_out = evaluate_held_out


def break_step(module):
    """Put a step that hangs or fails in the place of the real one."""
    real = module.accumulate_gradients
    dying_objective = None

    def accumulate_gradients(engine, objective, micro_batches, **settings):
        nonlocal dying_objective
        if DIES_IN == "micro-batch":
            dying_objective = dying_objective or DyingObjective(objective, at_call=40)
            objective = dying_objective  # the same in every step: it counts their micro-batches
        step = micro_batches[0].loaded.plan.step
        if HUNG is not None and engine.rank == 1 and step == 12 and not os.path.exists(HUNG):
            open(HUNG, "w").close()
            hang()
        if FILLS_STORE and not KEPT:
            import numpy as np
            import ray

            KEPT.extend(ray.put(np.ones(40 * 2**20, dtype=np.uint8)) for _ in range(3))
        if str(step) == FAILS_AT:
            raise ValueError("broken on purpose")
        if str(step) == SPOILS and engine.rank == 0:
            micro_batches[0].groups.labels.margin.fill_(float("nan"))
        return real(engine, objective, micro_batches, **settings)

    module.accumulate_gradients = accumulate_gradients


class Breaking(MetaPathFinder):
    """Finds a module as it is, and breaks it after its import."""

    def __init__(self, name, break_module):
        self.name, self.break_module = name, break_module

    def find_spec(self, name, path, target=None):
        """Take part in one import only."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        real = spec.loader.exec_module

        def exec_module(module):
            real(module)
            self.break_module(module)

        spec.loader.exec_module = exec_module
        return spec


if HUNG or FAILS_AT or SPOILS or FILLS_STORE or DIES_IN:
    sys.meta_path.insert(0, Breaking("rm_ray.train.step", break_step))
if DIES_IN:
    sys.meta_path.insert(0, Breaking("rm_ray.worker.loop", break_loop))
if DIES_IN or DAWDLES:
    sys.meta_path.insert(0, Breaking("rm_ray.evaluation.held_out", break_evaluation))
