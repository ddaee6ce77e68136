"""Failed S3 requests, of either client, as step errors whose messages say what to do."""

import re
from typing import NamedTuple

from botocore.exceptions import ClientError

from artifacts.errors import ObjectMissing, ObjectStoreUnavailable

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]+)</Code>")
_KIND = re.compile(r"HttpError \{\s+kind: (\w+)")
_CAUSE = re.compile(r'(?:message: "|error: "|error: (?=InvalidCertificate))([^"(]+)')


class S3Failure(NamedTuple):
    """status: of the response; None if there was none. code: S3's own, or else the status."""

    status: int | None
    code: str
    reason: str


def boto3_failure(error: ClientError) -> S3Failure:
    """What the server answered to boto3."""
    return S3Failure(error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"], str(error))


def obstore_failure(error: Exception) -> S3Failure:
    """What the server answered to obstore, whose exceptions have no fields: status and code are in their text."""
    summary, _, debug = str(error).partition("\n\nDebug source:\n")
    reason = summary.partition(" - ")[2] or summary
    status, code = _STATUS.search(summary), _CODE.search(summary)
    if status is None:
        causes = [found[1] for found in (_KIND.search(debug), _CAUSE.search(debug)) if found is not None]
        return S3Failure(None, "", f"{reason} ({', '.join(causes)})" if causes else reason)
    return S3Failure(int(status[1]), status[1] if code is None else code[1], reason)


def step_error(failure: S3Failure, location: str, key: str | None) -> ObjectMissing | ObjectStoreUnavailable:
    """The error of a step. location: of the bucket. key: of the object; None if the request was about the bucket."""
    status, code, reason = failure
    if status is None and "redirect" in reason:
        return ObjectStoreUnavailable(f"{location} is in another region; correct DF_S3_REGION")
    if status is None:
        return ObjectStoreUnavailable(f"{location} can't be reached: {reason}")
    if status == 404 and (key is None or code == "NoSuchBucket"):
        return ObjectStoreUnavailable(f"{location} does not exist; create it, or correct DF_S3_BUCKET")
    if status == 404:
        return ObjectMissing(f"{location} has no object {key}; it expired or was deleted")
    if status in {401, 403}:
        return ObjectStoreUnavailable(
            f"{location} denies access ({code}); check DF_S3_ACCESS_KEY, DF_S3_SECRET_KEY, its policy, and "
            "that both clocks are right"
        )
    return ObjectStoreUnavailable(f"{location} answered {status}: {reason}")
