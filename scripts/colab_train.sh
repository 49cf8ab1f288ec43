#!/usr/bin/env bash
# Train a stage in the background, on a bare machine, too: installs the library from this clone where it is missing, trains
# first what the stage starts from, and comes back at once, saying where its log is and how to watch and to end it. Runs
# lie below the folder in which it is called.
# usage: bash scripts/colab_train.sh STAGE [--field value ...]     (NEWLLM_PYTHON=/path/to/python picks the interpreter)
#   STAGE      pretrain, sft, qlora-lwf, dpo or sweep; newllm STAGE --help lists its fields
#   on Colab   !bash new-llm/scripts/colab_train.sh sft --preset quick --dataset dailydialog --output_dir runs/dialogue
set -euo pipefail
clone=$(cd "$(dirname "$0")/.." && pwd)
. "$clone/scripts/environment.sh"

packages="newllm_lib torch transformers datasets accelerate"
case ${1:-} in
pretrain | sft) extras=offline ;;
qlora-lwf) extras=offline,qlora packages+=" peft bitsandbytes" ;;
dpo) extras=offline,dpo packages+=" trl peft" ;;
sweep) extras=offline,dpo,sweep packages+=" trl peft optuna" ;;
-h | --help) sed -n '2,/^set/{s/^# //p}' "$0" && exit ;;
*) fail "STAGE has to be one of pretrain, sft, qlora-lwf, dpo, sweep, got '${1:-}'." ;;
esac

# True if the interpreter finds all packages, wherever it is called.
has_all() {
    # shellcheck disable=SC2086  # one package a word
    (cd / && "$1" -c 'import sys; from importlib.util import find_spec; sys.exit(None in map(find_spec, sys.argv[1:]))' \
        $packages 2>/dev/null)
}
is_virtual() { "$1" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; }

python=${NEWLLM_PYTHON:-python3}
if ! has_all "$python"; then
    if has_all "$clone/.venv/bin/python"; then
        python=$clone/.venv/bin/python
    elif [ -n "${COLAB_RELEASE_TAG:-}" ] || is_virtual "$python"; then
        say "installing New-LLM and what $1 needs into $(command -v "$python"), where nothing installed is changed"
        installed=$(mktemp)
        "$python" -m pip list --format=freeze | grep -vi '^newllm==' >"$installed"
        "$python" -m pip install -c "$installed" "$clone[$extras]" || fail "not installed; what pip says above tells why."
    else
        choose_python "${NEWLLM_PYTHON:-}"
        (cd "$clone" && make_environment .venv -e ".[offline,offline-gemma,qlora,dpo,sweep]" nbclient nbformat ipykernel)
        python=$clone/.venv/bin/python
    fi
fi
say "starting $1"
exec "$python" -m newllm_lib start "$@"
