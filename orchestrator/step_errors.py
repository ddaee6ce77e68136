"""What can go wrong within a step.

    StepFailure
    ├── InvalidInput              final      invalid_input       what was asked for can't be done
    ├── ProviderError             final      provider_error      the engine or upscaler gave up
    ├── OutOfMemory               retryable  oom                 the picture did not fit beside its neighbours
    ├── OutOfTime                 retryable  timeout             the attempt took too long; what it wrote is kept
    └── Unexpected                retryable  internal            a bug, or something that nobody foresaw

Those of images and their objects are in `artifacts.errors`. After a retryable error the step is tried again later, a
limited number of times; after a final one its job fails.
"""

from typing import ClassVar

from orchestrator.events import ErrorCode


class StepFailure(Exception):
    """A step failed; the message says why, and stands in the job for its user to read."""

    error_code: ClassVar[ErrorCode]
    retryable: ClassVar[bool] = False

    def __str__(self) -> str:
        """The message, whatever an engine or a library wrote in it: PostgreSQL's text holds no U+0000."""
        return super().__str__().encode(errors="replace").decode().replace("\0", "")


class InvalidInput(StepFailure):
    """What the job asks for can't be done."""

    error_code = "invalid_input"


class ProviderError(StepFailure):
    """The engine or the upscaler gave up."""

    error_code = "provider_error"


class OutOfMemory(StepFailure):
    """Memory ran out; beside other neighbours, or on another machine, the step may fit."""

    error_code = "oom"
    retryable = True


class OutOfTime(StepFailure):
    """An attempt took longer than it may; the next one goes on where it was."""

    error_code = "timeout"
    retryable = True


class Unexpected(StepFailure):
    """An error that no handler knows. The job tells its kind alone; the runner's log has the rest."""

    error_code = "internal"
    retryable = True

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the step broke on an unexpected {type(error).__name__}; see the runner's log")


def to_step_error(error: Exception) -> StepFailure:
    """Whatever broke a step, as the error that its job tells."""
    if isinstance(error, StepFailure):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("the image did not fit into the memory")
    return Unexpected(error)
