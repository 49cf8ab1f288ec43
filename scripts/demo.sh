#!/usr/bin/env bash
# From a fresh machine with Python 3.10 or newer to a trained and compared language model: makes .venv, installs the
# package, runs the notebooks with offline data, and leaves what they show in runs/demo. Run it again at any time.
# usage: bash scripts/demo.sh          (NEWLLM_PYTHON=/path/to/python picks the interpreter)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

NOTEBOOKS=(
    notebooks/01_pretrain_wikitext.ipynb
    notebooks/02_dailydialog.ipynb
    notebooks/03_dolly.ipynb
    notebooks/04_ultrachat.ipynb
    notebooks/05_qlora_lwf_gemma.ipynb
    notebooks/06_dpo_dialogpt.ipynb
    notebooks/07_dpo_experiments.ipynb
)

choose_python "${NEWLLM_PYTHON:-}"
make_environment .venv -e ".[offline,offline-gemma,qlora,dpo,sweep]" nbclient nbformat ipykernel

export NEWLLM_RUNS=$PWD/runs/demo NEWLLM_DATA_SOURCE=offline NEWLLM_PRESET=demo
mkdir -p "$NEWLLM_RUNS"
for notebook in "${NOTEBOOKS[@]}"; do
    say "running $notebook (data: $NEWLLM_DATA_SOURCE, preset: $NEWLLM_PRESET)"
    .venv/bin/python scripts/run_notebook.py "$notebook" \
        --output "runs/demo/$(basename "$notebook")" --cwd "$NEWLLM_RUNS"
done

cp "$(ls -t runs/demo/04_ultrachat/*/newllm/chat.html | head -1)" runs/demo/chat.html
say "done; runs/demo holds (open chat.html in a browser and talk)"
find runs/demo \( -name '*.ipynb' -o -name '*.png' -o -path runs/demo/chat.html \) -not -path '*/checkpoint*' | sort
