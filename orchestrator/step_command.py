"""The command that a queue carries: run this step of this job."""

from uuid import UUID

import msgspec

from eventstore.outbox import Claim, Outbox
from orchestrator.events import StepName
from orchestrator.step_kinds import expect_known_steps


class StepCommand(msgspec.Struct, frozen=True, kw_only=True):
    """Run a step of a job. version: of the job's stream when it was decided."""

    job_id: UUID
    step_id: UUID
    step: StepName
    version: int

    def __post_init__(self) -> None:
        expect_known_steps(self.step)

    @property
    def stream(self) -> UUID:
        """The stream that the command is about."""
        return self.job_id


StepClaim = Claim[StepCommand]
StepOutbox = Outbox[StepCommand]

decode = msgspec.json.Decoder(StepCommand).decode
"""A command from its JSON text. Raises `msgspec.MsgspecError` for one that this release can't read."""
