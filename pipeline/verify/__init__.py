"""Proves a ROOT's invariants (design, "Invariants") from its files alone."""
