#!/usr/bin/env bash
# Lint and test everything, in an environment of its own (.venv-test) with the tested versions.
# usage: bash scripts/test.sh [--python PATH] [pytest arguments...]
#        bash scripts/test.sh --image NAME|DIR [pytest arguments...]
#        bash scripts/test.sh --newest [pytest arguments...]
#   --python PATH   interpreter to make the environment with (also NEWLLM_PYTHON)
#   --image NAME    only the tests, with what Colab's image of that month ships (tests/images/NAME.txt, such as 2026-08)
#   --image DIR     only the tests, in the environment DIR as it is: what is missing is added, held to the versions of
#                   DIR/constraints.txt if there is one; a changed package is an error
#   --newest        only the tests, with the newest releases of everything but torch, in .venv-newest
# NEWLLM_TEST_JOBS says how many tests run at a time (2).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

python=${NEWLLM_PYTHON:-} dir= image= newest=
while [ $# -gt 0 ]; do
    case $1 in
    --python) python=${2:?--python needs the path of an interpreter} ;;
    --image) image=${2:?--image needs the name of an image, or the folder of an environment} ;;
    --newest) newest=yes && set -- "" "$@" ;; # takes no value
    *) break ;;
    esac
    shift 2
done

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ -n "$image" ]; then
    dir=$image
    if [ -e "tests/images/$image.txt" ]; then
        dir=.venv-image-$image
        make_image "$image" "$dir"
    fi
    known=$(cd tests/images && ls | sed 's/\.txt$//' | paste -sd, | sed 's/,/, /g')
    [ -x "$dir/bin/python" ] || fail "$image is neither an image ($known) nor an environment with a bin/python."
    say "adding this package and the missing test packages to $dir"
    "$dir/bin/python" scripts/join_image.py
elif [ -n "$newest" ]; then
    dir=.venv-newest
    choose_python "$python"
    make_newest "$dir" -e ".[qlora,dpo]" pytest pytest-xdist parameterized
else
    dir=.venv-test
    choose_python "$python"
    make_environment "$dir" -e ".[offline,offline-gemma,qlora,dpo,sweep,formats,test]" "pip>=25" # older ones take three times as long to resolve an image
    say "ruff"
    "$dir/bin/ruff" check .
    "$dir/bin/ruff" format --check .
    # Not for an image: JupyterLab shows no widgets of Colab's ipywidgets.
    if ! command -v chromium >/dev/null && can_apt; then
        apt_install chromium || say "chromium could not be installed: tests in a browser are skipped"
    fi
fi

say "pytest with $("$dir/bin/python" -V), OMP_NUM_THREADS=$OMP_NUM_THREADS"
exec "$dir/bin/python" -m pytest --numprocesses "${NEWLLM_TEST_JOBS:-2}" --dist loadfile "$@"
