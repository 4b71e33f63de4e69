#!/usr/bin/env bash
# Submits jobs/recipes/qlora_8b.yaml to a running Ray cluster with a GPU of 24 GB and follows its log.
#   RAY_ADDRESS=http://127.0.0.1:8265 bash jobs/qlora_8b.sh [--section.field value ...]
recipe=qlora_8b
source "$(dirname "${BASH_SOURCE[0]}")/submit.sh"
