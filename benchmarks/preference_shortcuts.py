"""What can be learned from preference pairs without reading them: how often the wanted answer of a held-out pair is
told by a classifier that knows only the lengths of both, and by one that knows only which characters are in them.

    python benchmarks/preference_shortcuts.py --seeds 0 1 2
    python benchmarks/preference_shortcuts.py --data PAIRS.jsonl

Generated pairs are held out by topic, those of a file by prompt.
"""

import argparse
import sys

from newllm_lib.cli import set_up_output
from newllm_lib.preferences.generator import KINDS, preference_pairs
from newllm_lib.preferences.pairs import load_preferences
from newllm_lib.preferences.shortcuts import CLASSIFIERS, held_out_accuracy

HELD_OUT_SHARE = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, help="to generate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the generated pairs")
    parser.add_argument("--data", help="rows of prompt, chosen and rejected, instead of generated pairs")
    options = parser.parse_args()
    set_up_output()
    if options.data is None:
        sets = {f"seed {seed}": preference_pairs(options.pairs, seed, HELD_OUT_SHARE) for seed in options.seeds}
    else:
        splits = load_preferences(data=options.data, held_out_share=HELD_OUT_SHARE, skip_bad_rows=True)
        sets = {options.data: (splits.train.pairs, splits.validation.pairs)}
    for name, (train, held_out) in sets.items():
        print(f"{name}: {len(train):,} pairs to learn from, {len(held_out):,} held out")
        for classifier, features in CLASSIFIERS.items():
            accuracy = held_out_accuracy(train, held_out, features)
            kinds = [f"{kind} {accuracy[kind]:.1%}" for kind in KINDS if kind in accuracy]
            print(f"  {classifier}: {accuracy['all']:.1%}", *kinds, sep=", ")


if __name__ == "__main__":
    sys.exit(main())
