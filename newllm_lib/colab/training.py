"""The training cell: every model of the panel in turn, under one live plot."""

import functools
from pathlib import Path

from accelerate.utils.memory import clear_device_cache

from ..errors import InputError, TrainingDiverged
from ..training.callbacks import TrainingInterrupted
from ..training.checkpoint import newest_checkpoint, read_results
from .drive.drive_copy import wait_for_drive
from .drive.earlier_runs import fetch_sentences
from .live_plot import LivePlot
from .page.notices import CellStopped, in_one_sentence, quiet_notebook, say, warnings_in_the_plot
from .panel.settings_panel import SettingsPanel
from .storage import drive_copier


@in_one_sentence
def train_models(panel: SettingsPanel) -> list[Path]:
    """Train the panel's models one after the other, or go on where an earlier session stopped. Returns the models'
    folders, for the cells below."""
    quiet_notebook()
    arguments = {model: panel.arguments(model) for model in panel.models}
    folders = [Path(args.output_dir) for args in arguments.values()]
    copier = drive_copier(folders[0])
    for sentence, status in fetch_sentences(copier, folders):
        say(sentence, status)
    finished = [folder for folder in folders if read_results(folder) is not None]
    plot = LivePlot(panel.models)
    for (model, args), folder in zip(arguments.items(), folders, strict=True):
        if folder in finished:
            plot.add_finished(model, folder)
            continue
        plot.set_state(model, "preparing the data")
        clear_device_cache(garbage_collection=True)  # of the models of the cells above
        callbacks = [plot.callback(model)]
        if copier is not None:
            plot.models[model].on_drive = functools.partial(copier.status, folder)
            callbacks.append(copier.callback())
        try:
            with warnings_in_the_plot():
                panel.stage.run(args, tuple(callbacks))
        except KeyboardInterrupt as stop:
            plot.set_state(model, "stopped")
            on_drive = wait_for_drive(copier, functools.partial(plot.tell_of_drive, model))
            plot.update()
            raise CellStopped(f"■ {_stopped(stop, folder)}{on_drive}") from None
        except InputError as error:
            plot.set_state(model, "diverged" if isinstance(error, TrainingDiverged) else "not started")
            raise
        finally:
            panel.refresh()  # its line says what is finished and what can be continued
        plot.set_state(model, "finished")
    if len(finished) == len(folders):
        say(f"Nothing to train, for everything was finished before; everything is in {folders[0].parent}.")
        return folders
    on_drive = wait_for_drive(copier, functools.partial(plot.tell_of_drive, panel.models[-1]))
    plot.update()
    say(f"Trained; everything is in {folders[0].parent}.{on_drive}")
    return folders


def _stopped(stop: KeyboardInterrupt, folder: Path) -> str:
    if isinstance(stop, TrainingInterrupted):
        # The library's sentence ends in advice for the command line; here the advice is the cell.
        return f"{str(stop).split(' The same command')[0]} Run this cell again to go on from there."
    checkpoint = newest_checkpoint(folder) if folder.is_dir() else None
    kept = f"{checkpoint.name} is kept" if checkpoint else "nothing was saved yet"
    return f"Stopped at once; {kept}. Run this cell again to go on from there."
