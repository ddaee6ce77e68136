"""What can go wrong with an image or its object.

StepError (`orchestrator.step_errors`)
├── InvalidSource             final      invalid_input       the source object is not a usable image
├── ObjectMissing             final      provider_error      an object is gone from the store
├── ObjectChanged             final      provider_error      an object is not what was written
└── ObjectStoreUnavailable    retryable  infra_unavailable   the object store is away, or denies access
"""

from orchestrator.step_errors import InvalidInput, ProviderError, StepError


class InvalidSource(InvalidInput):
    """The source object holds no image, a broken one, or one of too many pixels."""


class ObjectMissing(ProviderError):
    """An object that the log says was written is not in the store: expired, or removed by hand."""


class ObjectChanged(ProviderError):
    """An object is not the one that was written: replaced or damaged behind the service's back."""


class ObjectStoreUnavailable(StepError):
    """The object store can't be reached or refuses the request; it works again once it, or its set-up, is mended."""

    error_code = "infra_unavailable"
    retryable = True
