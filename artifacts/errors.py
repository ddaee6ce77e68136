"""Errors about images and objects.

StepError (`orchestrator.step_errors`)
├── InvalidSource             final      invalid_input       the source object is not a usable image
├── ObjectMissing             final      provider_error      an object is missing from the store
├── ObjectChanged             final      provider_error      an object differs from what was written
└── ObjectStoreUnavailable    retryable  infra_unavailable   the object store is unreachable or denies access
"""

from orchestrator.step_errors import InvalidInput, ProviderError, StepFailure


class InvalidSource(InvalidInput):
    """The source object is not an image, is damaged, or has too many pixels."""


class ObjectMissing(ProviderError):
    """An object that the log records is not in the store: it expired or was deleted."""


class ObjectChanged(ProviderError):
    """An object differs from the one that was written: something else replaced or damaged it."""


class ObjectStoreUnavailable(StepFailure):
    """The object store is unreachable or rejects the request. A retry can succeed."""

    error_code = "infra_unavailable"
    retryable = True
