"""Which of a model's plans its worker runs: the newest, or, where that fails, the one before.

Pure; the caller brings the clock (monotonic, s). One owner: the model's keeper.
"""

from __future__ import annotations

from msgspec import Struct

from edged.plan import ModelPlan
from edged.protocol import Launch
from edged.supervisor.lifecycle import Limits

_CRASHES = 2  # within the time of proof


class Rejected(Struct, frozen=True):
    """A plan that failed, and why."""

    plan: ModelPlan
    why: str


class Succession:
    """The plan that models.toml wants, the last one that proved itself, and what came between."""

    def __init__(self, plan: ModelPlan, limits: Limits) -> None:
        self.wanted = plan
        self.rejected: Rejected | None = None
        self._proven: ModelPlan | None = None
        self._limits = limits
        self._is_coming = False  # what is wanted is being fetched, and the proven one can run
        self._on_trial_since: float | None = None  # served since then without having proved itself
        self._crashes = 0

    @property
    def target(self) -> ModelPlan:
        """The plan to run: that of models.toml, or the proven one while that is rejected.

        Or while its files are on their way.
        """
        if (self.rejected is not None or self._is_coming) and self._proven is not None:
            return self._proven
        return self.wanted

    @property
    def rolled_back(self) -> str | None:
        """Why the newest plan is not what runs; None while it is."""
        return self.rejected.why if self.rejected and self._proven else None

    def reload(self, plan: ModelPlan, budget_bytes: int) -> None:
        """Want this plan from now on. One that was rejected is tried again.

        One that is refused is rejected at once, unless the proven one does not fit any more.
        """
        if plan.launch != self.wanted.launch:
            self._crashes = 0
            self._on_trial_since = None
        self.wanted = plan
        self.rejected = None
        if self._proven is not None and self._proven.launch == plan.launch:
            self._proven = plan
        self._is_coming = plan.is_fetching and self._can_return(budget_bytes)
        if plan.refusal is not None and self._can_return(budget_bytes):
            self.rejected = Rejected(plan, plan.refusal)
        if plan.engine == "upstream":
            self._proven = None  # nothing to go back to: the model is somebody else's now

    def is_on_trial(self, launch: Launch) -> bool:
        """Return whether this launch has yet to show that it is as good as the one before it."""
        return self._proven is not None and self._proven.launch != launch

    def ready(self, plan: ModelPlan, now: float) -> None:
        """Note that a worker of this plan serves."""
        if self._proven is None:
            self._proven = plan
        elif self._proven.launch != plan.launch and self._on_trial_since is None:
            self._on_trial_since = now

    def look(self, launch: Launch, now: float) -> float | None:
        """Take a launch for proven when its time is over; return when to look again."""
        if self._on_trial_since is None or launch != self.wanted.launch:
            return None
        left_s = self._on_trial_since + self._limits.proving_s - now
        if left_s > 0:
            return left_s
        self._proven, self._on_trial_since, self._crashes = self.wanted, None, 0
        return None

    def failed(self, launch: Launch, why: str) -> bool:
        """Note that a launch cannot work; return whether another takes its place."""
        if not self.is_on_trial(launch) or launch != self.wanted.launch:
            return False
        self.rejected = Rejected(self.wanted, why)
        self._on_trial_since = None
        return True

    def did_not_come_up(self, launch: Launch, why: str, *, for_good: bool) -> bool:
        """Note that a worker of it never served; return whether another takes its place."""
        return self.failed(launch, why) if for_good else self.crashed(launch, why)

    def crashed(self, launch: Launch, why: str) -> bool:
        """Note that a worker of this launch died; return whether another takes its place."""
        if not self.is_on_trial(launch):
            return False
        self._crashes += 1
        enough = self._crashes >= _CRASHES
        return enough and self.failed(launch, f"it died {self._crashes} times; the last: {why}")

    def _can_return(self, budget_bytes: int) -> bool:
        if self._proven is None or self._proven.memory is None:
            return False
        return self._proven.memory.total_bytes <= budget_bytes
