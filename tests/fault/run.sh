#!/usr/bin/env bash
# Breaks training in every way that is promised to be survived; takes hours on 2 cores.
#   bash tests/fault/run.sh [pytest options, such as -k elastic]
source "$(dirname "${BASH_SOURCE[0]}")/../../jobs/environment.sh"
use_environment requirements.txt tests/requirements.txt
exec .venv/bin/python -m pytest -m "slow or not slow" tests/fault "$@"
