"""Keep the libraries below us to errors: what a run has to say, it says itself."""

import warnings

import datasets
import transformers


def quiet_libraries() -> None:
    """No warnings and no progress bars of transformers and datasets, nor of what one library calls by an old name in
    another."""
    warnings.filterwarnings("ignore", r".* is deprecated and will be removed in v6", FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
