"""`ebbtide report`: its figures against the tape read by others' means, its page in a real Chromium, its picture."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dashboards.report_data import DRAWN, Report
from dashboards.report_figures import forgetting_figure, over_time_figure, policies_figure, stream_figure, themed
from dashboards.report_page import NAME, report_page
from dashboards.report_slide import SIZE, report_slide
from dashboards.report_words import capacity, health, policy_did, what_next
from memory.errors import ConfigurationError
from stream.commands.report import report as command
from stream.generate import GenerateSettings, write_stream
from stream.report import Run, make_report, read_run
from stream.report.over_time import found_shifts
from stream.report.read_truth import Truth
from stream.report.replays import policies_of
from stream.report.sample_tape import as_read, sample_tape
from stream.report.topics_return import share_returning
from stream.tape import TapeReader
from stream.tape.format import Encoder
from tests.test_live_page import until
from tests.warm import Warm

ROOT = Path(__file__).parent.parent

HOSTILE = [
    "</script><img src=x onerror=window.pwned=1>",
    "__proto__",
    "constructor",
    "x" * 500,
    "\u05e9\u05dc\u05d5\u05dd \u202eevil",
    "$\\frac{1}{0}$ <b>bold</b> &amp; {{body}}",
    "half \ud800 of a pair",
    " ",
]


class Recorded:
    """A real run of a generated stream, with everything that it left behind."""

    def __init__(self, warm: Warm, folder: Path, *options: str, lines: list[str] | None = None):
        self.source, self.truth, self.tape = folder / "talk.jsonl", folder / "truth.jsonl", folder / "tape"
        self.records, self.state = folder / "out.jsonl", f"sqlite:///{folder}/state.db"
        if lines is None:
            write_stream(GenerateSettings(scenario="recurring", streams=5, events=120, seed=3), self.source, self.truth)
        else:
            self.source.write_text("\n".join(lines) + "\n", "utf-8")
        outputs = ["--tape", str(self.tape), "--sink", f"jsonl:{self.records}", "--state", self.state]
        given = ("--source", f"file:{self.source}", "--backbone", "hashing", "--metrics-port", "0")
        warm.run(["run", *given, *outputs, *options], check=True)

    def rows(self) -> list[dict[str, Any]]:
        """Read the tape with Arrow alone."""
        return [row for part in sorted(self.tape.iterdir()) for row in table_of(part)]


def table_of(part: Path) -> list[dict[str, Any]]:
    rows = []
    with pa.OSFile(str(part)) as file:
        reader = pa.ipc.open_stream(file)
        while True:
            try:
                rows += reader.read_next_batch().to_pylist()
            except (StopIteration, pa.ArrowInvalid, EOFError):
                return rows


@pytest.fixture(scope="module")
def recorded(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(warm, tmp_path_factory.mktemp("run"), "--policy", "decay_on_shift", "--tape-text")


@pytest.fixture(scope="module")
def untouched(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(warm, tmp_path_factory.mktemp("none"), "--policy", "none", "--rank", "8", "--mode", "coupled")


@pytest.fixture(scope="module")
def hostile(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    lines = [
        json.dumps({"stream": name, "text": f"word{turn} and something else {turn % 5}"})
        for turn in range(20)
        for name in HOSTILE
    ]
    return Recorded(warm, tmp_path_factory.mktemp("hostile"), "--policy", "none", lines=lines)


@pytest.fixture(scope="module")
def made(recorded: Recorded) -> Report:
    return make_report(recorded.tape, truth=recorded.truth, state=recorded.state)


class TestFigures:
    def test_totals_and_means_are_those_of_the_tape(self, recorded: Recorded, made: Report) -> None:
        rows = recorded.rows()
        assert made.events == len(rows) == 600
        assert made.tokens == sum(row["tokens"] for row in rows)
        assert made.streams == len({row["stream"] for row in rows}) == 5
        for name, mean in made.means.items():
            values = [row[name] for row in rows if math.isfinite(row[name])]
            assert mean == pytest.approx(math.fsum(values) / len(values), rel=1e-12), name
            late = [row[name] for row in rows[400:] if math.isfinite(row[name])]
            assert made.lately[name] == pytest.approx(math.fsum(late) / len(late), rel=1e-12), name
        kinds = [row["action"] for row in rows]
        assert made.actions == {kind: kinds.count(kind) for kind in dict.fromkeys(["keep", *kinds])}
        assert made.acted == len(rows) - kinds.count("keep") > 0
        raised = [alarm for row in rows for alarm in row["alarms"]]
        assert made.alarms == {name: raised.count(name) for name in sorted(set(raised))}
        assert (made.first, made.last) == (rows[0]["ts"], rows[-1]["ts"])

    def test_a_slice_is_the_quantiles_of_its_streams_means(self, recorded: Recorded, made: Report) -> None:
        rows, over = recorded.rows(), made.over_time
        slices = len(over.at)
        assert slices == 120
        for slot in (0, 17, slices - 1):
            part = rows[len(rows) * slot // slices : len(rows) * (slot + 1) // slices]
            for name in DRAWN:
                of_streams: dict[str, list[float]] = {}
                for row in part:
                    if math.isfinite(row[name]):
                        of_streams.setdefault(row["stream"], []).append(row[name])
                means = [sum(values) / len(values) for values in of_streams.values()]
                band = over.bands[name]
                assert band.middle[slot] == pytest.approx(np.median(means), rel=1e-12)
                assert band.low[slot] == pytest.approx(np.quantile(means, 0.1), rel=1e-12)
                assert band.high[slot] == pytest.approx(np.quantile(means, 0.9), rel=1e-12)
            assert over.actions["decay"][slot] == sum(row["action"] == "decay" for row in part)
        assert sum(over.alarms["topic_shift"]) == made.alarms["topic_shift"]

    def test_shifts_are_those_of_the_truth(self, recorded: Recorded, made: Report) -> None:
        truth = [json.loads(line) for line in recorded.truth.read_text().splitlines()]
        shifts = [row for row in truth if row["boundary"]]
        assert made.shifts == len(shifts) == int(np.sum(np.asarray(made.over_time.shifts)))
        assert made.returns.share == sum(row["visit"] > 1 for row in shifts) / len(shifts)
        assert made.returns.known
        alarms = {(row["stream"], row["seq"]) for row in recorded.rows() if "topic_shift" in row["alarms"]}
        found = 0
        for row in sorted(shifts, key=lambda row: (row["stream"], row["seq"])):
            near = [(row["stream"], row["seq"] + late) for late in range(3)]
            hit = next((each for each in near if each in alarms), None)
            alarms.discard(hit)
            found += hit is not None
        assert made.found == found > 0

    def test_one_alarm_finds_one_shift(self) -> None:
        column, alarms = np.zeros(9, np.int64), {"topic_shift": np.array([4])}
        run = Run(Path("x"), None, ["a"], column, np.arange(9), column, {}, alarms, {})
        assert found_shifts(run, Truth(np.isin(np.arange(9), [3, 4]), np.zeros(9, np.bool_))) == 1

    def test_the_runs_own_policy_replayed_is_the_run(self, recorded: Recorded, made: Report) -> None:
        own = made.policies[0]
        assert [row.name for row in made.policies] == ["decay_on_shift", "none", "auto"]
        assert own.own
        assert own.actions == {kind: count for kind, count in made.actions.items() if count}
        for name, mean in made.means.items():
            assert own.means[name] == pytest.approx(mean, rel=1e-12), name
        assert made.policies[1].actions == {"keep": 600}

    def test_the_youngest_of_the_forgetting_curve_worked_out_by_hand(self, untouched: Recorded) -> None:
        """A plain loop over the tape's keys and values, without a line of the memory's or the monitors' code."""
        made = make_report(untouched.tape, policies=[])
        head = TapeReader(untouched.tape).head
        assert (head.mode, head.rank, head.every) == ("coupled", 8, 8)
        heads, lifts = head.layers * head.heads, []
        states: dict[str, np.ndarray[Any, Any]] = {}
        control: dict[str, float] = {}
        for row in untouched.rows():
            state = states.setdefault(row["stream"], np.zeros((heads, 8, 8)))
            assert row["writes"] == 1
            keys, values = (np.array(row[name], np.float64).reshape(heads, 8) for name in ("keys", "values"))
            beta = np.array(row["beta"], np.float64).reshape(heads, 1)
            before = np.mean(
                [np.linalg.norm(s @ k - v) / np.linalg.norm(v) for s, k, v in zip(state, keys, values, strict=True)]
            )
            number = row["seq"] + 1
            last = control.get(row["stream"], 0.0)
            control[row["stream"]] = last + (before - last) / min(number, 16)
            for place in range(heads):
                b, k, v = beta[place, 0], keys[place], values[place]
                state[place] = (1 - b) * state[place] - b * np.outer(state[place] @ k - v, k)
            if number % 8 == 0 or number & (number - 1) == 0:
                after = np.mean(
                    [np.linalg.norm(s @ k - v) / np.linalg.norm(v) for s, k, v in zip(state, keys, values, strict=True)]
                )
                lifts.append(control[row["stream"]] - after)
        curve = made.forgetting
        assert curve is not None
        assert (curve.age[0], curve.count[0]) == (0, len(lifts))
        assert curve.lift[0] == pytest.approx(np.mean(lifts), abs=1e-5)
        assert curve.writes_per_event == 1
        assert made.beta is not None
        assert made.beta == pytest.approx(np.mean([row["beta"][0] for row in untouched.rows()]))
        assert curve.left == pytest.approx(1 - made.beta - made.beta / 8)

    def test_a_streams_own_chart_is_that_stream(self, recorded: Recorded, made: Report) -> None:
        rows = recorded.rows()
        mean = {}
        for name in {row["stream"] for row in rows}:
            mean[name] = np.nanmean([row["retrieval_error"] for row in rows if row["stream"] == name])
        assert made.lines[0].name == max(mean, key=lambda name: mean[name])
        for line in made.lines:
            own = [row for row in rows if row["stream"] == line.name]
            assert line.seq == [row["seq"] for row in own]
            for name in DRAWN:
                assert np.array_equal(line.signals[name], [row[name] for row in own], equal_nan=True)
            assert line.actions.get("decay", []) == [row["seq"] for row in own if row["action"] == "decay"]

    def test_plotly_knows_everything_in_the_figures(self, made: Report) -> None:
        go = pytest.importorskip("plotly.graph_objects")
        assert made.forgetting is not None
        figures = [
            over_time_figure(made.over_time),
            *map(stream_figure, made.lines),
            forgetting_figure(made.forgetting),
            policies_figure(made.policies),
        ]
        names = {"card", "edge", "grid", "text", "soft", "accent", "second", "good", "bad", "act"}
        names |= {"accent-pale", "second-pale"}
        for figure in figures:
            coloured = themed(figure, {f"@{name}": "#123456" for name in names})
            go.Figure(coloured)  # refuses a property that there is not
            assert '"@' not in json.dumps(coloured)


