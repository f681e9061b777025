"""What happened: each request and its end, each fault and its recovery, each broken rule."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field

_BEFORE_S = 1.0  # a fault may have begun to work a moment before it was noted


@dataclass
class Fault:
    """Something that was done to a model, or to the whole box (`model` is "")."""

    kind: str
    model: str
    at_s: float
    bound_s: float  # in which the model has to serve again
    over_s: float | None = None  # it served again

    @property
    def recovery_s(self) -> float | None:
        return None if self.over_s is None else self.over_s - self.at_s


@dataclass
class Ended:
    """A request and how it ended: "ok", "gone" (the client left), or an error's code."""

    model: str
    began_s: float
    ended_s: float
    end: str
    message: str = ""


@dataclass
class Record:
    """All of it; times in s of one monotonic clock."""

    began: int = 0
    requests: list[Ended] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    peak_share: float = 0.0  # of the budget that workers took
    over_s: float = 0.0  # the longest time without a break above 102 % of it
    problems: list[str] = field(default_factory=list)  # found by looking at the processes

    def broken(self) -> list[str]:
        """Return every rule that did not hold, in words."""
        found = list(self.problems)
        if self.began != len(self.requests):
            found.append(f"{self.began} requests began and {len(self.requests)} ended")
        found += [
            f"{request.model}: {request.end} without a fault: {request.message}"
            for request in self.requests
            if request.end not in {"ok", "gone"} and not self._excused(request)
        ]
        for fault in self.faults:
            took = fault.recovery_s
            if took is None:
                found.append(f"{fault.model} never served again after {fault.kind}")
            elif took > fault.bound_s:
                found.append(f"{fault.kind} of {fault.model}: {took:.1f} s, bound {fault.bound_s}")
        return found

    def _excused(self, request: Ended) -> bool:
        return any(
            fault.model == request.model
            and request.ended_s >= fault.at_s - _BEFORE_S
            and (fault.over_s is None or request.began_s <= fault.over_s)
            for fault in self.faults
        )

    def report(self, title: str) -> str:
        """Return the tables of the page."""
        ends = Counter(request.end for request in self.requests)
        failures = {end: n for end, n in ends.items() if end not in {"ok", "gone"}}
        lines = [
            title,
            "",
            f"{len(self.requests)} requests: {ends['ok']} answered, {ends['gone']} left by their "
            f"client, {sum(failures.values())} failed, all of them on a model while a fault "
            "was on it."
            if not self.broken()
            else "**RULES WERE BROKEN**, see below.",
            "",
            "| failed with | requests |",
            "| --- | --- |",
            *(f"| `{code}` | {n} |" for code, n in sorted(failures.items())),
            "",
            "| fault | times | served again after: p50 | p95 | most | bound |",
            "| --- | --- | --- | --- | --- | --- |",
            *(self._row(kind) for kind in sorted({fault.kind for fault in self.faults})),
            "",
            f"Workers took {self.peak_share:.0%} of the budget at the most; they were above 102 %",
            f"for {self.over_s:.1f} s without a break at the most.",
            *(f"* BROKEN: {line}" for line in self.broken()),
            "",
        ]
        return "\n".join(lines)

    def _row(self, kind: str) -> str:
        mine = [fault for fault in self.faults if fault.kind == kind]
        times = sorted(took for fault in mine if (took := fault.recovery_s) is not None)
        if not times:
            return f"| {kind} | {len(mine)} | - | - | - | - |"
        p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
        bound = max(fault.bound_s for fault in mine)
        return (
            f"| {kind} | {len(mine)} | {statistics.median(times):.2f} s | {p95:.2f} s "
            f"| {times[-1]:.2f} s | {bound:.0f} s |"
        )
