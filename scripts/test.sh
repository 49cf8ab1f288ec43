#!/usr/bin/env bash
# Lint and test everything, in an environment of its own (.venv-test) with the tested versions.
# usage: bash scripts/test.sh [--python PATH] [pytest arguments...]
#        bash scripts/test.sh --image DIR [pytest arguments...]
#   --python PATH   interpreter to make the environment with (also NEWLLM_PYTHON)
#   --image DIR     only the tests, in the environment DIR as it is, such as a copy of Colab's: what is missing is
#                   added, held to the versions of DIR/constraints.txt if there is one; a changed package is an error
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

python=${NEWLLM_PYTHON:-} dir=
while [ $# -gt 0 ]; do
    case $1 in
    --python) python=${2:?--python needs the path of an interpreter} ;;
    --image) dir=${2:?--image needs the folder of an environment} ;;
    *) break ;;
    esac
    shift 2
done

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ -n "$dir" ]; then
    [ -x "$dir/bin/python" ] || fail "$dir is not an environment: it has no bin/python."
    say "adding this package and the missing test packages to $dir"
    "$dir/bin/python" scripts/join_image.py
else
    dir=.venv-test
    choose_python "$python"
    make_environment "$dir" -e ".[offline,offline-gemma,qlora,dpo,sweep,test]" "pip>=25" # older ones take three times as long to resolve an image
    say "ruff"
    "$dir/bin/ruff" check .
    "$dir/bin/ruff" format --check .
fi

if ! command -v chromium >/dev/null && can_apt; then
    apt_install chromium || say "chromium could not be installed: tests in a browser are skipped"
fi

say "pytest with $("$dir/bin/python" -V), OMP_NUM_THREADS=$OMP_NUM_THREADS"
exec "$dir/bin/python" -m pytest "$@"
