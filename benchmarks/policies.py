"""What each policy does to what a memory knows, on streams that change in known ways, beside an oracle.

    python -m benchmarks.policies [--seed N] [--seeds N] [--quick] [--only SCENARIO …] [--modes MODE …]
                                  [--policies NAME …] [--rank R] [--events N] [--json FILE] [--markdown FILE]

Policies were tuned on seeds 0 to 19; report on seeds from 1000. The error is ‖S k − v‖ / ‖v‖ on the associations of
the topic in force that are true now, after each event, the mean over events; `previous` is the same over those told on
an earlier visit and not yet again. The oracle is told the shifts and the topics, and takes the best of its actions in
hindsight, one for each scenario and mode (`benchmarks.policy_oracle`). Gain share: (none − policy) / (none − oracle);
where the oracle gains less than 5 % there is nothing to win, and only harm counts: policy / none − 1.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.policy_oracle import BEST_ACTIONS, run_oracle, run_soft
from benchmarks.policy_report import markdown
from benchmarks.policy_scenarios import PRIVATE, SCENARIOS, STATIONARY, Floats32, Streams, make
from benchmarks.report import print_table
from memory.probes import probe_errors
from memory.rule import Mode, coefficients
from memory.threads import torch_threads
from memory.writers import Segments
from monitors.detectors import parse_detector
from monitors.observations import Observations
from monitors.policies import POLICIES, AdaptiveGatesPolicy, Policy, TopicBelief, load_policy
from monitors.policy_runner import PolicyRunner
from monitors.topic_shift import TopicShiftMonitor

Floats = npt.NDArray[np.float64]

GATES: dict[str, tuple[float, float | None]] = {
    "plain": (0.5, None),
    "coupled": (0.18, None),
    "decay_outside": (0.5, 0.99),
    "gated": (0.5, 0.995),
}
"""β and λ of each mode: the consumer's default; the paper's first gate; retentions that halve in 70 and 140 events."""
SHIFTS: dict[str, Any] = {"name": "shewhart", "width": 1.5, "warm_up": 3, "cool_down": 2, "floor": 0.015}
NORMS: dict[str, Any] = {"name": "shewhart", "width": 6.0, "side": "both"}
"""The detectors that the policies on alarms hear: of `TopicShiftMonitor`'s score, and of the state's norm."""
LEAST_GAIN = 0.05
"""Of the error of `none`: where the oracle gains less, there is nothing to win."""
RESAMPLES = 5_000
SOFT = "archive, soft"


@dataclass(slots=True)
class Tally:
    """Errors of N lanes, summed over events: on what is true now, and on what was told on an earlier visit only."""

    streams: Streams
    now: Floats = field(init=False)
    previous: Floats = field(init=False)
    counts: Floats = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.streams.seeds)
        self.now, self.previous, self.counts = np.zeros(n), np.zeros(n), np.zeros((2, n))

    def look(self, states: Floats32, t: int) -> None:
        """Ask the states `[N, R, R]` for what is true after event t."""
        asked = self.streams.asked[:, t]
        n = np.arange(len(asked))
        pairs = [
            part[n[:, None], np.maximum(asked, 0)][:, :, None] for part in (self.streams.keys, self.streams.values)
        ]
        errors = probe_errors(torch.from_numpy(states[:, None]), n, *pairs)[:, :, 0].astype(np.float64)
        old = (asked >= 0) & (asked < self.streams.begins[:, t][:, None])
        for row, (sums, those) in enumerate(((self.now, asked >= 0), (self.previous, old))):
            count = those.sum(axis=1)
            sums += np.where(those, errors, 0).sum(axis=1) / np.maximum(count, 1)
            self.counts[row] += count > 0

    def means(self) -> tuple[Floats, Floats]:
        """Return each lane's two means over events, `[N]`; NaN where nothing was ever asked."""
        with np.errstate(invalid="ignore"):
            return self.now / self.counts[0], self.previous / self.counts[1]


def writer(mode: str) -> Any:
    """Return the rule of that mode as a plain function of states `[n, R, R]`, for the oracle."""
    beta, lam = GATES[mode]
    keep, erase, write = (
        float(one)
        for one in coefficients(Mode.parse(mode), torch.tensor(beta), None if lam is None else torch.tensor(lam))
    )

    def step(states: Floats32, keys: Floats32, values: Floats32) -> Floats32:
        change = write * values - erase * np.einsum("nij,nj->ni", states, keys)
        after: Floats32 = (keep * states + change[:, :, None] * keys[:, None, :]).astype(np.float32)
        return after

    return step


