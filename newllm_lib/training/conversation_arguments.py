"""What the stages that learn from conversations have in common: the settings that say which, and their loading."""

from dataclasses import dataclass
from typing import Literal

from ..data.conversations import ConversationSplits, load_conversations
from .arguments import StageArguments, setting


@dataclass
class ConversationArguments(StageArguments):
    """What a stage that learns from conversations takes of them."""

    dataset: str | None = setting(
        None, "dailydialog, dolly, ultrachat, ... (newllm data lists them), or an id on the hub.", group="Data"
    )
    max_samples: int | None = setting(
        None, "Rows of the data to take, the first ones.", group="Data", low=1_000, high=1_500_000, log=True
    )
    held_out: Literal["hash", "random"] = setting(
        "hash", "Held out by what a conversation says, or drawn at random as in the published runs."
    )
    held_out_share: float = setting(0.05, "Share held out where the data have no validation split.")
    loss_on: Literal["assistant", "all"] = setting(
        "assistant", "Learn the assistant's words only, or every token.", group="Training"
    )
    too_long: Literal["turns", "cut"] = setting(
        "turns", "Keep whole turns of a conversation that is too long, or cut it."
    )

    def load_conversations(self) -> ConversationSplits:
        """The conversations these settings name.

        Raises:
            InputError: bad file or row, unknown dataset or source, or data out of reach.
        """
        return load_conversations(
            self.dataset,
            self.data_source,
            self.data,
            self.eval_data,
            self.skip_bad_rows,
            self.held_out,
            self.held_out_share,
            self.max_samples,
        )
