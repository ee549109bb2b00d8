"""What a verification checked and what it found."""

from collections.abc import Iterable
from dataclasses import dataclass, field

SHOWN = 20
"""Breaches kept word for word in each check; the rest are counted."""


@dataclass
class Check:
    """One check of one invariant: how many things were looked at, and every breach."""

    invariant: int
    name: str
    checked: int = 0
    breaches: int = 0
    first: list[str] = field(default_factory=list)
    note: str = ""

    def add(self, checked: int, breaches: Iterable[str] = ()) -> None:
        self.checked += checked
        for breach in breaches:
            self.breaches += 1
            if len(self.first) < SHOWN:
                self.first.append(breach)

    def add_more(self, hidden: int) -> None:
        """Count breaches that are not told one by one."""
        self.breaches += hidden


@dataclass
class Report:
    root: str
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self, invariant: int, name: str) -> Check:
        found = next((check for check in self.checks if check.name == name), None)
        if found is None:
            found = Check(invariant, name)
            self.checks.append(found)
        return found

    @property
    def breaches(self) -> int:
        return sum(check.breaches for check in self.checks)