class TestByHand:
    def test_what_operators_did_is_shown_and_replayed(self, untouched: Recorded, tmp_path: Path) -> None:
        """The tape of a run in which an operator reset every stream in the middle, between two micro-batches."""
        acted = tmp_path / "acted"
        acted.mkdir()
        whole = pa.Table.from_batches(TapeReader(untouched.tape).batches()).combine_chunks()
        encoder, seen = Encoder(whole.schema), list[str]()
        with (acted / "part-000000.arrows").open("wb") as file:
            file.write(encoder.head)
            for begin in (0, 300):
                batch = whole.take(pa.array(range(begin, begin + 300))).combine_chunks().to_batches()[0]
                column = []
                for name in batch["stream"].to_pylist():
                    column.append(['{"kind":"reset"}'] if begin and name not in seen else None)
                    seen += [name] if begin else []
                place = whole.schema.get_field_index("by_hand")
                field = whole.schema.field(place)
                file.write(encoder.encode(as_read(batch.set_column(place, field, pa.array(column, field.type)))))
        made, before = (make_report(tape, policies=[]) for tape in (acted, untouched.tape))
        left = len(set(seen))
        assert left > 1
        assert made.by_hand == {"reset": left}
        assert sum(made.over_time.actions["reset by hand"]) == left
        assert (
            sorted(len(line.actions.get("reset by hand", [])) for line in made.lines) == [0] * (5 - left) + [1] * left
        )
        assert f"Operators acted {left} times by hand: reset {left}." in policy_did(made)
        assert made.forgetting is not None
        assert before.forgetting is not None
        assert made.forgetting.lift[1] < before.forgetting.lift[1]  # what came right before is lost
        assert made.policies[0].means["state_norm"] < before.policies[0].means["state_norm"]


