"""The events of a model's stream. Pure."""

from typing import Any, ClassVar, Literal

import msgspec

from orchestrator.events.base import DomainEvent, Level
from orchestrator.events.steps import StepName
from orchestrator.step_kinds import expect_known_steps

ModelKind = Literal["generator", "gan-upscaler", "diffusion-upscaler"]


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a model. path: relative, with slashes; sha256: of its bytes, lower-case hex; size: in bytes."""

    path: str
    sha256: str
    size: int


class ModelRegistered(DomainEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A model was made known, its files read. It may be used once it is enabled, too.

    version: the model's own. parameters_schema: JSON Schema of what may be asked of it. trusted: whoever added it lets
    files be opened that may run code then (pickles).
    """

    code: ClassVar[str] = "model.registered"
    name: str
    kind: ModelKind
    version: str
    source_uri: str
    local_path: str
    files: list[ModelFile]
    capabilities: list[StepName]
    parameters_schema: dict[str, Any]
    trusted: bool = False

    def __post_init__(self) -> None:
        expect_known_steps(*self.capabilities)

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Model {self.name} {self.version} registered: {self.kind}, {len(self.files)} file(s)."


class ModelEnabled(DomainEvent, frozen=True, kw_only=True):
    """Jobs may use the model."""

    code: ClassVar[str] = "model.enabled"

    def message(self) -> str:
        """The text of the event's log line."""
        return "Model enabled."


class ModelDisabled(DomainEvent, frozen=True, kw_only=True):
    """No new job may use the model."""

    code: ClassVar[str] = "model.disabled"

    def message(self) -> str:
        """The text of the event's log line."""
        return "Model disabled."


class ModelVerified(DomainEvent, frozen=True, kw_only=True):
    """The model's files were read again. problems: a sentence for each difference; none if it is intact."""

    code: ClassVar[str] = "model.verified"
    intact: bool
    problems: list[str]

    @property
    def level(self) -> Level:
        """A damaged model is worth a warning."""
        return "info" if self.intact else "warning"

    def message(self) -> str:
        """The text of the event's log line."""
        return "Model verified: intact." if self.intact else f"Model damaged: {'; '.join(self.problems)}."


ModelEvent = ModelRegistered | ModelEnabled | ModelDisabled | ModelVerified
"""Every event of a model's stream."""
