"""The options of share.py."""

import re
from dataclasses import dataclass

from engine.fields import Options, input_option, output_option
from errors import UserError


@dataclass
class ShareOptions(Options):
    """Options of share.py."""

    run: str = input_option("", "folder of the run")
    repo: str = output_option("", "owner/name on the hub; made if it isn't there")
    private: bool = output_option(False, "make it visible to you alone, if it is made now")
    license: str = output_option("", "of the weights, such as apache-2.0; for the card")
    folder: str = output_option("", "write the files here instead of sending them, to look at")

    def check(self) -> None:
        """Refuse a command without a run or a place to go."""
        super().check()
        if not self.run:
            raise UserError("--run is missing; give the folder of a run, such as --run runs/mine.")
        if bool(self.repo) == bool(self.folder):
            raise UserError(
                "Give either --repo owner/name, or --folder to look at the files first."
            )
        if self.repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise UserError(f"--repo is {self.repo}; give it as owner/name.")
