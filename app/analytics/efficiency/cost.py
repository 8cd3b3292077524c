"""The price of lost energy."""


def cost(milliwh: int, price_per_kwh: float | None) -> float | None:
    """Returns what this energy costs; None without a price. It has the sign of the energy."""
    return None if price_per_kwh is None else milliwh * price_per_kwh / 1_000_000
