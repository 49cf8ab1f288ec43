"""What a notebook shows and asks. No other package may import google.colab, IPython or ipywidgets."""

import logging

from IPython import get_ipython

from ..cli import quiet_libraries
from ..progress import Progress
from .page.languages import text
from .page.progress_line import NotebookLine

if get_ipython() is not None:
    Progress.place, Progress.words = NotebookLine(), staticmethod(text)
quiet_libraries()  # before the first of them is imported: some speak up when they are
# From ours only warnings, and none of stage 6, whose the live plot shows.
logging.getLogger("newllm_lib").setLevel(logging.WARNING)
logging.getLogger("newllm_lib.preferences.trainer").setLevel(logging.ERROR)
with Progress(desc="loading the libraries"):
    from transformers import Trainer  # noqa: F401  what every cell needs, in ten seconds that are not silent here