def topic_alarms(streams: Streams) -> npt.NDArray[np.bool_]:
    """Return what `SHIFTS` says of each event's distance from the recent past, `[N, E]`."""
    n, events, dim = streams.embeddings.shape
    monitor, detector = TopicShiftMonitor(dim), parse_detector(SHIFTS)
    lanes, slots = detector.new_lanes(), np.arange(n)
    lanes.resize(n)
    monitor.lanes.resize(n)
    raised = np.zeros((n, events), np.bool_)
    for t in range(events):
        raised[:, t] = detector.update(lanes, slots, monitor.measure(slots, streams.embeddings[:, t]))
    return raised


def run_policy(streams: Streams, policy: Policy, mode: str, shifts: npt.NDArray[np.bool_], tally: Tally) -> Floats:
    """Run N lanes under a policy; return each lane's actions per 1,000 events."""
    n, events, rank = streams.keys.shape
    runner = PolicyRunner(policy, heads=1, rank=rank, dim=streams.embeddings.shape[2], mode=mode)
    runner.resize(n)
    states, slots, bounds = torch.zeros(n, 1, rank, rank), np.arange(n), np.arange(n + 1)
    beta, lam = (None if gate is None else torch.full((n, 1, 1), gate) for gate in GATES[mode])
    watches_norm = "state_norm" in getattr(policy, "on", ())
    detector = parse_detector(NORMS)
    lanes = detector.new_lanes()
    lanes.resize(n)
    actions = np.zeros(n)
    for t in range(events):
        key, value = (torch.from_numpy(part[:, t][:, None].copy()) for part in (streams.keys, streams.values))
        assert beta is not None
        written = Segments(slots, bounds, key, key, value, beta, lam)
        before = runner.before(states, slots, written, streams.embeddings[:, t])
        norm = written.scan(states, slots, mode).state_norm[:, 0].numpy().astype(np.float64)
        alarms = {"topic_shift": shifts[:, t], "non_finite": ~np.isfinite(norm)}
        if watches_norm:
            alarms["state_norm"] = detector.update(lanes, slots, norm)
        acted = runner.after(states, slots, written, before, Observations(slots, {"state_norm": norm}, alarms))
        actions += acted.kind != 0
        tally.look(states[:, 0].numpy(), t)
    rate: Floats = 1000 * actions / events
    return rate


def policy_of(name: str, rank: int) -> Policy:
    """Return the policy of that name or YAML file."""
    policy = load_policy(name)
    return policy.model_copy(update={"rank": rank}) if isinstance(policy, AdaptiveGatesPolicy) else policy


