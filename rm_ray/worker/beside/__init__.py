"""Evaluation beside training: an actor of ours evaluates the checkpoints in the run's folder.

Ray Train 2.60 has its own: ``report(validation=...)`` runs ``ValidationConfig.fn`` as a task of the
controller, one at a time, and waits for the rest when training ends. It cannot keep what a run
promises here (``ray/train/v2/_internal/execution/checkpoint/``, ``validation_manager.py`` and
``checkpoint_manager.py``):

- A function that raises is marked failed at once and not tried again. One whose process is killed
  more often than Ray retries tasks raises ``WorkerCrashedError``, which
  ``_process_finished_validation`` does not catch, so it ends the controller, and training too.
- What is pending is known from the controller's snapshot alone. It is not written atomically, so
  every attempt deletes it (``driver/fit.py``) and would forget what is pending.
- Metrics come without a step, a time, samples or reports, once, to the controller.
- The wait at the end is the controller's: a killed one ends it, and it reports no progress.
- Each checkpoint starts a process and builds the model anew, which takes longer than a short
  evaluation; the actor keeps its model and loads weights alone.
"""
