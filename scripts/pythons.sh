#!/bin/sh
# usage: pythons.sh VENV [PYTEST-ARGUMENTS]
# Runs the unit tests on each Python of PYTHONS (all that the project supports) that this machine has, on the PATH or by
# pyenv. VENV: the environment that the locked uv is in.
set -u
venv=$1
shift
cd "$(dirname "$0")/.." || exit 1
failed=0

interpreter() {
    for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        # A shim of pyenv's answers for a version that isn't chosen, too, and fails.
        "$python" -c "import sys, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null || continue
        "$python" -c "import sys; print(sys.executable)"
        return
    done
    return 1
}

for version in ${PYTHONS:-3.11 3.12 3.13}; do
    if ! python=$(interpreter $version); then
        echo "Python $version: skipped, since this machine has none"
        continue
    fi
    echo "Python $version: $python"
    PATH="$PATH:$PWD/$venv/bin" "${MAKE:-make}" --no-print-directory \
        VENV=".venv-$version" PYTHON="$python" ".venv-$version/.installed-dev" &&
        ".venv-$version/bin/python" -m pytest -q -n 2 tests/unit "$@" || failed=1
done
exit $failed
