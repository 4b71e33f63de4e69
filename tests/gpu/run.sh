#!/usr/bin/env bash
# What a GPU does with this program, part by part: tests/README.md says what each part answers.
#   bash tests/gpu/run.sh [part ...] [--out FOLDER] [--budget SECONDS] [--dry-cpu]
# KIT names what tests/gpu/pack.sh made, an archive or the folder it was unpacked to, where the
# machine's own Python lacks packages; PYTHON names that Python.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
kit="${KIT:-}"
if [ -z "$kit" ] && [ -d "$root/../site" ]; then kit="$root/.."; fi  # inside an unpacked archive
arguments=("$@")
python="${PYTHON:-}"
if [ -n "$kit" ]; then
    if [ -f "$kit" ]; then
        folder="${TMPDIR:-/tmp}/rm_ray-kit-$(sha256sum "$kit" | cut -c 1-12)"
        if [ ! -e "$folder/unpacked" ]; then
            mkdir -p "$folder"
            tar -xJf "$kit" -C "$folder" --strip-components 1
            touch "$folder/unpacked"
        fi
        kit="$folder"
    fi
    kit="$(cd "$kit" && pwd)"
    chmod +x "$kit"/site/ray/core/src/ray/{gcs/gcs_server,raylet/raylet}
    export PYTHONPATH="$kit/site${PYTHONPATH:+:$PYTHONPATH}"
    if [ -f "$kit/lengths.npz" ]; then arguments+=(--lengths "$kit/lengths.npz"); fi
    if ! git -C "$root" rev-parse HEAD >/dev/null 2>&1 && [ ! -f "$root/RM_RAY_COMMIT" ]; then
        RM_RAY_COMMIT="${RM_RAY_COMMIT:-$(cat "$kit/commit") as packed}"
        export RM_RAY_COMMIT
    fi
    python="${python:-python3}"
fi
if [ -z "$python" ]; then
    python="$root/.venv/bin/python"
    if [ ! -x "$python" ]; then python=python3; fi
fi
export RAY_AUTH_MODE=disabled HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# As training sets them, the second one under run.deterministic; libraries read them once.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
export CUBLAS_WORKSPACE_CONFIG=:4096:8
export PYTHONPATH="$root/tests${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m gpu.run "${arguments[@]}"