class TestTopicsThatReturn:
    @pytest.mark.parametrize(("topics", "share"), [([0, 1, 0, 1, 0, 1, 0, 1], 6 / 7), (list(range(8)), 0.0)])
    def test_the_estimate_on_noisy_topics(self, topics: list[int], share: float) -> None:
        dice = np.random.default_rng(5)
        centres = np.linalg.qr(dice.normal(size=(64, 64)))[0]
        lanes = [[centres[topic] + 0.1 * dice.normal(size=(9, 64)) for topic in topics] for _ in range(6)]
        told = share_returning(lanes, 9.0)
        assert (told.share, told.topics, told.known) == (share, 42, False)

    def test_embeddings_that_do_not_tell_topics_apart_are_said_to(self) -> None:
        dice = np.random.default_rng(5)
        lanes = [[np.ones(64) + dice.normal(size=(9, 64)) for _ in range(8)] for _ in range(6)]
        told = share_returning(lanes, 9.0)
        assert math.isnan(told.share)
        assert "do not tell topics apart" in told.why_not

    def test_a_stationary_stream_says_nothing(self) -> None:
        assert "too few topic shifts" in share_returning([[np.ones((9, 4))]] * 3, math.nan).why_not


class TestWords:
    def test_what_a_stranger_reads(self, made: Report) -> None:
        level, told = health(made)
        assert level == "good"
        assert f"its error is {made.lately['retrieval_error']:.3g} in the last third" in told
        assert f"acted on {made.acted} of 600 events" in policy_did(made)
        assert f"Of {made.shifts} true topic shifts, {made.found} raised an alarm" in policy_did(made)
        assert what_next(made).startswith("Next: ")
        lasts, returns, *_ = capacity(made)
        assert made.forgetting is not None
        assert lasts.startswith(f"With rank {made.rank}, the rule {made.mode} and these gates")
        assert f"lasts about {made.forgetting.messages:.3g} messages on this traffic" in lasts
        assert returns.startswith(f"{100 * made.returns.share:.0f} % of topics return (counted in the truth")

    @pytest.mark.parametrize(
        ("changes", "level", "words"),
        [
            ({"alarms": {"non_finite": 2}}, "bad", "after 2 events a state held numbers that are not finite"),
            ({"lately": {"retrieval_error": 1.2, "retrieval_lift": 0.1, "state_norm": 1}}, "bad", "worse than nothing"),
            (
                {"lately": {"retrieval_error": 0.8, "retrieval_lift": -0.01, "state_norm": 1}},
                "bad",
                "nothing of its own",
            ),
            ({"lately": {"retrieval_error": 0.8, "retrieval_lift": 0.1, "state_norm": 99}}, "warn", "still grew"),
            ({"lately": {}}, "warn", "never measured"),
            ({"events": 49}, "warn", "After 49 events nobody can say"),
        ],
    )
    def test_a_sick_memory_is_called_one(self, made: Report, changes: dict[str, Any], level: str, words: str) -> None:
        from dataclasses import replace

        told = health(replace(made, **changes))
        assert told[0] == level
        assert words in told[1]

    def test_the_best_policy_is_advised_only_where_it_is_better(self, made: Report) -> None:
        from dataclasses import replace

        own, other, _ = made.policies
        base = own.means["write_error"]

        def advice(factor: float) -> str:
            return what_next(replace(made, policies=[own, replace(other, means={"write_error": base * factor})]))

        assert "leave the policy as it is" in advice(1.2)
        assert "leave the policy as it is" in advice(0.998)
        assert "try --policy none" in advice(0.9)
        assert "10 % better" in advice(0.9)


