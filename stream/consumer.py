"""The consumer: input in, records out, and a checkpoint that makes the two agree after any crash.

    source → reader → micro-batch → engine → sink, dead letters, metrics → commit

The loop owns everything but the reader's thread and the HTTP thread. What has been processed counts only when a
checkpoint is committed: the sink and the dead letters are flushed, then lanes, positions, their lengths and the
counters go into one transaction. A restart takes the last checkpoint, cuts the files back to it and reads on from
there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import TypeVar

import numpy as np
import structlog

from memory.errors import ConfigurationError
from memory.lane_state import Slots
from memory.state_pool import LaneRecord
from monitors.catalogue import SIGNAL_HISTOGRAMS
from monitors.forgetting import ForgettingTracker, by_age
from monitors.metrics import Metrics
from monitors.policies.policy import ActionKind
from stream import store_patience
from stream.assembly import batch_tokens, build_engine, null_model, tape_head
from stream.batch import Batcher, MicroBatch
from stream.careful_reader import CarefulReader
from stream.config import RunSettings
from stream.crash_guard import CrashGuard
from stream.crash_note import starts_path
from stream.dead_letters import DeadLetterFile, letter_of_gap
from stream.engine import Engine, Outcome
from stream.event import EventParser, Reason
from stream.lag import lags
from stream.operators import Operators
from stream.reader import Reader
from stream.recovery import Recovered, go_back
from stream.shadows import label_of, open_shadows
from stream.sinks import JsonlSink, Sink, open_sink
from stream.sources import FileSource, Source, open_source
from stream.sources.file_source import ENDINGS
from stream.sources.position import Position
from stream.spoken_log import log_texts
from stream.store import AwayError, Checkpoint, FencedError, OutputMark, PassingError, StateStore
from stream.store_copy import StoreCopier
from stream.store_errors import NO_ROOM
from stream.tape import TapeWriter

log = structlog.get_logger(__name__)

T = TypeVar("T")

NO_MARK = (None, "")
"""Where an output begins that the checkpoint does not know."""

DEAD_LETTERS = "dead_letters"
"""Under which the checkpoint keeps the mark of their file."""

IDLE = 0.2
"""Seconds without input after which the loop looks around: for a signal, or for a checkpoint that is due."""

ASK_EVERY = 1.0
"""Seconds between looks into the store for what operators ask for."""


def pauses() -> Iterator[float]:
    """Yield how long to wait before the next try, in seconds: doubling up to ten, for ever.

    >>> from itertools import islice
    >>> [round(pause, 1) for pause in islice(pauses(), 8)]
    [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]
    """
    pause = 0.1
    while True:
        yield min(pause, 10.0)
        pause *= 2


@dataclass(slots=True)
class Totals:
    """What one run of the loop did.

    Attributes
    ----------
    events, tokens, lines
        Counts.
    seconds
        From the first batch to the end.
    stages
        Stage → seconds.
    drained
        Whether everything that was read was also processed.
    """

    events: int = 0
    tokens: int = 0
    lines: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    drained: bool = True


class Consumer:
    """One run of `ebbtide run`. Its life:

    1. The constructor loads the model and checks the settings; it changes nothing on the disk.
    2. `open()` takes the store over, resumes from its checkpoint, and opens source, sink and dead letters.
    3. `run()` consumes until the input ends or `stop` is called, and commits.
    4. `close()`, always: lets go of files, threads and the store. What no checkpoint holds is dropped.

    `stop()` may be called from a signal handler or from another thread, at any time.

    Parameters
    ----------
    settings
        What to do.
    recover
        Whether to go back to an earlier checkpoint where the last one is damaged (`stream.recovery`).
    accept_gap
        Whether to go on where what was still to be read of the source is gone (`stream.sources.gap`).
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        recover: bool = False,
        accept_gap: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        if settings.source is None:
            raise ConfigurationError("--source is needed: file:PATH or stdin:")
        if recover and settings.state is None:
            raise ConfigurationError("--recover: expected a --state to recover, got none")
        if accept_gap and settings.state is None:
            raise ConfigurationError("--accept-gap: expected a --state, without which nothing is resumed, got none")
        self.settings = settings
        self._recover, self._accept_gap = recover, accept_gap
        self.metrics = Metrics(publish_on_commit=settings.state is not None)
        self.store: StateStore | None = None
        self.copier: StoreCopier | None = None
        self._copies = (0, 0)
        self._told_of_duplicates = False
        self._asked_at = 0.0
        self.source: Source = open_source(
            settings.source,
            follow=settings.follow,
            stdin_continues=settings.stdin_continues,
            accept_gap=accept_gap,
        )
        self.sink: Sink | None = None if settings.sink is None else open_sink(settings.sink)
        self.dead_letter_path = dead_letter_path(settings)
        self.dead_letters = None if self.dead_letter_path is None else DeadLetterFile(self.dead_letter_path)
        self.engine: Engine = build_engine(settings, fetch=self._fetch)
        # A dry run: the policy acts on the lanes of a shadow, and nothing on the live ones.
        challengers = ([settings.policy] if settings.dry_run else []) + list(settings.shadow)
        self.shadows = open_shadows(
            challengers,
            self.engine,
            max_bytes=settings.pool_bytes,
            fetch=lambda name, lanes: self._fetch(lanes, name),
        )
        self.label = "none" if settings.dry_run else label_of(settings.policy)
        self.operators = Operators(self.engine, self.metrics, self._last_acted, taped=settings.tape is not None)
        self.tape: TapeWriter | None = None
        self.engine.writer.keeps_rows = settings.tape is not None or bool(self.shadows)
        if settings.tape is not None:
            self.tape = TapeWriter(settings.tape, tape_head(settings, self.engine))
        parser = EventParser(
            strict=settings.strict, max_line_bytes=settings.max_line_bytes, vocabulary=self.engine.backbone.vocabulary
        )
        self.reader: Reader | CarefulReader = Reader(self.source, parser, self.engine.backbone)
        self.guard = CrashGuard(settings.crash_limit, settings.batch_events)
        self.totals = Totals()
        self.forgetting = ForgettingTracker()
        null = null_model(self.engine.writer)
        known = null is not None and np.isfinite(null.half_life)
        self.metrics.set("ebbtide_null_half_life_writes", null.half_life if null and known else None)
        for policy, role in self._roles():
            for kind in ActionKind:
                self.metrics.add("ebbtide_policy_actions_total", 0, policy, role, kind.label)
        self.ready = False
        self.blocked: str | None = None
        """Why nothing is read now: where there is no room for what was done already; None mostly."""
        self._lacked_room = True
        self.last_tick = clock()
        self._clock = clock
        self._stopping = Flag()
        """Waited for on other threads only: a signal's handler sets it in the midst of whatever the loop's does."""
        self._stop_hint: str | None = None
        self._told_at: float | None = None
        self._stop_at: float | None = None
        self._positions: dict[str, Position] = {}
        self._uncommitted = 0
        self._open = ExitStack()

    def open(self) -> None:
        """Resume from the last checkpoint, or begin.

        Raises
        ------
        ConfigurationError
            Something is not there, is in use, or does not fit; nothing that was there before was changed.
        """
        self._refuse_own_output()
        stopper = Thread(target=self._close_source, name="stopper", daemon=True)
        stopper.start()
        self._open.callback(stopper.join)
        self._open.callback(self._stopping.set)
        checkpoint = Checkpoint()
        recovered: Recovered | None = None
        if self.settings.state is not None:
            if self._recover:
                recovered = go_back(self.settings.state, self._check_outputs)
                if recovered is None:
                    log.info("nothing_to_recover", state=self.settings.state)
            self.store = StateStore(self.settings.state, patience=self._patience)
            self._open.callback(self.store.close)
            self.store.claim(self.engine.writer.settings, [shadow.name for shadow in self.shadows])
            checkpoint = self.store.load()
            if self.tape is not None:
                self.operators.remember(self.store.acted())
        self.metrics.restore(checkpoint.counters)
        if recovered is not None:
            self.metrics.add("ebbtide_recoveries_total")
            log.warning(
                "recovered",
                checkpoint=recovered.checkpoint,
                origin=str(recovered.origin),
                damaged_store=str(recovered.aside),
                why=recovered.why,
                hint="the outputs are cut back to it; events since are read again; operators' actions since are gone",
            )
        if self.sink is not None:
            self.sink.open(*checkpoint.marks.get(self.sink.name, NO_MARK))
            self._open.callback(self.sink.close)
        if self.dead_letters is not None:
            self.dead_letters.open(*checkpoint.marks.get(DEAD_LETTERS, NO_MARK))
            self._open.callback(self.dead_letters.close)
        if self.tape is not None:
            self.tape.open(*checkpoint.marks.get(self.tape.name, NO_MARK))
            self._open.callback(self.tape.close)
        self.source.open(checkpoint.positions)
        if self.source.gaps:
            self.commit()  # as below: there is something to write before the first checkpoint
        self._positions.update(self.source.beginnings)
        self._tell_of_gaps()
        self._open.callback(self.source.close)
        if self.store is not None and self.store.path is not None:
            self.copier = StoreCopier(self.store.path, self.settings.copy_every, clock=self._clock)
            self._open.callback(self.copier.close)
        begun = {name: place.offset for name, place in (*checkpoint.positions.items(), *self._positions.items())}
        self.commit()  # killed before its first checkpoint, a run would find its own files and refuse them
        resumed = {name: position.offset for name, position in checkpoint.positions.items()}
        log.info("resumed" if resumed else "started", source=self.settings.source, offsets=resumed)
        if self.store is not None and not self.settings.stdin_continues:  # there, what comes next is another line
            path = starts_path(self.store.path, self.dead_letter_path)
            self.guard.begin(path, self.store.identity, begun)
            self._open.callback(self.guard.excuse)
        if self.guard.careful and isinstance(self.reader, Reader):
            self.reader = CarefulReader(self.reader, self.source, self.guard)
        self.reader.start()
        self._open.callback(self.reader.join)
        self._open.callback(self.reader.stop)
        self.ready = True

    def _refuse_own_output(self) -> None:
        """Refuse a source that would read what this run writes."""
        if not isinstance(self.source, FileSource):
            return
        given = self.source.path.resolve()
        for path in (self.dead_letter_path, self.sink.path if isinstance(self.sink, JsonlSink) else None):
            if path is not None and (path.resolve() == given or _is_read_in(given, path.resolve())):
                raise ConfigurationError(
                    f"{path}: expected an output that the source {self.source.path} does not read, got one that it "
                    "would; write it somewhere else"
                )

    def _tell_of_gaps(self) -> None:
        """Put what is missing of the source, and was accepted, on record; the first checkpoint holds that."""
        gaps = self.source.gaps
        if self._accept_gap and not gaps:
            log.info("no_gap_to_accept", source=self.settings.source)
        for gap in gaps:
            known = {"from": gap.start} | ({} if gap.end is None else {"to": gap.end})
            log.warning("gap_accepted", partition=gap.partition, **known, why=gap.why, hint=gap.hint)
        if self.dead_letters is not None:
            self.dead_letters.write(letter_of_gap(gap) for gap in gaps)
        self.metrics.add("ebbtide_source_gaps_total", len(gaps))
        if gaps:
            self.metrics.add("ebbtide_dead_letters_total", len(gaps), Reason.SOURCE_GAP)

    def _check_outputs(self, checkpoint: Checkpoint) -> None:
        """Raise where an output does not hold a checkpoint (any more)."""
        outputs = {output.name: output for output in (self.sink, self.tape) if output is not None}
        for name, mark in checkpoint.marks.items():
            if name in outputs:
                outputs[name].check(*mark)
            elif name == DEAD_LETTERS and self.dead_letters is not None:
                self.dead_letters.check(*mark)

    def _close_source(self) -> None:
        """Once told to stop, close the source, whoever waits for it at that moment: `open`, or the reader."""
        self._stopping.wait()
        if self._stop_hint is not None:
            log.warning("told_to_stop", hint=self._stop_hint)
        self.guard.excuse()
        self.reader.stop()

    def run(self, each: Callable[[], None] = lambda: None) -> Totals:
        """Consume until the end of the input, or until `stop`.

        Parameters
        ----------
        each
            Called after each micro-batch and while idle, such as to move a progress bar.
        """
        with self.guard.watch():
            return self._consume(each)

    def _consume(self, each: Callable[[], None]) -> Totals:
        batcher = Batcher(
            self.reader.receive,
            max_events=self.settings.batch_events,
            max_tokens=batch_tokens(self.settings),
            linger=self.settings.linger,
            clock=self._clock,
        )
        begun = committed = self._clock()
        self._act(begun)
        for batch in batcher.batches(IDLE):
            if batch is not None:
                self._take(batch)
                self.guard.let_go(event=bool(batch.events))
            now = self.last_tick = self._clock()
            if self._act(now):
                committed = self._clock()
            full = self.store is not None and any(engine.pool.wants_commit for engine in self._engines())
            if self._uncommitted and (full or self.guard.careful or now - committed >= self.settings.checkpoint_every):
                self.commit()
                committed = self._clock()
            if self.copier is not None:
                self._look_at_copies(self.copier)
            self.totals.seconds = now - begun
            each()
            if self._stopping.is_set() and not self._may_go_on(now):
                self.totals.drained = False
                break
        self.ready = False
        if self._uncommitted:
            self.commit()
        self.totals.seconds = self._clock() - begun
        log.info(
            "stopped" if self._stopping.is_set() else "finished", events=self.totals.events, drained=self.totals.drained
        )
        return self.totals

    def _look_at_copies(self, copier: StoreCopier) -> None:
        copier.look()
        now = (copier.made, copier.failed)
        if now != self._copies:
            self.metrics.add("ebbtide_store_copies_total", now[0] - self._copies[0])
            self.metrics.add("ebbtide_store_copy_failures_total", now[1] - self._copies[1])
            if now[0] > self._copies[0]:
                self.metrics.set("ebbtide_last_store_copy_timestamp_seconds", time.time())
            self._copies = now

    def _act(self, now: float) -> bool:
        """Do what operators asked for, and commit it; say whether there was anything."""
        requests = []
        if self.store is not None and now - self._asked_at >= ASK_EVERY:
            self._asked_at = now
            self._insist(self._hold)
            requests = self._insist(self.store.requests)
        if not self.operators.waiting and not requests:
            return False
        if not self.operators.take(requests):
            return False
        self.commit()
        return True

    def _last_acted(self, stream: str) -> bytes | None:
        done = self.store.acted(stream) if self.store is not None else []
        return next((acted.before for acted in reversed(done) if acted.before is not None), None)

    def _engines(self) -> Iterator[Engine]:
        yield self.engine
        yield from (shadow.engine for shadow in self.shadows)

    def _roles(self) -> Iterator[tuple[str, str]]:
        """Yield each policy's name and role, as in the metrics: the live one, then the shadows."""
        yield self.label, "live"
        yield from ((shadow.name, "shadow") for shadow in self.shadows)

    def stop(self, hint: str | None = None) -> None:
        """Read no more; what was read is still processed, within the deadline. The hint goes into the log."""
        if self._told_at is None:
            self._stop_hint = hint
            self._told_at = self._clock()
        self._stopping.set()

    def _patience(self) -> float:
        """Seconds for which a database may say nothing: after a stop, no more than is left of its deadline."""
        if self._told_at is None:
            return store_patience.SILENCE
        return max(0.1, min(store_patience.SILENCE, self._told_at + self.settings.drain - self._clock()))

    def close(self) -> None:
        """Let go of everything."""
        self.ready = False
        self.operators.close()
        self._open.close()

    def commit(self) -> None:
        """Make everything processed so far safe, in one transaction.

        Without room on a disk, or where one may not be written, this waits and tries again: nothing is read meanwhile,
        and nothing is lost. A stop ends the waiting when its deadline is over.

        Raises
        ------
        EbbtideError, OSError
            It cannot be stored, and waiting does not help.
        """
        self._insist(self._commit)

    def _insist(self, work: Callable[[], T]) -> T:
        """Do what the disk or the database may refuse for now, as often as it takes."""
        for pause in pauses():
            try:
                done = work()
            except FencedError:
                self.metrics.add("ebbtide_fenced_commits_total")
                raise
            except (OSError, PassingError) as error:
                if isinstance(error, OSError) and error.errno not in NO_ROOM:
                    raise
                if self._stopping.is_set() and not self._may_go_on(self._clock()):
                    raise
                self._wait_for_room(error, pause)
            else:
                break
        if self.blocked is not None:
            log.info("there_is_room_again" if self._lacked_room else "the_store_is_back")
            self.blocked = None
            self.metrics.set("ebbtide_waiting_for_room", 0)
        return done

    def _hold(self) -> None:
        if self.store is not None:
            self.store.hold(lately=True)

    def _fetch(self, lanes: Sequence[str], shadow: str | None = None) -> Mapping[str, LaneRecord]:
        store = self.store
        return {} if store is None else self._insist(lambda: store.fetch(lanes, shadow))

    def _wait_for_room(self, error: Exception, pause: float) -> None:
        reason = str(error)
        if self.blocked is None:
            self._lacked_room = not isinstance(error, AwayError)
            what = "there is room" if self._lacked_room else "the database answers"
            log.error(
                "no_room" if self._lacked_room else "store_away",
                reason=reason,
                hint=f"the run waits, reads nothing, and goes on when {what}",
            )
        self.blocked = reason
        self.metrics.set("ebbtide_waiting_for_room", 1)
        until = self._clock() + pause
        with self.guard.waiting():
            while self._clock() < until and not self._stopping.is_set():
                self.last_tick = self._clock()
                time.sleep(min(IDLE, pause))
            if self._stopping.is_set():
                time.sleep(IDLE)
        self.last_tick = self._clock()

    def _commit(self) -> None:
        if self.store is not None:
            self.store.hold()  # one that was overtaken writes into no file either
        with self._timed("sink"):
            marks: dict[str, OutputMark] = {}
            if self.sink is not None:
                marks[self.sink.name] = OutputMark(self.sink.flush(), self.sink.identity)
            if self.dead_letters is not None:
                marks[DEAD_LETTERS] = OutputMark(self.dead_letters.flush(), self.dead_letters.identity)
            if self.tape is not None:
                marks[self.tape.name] = OutputMark(self.tape.flush(), self.tape.identity)
        if self.store is not None:
            with self._timed("commit"):
                counters = self.metrics.persistent()
                try:
                    written = self.store.commit(
                        self.engine.pool.records(),
                        self._positions,
                        marks,
                        counters,
                        shadows={shadow.name: shadow.engine.pool.records() for shadow in self.shadows},
                        acted=self.operators.acted,
                    )
                except Exception:
                    self.metrics.add("ebbtide_checkpoint_failures_total")
                    raise
                for engine in self._engines():
                    engine.pool.committed()
                self.metrics.publish(counters)
                self.metrics.add("ebbtide_checkpoint_lanes_total", written)
                self.metrics.set("ebbtide_streams_stored", self._insist(self.store.count))
            self.metrics.add("ebbtide_checkpoints_total")
            self.metrics.set("ebbtide_last_checkpoint_timestamp_seconds", time.time())
        self.operators.committed()
        if self._uncommitted:
            self.guard.progress(self._positions)
        self._positions.clear()
        self._uncommitted = 0

    def _may_go_on(self, now: float) -> bool:
        """After a stop: whether there is time left for what was read already."""
        if self._stop_at is None:
            self._stop_at = now if self._told_at is None else self._told_at
            self.ready = False
            log.info("draining", deadline_seconds=self.settings.drain, chunks=self.reader.waiting)
        return now - self._stop_at < self.settings.drain

    def _take(self, batch: MicroBatch) -> None:
        start = time.perf_counter()
        with self._timed("pool"):
            slots = self._sift(batch)
        streams = list(dict.fromkeys(event.stream for event in batch.events)) if self.shadows else []
        for shadow in self.shadows:
            shadow.meet(streams)
        outcome = self.engine.process(batch.events, batch.ids, slots)
        for stage, seconds in (outcome.seconds | batch.seconds).items():
            self._spent(stage, seconds)
        with self._timed("shadows"):
            followed = [shadow.follow(outcome) for shadow in self.shadows] if batch.events else []
        if self.settings.dry_run and followed:
            outcome.would = followed[0].actions
        self._insist(self._hold)
        if self.tape is not None:
            outcome.by_hand = self.operators.taped(outcome)
        with self._timed("sink"):
            if self.sink is not None:
                self.sink.write(outcome)
            if self.dead_letters is not None:
                self.dead_letters.write(batch.dead)
        if self.tape is not None:
            with self._timed("tape"):
                self.tape.write(outcome)
        if self.settings.log_text:
            log_texts(outcome, batch.dead)
        self._positions.update(batch.positions)
        self._uncommitted += batch.line_count
        self.totals.events += len(batch.events)
        self.totals.tokens += batch.token_count
        self.totals.lines += batch.line_count
        with self._timed("export"):
            self._count(batch, outcome)
            self._compare([outcome, *followed])
            self.metrics.observe("ebbtide_batch_seconds", time.perf_counter() - start)

    def _sift(self, batch: MicroBatch) -> Slots:
        """Count events that came again, and those out of order; leave out the former, if told to. Return the lanes."""
        slots, repeated, late = self.engine.sift(batch.events)
        self.metrics.add("ebbtide_late_events_total", int(late.sum()))
        if not repeated.any():
            return slots
        self.metrics.add("ebbtide_duplicate_events_total", int(repeated.sum()))
        if self.settings.duplicates == "take":
            return slots
        if not self._told_of_duplicates:
            self._told_of_duplicates = True
            log.warning(
                "duplicates_refused",
                stream=batch.events[int(repeated.argmax())].stream,
                hint="events whose id their stream had before go to the dead letters; where ids are not one an "
                "event: --duplicates take",
            )
        window = self.settings.dedupe_window
        batch.refuse(repeated, Reason.DUPLICATE, f"id: expected a new one, got one of the stream's last {window}")
        return slots[~repeated]

    def _count(self, batch: MicroBatch, outcome: Outcome) -> None:
        metrics, pool = self.metrics, self.engine.pool
        metrics.add("ebbtide_events_total", len(batch.events))
        metrics.add("ebbtide_tokens_total", batch.token_count)
        metrics.add("ebbtide_source_bytes_total", batch.byte_count)
        metrics.add("ebbtide_source_lines_total", batch.line_count)
        for letter in batch.dead:
            metrics.add("ebbtide_dead_letters_total", 1, letter.reason)
        for name, raised in outcome.alarms.items():
            metrics.add("ebbtide_alarms_total", int(raised.sum()), name)
        kinds = np.bincount(outcome.actions.kind, minlength=len(ActionKind))
        for kind in ActionKind:
            metrics.add("ebbtide_actions_total", int(kinds[kind]), kind.label, "policy")
        if outcome.would is not None:
            tried = np.bincount(outcome.would.kind, minlength=len(ActionKind))
            for kind in ActionKind:
                metrics.add("ebbtide_actions_total", int(tried[kind]), kind.label, "dry_run")
        metrics.add("ebbtide_nonfinite_values_total", outcome.nonfinite)
        metrics.add("ebbtide_quarantines_total", outcome.put_aside)
        if self.sink is not None:
            metrics.add("ebbtide_sink_records_total", len(batch.events))
        for signal, histogram in SIGNAL_HISTOGRAMS.items():
            if signal in outcome.signals:
                values = outcome.signals[signal]  # a sum that falls would look like a restart: lift can be negative
                if signal == "retrieval_lift":
                    values = np.maximum(values, 0)
                metrics.observe(histogram, values, whose=lambda row: batch.events[row].stream)
        metrics.observe("ebbtide_event_lag_seconds", lags(batch.events, time.time()))
        for probes in outcome.probes:
            self.forgetting.take(probes)
            for label, errors in by_age(probes).items():
                metrics.observe("ebbtide_probe_error_ratio", errors, label)
        half_life = self.forgetting.curve().half_life()
        metrics.set("ebbtide_forgetting_half_life_writes", half_life if np.isfinite(half_life) else None)
        metrics.observe("ebbtide_batch_events", len(batch.events))
        metrics.set("ebbtide_streams_resident", pool.resident)
        metrics.set("ebbtide_queue_depth", self.reader.waiting, "reader")
        metrics.set("ebbtide_pool_used_bytes", pool.bytes_used + pool.bytes_beside)
        metrics.set("ebbtide_pool_reserved_bytes", pool.bytes_reserved)
        if (backlog := self.source.backlog()) is not None:
            metrics.set("ebbtide_source_backlog_bytes", backlog)
        for direction, count in pool.take_moves().items():
            metrics.add("ebbtide_spills_total", count, direction)

    def _compare(self, outcomes: Sequence[Outcome]) -> None:
        """Show the policies side by side."""
        metrics = self.metrics
        for (policy, role), outcome in zip(self._roles(), outcomes, strict=False):
            for signal in ("write_error", "retrieval_error"):
                if signal in outcome.signals:
                    metrics.observe(f"ebbtide_policy_{signal}_ratio", outcome.signals[signal], policy, role)
            kinds = np.bincount(outcome.actions.kind, minlength=len(ActionKind))
            for kind in ActionKind:
                metrics.add("ebbtide_policy_actions_total", int(kinds[kind]), policy, role, kind.label)
        filed = [engine.runner.filed for engine in self._engines() if engine.runner.filed is not None]
        metrics.set("ebbtide_filed_states", sum(each.used for each in filed))
        metrics.set("ebbtide_filed_bytes", sum(each.bytes_reserved for each in filed))

    def side_by_side(self) -> list[tuple[str, str, float, int]]:
        """Return each policy's name, role, mean write error in this run, and the events that it is of."""
        rows = []
        for policy, role in self._roles():
            seen = self.metrics.distribution("ebbtide_policy_write_error_ratio", policy, role)
            count = seen.count if seen is not None else 0
            rows.append((policy, role, seen.sum / count if seen is not None and count else np.nan, count))
        return rows

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent(stage, time.perf_counter() - start)

    def _spent(self, stage: str, seconds: float) -> None:
        self.totals.stages[stage] = self.totals.stages.get(stage, 0.0) + seconds
        self.metrics.observe("ebbtide_stage_seconds", seconds, stage)


def dead_letter_path(settings: RunSettings) -> Path | None:
    """Return where refused lines go: as asked, else beside the sink, else nowhere (they are counted all the same).

    Examples
    --------
    >>> str(dead_letter_path(RunSettings(sink="jsonl:run/out.jsonl")))
    'run/out.dead.jsonl'
    """
    if settings.dead_letter is not None:
        return settings.dead_letter
    if settings.sink is not None and settings.sink.startswith("jsonl:"):
        return Path(settings.sink.removeprefix("jsonl:")).with_suffix(".dead.jsonl")
    return None


def _is_read_in(folder: Path, path: Path) -> bool:
    return folder.is_dir() and path.parent == folder and path.name.endswith(ENDINGS) and not path.name.startswith(".")
