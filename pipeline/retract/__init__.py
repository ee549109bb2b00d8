"""Withdrawing rows for good: `jobs.retract`, and the tombstones that every later run honours."""
