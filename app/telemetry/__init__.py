"""The measurements: readings of meters (AC, grid side) and of vehicles (DC, battery side)."""