class TestPage:
    def test_it_says_what_was_counted_and_holds_no_text_of_any_event(self, recorded: Recorded, made: Report) -> None:
        page = report_page(made)
        assert "600 events of 5 streams" in page
        assert f"<dd>{made.acted}<small>decay {made.acted}</small></dd>" in page
        texts = [json.loads(line)["text"] for line in recorded.source.read_text().splitlines()]
        assert recorded.rows()[0]["text"] in texts  # they are on this tape
        assert not [text for text in texts if text in page]

    def test_the_same_run_gives_the_same_bytes(self, recorded: Recorded, made: Report) -> None:
        again = make_report(recorded.tape, truth=recorded.truth, state=recorded.state)
        assert report_page(again) == report_page(made)
        assert report_slide(again) == report_slide(made)

    def test_counters_and_configuration_are_there(self, made: Report) -> None:
        assert made.tables["Memory"]["rule"] == "plain" or made.tables["Memory"]["rule"] == "coupled"
        assert made.tables["Policy"]["policy"] == "decay_on_shift"
        assert made.tables["Counters at the last checkpoint"]["events_total"] == "600"
        assert made.tables["State store"]["streams"] == "5"
        assert "Versions" in made.tables

    def test_records_alone_say_what_they_can(self, recorded: Recorded, made: Report) -> None:
        less = make_report(recorded.records, truth=recorded.truth)
        assert (less.events, less.tokens, less.alarms, less.found) == (600, made.tokens, made.alarms, made.found)
        assert less.means["write_error"] == pytest.approx(made.means["write_error"], abs=1e-6)
        assert less.forgetting is None
        assert less.policies == []
        page = report_page(less)
        assert "Made from output records" in page
        assert "record a tape" in page
        assert 'id="policies"' not in page
        assert "How long an association lasts cannot be said from output records" in page
        assert struct.unpack(">II", report_slide(less)[16:24]) == SIZE


