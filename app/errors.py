"""The error tree: each error with its code, its status and its public sentence.

    WattlineError
      SetupError            a command cannot run: one line for the operator, exit status 1
      ServiceError          a request cannot be served: one problem document (RFC 9457)
        MalformedBody, EmptyBatch, InvalidTimeRange, InvalidParameter          400
        CrossSite                                                              403
        NotFound, NoChargingData, UnknownDevice                                404
        MethodNotAllowed                                                       405
        BodyTooSlow                                                            408
        MappingOverlap                                                         409
        BodyTooLarge, BatchTooLarge                                            413
        UnsupportedMediaType                                                   415
        MisdirectedRequest                                                     421
        AllRejected                                                            422
        TooManyNewDevices                                                      429
        InternalError                                                          500
        Busy, StoreUnavailable                                                 503
        Away, DiskFull, Frozen, Locked, OutOfConnections, ReadOnly             503

A class's docstring is its public sentence; `detail` says what was wrong this time.
Duplicates, late readings and single bad readings are not errors: the receipt counts them.
"""

from typing import Any, ClassVar

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """A problem document (RFC 9457). `code` is stable; `title` is its sentence; `detail` describes this error."""

    type: str
    title: str
    status: int
    code: str
    detail: str


class WattlineError(Exception):
    """The base of all errors that Wattline raises on purpose."""


class SetupError(WattlineError):
    """A command cannot run. The message is the one line that the operator reads: what is wrong and what to do."""


class ServiceError(WattlineError):
    """A request cannot be served."""

    code: ClassVar[str]
    status: ClassVar[int]
    retry_after_seconds: ClassVar[int | None] = None

    def __init__(self, detail: str | None = None, *, headers: dict[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail or self.title())
        self.detail = detail or self.title()
        after = self.retry_after_seconds
        self.headers = headers or ({} if after is None else {"Retry-After": str(after)})
        self.members = members

    @classmethod
    def title(cls) -> str:
        """Returns the class's public sentence."""
        return (cls.__doc__ or "").strip()

    def problem(self) -> dict[str, Any]:
        """Returns the members of the problem document, with those that this error adds."""
        document = Problem(f"urn:wattline:problem:{self.code}", self.title(), self.status, self.code, self.detail)
        return {**msgspec.structs.asdict(document), **self.members}


class MalformedBody(ServiceError):
    """The body cannot be decoded."""

    code, status = "malformed_body", 400


class EmptyBatch(ServiceError):
    """The batch holds no reading."""

    code, status = "empty_batch", 400


class InvalidTimeRange(ServiceError):
    """The time range is not valid."""

    code, status = "invalid_time_range", 400


class InvalidParameter(ServiceError):
    """A parameter or member of the request is not valid."""

    code, status = "invalid_parameter", 400


class CrossSite(ServiceError):
    """A web page of another origin may not send this request."""

    code, status = "cross_site", 403


class NotFound(ServiceError):
    """There is nothing at this path."""

    code, status = "not_found", 404


class NoChargingData(ServiceError):
    """No charging data found in the window."""

    code, status = "no_charging_data", 404


class UnknownDevice(ServiceError):
    """No device with this id is known."""

    code, status = "unknown_device", 404


class MethodNotAllowed(ServiceError):
    """The path does not take this method."""

    code, status = "method_not_allowed", 405


class BodyTooSlow(ServiceError):
    """The body did not arrive in time; send the request again."""

    code, status = "body_too_slow", 408


class MappingOverlap(ServiceError):
    """The vehicle is already mapped to a meter during part of that time."""

    code, status = "mapping_overlap", 409


class BodyTooLarge(ServiceError):
    """The body is too large: a batch has at most 16 MiB decoded, any other body 64 KiB."""

    code, status = "body_too_large", 413


class BatchTooLarge(ServiceError):
    """The batch holds more than 50,000 readings."""

    code, status = "batch_too_large", 413


class UnsupportedMediaType(ServiceError):
    """The content type or content encoding is not supported."""

    code, status = "unsupported_media_type", 415


class MisdirectedRequest(ServiceError):
    """The request names a host that is not this service's."""

    code, status = "misdirected_request", 421


class AllRejected(ServiceError):
    """Every reading of the batch was rejected."""

    code, status = "all_rejected", 422


class TooManyNewDevices(ServiceError):
    """Too many new devices were registered within the hour."""

    code, status, retry_after_seconds = "too_many_new_devices", 429, 600


class InternalError(ServiceError):
    """Something went wrong in the service; its log has the request id."""

    code, status = "internal_error", 500


class Busy(ServiceError):
    """The service has more to do than it can hold; send the request again."""

    code, status, retry_after_seconds = "busy", 503, 1


class StoreUnavailable(ServiceError):
    """The database does not do what was asked; ask again."""

    code, status, retry_after_seconds = "store_unavailable", 503, 1


class Away(ServiceError):
    """The database cannot be reached; ask again."""

    code, status, retry_after_seconds = "away", 503, 1


class DiskFull(ServiceError):
    """The database's disk is full; send the batch again once there is room."""

    code, status, retry_after_seconds = "disk_full", 503, 10


class Frozen(ServiceError):
    """The database does not answer; ask again."""

    code, status, retry_after_seconds = "frozen", 503, 1


class Locked(ServiceError):
    """Someone else holds a lock on a table of the database; ask again."""

    code, status, retry_after_seconds = "locked", 503, 1


class OutOfConnections(ServiceError):
    """The database takes no more connections; ask again."""

    code, status, retry_after_seconds = "out_of_connections", 503, 1


class ReadOnly(ServiceError):
    """The database only lets read; send the batch again once it takes writes."""

    code, status, retry_after_seconds = "read_only", 503, 1
