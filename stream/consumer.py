"""The consumer: input in, records out, and a checkpoint that makes the two agree after any crash.

    source → reader → micro-batch → engine → sink, dead letters, metrics → commit

The loop owns everything but the reader's thread and the HTTP thread. What has been processed counts only when a
checkpoint is committed: the outputs are flushed, then lanes, positions, the outputs' lengths and the counters go into
one transaction. A restart takes the last checkpoint, cuts the files back to it and reads on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from threading import Thread

import structlog

from memory.errors import ConfigurationError
from memory.lane_state import Slots
from memory.state_pool import LaneRecord
from monitors.metrics import Metrics
from stream import store_patience
from stream.accounts import Accounts, Totals
from stream.assembly import batch_tokens, build_engine
from stream.batch import Batcher, MicroBatch
from stream.careful_reader import CarefulReader
from stream.config import RunSettings
from stream.crash_guard import CrashGuard
from stream.crash_note import starts_path, trace_path
from stream.crash_trace import CrashTrace
from stream.dead_letters import letter_of_gap
from stream.engine import Engine
from stream.event import EventParser, Reason
from stream.operators import Operators
from stream.outputs import Outputs
from stream.reader import Reader
from stream.recovery import Recovered, go_back
from stream.retrying import Insistence
from stream.shadows import label_of, open_shadows
from stream.sources import FileSource, Source, open_source
from stream.sources.position import Position
from stream.spoken_log import log_texts
from stream.stopping import Stop
from stream.store import Checkpoint, StateStore
from stream.store_copy import StoreCopier

log = structlog.get_logger(__name__)

IDLE = 0.2
"""Seconds without input after which the loop looks around: for a signal, or for a checkpoint that is due."""

ASK_EVERY = 1.0
"""Seconds between looks into the store for what operators ask for."""


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
        self._clock = clock
        self.metrics = Metrics(publish_on_commit=settings.state is not None)
        self.store: StateStore | None = None
        self.copier: StoreCopier | None = None
        self.source = self._make_source()
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
        self.engine.writer.keeps_rows = settings.tape is not None or bool(self.shadows)
        self.outputs = Outputs(settings, self.engine)
        parser = EventParser(
            strict=settings.strict, max_line_bytes=settings.max_line_bytes, vocabulary=self.engine.backbone.vocabulary
        )
        self.reader: Reader | CarefulReader = Reader(self.source, parser, self.engine.backbone)
        self.guard = CrashGuard(settings.crash_limit, settings.batch_events, kills=settings.count_kills)
        engines = [(self.label, self.engine), *((shadow.name, shadow.engine) for shadow in self.shadows)]
        self.accounts = Accounts(self.metrics, engines, sinks=self.outputs.sink is not None)
        self.ready = False
        self.last_tick = clock()
        self._stop = Stop(settings.drain, clock)
        self._draining = False
        self._insist = Insistence(
            self.metrics, self.guard, self._stop, may_go_on=self._may_go_on, tick=self._tick, clock=clock
        )
        self._told_of_duplicates = False
        self._asked_at = 0.0
        self._positions: dict[str, Position] = {}
        self._uncommitted = 0
        self._open = ExitStack()

    @property
    def totals(self) -> Totals:
        """What this run did so far."""
        return self.accounts.totals

    @property
    def blocked(self) -> str | None:
        """Why nothing is read now, where there is no room for what was done already; None mostly."""
        return self._insist.blocked

    def open(self) -> None:
        """Resume from the last checkpoint, or begin.

        Raises
        ------
        ConfigurationError
            Something is not there, is in use, or does not fit; nothing that was there before was changed.
        """
        self.outputs.refuse_as_input(self.source)
        stopper = Thread(target=self._close_source, name="stopper", daemon=True)
        stopper.start()
        self._open.callback(stopper.join)
        self._open.callback(self._stop.over)
        checkpoint = self._open_store()
        self._open.callback(self.source.close)
        self.source.open(checkpoint.positions)  # before an output is cut back to what only the source can give again
        self._open.callback(self.outputs.close)
        self.outputs.open(checkpoint)
        if self.source.gaps:
            self.commit()  # as below: there is something to write before the first checkpoint
        self._note_beginnings()
        self._tell_of_gaps()
        if self.store is not None and self.store.path is not None:
            self.copier = StoreCopier(self.store.path, self.settings.copy_every, clock=self._clock)
            self._open.callback(self.copier.close)
        begun = {name: place.offset for name, place in (*checkpoint.positions.items(), *self._positions.items())}
        self.commit()  # killed before its first checkpoint, a run would find its own files and refuse them
        resumed = {name: position.offset for name, position in checkpoint.positions.items()}
        log.info("resumed" if resumed else "started", source=self.settings.source, offsets=resumed)
        self._begin_guard(begun)
        if self.guard.careful and isinstance(self.reader, Reader):
            self.reader = CarefulReader(self.reader, self.source, self.guard)
        self.reader.start()
        self._open.callback(self.reader.join)
        self._open.callback(self.reader.stop)
        self.ready = True

    def _open_store(self) -> Checkpoint:
        """Take the store over, if there is one; return its last checkpoint."""
        if self.settings.state is None:
            self.metrics.restore({})
            return Checkpoint()
        recovered = go_back(self.settings.state, self.outputs.check, self._check_source) if self._recover else None
        if self._recover and recovered is None:
            log.info("nothing_to_recover", state=self.settings.state)
        self.store = StateStore(self.settings.state, patience=self._patience)
        self._open.callback(self.store.close)
        self.store.claim(self.engine.writer.settings, [shadow.name for shadow in self.shadows])
        checkpoint = self.store.load()
        if self.settings.tape is not None:
            self.operators.remember(self.store.acted())
        self.metrics.restore(checkpoint.counters)
        if recovered is not None:
            self._tell_of_recovery(recovered)
        return checkpoint

    def _make_source(self) -> Source:
        return open_source(
            str(self.settings.source),
            follow=self.settings.follow,
            stdin_continues=self.settings.stdin_continues,
            accept_gap=self._accept_gap,
        )

    def _check_source(self, checkpoint: Checkpoint) -> None:
        """Raise where the source cannot give again what came behind a checkpoint, and that was not accepted."""
        if isinstance(self.source, FileSource):
            source = self._make_source()
            try:
                source.open(checkpoint.positions)
            finally:
                source.close()
        elif self.settings.stdin_continues and not self._accept_gap:
            raise ConfigurationError(
                "stdin: expected input that can be read again, got --stdin-continues: what came since is gone; "
                "--accept-gap goes on without it"
            )

    def _begin_guard(self, begun: Mapping[str, int]) -> None:
        """From here on, a line that kills the process is known by it."""
        if self.store is None or not self.settings.crash_limit or self.settings.stdin_continues:
            return  # of a pipe that goes on, what comes next is another line
        path = starts_path(self.store.path, self.outputs.dead_letter_path)
        if path is None:
            return
        trace = CrashTrace(trace_path(path))
        left = trace.left()
        if left:
            log.error("died", trace=left, hint="so the last run with this store ended: where each thread was then")
        self.guard.begin(path, self.store.identity, begun, traced=bool(left))
        self._open.callback(self.guard.excuse)
        self._open.callback(trace.end)
        trace.begin()

    def _tell_of_recovery(self, recovered: Recovered) -> None:
        self.metrics.add("ebbtide_recoveries_total")
        log.warning(
            "recovered",
            checkpoint=recovered.checkpoint,
            origin=str(recovered.origin),
            damaged_store=str(recovered.aside),
            why=recovered.why,
            hint="the outputs are cut back to it; events since are read again; operators' actions since are gone",
        )

    def _tell_of_gaps(self) -> None:
        """Put what is missing of the source, and was accepted, on record; the first checkpoint holds that."""
        gaps = self.source.gaps
        if self._accept_gap and not gaps:
            log.info("no_gap_to_accept", source=self.settings.source)
        for gap in gaps:
            known = {"from": gap.start} | ({} if gap.end is None else {"to": gap.end})
            log.warning("gap_accepted", partition=gap.partition, **known, why=gap.why, hint=gap.hint)
        if self.outputs.dead_letters is not None:
            self.outputs.dead_letters.write(letter_of_gap(gap) for gap in gaps)
        self.accounts.gaps(len(gaps))

    def _close_source(self) -> None:
        """Once told to stop, close the source, whoever waits for it at that moment: `open`, or the reader."""
        self._stop.wait()
        if self._stop.hint is not None:
            log.warning("told_to_stop", hint=self._stop.hint)
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
            self._note_beginnings()  # in the turn of a partition's first lines at the latest: before they are stored
            now = self._tick()
            if self._act(now):
                committed = self._clock()
            full = self.store is not None and any(engine.pool.wants_commit for engine in self._engines())
            if self._positions and (full or self.guard.careful or now - committed >= self.settings.checkpoint_every):
                self.commit()
                committed = self._clock()
            if self.copier is not None:
                self.copier.look()
                self.accounts.copies(self.copier)
            self.totals.seconds = now - begun
            each()
            if self._stop.told and not self._may_go_on():
                self.totals.drained = False
                break
        self.ready = False
        self._leave_rest()
        if self._positions:
            self.commit()
        self.totals.seconds = self._clock() - begun
        log.info("stopped" if self._stop.told else "finished", events=self.totals.events, drained=self.totals.drained)
        return self.totals

    def _note_beginnings(self) -> None:
        """Have the next checkpoint hold which partitions have begun, those too of which nothing was taken in."""
        for partition, position in self.source.beginnings().items():
            self._positions.setdefault(partition, position)

    def _leave_rest(self) -> None:
        """After a stop, have the last checkpoint hold what was read and can be neither taken in now nor read again."""
        if self._stop.told and self.store is not None:
            self.reader.stop()
            self.reader.join()
            self._positions.update(self.source.left())

    def _take(self, batch: MicroBatch) -> None:
        start = time.perf_counter()
        timed = self.accounts.timed
        with timed("pool"):
            slots = self._sift(batch)
        streams = list(dict.fromkeys(event.stream for event in batch.events)) if self.shadows else []
        for shadow in self.shadows:
            shadow.meet(streams)
        outcome = self.engine.process(batch.events, batch.ids, slots)
        for stage, seconds in (outcome.seconds | batch.seconds).items():
            self.accounts.spent(stage, seconds)
        with timed("shadows"):
            followed = [shadow.follow(outcome) for shadow in self.shadows] if batch.events else []
        if self.settings.dry_run and followed:
            outcome.would = followed[0].actions
        self._insist(self._hold)
        if self.outputs.tape is not None:
            outcome.by_hand = self.operators.taped(outcome)
        with timed("sink"):
            if self.outputs.sink is not None:
                self.outputs.sink.write(outcome)
            if self.outputs.dead_letters is not None:
                self.outputs.dead_letters.write(batch.dead)
        if self.outputs.tape is not None:
            with timed("tape"):
                self.outputs.tape.write(outcome)
        if self.settings.log_text:
            log_texts(outcome, batch.dead)
        self._positions.update(batch.positions)
        self.source.passed(batch.positions)
        self._uncommitted += batch.line_count
        with timed("export"):
            self.accounts.take(batch, outcome, followed)
            self.accounts.ahead(self.reader.waiting, self.source.backlog())
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

    def _commit(self) -> None:
        if self.store is not None:
            self.store.hold()  # one that was overtaken writes into no file either
        with self.accounts.timed("sink"):
            marks = self.outputs.flush()
        if self.store is not None:
            with self.accounts.timed("commit"):
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

    def stop(self, hint: str | None = None) -> None:
        """Read no more; what was read is still processed, within the deadline. The hint goes into the log."""
        self._stop.tell(hint)

    def _may_go_on(self) -> bool:
        """After a stop: whether there is time left for what was read already."""
        if not self._draining:
            self._draining = True
            self.ready = False
            log.info("draining", deadline_seconds=self.settings.drain, chunks=self.reader.waiting)
        return self._stop.left() > 0

    def close(self) -> None:
        """Let go of everything."""
        self.ready = False
        self.operators.close()
        self._open.close()

    def _tick(self) -> float:
        """Note that the loop turns; return the time."""
        self.last_tick = self._clock()
        return self.last_tick

    def _engines(self) -> Iterator[Engine]:
        yield self.engine
        yield from (shadow.engine for shadow in self.shadows)

    def _hold(self) -> None:
        if self.store is not None:
            self.store.hold(lately=True)

    def _fetch(self, lanes: Sequence[str], shadow: str | None = None) -> Mapping[str, LaneRecord]:
        store = self.store
        return {} if store is None else self._insist(lambda: store.fetch(lanes, shadow))

    def _last_acted(self, stream: str) -> bytes | None:
        done = self.store.acted(stream) if self.store is not None else []
        return next((acted.before for acted in reversed(done) if acted.before is not None), None)

    def _patience(self) -> float:
        """Seconds for which a database may say nothing: after a stop, no more than is left of its deadline."""
        return max(0.1, min(store_patience.SILENCE, self._stop.left()))
