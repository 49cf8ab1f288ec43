"""What a notebook shows and asks. No other package may import google.colab, IPython or ipywidgets."""

from ..cli import quiet_libraries

quiet_libraries()  # before the first of them is imported: some speak up when they are
