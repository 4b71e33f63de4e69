#!/usr/bin/env bash
# Kills random processes of a training job at random moments, and sees that it ends bit-identical.
#   bash tests/fault/chaos.sh SEED KILLS [--workers 2] [--zero-stage 2] [--steps 400] [--lists] [--lora]
source "$(dirname "${BASH_SOURCE[0]}")/../../jobs/environment.sh"
use_environment requirements.txt tests/requirements.txt
exec .venv/bin/python tests/fault/chaos.py "$@"
