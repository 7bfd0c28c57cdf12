#!/usr/bin/env bash
# Make .venv from the lock files, from nothing: `make setup` runs this when a lock file changed.
#
# Every file that pip takes is checked against a hash, and pip resolves nothing: the locks are
# complete. pip's own configuration (mirror, proxy, find-links) applies throughout.
set -euo pipefail
trap 'exit 130' INT TERM

log=.aaft/setup.log
mkdir -p .aaft
: >"$log"

fail() {
    printf 'set-up: %s\n' "$*" >&2
    exit 2
}

is_3_11() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

find_python() {
    if [[ -n ${PYTHON:-} ]]; then
        is_3_11 "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11"
        echo "$PYTHON"
        return
    fi
    local name
    for name in python3.11 python3 python; do
        if is_3_11 "$name"; then
            echo "$name"
            return
        fi
    done
    fail 'Python 3.11 not found: install it, or name it: make setup PYTHON=/path/to/python3.11'
}

# Run pip; everything goes to the log, errors to the screen, and a count of packages as progress.
pip() {
    local line count=0 failing=
    .venv/bin/python -m pip --disable-pip-version-check --no-input "$@" 2>&1 |
        while IFS= read -r line; do
            printf '%s\n' "$line" >>"$log"
            case $line in
            *ERROR:* | *error:* | *Retrying*) failing=yes ;;
            Collecting* | Processing*)
                count=$((count + 1))
                ((count % 50)) || echo "  $count packages fetched"
                ;;
            'Installing collected packages'*) ((count < 50)) || echo '  installing' ;;
            esac
            [[ -z $failing ]] || printf '%s\n' "$line" >&2
        done
}

install() {
    # Modules are compiled when first imported: most never are.
    pip install --progress-bar off --no-compile --no-deps --no-build-isolation \
        --require-hashes "$@" ||
        fail "pip failed; all that it said is in $log"
}

# torch's public Linux build names its CUDA libraries as requirements; other builds name none.
needs_cuda() {
    .venv/bin/python - <<'END'
from importlib.metadata import requires
from packaging.requirements import Requirement

found = map(Requirement, requires("torch") or [])
wanted = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
raise SystemExit(not any(r.name.startswith(("nvidia-", "cuda-")) for r in wanted))
END
}

# Import what a run imports, for Python to keep it compiled: from source that takes ten seconds more
# in every process. Containers and CI often tell Python not to, and it would compile each time.
keep_compiled() {
    env -u PYTHONDONTWRITEBYTECODE PYTHONPATH=. .venv/bin/python - >>"$log" 2>&1 <<'END'
from importlib import import_module
from pkgutil import walk_packages

import aaft
import flows
import tasks

for package in (aaft, tasks, flows):
    for module in walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
# What these load when they need it.
for name in (
    *("dvc.cli", "dvc.commands.repro", "mlflow.server", "prefect.server.api.server"),
    *("torch._dynamo", "transformers.models.bert.modeling_bert"),
    *("transformers.models.llama.modeling_llama", "transformers.models.mpnet.modeling_mpnet"),
):
    import_module(name)
END
}

python=$(find_python)
packages=$(grep -c '^[a-z0-9].*==' requirements.lock)
echo "set-up: making .venv with $packages packages (a minute or two, and the downloads)"
"$python" -m venv --clear .venv >>"$log" 2>&1 ||
    fail "python -m venv failed (on Debian: apt install python3.11-venv); see $log"

# What builds source distributions comes from the lock too, so nothing unpinned ever runs.
sed -n '/^setuptools==/,/[^\\]$/p' requirements.lock >.aaft/build-tools.lock
install -r .aaft/build-tools.lock
if .venv/bin/python -m pip install --quiet --progress-bar off --no-compile --no-deps --require-hashes \
    -r requirements-torch-cpu.txt >>"$log" 2>&1; then
    echo '  torch: CPU build'
else
    echo '  torch: public build (pip found no build of requirements-torch-cpu.txt)'
fi
install -r requirements.lock
if needs_cuda; then
    echo '  torch: CUDA libraries'
    install -r requirements-cuda.lock
fi
echo '  compiling what is imported'
keep_compiled || echo "  not all of it could be imported, see the end of $log; a run says what it misses"
