"""The description in /schema of a batch's body, which the service reads itself."""

from dataclasses import dataclass

from litestar.openapi.spec import (
    Example,
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    Reference,
    RequestBody,
    Schema,
)

from app.telemetry.device_id import ID_SCHEMA_PATTERN

_ID = Schema(type=OpenAPIType.STRING, pattern=ID_SCHEMA_PATTERN, description="The device's own name.")
_TIMESTAMP = Schema(
    type=OpenAPIType.STRING,
    format=OpenAPIFormat.DATE_TIME,
    description="RFC 3339 with a zone; at most 7 days back and 5 minutes ahead. A number is understood too: seconds, "
    "milli-, micro- or nanoseconds since 1970, by magnitude.",
)

_DROPPED = "A bad value is dropped, with an entry in `warnings`."


def _number(low: int, high: int, description: str) -> Schema:
    return Schema(type=[OpenAPIType.NUMBER, OpenAPIType.NULL], minimum=low, maximum=high, description=description)


_METER_READING = Schema(
    type=OpenAPIType.OBJECT,
    title="MeterReading",
    description="A reading has either kwhConsumedAc or kwhRegisterAc.",
    required=["meterId", "timestamp"],
    properties={
        "meterId": _ID,
        "timestamp": _TIMESTAMP,
        "kwhConsumedAc": _number(0, 1000, "AC energy since the meter's previous reading, kWh."),
        "kwhRegisterAc": _number(0, 1_000_000_000, "The meter's register: all AC energy that it ever measured, kWh."),
        "voltage": _number(0, 1000, f"Volt. {_DROPPED}"),
    },
)
_VEHICLE_READING = Schema(
    type=OpenAPIType.OBJECT,
    title="VehicleReading",
    description="A reading has either kwhDeliveredDc or kwhRegisterDc.",
    required=["vehicleId", "timestamp"],
    properties={
        "vehicleId": _ID,
        "meterId": Schema(one_of=[_ID, Schema(type=OpenAPIType.NULL)], description="The vehicle's meter, if known."),
        "timestamp": _TIMESTAMP,
        "kwhDeliveredDc": _number(0, 1000, "DC energy since the vehicle's previous reading, kWh."),
        "kwhRegisterDc": _number(0, 1_000_000_000, "The register of the vehicle or its charger, kWh."),
        "soc": _number(0, 100, f"State of charge, percent. {_DROPPED}"),
        "batteryTemp": _number(-60, 150, f"Battery temperature, degrees Celsius. {_DROPPED}"),
    },
)
# Outside the bodies, as components of /schema, each becomes one class of a generated client, whatever sends it.
READINGS = {"MeterReading": _METER_READING, "VehicleReading": _VEHICLE_READING}

_AT_METER: dict[str, object] = {"meterId": "M1", "timestamp": "2026-02-10T14:47:24.841Z"}
METER_EXAMPLE = _AT_METER | {"kwhConsumedAc": 0.4796, "voltage": 232.0}
VEHICLE_EXAMPLE = {"vehicleId": "V1"} | _AT_METER | {"kwhDeliveredDc": 0.4227, "soc": 20.7, "batteryTemp": 30.1}


def _request_body(*names: str, examples: list[dict[str, object]]) -> RequestBody:
    readings = [Reference(f"#/components/schemas/{name}") for name in names]
    reading = readings[0] if len(readings) == 1 else Schema(any_of=[*readings])
    many = Schema(type=OpenAPIType.ARRAY, items=reading, min_items=1, max_items=50_000)
    batch = Schema(any_of=[*readings, many])
    binary = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
    named = {"batch": Example(summary="A batch", value=examples), "single": Example(summary="One", value=examples[0])}
    return RequestBody(
        required=True,
        description="One reading or a batch, at most 16 MiB decoded and 50,000 readings; "
        "`Content-Encoding` may be gzip or zstd. Names may be written in snake_case, and numbers as text.",
        content={
            "application/json": OpenAPIMediaType(schema=batch, examples={**named}),
            "application/x-ndjson": OpenAPIMediaType(schema=binary),
            "application/msgpack": OpenAPIMediaType(schema=binary),
        },
    )


@dataclass
class MixedBatch(Operation):
    """A batch of both streams, told apart by `vehicleId`."""

    def __post_init__(self) -> None:
        self.request_body = _request_body("VehicleReading", "MeterReading", examples=[METER_EXAMPLE, VEHICLE_EXAMPLE])


@dataclass
class MeterBatch(Operation):
    """A batch of meter readings."""

    def __post_init__(self) -> None:
        self.request_body = _request_body("MeterReading", examples=[METER_EXAMPLE])


@dataclass
class VehicleBatch(Operation):
    """A batch of vehicle readings."""

    def __post_init__(self) -> None:
        self.request_body = _request_body("VehicleReading", examples=[VEHICLE_EXAMPLE])
