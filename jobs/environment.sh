# Sourced by the scripts: creates .venv in the project's root if missing, and installs the given
# requirement files into it whenever they have changed.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

use_environment() {
    local python="${PYTHON:-python3}" stamp=.venv/.installed wanted file options=()
    for file in "$@"; do options+=(-r "$file"); done
    if [ ! -x .venv/bin/python ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: Python 3.11 or newer is required; set PYTHON=/path/to/python3" >&2
            exit 2
        }
        echo "== creating .venv with $("$python" --version)"
        "$python" -m venv .venv
    fi
    wanted="$(cat "$@" | sha256sum)"
    if ! grep -qsxF "$wanted" "$stamp"; then
        echo "== installing $* (takes minutes the first time)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check "${options[@]}"
        echo "$wanted" >>"$stamp"
    else
        echo "== .venv is up to date with $*"
    fi
}
