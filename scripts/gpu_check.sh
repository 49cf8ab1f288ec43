#!/usr/bin/env bash
# What this library does on an NVIDIA GPU, in some five minutes on a large card: the tests, the speed of updates, of whole
# runs and of generation, and stage 5 on Gemma-2B's shapes. The figures are one page, runs/gpu_check/figures.txt.
# Needs no network. usage: bash scripts/gpu_check.sh [STEP...]    steps: tests updates runs generation lwf; all by default
#   NEWLLM_PYTHON=PATH     interpreter (python3)
#   NEWLLM_TEST_JOBS=N     tests at a time (one a core, 14 at most)
set -uo pipefail
cd "$(dirname "$0")/.."
python=${NEWLLM_PYTHON:-python3}
out=runs/gpu_check
steps=${*:-tests updates runs generation lwf}
cores=$(nproc)
jobs=${NEWLLM_TEST_JOBS:-$((cores < 14 ? cores : 14))}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
mkdir -p "$out"

"$python" - <<'PYTHON' || exit 2
import importlib.util
import sys

needed = "torch transformers datasets accelerate peft trl bitsandbytes matplotlib ipywidgets IPython pytest xdist parameterized hypothesis"
missing = [name for name in needed.split() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"gpu_check.sh needs {', '.join(missing)}: pip install -e '.[qlora,dpo,sweep,test]'")
import torch

if not torch.cuda.is_available():
    sys.exit("gpu_check.sh needs an NVIDIA GPU that torch can see.")
PYTHON

say() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
run() { # NAME LINES COMMAND...: its last lines on the page, all of it in a log beside it
    local name=$1 lines=$2
    shift 2
    "$@" >"$out/$name.log" 2>&1 || echo "$name failed; $out/$name.log has it all"
    grep -v -e 'Writing model shards' -e '^$' "$out/$name.log" | tail -n "$lines"
}

{
    say "versions"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$python" -c "
import sys, torch, transformers, triton
print(f'Python {sys.version.split()[0]}, torch {torch.__version__}, Triton {triton.__version__}, transformers {transformers.__version__}')"
    for step in $steps; do
        say "$step"
        case $step in
        tests)
            run tests 40 env OMP_NUM_THREADS=1 "$python" -m pytest -q -p no:cacheprovider --numprocesses "$jobs" --dist loadfile \
                -m "not slow and not image and not browser" --ignore tests/notebooks --ignore tests/browser --ignore tests/fuzz
            ;;
        updates)
            run updates 40 "$python" benchmarks/throughput.py --batch_size 32 128 2048 --max_length 64 128 128 --models newllm lstm tiny-gpt2 \
                --output_dir "$out/updates"
            run updates-10M 30 "$python" benchmarks/throughput.py --batch_size 32 128 2048 --max_length 64 128 128 --num_parameters 10000000 \
                --models newllm lstm tiny-gpt2 --output_dir "$out/updates-10M"
            ;;
        runs)
            run runs 9 "$python" benchmarks/whole_runs.py --output_dir "$out/runs"
            run runs-gpu 9 "$python" benchmarks/whole_runs.py --num_parameters 12000000 --batch_size 64 --max_length 256 --updates 80 --output_dir "$out/runs-gpu"
            ;;
        generation) run generation 20 "$python" benchmarks/generation.py --output_dir "$out/generation" ;;
        lwf) run lwf 30 "$python" benchmarks/lwf_speed.py ;;
        *) echo "no step is called $step" ;;
        esac
    done
    say "done"
} 2>&1 | tee "$out/figures.txt"
