"""Decisions: one a pool row, with the rule that dropped it."""
