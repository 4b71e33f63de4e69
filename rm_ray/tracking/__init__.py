"""Run tracking: heartbeats, console, MLflow, Prometheus and plots."""
