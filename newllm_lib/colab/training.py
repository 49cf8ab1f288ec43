"""Around a training cell, which calls the stage: a live plot, the copy on Drive, one sentence however it ends."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils.memory import clear_device_cache
from transformers import TrainerCallback

from ..errors import InputError, TrainingDiverged
from ..training.callbacks import TrainingInterrupted
from ..training.checkpoint import newest_checkpoint, read_results
from .drive.drive_copy import callbacks_for, wait_for_drive
from .drive.earlier_runs import fetch_sentences
from .live_plot import LivePlot
from .page.notices import CellStopped, one_sentence, quiet_notebook, say
from .panel.settings_panel import SettingsPanel
from .storage import drive_copier


class LiveTraining:
    """The models of a panel under one live plot. Attributes: `folders` of all models, for the cells below; the
    `unfinished` models, which are left to train, one after the other."""

    def __init__(self, panel: SettingsPanel):
        self.panel = panel
        self.folders = [Path(panel.arguments(model).output_dir) for model in panel.models]
        self.copier = drive_copier(self.folders[0])
        for sentence, status in fetch_sentences(self.copier, self.folders):
            say(sentence, status)
        self.plot, self.unfinished = LivePlot(panel.models), []
        for model, folder in zip(panel.models, self.folders, strict=True):
            if read_results(folder) is None:
                self.unfinished.append(model)
            else:
                self.plot.add_finished(model, folder)
        self.model = next(iter(self.unfinished), panel.models[0])  # the one that trains

    def callbacks(self, model: str) -> tuple[TrainerCallback, ...]:
        """For the stage that trains `model` now; those before it are finished."""
        if model != self.model:
            self.plot.set_state(self.model, "finished")
            self.panel.refresh()  # its line says what is finished and what can be continued
        self.model = model
        self.plot.set_state(model, "preparing the data")
        clear_device_cache(garbage_collection=True)  # of the models of the cells above
        live = self.plot.models[model]
        if self.copier is not None:
            live.on_drive = functools.partial(self.copier.status, self.folder)
        return live, *callbacks_for(self.copier)

    @property
    def folder(self) -> Path:
        return self.folders[self.panel.models.index(self.model)]

    def on_drive(self) -> str:
        """Wait for the last copy; returns the outcome, as a sentence after a blank."""
        sentence = wait_for_drive(self.copier, functools.partial(self.plot.tell_of_drive, self.model))
        self.plot.update()
        return sentence


@contextmanager
def live_training(panel: SettingsPanel) -> Iterator[LiveTraining]:
    """For the `with` of a training cell. What an earlier session has trained is found, or brought back from Drive."""
    with one_sentence():
        quiet_notebook()
        live = LiveTraining(panel)
        try:
            yield live
        except KeyboardInterrupt as stop:
            live.plot.set_state(live.model, "stopped")
            raise CellStopped(f"■ {_stopped(stop, live.folder)}{live.on_drive()}") from None
        except InputError as error:
            live.plot.set_state(live.model, "diverged" if isinstance(error, TrainingDiverged) else "not started")
            raise
        finally:
            panel.refresh()
        where = f"everything is in {live.folder.parent}."
        if live.unfinished:
            live.plot.set_state(live.model, "finished")
            say(f"Trained; {where}{live.on_drive()}")
        else:
            say(f"Nothing to train, for everything was finished before; {where}")


def _stopped(stop: KeyboardInterrupt, folder: Path) -> str:
    if isinstance(stop, TrainingInterrupted):
        # The library's sentence ends in advice for the command line; here the advice is the cell.
        return f"{str(stop).split(' The same command')[0]} Run this cell again to go on from there."
    checkpoint = newest_checkpoint(folder) if folder.is_dir() else None
    kept = f"{checkpoint.name} is kept" if checkpoint else "nothing was saved yet"
    return f"Stopped at once; {kept}. Run this cell again to go on from there."
