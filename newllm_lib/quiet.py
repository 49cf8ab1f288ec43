"""Keep the libraries below us to errors: what a run has to say, it says itself."""

import logging
import warnings

import datasets
import transformers


def quiet_libraries() -> None:
    """No warnings and no progress bars of transformers and datasets, nor of what one library calls by an old name in
    another; nor of bitsandbytes, which on a CPU with bf16 misses a package when it is imported."""
    warnings.filterwarnings("ignore", r".* is deprecated and will be removed in v6", FutureWarning)
    # Checkpoints may follow each other quickly; their numbers show their order as well.
    warnings.filterwarnings("ignore", "mtime may not be reliable")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