class TestSample:
    def test_long_streams_give_their_first_events(self, recorded: Recorded, tmp_path: Path) -> None:
        taken = sample_tape(read_run(recorded.tape), 300, tmp_path)
        assert (taken.events, taken.streams) == (300, 5)
        assert taken.words == (
            "300 of 600 events: 5 of 5 streams, drawn by their names, the first 60 events of each at most"
        )
        rows = table_of(taken.folder / "part-000000.arrows")
        assert rows == [row for row in recorded.rows() if row["seq"] < 60]
        assert sum(len(batch) for batch in TapeReader(taken.folder).batches()) == 300  # checksums and all

    def test_short_streams_are_whole(self, warm: Warm, tmp_path: Path) -> None:
        lines = [
            json.dumps({"stream": f"s{number}", "text": f"word{turn} of {number}", **({} if turn else {"id": "first"})})
            for turn in range(6)
            for number in range(20)
        ]
        many = Recorded(warm, tmp_path, "--policy", "none", lines=lines)
        taken = sample_tape(read_run(many.tape), 62, tmp_path)
        assert (taken.events, taken.streams) == (60, 10)
        assert taken.words == "60 of 120 events: 10 of 20 streams, drawn by their names"
        rows = table_of(taken.folder / "part-000000.arrows")
        names = {row["stream"] for row in rows}
        assert len(names) == 10
        assert rows == [row for row in many.rows() if row["stream"] in names]
        assert sum(len(batch) for batch in TapeReader(taken.folder).batches()) == 60

    def test_a_report_of_a_sample_says_so(self, recorded: Recorded) -> None:
        made = make_report(recorded.tape, sample=300, policies=["none"])
        assert made.events == 600
        assert [row.events for row in made.policies] == [300, 300]
        assert "300 of 600 events: 5 of 5 streams" in report_page(made)


