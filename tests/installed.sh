#!/usr/bin/env bash
# Installs what is given (a wheel, an sdist, a folder) into an empty environment, with nothing but what it asks for, and
# runs the core's tests against it, from a folder where the sources can't be found.
# tests/installed.sh PYTHON WHAT FOLDER [PINS ...]
set -euo pipefail
unset PYTHONPATH
python=$1 what=$(realpath "$2") folder=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
rm -rf "$folder"
"$python" -m venv "$folder"
new=$(realpath "$folder")/bin/python
"$new" -m pip install --quiet --disable-pip-version-check "$what" "$@"
cd "$folder"
"$new" -c 'import sys, warmgap; print(warmgap.__version__, warmgap.__file__)
assert not {"numpy", "torch", "jax"} & set(sys.modules), "import warmgap loads a framework"
assert "site-packages" in warmgap.__file__
from warmgap.replay import replay
assert replay([5.0, 4.0, 3.0], rules=["gap(kappa=64)"])  # with NumPy'
"$new" -m pip install --quiet --disable-pip-version-check pytest pytest-timeout hypothesis
cp -r "$here/tests" "$here/pyproject.toml" .
"$new" -m pytest -q -p no:cacheprovider tests/rules \
  tests/test_{decay,geometry,matching,replay,schedule,signal,target}.py
