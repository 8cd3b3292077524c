"""The service as its clients see it: receipts, and the number of readings that it has of a device."""

import asyncio
import random
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from app.errors import SetupError
from app.loops import backoff_seconds
from app.simulator.devices import Reading

CONNECTIONS = 16
"""This keeps the writer busy with batches of any size, and stays below Mosquitto's limit of 20 messages in flight."""

_TIMEOUT_S = 30
_LONGEST_PAUSE_S = 5.0
_AGAIN = {408, 425, 429}
# The registry never lags.
_FOR_GOOD = datetime.max.replace(tzinfo=UTC)


class Outcome(msgspec.Struct):
    """The outcome of a batch: its receipt, with `rejected` as the code by position in the batch.

    A broker only knows that it has the message: then `inserted` and `duplicates` are None.
    """

    rejected: dict[int, str]
    inserted: int | None = None
    duplicates: int | None = None
    committed_at: datetime | None = None


class Service:
    """Sends each request until it is answered, with a pause after no answer or a 5xx; `retries` counts the repeats."""

    def __init__(self, url: str) -> None:
        """Raises SetupError when `url` is not a URL."""
        self.retries = 0
        self._url = url
        try:
            self._client = httpx.AsyncClient(
                base_url=url,
                headers={"Content-Type": "application/json"},
                timeout=_TIMEOUT_S,
                limits=httpx.Limits(max_connections=CONNECTIONS),
            )
        except httpx.InvalidURL as error:
            raise SetupError(f"--url is {url!r}: {error}.") from None

    async def __aenter__(self) -> Self:
        """Raises SetupError when no Wattline that is ready answers there."""
        try:
            answer = await self._client.get("/health/ready")
        except httpx.HTTPError as error:
            await self._client.aclose()
            reason = str(error).rstrip(".") or type(error).__name__
            raise SetupError(f"{self._url} cannot be reached: {reason}. Another one: --url.") from None
        if _document(answer).get("status") != "ok":
            await self._client.aclose()
            raise SetupError(f"No Wattline is ready at {self._url}: {_code(answer)}.")
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._client.aclose()

    async def send(self, readings: list[Reading]) -> Outcome:
        """Sends a batch until it is answered."""
        answer = await self._answer("POST", "/v1/telemetry", msgspec.json.encode(readings))
        document = _document(answer)
        if "rejected" not in document:
            return Outcome(dict.fromkeys(range(len(readings)), _code(answer)), 0, 0)
        rejected = {entry["index"]: entry["code"] for entry in document["rejected"]}
        committed_at = datetime.fromisoformat(document["committedAt"])
        return Outcome(rejected, document["inserted"], document["duplicates"], committed_at)

    async def register(self, vehicle_id: str, meter_id: str) -> None:
        """Maps a vehicle to a meter."""
        body = msgspec.json.encode({"vehicleId": vehicle_id, "meterId": meter_id})
        answer = await self._answer("POST", "/v1/ingestion/mapping", body)
        if not answer.is_success:
            raise SetupError(f"A mapping was refused: {_code(answer)}.")

    async def stored(self, device: str, since: datetime) -> tuple[int, datetime | None]:
        """Returns the number of a device's readings, and the instant up to which every committed one counts."""
        path = f"/v1/analytics/{device}/series"
        answer = await self._answer("GET", path, params={"from": since.isoformat(), "bucket": "1m"})
        document = _document(answer)
        if _code(answer) == "unknown_device":
            return 0, _FOR_GOOD
        if not answer.is_success:
            raise SetupError(f"The service does not answer for {device}: {_code(answer)}.")
        as_of = document["asOf"]
        return sum(document["columns"]["readings"]), None if as_of is None else datetime.fromisoformat(as_of)

    async def _answer(
        self, method: str, path: str, body: bytes | None = None, params: dict[str, Any] | None = None
    ) -> httpx.Response:
        pauses = 0
        while True:
            asked_s = 0.0
            try:
                answer = await self._client.request(method, path, content=body, params=params)
                if answer.status_code not in _AGAIN and not answer.is_server_error:
                    return answer
                asked_s = float(answer.headers.get("Retry-After", 0))
            except httpx.TransportError:
                pass  # the service is starting, stopping or away
            self.retries += 1
            longest_s = backoff_seconds(pauses, first=0.2, longest=_LONGEST_PAUSE_S)
            await asyncio.sleep(asked_s + random.uniform(0, longest_s))  # noqa: S311 - spreads
            pauses += 1


def _document(answer: httpx.Response) -> dict[str, Any]:
    """Returns the JSON object of an answer; an empty one for any other body, since anything may listen there."""
    try:
        document = answer.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _code(answer: httpx.Response) -> str:
    return str(_document(answer).get("code", f"status {answer.status_code}"))