class TestErrors:
    def refused(self, run: Path, **options: Any) -> str:
        with pytest.raises(ConfigurationError) as caught:
            command(run, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert "expected the folder of a tape" in self.refused(tmp_path / "no")

    def test_a_folder_that_is_no_tape_names_the_one_inside(self, recorded: Recorded) -> None:
        assert f"did you mean {recorded.tape}?" in self.refused(recorded.tape.parent)

    def test_an_empty_tape(self, warm: Warm, tmp_path: Path) -> None:
        empty = tmp_path / "empty.jsonl"
        empty.touch()
        recorded = Recorded.__new__(Recorded)
        recorded.tape = tmp_path / "tape"
        given = ("--source", f"file:{empty}", "--backbone", "hashing", "--metrics-port", "0")
        warm.run(["run", *given, "--tape", recorded.tape], check=True)
        assert "expected at least one event, got none" in self.refused(recorded.tape)
        assert "expected at least one event, got none" in self.refused(empty)

    def test_the_input_is_no_file_of_records(self, recorded: Recorded) -> None:
        assert "line 1: expected a record" in self.refused(recorded.source)

    def test_the_wrong_truth(self, recorded: Recorded, tmp_path: Path) -> None:
        other = tmp_path / "other.jsonl"
        other.write_text('{"stream": "nobody", "seq": 0, "topic": "x", "boundary": 0, "visit": 1}\n')
        assert "none of its events is in" in self.refused(recorded.tape, truth=other)
        assert "is it the stream itself?" in self.refused(recorded.tape, truth=recorded.source)
        assert "nothing there" in self.refused(recorded.tape, truth=tmp_path / "no")

    def test_the_wrong_places_and_policies(self, recorded: Recorded, tmp_path: Path) -> None:
        assert "a folder that exists" in self.refused(recorded.tape, out=tmp_path / "no" / "x.html")
        assert "--png" in self.refused(recorded.tape, png=tmp_path)
        assert "the run itself" in self.refused(recorded.records, out=recorded.records)
        assert "each policy once" in self.refused(recorded.tape, policy=["auto", "auto"])
        assert "autoo" in self.refused(recorded.tape, policy=["autoo"])
        assert "state" in self.refused(recorded.tape, state=f"sqlite:///{tmp_path}/no.db")

    def test_policies_are_compared_once_each(self, recorded: Recorded) -> None:
        head = TapeReader(recorded.tape).head
        assert list(policies_of(head, None)) == ["decay_on_shift", "none", "auto"]
        assert list(policies_of(head, [])) == ["decay_on_shift"]
        assert list(policies_of(head, ["decay_on_shift", "archive"])) == ["decay_on_shift", "archive"]

    def test_a_failure_is_one_line_and_leaves_nothing(self, warm: Warm, tmp_path: Path) -> None:
        done = warm.run(["report", tmp_path / "no", "--out", tmp_path / "x.html"])
        assert done.returncode == 2
        assert done.stderr.startswith("ebbtide: ")
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


# In the browser, offline


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    contexts: list[Any] = []
    wrong: list[str] = []
    asked: list[str] = []

    def open_page(path: Path, **options: Any) -> Any:
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.resolve().as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    assert len(asked) == len(contexts)  # each page, and nothing else


@pytest.fixture(scope="module")
def written(warm: Warm, recorded: Recorded) -> Path:
    slide = recorded.tape.parent / "slide.png"
    done = warm.run(["report", recorded.tape, "--truth", recorded.truth, "--png", slide], check=True)
    page = recorded.tape.with_name("tape.html")
    assert done.stdout == f"report: {page}\nslide: {slide}\n"
    assert page.stat().st_mode & 0o777 == 0o600
    return page


class TestInABrowser:
    def test_every_figure_is_drawn(self, opened: Callable[..., Any], written: Path) -> None:
        page = opened(written)
        assert page.locator(".js-plotly-plot").count() == 4
        assert page.evaluate("document.getElementById('over-time').data.length") >= 9
        assert page.locator("#forgetting .scatterlayer .trace").count() == 3
        assert page.locator("#policies .barlayer .point").count() == 2
        assert page.locator("section.verdict p").count() == 3

    def test_another_stream_by_the_keyboard(self, opened: Callable[..., Any], written: Path) -> None:
        page = opened(written)
        first = page.evaluate("document.getElementById('stream').data[0].y")
        page.get_by_label("Stream", exact=False).and_(page.locator("select")).focus()
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.getElementById('picker').value") == "1"
        assert page.evaluate("document.getElementById('stream').data[0].y") != first
        assert page.locator(".why:visible").count() == 1

    def test_dark_is_drawn_dark_and_changes_with_the_reader(self, opened: Callable[..., Any], written: Path) -> None:
        page = opened(written, color_scheme="dark")
        colour = "document.getElementById('forgetting').data[0].line.color"
        assert page.evaluate(colour) == "#3cc3c9"
        page.emulate_media(color_scheme="light")
        until(page, f"{colour} === '#0e7c86'")
        page.emulate_media(color_scheme="dark")
        until(page, f"{colour} === '#3cc3c9'")
        page.emulate_media(color_scheme="dark", media="print")  # on paper it is light all the same
        until(page, f"{colour} === '#0e7c86'")
        for figure in page.locator(".js-plotly-plot").all():  # fits an A4 page, and nothing lies over it
            drawn, held = figure.locator(".main-svg").first.bounding_box(), figure.bounding_box()
            assert (drawn["width"], drawn["height"]) == (640, held["height"])

    def test_a_phone_needs_no_sideways_scrolling(self, opened: Callable[..., Any], written: Path) -> None:
        for width in (320, 390):
            page = opened(written, viewport={"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") == width

    def test_hostile_names_are_only_names(self, opened: Callable[..., Any], hostile: Recorded, tmp_path: Path) -> None:
        made = make_report(hostile.tape, policies=["none"])
        path = tmp_path / "</title><script>pwned=1</script>.html".replace("/", "_")
        path.write_bytes(report_page(made).encode())
        page = opened(path)
        assert page.evaluate("typeof window.pwned") == "undefined"
        assert page.locator("img").count() == 0
        shown = set(page.locator("#picker option").all_text_contents())
        events = {json.loads(line)["stream"] for line in hostile.records.read_text("utf-8").splitlines()}
        assert shown == {name if len(name) <= NAME else name[: NAME - 1] + "…" for name in events}
        assert "</script><img src=x onerror=window.pwned=1>" in shown
        assert "__proto__" in shown
        page.get_by_label("Stream", exact=False).and_(page.locator("select")).select_option("2")
        assert page.locator(".js-plotly-plot").count() >= 3

    def test_the_slide_has_the_size_of_one(self, written: Path) -> None:
        data = written.with_name("slide.png").read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", data[16:24]) == SIZE == (1920, 1080)
        image = pytest.importorskip("matplotlib.image").imread(written.with_name("slide.png"))
        for part in (image[:250, :1100], image[350:1000, :1100], image[400:700, 1250:], image[780:1000, 1250:]):
            assert part[..., :3].std() > 0.02  # words, signals, curve, policies: something is drawn in each

    def test_a_slide_of_hostile_names(self, hostile: Recorded) -> None:
        from dataclasses import replace

        made = make_report(hostile.tape, policies=["none"])
        for name in HOSTILE:
            assert report_slide(replace(made, name=name.encode("utf-8", "replace").decode())).startswith(b"\x89PNG")
