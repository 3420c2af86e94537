"""What changes while a pipeline trains, and its way into a checkpoint and back.

A checkpoint holds the uncut network's weights and momentum, by name: a run can continue on another
number of stages and pipelines.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.options import CommonOptions
from engine.state import State, on_host, refuse_other_shapes
from pipeline.schedule import Place, gather_parts


@dataclass
class PipelineState(State):
    """One process's part of all that changes; the model is its stage.

    Attributes:
        place: of this process.
    """

    place: Place

    def evaluated_weights(self) -> dict[str, Tensor] | None:
        """The uncut network's weights, on the main process; else None (a collective)."""
        return gather_parts(self.model.state_dict(), self.place)

    def snapshot(self, options: CommonOptions, identity: dict[str, Any]) -> Checkpoint | None:
        """A copy of the uncut network, on the main process; else None (two collectives)."""
        mine = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
            if "momentum_buffer" in self.optimizer.state[parameter]
        }
        weights, momentum = self.evaluated_weights(), gather_parts(mine, self.place)
        if weights is None:
            return None
        weights, momentum = on_host([weights, momentum])
        state = self.progress.to_checkpoint(options, identity)
        return Checkpoint(weights, None, {"momentum": momentum}, state)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Take this stage's part of a checkpoint."""
        own = self.model.state_dict()
        self.model.load_state_dict({name: checkpoint.model[name] for name in own})
        momentum = checkpoint.optimizer["momentum"]
        for name, parameter in self.model.named_parameters():
            if name in momentum:
                buffer = momentum[name].to(parameter.device)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        refuse_other_shapes(self.optimizer)
