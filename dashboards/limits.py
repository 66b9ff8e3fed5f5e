"""Where a value begins to be bad: the same numbers draw the lines on the dashboards and raise the alerts."""

from __future__ import annotations

from monitors.policies.archive import ArchivePolicy
from monitors.policies.guard import BUDGET_EVENTS

LAG_SECONDS = 60.0
"""Mean lag of events, in seconds, above which one that still grows raises an alert."""

LAG_GROWTH = 0.05
"""Seconds that the lag grows in a second: at 0.05, what comes in is a twentieth more than what is done."""

BACKLOG_BYTES = 100e6
"""Backlog in bytes above which one that still grows raises an alert: some minutes of a fast source."""

REFUSED_SHARE = 0.01
"""Share of the lines read that may be refused."""

WEEK_RATIO = 1.2
"""Retrieval error over the mean of its own week above which it counts as high."""

WEEK_DEVIATIONS = 3.0
"""Standard deviations of its own week by which it must lie above that mean as well."""

SHIFT_SHARE = 0.2
"""Share of events that begin a new topic above which there may be a storm of shifts."""

SHIFT_DAY_RATIO = 3.0
"""How many times its own day that share must be as well."""

ACTION_SHARE: float = ArchivePolicy.model_fields["budget"].default / BUDGET_EVENTS
"""Share of events that may replace or freeze a state: the budget of `archive`, the policy with the largest one."""

POOL_SHARE = 0.9
"""Share of the pool's bound that may be in use."""

RETURN_SHARE = 0.1
"""States brought back from the store for each event, above which the pool is too small for the active streams."""

CHECKPOINT_SECONDS = 300.0
"""Age of the last checkpoint, in seconds, above which there ought to have been another, if there was work."""

TURN_SECONDS = 60.0
"""Seconds without a turn of the loop, above which it counts as stuck; `/-/healthy` takes the same."""

COPY_SECONDS = 7200.0
"""Age of the last copy of the store, in seconds, above which one was missed at the default of one an hour."""

EXPOSITION_SECONDS = 0.05
"""What one exposition may cost the loop, in seconds."""

RESTARTS = 3
"""Starts in an hour that are still no loop of crashes."""
