"""The one store: every way in ends here."""
