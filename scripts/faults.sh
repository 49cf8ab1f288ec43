#!/usr/bin/env bash
# Kill, starve and damage small runs of every stage, and print what survived; flags as scripts/faults.py has them.
# usage: bash scripts/faults.sh [--minutes 5]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/test.sh --collect-only -q tests/test_errors.py >/dev/null # makes the environment
exec .venv-test/bin/python scripts/faults.py "$@"