def measure(streams: Streams, mode: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for the oracle and one for each policy."""
    step, shifts, rank = writer(mode), topic_alarms(streams), streams.keys.shape[2]
    hindsight: dict[str, tuple[Floats, Floats]] = {}
    for action in BEST_ACTIONS:
        tally = Tally(streams)
        run_oracle(streams, action, step, tally.look)
        hindsight[action] = tally.means()
    best = min(BEST_ACTIONS, key=lambda action: float(hindsight[action][0].mean()))
    none = hindsight["nothing"][0]
    gain = float(none.mean() - hindsight[best][0].mean())
    winnable = gain / float(none.mean()) >= LEAST_GAIN
    common = {"scenario": streams.scenario, "mode": mode, "rank": rank, "seeds": len(none)}
    note = "" if winnable else f"nothing to win: the oracle gains {100 * gain / float(none.mean()):.1f} %"
    yield common | _row(
        "oracle", hindsight[best], none, gain if winnable else None, 0.0, f"{note}{'; ' if note else ''}{best}"
    )
    for name in names:
        start, tally = time.perf_counter(), Tally(streams)
        if name == SOFT:
            run_soft(streams, step, tally.look, TopicBelief())
            acts = np.zeros(len(none))
        else:
            acts = run_policy(streams, policy_of(name, rank), mode, shifts, tally)
        row = _row(name, tally.means(), none, gain if winnable else None, float(acts.mean()), note)
        yield common | row | {"seconds": round(time.perf_counter() - start, 2)}


def _row(
    name: str, errors: tuple[Floats, Floats], none: Floats, gain: float | None, actions: float, note: str
) -> dict[str, Any]:
    now, previous = errors
    difference = now - none
    share = None if gain is None else round(float(-difference.mean()) / gain, 4) + 0.0
    return {
        "policy": name,
        "error_mean": round(float(now.mean()), 5),
        "error_ci95": _interval(now),
        "difference_mean": round(float(difference.mean()), 5) + 0.0,
        "difference_ci95": _interval(difference),
        "error_previous": None if np.isnan(previous).all() else round(float(np.nanmean(previous)), 5),
        "oracle_gain_share": share,
        "harm_ratio": round(float(now.mean() / none.mean()) - 1, 5) + 0.0,
        "actions_per_1000": round(actions, 2),
        "note": note,
    }


def _interval(numbers: Floats) -> list[float]:
    """95 % bootstrap interval of the mean over seeds; of differences within seeds, it is the paired one."""
    drawn = np.random.Generator(np.random.Philox(key=1)).integers(0, len(numbers), (RESAMPLES, len(numbers)))
    return [round(float(bound), 5) + 0.0 for bound in np.quantile(numbers[drawn].mean(axis=1), [0.025, 0.975])]


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each mode and policy the mean gain share, and the most harm on stationary and on all other streams."""
    found = []
    for mode in [*dict.fromkeys(row["mode"] for row in rows), "all"]:
        for name in dict.fromkeys(row["policy"] for row in rows):
            those = [row for row in rows if mode in (row["mode"], "all") and row["policy"] == name]
            shares = [row["oracle_gain_share"] for row in those if row["oracle_gain_share"] is not None]
            harm = {
                kind: max(
                    (row["harm_ratio"] for row in those if (row["scenario"] in STATIONARY) is still), default=None
                )
                for kind, still in (("stationary", True), ("other", False))
            }
            found.append(
                {
                    "mode": mode,
                    "policy": name,
                    "mean_gain_share": round(float(np.mean(shares)), 4) if shares else None,
                    "scenarios_to_win": len(shares),
                    "most_harm_stationary": harm["stationary"],
                    "most_harm_elsewhere": harm["other"],
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1000, help="the first of the seeds")
    parser.add_argument("--seeds", type=int, default=None, help="how many [default: 24; quick: 20]")
    parser.add_argument("--quick", action="store_true", help="mode plain, 288 events, no real conversations")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=None, metavar="SCENARIO")
    parser.add_argument("--modes", nargs="+", choices=list(GATES), default=None, metavar="MODE")
    parser.add_argument("--policies", nargs="+", default=None, metavar="NAME", help="names or YAML files")
    parser.add_argument("--rank", type=int, default=32, help="R")
    parser.add_argument("--events", type=int, default=None, help="of a stream [default: 576; quick: 288]")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    quick = arguments.quick
    seeds = arguments.seeds or (20 if quick else 24)
    events = arguments.events or (288 if quick else 576)
    modes = arguments.modes or (["plain"] if quick else list(GATES))
    names = arguments.policies or [*POLICIES, SOFT]
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    with torch_threads(1):
        for scenario in arguments.only or [name for name in SCENARIOS if not quick or name != "locomo"]:
            if scenario == "locomo" and not PRIVATE.exists():
                skipped[scenario] = "the private conversations are not here"
                continue
            streams = make(scenario, range(arguments.seed, arguments.seed + seeds), arguments.rank, events)
            for mode in modes:
                rows.extend(measure(streams, mode, names))
                print(f"{scenario}, {mode}: done", flush=True)
    for scenario, reason in skipped.items():
        print(f"skipped {scenario}: {reason}")
    shown = ("scenario", "mode", "policy", "error_mean", "error_previous", "oracle_gain_share", "harm_ratio")
    for mode in modes:
        those = [{key: row[key] for key in (*shown, "actions_per_1000")} for row in rows if row["mode"] == mode]
        print_table(
            f"policies, mode {mode}, R = {arguments.rank}, seeds {arguments.seed}–{arguments.seed + seeds - 1}", those
        )
    totals = summary(rows)
    print_table("mean share of the oracle's gain, and the most harm", totals)
    result = {
        "first_seed": arguments.seed,
        "seeds": seeds,
        "events": events,
        "rank": arguments.rank,
        "skipped": skipped,
        "summary": totals,
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(result))


if __name__ == "__main__":
    main()
