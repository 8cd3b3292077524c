"""The sentence of an alert, for people. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from app.analytics.alerts.judge import Kind
from app.csv_rows import stamp
from app.telemetry.reading import Stream


def sentence_of(
    kind: Kind, stream: str, device: str, others: str, closed: datetime | None, evidence: Mapping[str, Any]
) -> str:
    """Returns what an alert says of its device, and of the `others` at the other end."""
    match kind:
        case Kind.LOW_EFFICIENCY:
            return (
                f"{evidence['lossKwh']:.2f} of {evidence['acKwh']:.2f} kWh AC from {others} did not reach {device} "
                f"in the 24 hours before this alert: efficiency {100 * evidence['efficiencyRatio']:.1f} %. "
                f"Who else charges there: {', '.join(map(_VEHICLES.format, others.split(', ')))}"
            )
        case Kind.IMPOSSIBLE_EFFICIENCY:
            return (
                f"{device} took {evidence['dcKwh']:.2f} kWh DC of {evidence['acKwh']:.2f} kWh AC from {others} "
                f"in the 24 hours before this alert: "
                f"efficiency {100 * evidence['efficiencyRatio']:.1f} % is impossible."
            )
        case Kind.FROZEN_METER:
            return (
                f"{device} measured nothing, or one value again and again, for {evidence['frozenMinutes']} minutes "
                f"or more, while {evidence['dcKwh']:.2f} kWh DC reached {others}."
            )
        case Kind.FROZEN_VEHICLE:
            return (
                f"{device} measured nothing, or one value again and again, for {evidence['frozenMinutes']} minutes "
                f"or more, while it took {evidence['acKwh']:.2f} kWh AC from {others}."
            )
        case Kind.IMPLAUSIBLE_ENERGY:
            energy = evidence["acKwh"] if stream == Stream.METER else evidence["dcKwh"]
            counted = "1 reading" if evidence["readings"] == 1 else f"{evidence['readings']:,} readings"
            return (
                f"{device} sent {counted} with {energy:,.2f} kWh, which would take more than its limit of "
                f"{evidence['limitKw']:g} kW: {LOOKS_LIKE[evidence['looksLike']]}. "
                f"{TO_DO[evidence['looksLike']]}"
            )
        case Kind.NO_DATA:
            last_seen = _to_the_second(datetime.fromisoformat(evidence["lastSeen"]))
            if closed is None:
                return f"The {stream} {device} has sent nothing since {last_seen}."
            return f"The {stream} {device} was silent from {last_seen} to {_to_the_second(closed)}."


# A neighbour that is silent now may have been seen earlier in the week.
_VEHICLES = "/v1/analytics/meters/{}/vehicles?hours=168"
LOOKS_LIKE = {
    "register": "it looks like a register, the total of a meter, sent as the energy since the previous reading",
    "wh": "it looks like Wh sent as kWh",
    "step": "it looks like a step, which no charge explains",
}
TO_DO = {
    "register": "Send it as kwhRegisterAc, of a vehicle as kwhRegisterDc.",
    "wh": "Divide it by 1,000.",
    "step": "See what the device sent. If it can take so much, `wattline device limit` says so.",
}


def _to_the_second(at: datetime) -> str:
    return stamp(at.replace(microsecond=0))
