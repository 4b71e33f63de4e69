#!/usr/bin/env bash
# Makes OUT/kit-cp312.tar.xz, at most 60 MiB: this commit, and what a GPU machine's Python 3.12 lacks
# to run it (machine.txt says what it has). Needs a package index; takes some minutes.
#   bash tests/gpu/pack.sh OUT
source "$(dirname "${BASH_SOURCE[0]}")/../../jobs/environment.sh"
use_environment requirements.txt tests/requirements.txt
PYTHONPATH=tests exec .venv/bin/python -m gpu.pack "$@"
