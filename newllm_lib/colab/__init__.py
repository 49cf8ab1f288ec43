"""The notebooks' side of the library: what is shown, asked and drawn there. No other package may import google.colab,
IPython or ipywidgets."""
