"""What the files of a run's folder and of its checkpoints are called."""

RUN, RESULT = "run.json", "result.json"
"""What the run began with, and what came of it."""

SKELETON = "skeleton"
"""The exported model's configuration and tokenizer, from the run's beginning on."""

EXPORT, PLOTS, SAMPLES, EVALUATIONS = "export", "plots", "samples", "evaluations"

HISTORY = "history.jsonl"
"""Every metric so far, in a checkpoint and, once it is finished, in the run's folder."""

PROBES = "probes.json"
"""Rewards that clients are compared with, in a checkpoint and beside the exported model."""

STATE, LEDGER = "state.json", "data/trained_pairs.npz"
"""In a checkpoint."""
