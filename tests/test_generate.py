"""Generated conversations: the truth is true, the seed fixes everything, and only the words give a boundary away."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from memory.errors import ConfigurationError
from stream.generate import SCENARIOS, Event, GenerateSettings, Scenario, Truth, generate, topic_names, write_stream
from stream.generate.dice import Dice
from stream.generate.schedule import Moment, schedule
from stream.generate.template import Template
from stream.generate.topics import FamilyText, load_common, load_topic

SHIFTING: tuple[Scenario, ...] = ("abrupt", "gradual", "recurring")

Rows = list[tuple[Event, Truth]]


def by_stream(rows: Iterator[tuple[Event, Truth]] | Rows) -> dict[str, Rows]:
    streams: dict[str, Rows] = defaultdict(list)
    for event, truth in rows:
        streams[event["stream"]].append((event, truth))
    return dict(streams)


def digest(rows: Iterator[tuple[Event, Truth]]) -> str:
    whole = hashlib.sha256()
    for row in rows:
        whole.update(json.dumps(row, ensure_ascii=False).encode())
    return whole.hexdigest()[:16]


def moments(scenario: Scenario, seed: int, count: int, **more: float) -> list[Moment]:
    asked = GenerateSettings.model_validate({"scenario": scenario, **more})
    return list(islice(schedule(asked, Dice("topics", seed)), count))


# The same everywhere


def test_the_draws_are_those_of_every_other_machine() -> None:
    """Any change here changes every stream that was ever generated."""
    dice = Dice("pinned", 2025)
    assert [dice.pick(1000) for _ in range(20)] == [
        656,
        850,
        422,
        634,
        262,
        638,
        285,
        314,
        593,
        767,
        604,
        354,
        419,
        329,
        259,
        617,
        880,
        179,
        944,
        319,
    ]


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """What another process says of each scenario."""
    code = (
        "import hashlib, json\n"
        "from stream.generate import SCENARIOS, GenerateSettings, generate\n"
        "told = {}\n"
        "for scenario in SCENARIOS:\n"
        "    whole = hashlib.sha256()\n"
        "    for row in generate(GenerateSettings(scenario=scenario, streams=3, events=200, seed=5)):\n"
        "        whole.update(json.dumps(row, ensure_ascii=False).encode())\n"
        "    told[scenario] = whole.hexdigest()[:16]\n"
        "print(json.dumps(told))\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "123", "LC_ALL": "C", "TZ": "Asia/Tokyo"},
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    told: dict[str, str] = json.loads(there.stdout)
    return told


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_with_other_hash_seeds_write_the_same(scenario: Scenario, elsewhere: dict[str, str]) -> None:
    here = digest(generate(GenerateSettings(scenario=scenario, streams=3, events=200, seed=5)))
    assert elsewhere[scenario] == here


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_stream_does_not_depend_on_the_others(scenario: Scenario) -> None:
    few = by_stream(generate(GenerateSettings(scenario=scenario, streams=2, events=150, seed=9)))
    many = by_stream(generate(GenerateSettings(scenario=scenario, streams=7, events=150, seed=9)))
    assert len(many) == 7
    for name, rows in few.items():
        assert many[name] == rows


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_shorter_stream_is_the_beginning_of_a_longer_one(scenario: Scenario) -> None:
    short = by_stream(generate(GenerateSettings(scenario=scenario, streams=2, events=60)))
    long = by_stream(generate(GenerateSettings(scenario=scenario, streams=2, events=200)))
    for name, rows in short.items():
        assert long[name][:60] == rows


def test_another_seed_is_another_conversation() -> None:
    one = [event["text"] for event, _ in generate(GenerateSettings(streams=1, events=50, seed=1))]
    two = [event["text"] for event, _ in generate(GenerateSettings(streams=1, events=50, seed=2))]
    assert one != two


def test_the_words_do_not_move_the_boundaries() -> None:
    """Settings about what is said leave the topics as they were: they are drawn from dice of their own."""
    plain = generate(GenerateSettings(streams=1, events=300, seed=4))
    chatty = generate(GenerateSettings(streams=1, events=300, seed=4, fact_share=0.4, question_share=0.3))
    assert [truth["topic"] for _, truth in plain] == [truth["topic"] for _, truth in chatty]


# The contract of the lines


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_line_keeps_the_contract(scenario: Scenario) -> None:
    rows = list(generate(GenerateSettings(scenario=scenario, streams=4, events=300, seed=2)))
    assert len(rows) == 1200
    extra = {"weight", "mixed_with", "spoken"} if scenario == "gradual" else set()
    for event, truth in rows:
        assert set(event) == {"stream", "text", "id", "ts", "role"}
        assert set(truth) == {"stream", "seq", "id", "topic", "boundary", "visit", "fact"} | extra
        assert all(isinstance(value, str) and value for value in event.values())
        assert (truth["stream"], truth["id"]) == (event["stream"], event["id"])
        assert truth["boundary"] in (0, 1)
        assert truth["topic"] in topic_names()
        fact = truth["fact"]
        if fact is not None:
            assert set(fact) == {"op", "subject", "attribute", "value"} | ({"previous"} & set(fact))
            assert ("previous" in fact) == (fact["op"] == "rebind")
    assert len({event["id"] for event, _ in rows}) == len(rows)
    for stream in by_stream(rows).values():
        assert [truth["seq"] for _, truth in stream] == list(range(300))
        assert len({event["role"] for event, _ in stream}) == 2


def test_time_goes_forward_in_each_stream_and_over_all() -> None:
    rows = list(generate(GenerateSettings(streams=5, events=200, seed=3)))
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["ts"]) for event, _ in rows)
    times = [datetime.fromisoformat(event["ts"]) for event, _ in rows]
    assert times == sorted(times)
    for stream in by_stream(rows).values():
        own = [datetime.fromisoformat(event["ts"]) for event, _ in stream]
        assert all(later > earlier for earlier, later in pairwise(own))
    turns = [event["stream"] for event, _ in rows]
    assert sum(one != next_one for one, next_one in pairwise(turns)) > 300, "the streams are not interleaved"


# The truth


@pytest.mark.parametrize("scenario", SCENARIOS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_facts_are_consistent(scenario: Scenario, seed: int) -> None:
    """Replay every fact: nothing is asked before it was stated, and every value given is the last one set."""
    asked = GenerateSettings(scenario=scenario, streams=1, events=400, seed=seed, fact_share=0.3, ask_share=0.25)
    now: dict[tuple[str, str], str] = {}
    ops: Counter[str] = Counter()
    question: tuple[str, str] | None = None
    role = ""
    for event, truth in generate(asked):
        fact = truth["fact"]
        previous_question, question = question, None
        if fact is not None:
            key = (fact["subject"], fact["attribute"])
            ops[fact["op"]] += 1
            match fact["op"]:
                case "state":
                    assert now.setdefault(key, fact["value"]) == fact["value"]
                case "rebind":
                    assert fact["previous"] == now[key] != fact["value"]
                    now[key] = fact["value"]
                case "ask":
                    assert now[key] == fact["value"]
                    question = key
                case "answer":
                    assert previous_question == key
                    assert now[key] == fact["value"]
                    assert event["role"] != role
            if fact["op"] != "ask":
                assert fact["value"].lower() in event["text"].lower()
        role = event["role"]
    assert min(ops["state"], ops["ask"], ops["answer"]) > 0, ops
    assert (ops["rebind"] > 0) == (scenario == "rebinding")


def test_rebinds_may_be_asked_for_elsewhere() -> None:
    asked = GenerateSettings(scenario="recurring", streams=1, events=1000, rebind_share=0.2)
    assert sum(truth["fact"] is not None and truth["fact"]["op"] == "rebind" for _, truth in generate(asked)) > 50


def test_facts_come_back_after_other_topics_in_recurring() -> None:
    """What a memory has to bridge: facts asked for on a later visit than the one that stated them."""
    stated: dict[tuple[str, str], int] = {}
    later = 0
    for _, truth in generate(GenerateSettings(scenario="recurring", streams=1, events=2000, seed=1)):
        fact = truth["fact"]
        if fact is not None and fact["op"] == "state":
            stated.setdefault((fact["subject"], fact["attribute"]), truth["visit"])
        if fact is not None and fact["op"] == "ask":
            later += truth["visit"] > stated[fact["subject"], fact["attribute"]]
    assert later > 50


@pytest.mark.parametrize("scenario", SCENARIOS)
@given(seed=st.integers(0, 2**40))
@settings(max_examples=15, deadline=None)
def test_boundaries_are_where_the_topic_changes(scenario: Scenario, seed: int) -> None:
    rows = [truth for _, truth in generate(GenerateSettings(scenario=scenario, streams=1, events=400, seed=seed))]
    assert rows[0]["boundary"] == 0
    visits: Counter[str] = Counter({rows[0]["topic"]: 1})
    assert rows[0]["visit"] == 1
    for before, after in pairwise(rows):
        assert after["boundary"] == int(after["topic"] != before["topic"])
        visits[after["topic"]] += after["boundary"]
        assert after["visit"] == visits[after["topic"]]
    if scenario in SHIFTING:
        assert sum(truth["boundary"] for truth in rows) >= 1
    else:
        assert {truth["topic"] for truth in rows} == {rows[0]["topic"]}


def test_stationary_and_rebinding_never_shift_and_differ_between_streams() -> None:
    for scenario in ("stationary", "rebinding"):
        streams = by_stream(
            generate(GenerateSettings.model_validate({"scenario": scenario, "streams": 12, "events": 30}))
        )
        assert len({rows[0][1]["topic"] for rows in streams.values()}) > 3
        assert all(truth["boundary"] == 0 and truth["visit"] == 1 for rows in streams.values() for _, truth in rows)


def visited(path: list[Moment]) -> list[str]:
    return [path[0].topic] + [moment.topic for moment in path if moment.boundary]


@pytest.mark.parametrize("scenario", ["abrupt", "gradual"])
def test_an_abrupt_topic_comes_back_only_after_all_others(scenario: Scenario) -> None:
    order = visited(moments(scenario, 1, 3000))
    n = len(topic_names())
    assert len(order) > 2 * n
    for at in range(len(order) - n + 1):
        assert len(set(order[at : at + n])) == n


def test_recurring_topics_are_few_and_return_in_no_fixed_order() -> None:
    order = visited(moments("recurring", 3, 20_000, recurring_topics=5))
    assert len(set(order)) == 5
    followers: dict[str, Counter[str]] = defaultdict(Counter)
    for one, following in pairwise(order):
        followers[one][following] += 1
    for one, counts in followers.items():
        assert one not in counts
        assert len(counts) == 4
        assert min(counts.values()) > sum(counts.values()) / 8  # a quarter each, in expectation


def test_gradual_mixes_one_topic_out_and_the_next_in() -> None:
    path = moments("gradual", 2, 50_000, transition_length=10)
    spoken_of_new: list[tuple[float, bool]] = []
    lengths: list[int] = []
    ramp: list[float] = []
    for before, moment in pairwise(path):
        assert moment.spoken in (moment.topic, moment.mixed_with)
        assert moment.weight >= 0.5
        if moment.mixed_with is None:
            assert moment.weight == 1.0
            assert moment.spoken == moment.topic
            if ramp:
                lengths.append(len(ramp))
                assert ramp == sorted(ramp), "the new topic's weight goes up from event to event"
                ramp = []
        else:
            new = moment.topic if moment.boundary or (ramp and ramp[-1] > 0.5) else moment.mixed_with
            weight = moment.weight if moment.topic == new else 1 - moment.weight
            ramp.append(weight)
            if moment.boundary:
                assert moment.spoken == moment.topic != before.topic
            else:
                spoken_of_new.append((weight, moment.spoken == new))
    assert (min(lengths), max(lengths)) == (5, 15)
    assert abs(sum(lengths) / len(lengths) - 10) < 0.3
    for low, high in ((0.0, 0.2), (0.3, 0.5), (0.8, 1.0)):
        chosen = [(weight, said) for weight, said in spoken_of_new if low < weight <= high]
        share = sum(said for _, said in chosen) / len(chosen)
        assert abs(share - sum(weight for weight, _ in chosen) / len(chosen)) < 0.03


# No habit


def stretch_lengths(path: list[Moment]) -> list[int]:
    starts = [0] + [at for at, moment in enumerate(path) if moment.boundary]
    return [later - earlier for earlier, later in pairwise(starts)]


@pytest.mark.parametrize("scenario", SHIFTING)
def test_topic_lengths_follow_the_settings_and_nothing_else(scenario: Scenario) -> None:
    lengths = stretch_lengths(moments(scenario, 11, 120_000, mean_topic_length=20, min_topic_length=4))
    assert abs(sum(lengths) / len(lengths) - 20) < 1.0
    assert min(lengths) >= 4
    assert len(set(lengths)) > 40
    odd = sum(length % 2 for length in lengths) / len(lengths)
    assert 0.46 < odd < 0.54
    if scenario != "gradual":  # after the minimum, the chance to end is the same at every length
        hazards = [
            sum(length == at for length in lengths) / sum(length >= at for length in lengths) for at in range(4, 25)
        ]
        assert max(hazards) < 0.085
        assert min(hazards) > 0.04  # 1 / 17 in expectation


def test_neither_turn_nor_parity_nor_pause_gives_a_boundary_away() -> None:
    even = switched_there = switched_elsewhere = boundaries = others = 0
    pause_there = pause_elsewhere = 0.0
    first_speaker: Counter[bool] = Counter()
    for seed in range(20):
        for rows in by_stream(
            generate(GenerateSettings(streams=3, events=500, seed=seed, mean_topic_length=12))
        ).values():
            opener = rows[0][0]["role"]
            for (before, _), (event, truth) in pairwise(rows):
                switched = event["role"] != before["role"]
                gap = datetime.fromisoformat(event["ts"]) - datetime.fromisoformat(before["ts"])
                short = gap.total_seconds() < 60
                if truth["boundary"]:
                    boundaries += 1
                    even += truth["seq"] % 2 == 0
                    switched_there += switched
                    pause_there += not short
                    first_speaker[event["role"] == opener] += 1
                else:
                    others += 1
                    switched_elsewhere += switched
                    pause_elsewhere += not short
    assert boundaries > 2000
    assert 0.47 < even / boundaries < 0.53
    assert 0.47 < first_speaker[True] / boundaries < 0.53
    assert abs(switched_there / boundaries - switched_elsewhere / others) < 0.03
    assert 0.5 < switched_elsewhere / others < 0.9, "turns are neither strictly alternating nor rare"
    assert abs(pause_there / boundaries - pause_elsewhere / others) < 0.01


def test_no_opener_is_kept_for_new_topics() -> None:
    """Words before a comma ("By the way,") open messages inside topics as often as at boundaries."""
    openers = {template.text for template in load_common().openers + load_common().asides if "{" not in template.text}
    counts = {0: [0, 0], 1: [0, 0]}
    for event, truth in generate(GenerateSettings(streams=30, events=1000, mean_topic_length=12)):
        if truth["fact"] is None and truth["seq"]:
            found = any(event["text"].startswith(opener + " ") for opener in openers)
            counts[truth["boundary"]][0] += found
            counts[truth["boundary"]][1] += 1
    inside, at_boundary = (found / total for found, total in counts.values())
    assert abs(inside - at_boundary) < 0.05


# The sentences


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [event["text"] for event, _ in generate(GenerateSettings(streams=20, events=1000, seed=8))]


def test_messages_look_like_sentences(texts: list[str]) -> None:
    for text in texts:
        assert text[0].isupper() or text[0].isdigit(), text
        assert text[-1] in ".?!", text
        assert not re.search(r"  |[{}]| [,.?!]", text), text
        assert not re.search(r"\b(a|the|of|in|on|at|to|is)\s+\1\b", text, re.IGNORECASE), text
        assert 1 <= len(text.split()) <= 40, text
        for sentence in re.split(r"(?<=[a-z][.?!]) ", text):
            assert sentence[0].isupper() or sentence[0].isdigit(), text


def test_articles_suit_the_words_that_follow(texts: list[str]) -> None:
    said = Counter(match.group().lower() for text in texts for match in re.finditer(r"(?i)\ban? \w+", text))
    wrong = [
        words for words in said if re.match(r"a (?!one|uni|use|ux|uru|eur)[aeiou]|a hour|an (?!hour|hr)[^aeiou]", words)
    ]
    assert wrong == []


def test_lengths_vary_like_chat(texts: list[str]) -> None:
    words = sorted(len(text.split()) for text in texts)
    assert words[len(words) // 50] <= 4
    assert 9 <= words[len(words) // 2] <= 16
    assert words[-len(words) // 50] >= 25


def test_whole_messages_are_seldom_repeated(texts: list[str]) -> None:
    assert len(set(texts[:10_000])) / 10_000 > 0.9
    one, two = by_stream(generate(GenerateSettings(streams=2, events=3000))).values()
    other = {event["text"] for event, _ in two}
    assert sum(event["text"] in other for event, _ in one) / len(one) < 0.06


def test_nobody_repeats_a_sentence_at_once() -> None:
    rows = by_stream(generate(GenerateSettings(scenario="stationary", streams=10, events=1000)))
    repeated = 0
    for stream in rows.values():
        said = [set(re.split(r"(?<=[.?!]) ", event["text"])) for event, _ in stream]
        repeated += sum(bool(one & following) for one, following in pairwise(said))
    assert repeated / 10_000 < 0.001


def test_there_is_enough_to_talk_about() -> None:
    assert len(topic_names()) >= 24
    owners: dict[tuple[str, str], str] = {}
    for name in topic_names():
        topic = load_topic(name)
        sentences = [*topic.statements, *topic.questions, *topic.replies, *topic.talk]
        assert len({template.text for template in sentences}) == len(sentences) >= 25, name
        assert sum(len(fillers) >= 8 for fillers in topic.slots.values()) >= 6, name
        said = " ".join(template.text for template in sentences)
        assert [slot for slot in topic.slots if f"{{{slot}}}" not in said and f"{{a {slot}}}" not in said] == []
        families = {id(fact.family): fact.family for fact in topic.facts}.values()
        assert len(families) >= 4, name
        assert all(len(family.values) >= 8 for family in families), name
        assert len(topic.facts) >= 20, name
        for fact in topic.facts:
            assert owners.setdefault((fact.subject, fact.family.attribute), name) == name
    common = load_common()
    assert not set(common.speakers) & set(common.slots["owner"])


def test_a_template_with_an_unknown_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'disk'"):
        Template("I like {disk}.", {"dish": ["soup", "pie"]})


def test_a_slot_named_twice_gets_two_fillers() -> None:
    template = Template("{dish} or {dish}", {"dish": ["soup", "pie", "stew"]}, sticky={"dish"})
    dice, focus = Dice(1), {"dish": 0}
    for _ in range(200):
        one, two = template.fill(dice, {}, focus).split(" or ")
        assert one != two


def test_a_question_that_holds_its_answer_is_refused() -> None:
    ways = {"state": "{subject}: {value}.", "rebind": "{value} now.", "answer": "{value}."}
    family = {
        "attribute": "age",
        "subjects": ["Al"],
        "phrase": "the age of {subject}",
        "values": ["one", "two"],
        **ways,
    }
    FamilyText.model_validate({**family, "ask": "How old is {subject}?"})
    with pytest.raises(ValidationError, match=r"no \{value\} in a question"):
        FamilyText.model_validate({**family, "ask": "Is {subject} {value}?"})


# Memory and laziness


def test_a_billion_events_begin_at_once_and_take_no_room() -> None:
    rows = generate(GenerateSettings(scenario="recurring", streams=3, events=1_000_000_000))
    for _ in islice(rows, 10_000):  # every topic is met, every fact told
        pass
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in islice(rows, 20_000):
            pass
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000  # bytes; 20,000 events are over 4,000,000


# Files


def read(path: Path) -> list[str]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data.decode().splitlines()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_files_hold_what_generate_yields(tmp_path: Path, suffix: str) -> None:
    asked = GenerateSettings(scenario="rebinding", streams=3, events=700, seed=6)
    out, truth = tmp_path / f"events.jsonl{suffix}", tmp_path / f"truth.jsonl{suffix}"
    seen: list[int] = []
    written = write_stream(asked, out, truth, seen.append)
    assert seen == [1000, 2000, 2100]
    rows = list(generate(asked))
    assert [json.loads(line) for line in read(out)] == [event for event, _ in rows]
    assert [json.loads(line) for line in read(truth)] == [true for _, true in rows]
    ops = Counter(true["fact"]["op"] for _, true in rows if true["fact"])
    assert (written.events, written.boundaries) == (2100, 0)
    assert (written.stated, written.rebound, written.asked) == (ops["state"], ops["rebind"], ops["ask"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, truth.name])
    first = out.read_bytes()
    write_stream(asked, out, overwrite=True)
    assert out.read_bytes() == first, "the same settings, the same bytes"
    if suffix == ".gz":
        assert first[4:8] == bytes(4), "no time of writing in the header"


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    asked = GenerateSettings(streams=1, events=20)
    out, truth = tmp_path / "events.jsonl", tmp_path / "truth.jsonl"
    truth.write_text("precious")
    with pytest.raises(ConfigurationError, match=r"truth\.jsonl' exists"):
        write_stream(asked, out, truth)
    assert truth.read_text() == "precious"
    assert not out.exists()
    write_stream(asked, out, truth, overwrite=True)
    assert len(truth.read_text().splitlines()) == 20


def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "events.jsonl"

    def somebody_else(_: int) -> None:
        out.write_text("precious")

    with pytest.raises(ConfigurationError, match="exists"):
        write_stream(GenerateSettings(streams=1, events=1000), out, progress=somebody_else)
    assert out.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_nothing_is_left_of_a_run_that_failed(tmp_path: Path, suffix: str) -> None:
    def stop(_: int) -> None:
        assert len(list(tmp_path.iterdir())) == 2  # both under temporary names
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_stream(GenerateSettings(streams=2, events=2000), tmp_path / f"e{suffix}", tmp_path / f"t{suffix}", stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (lambda folder: (folder / "same", folder / "x" / ".." / "same"), "two different files"),
        (lambda folder: (folder / "missing" / "events", None), "existing folder"),
        (lambda folder: (folder, None), "an ordinary file"),
        (lambda folder: (Path(os.devnull), None), "an ordinary file"),
    ],
)
def test_paths_that_cannot_be_written_are_refused(
    tmp_path: Path, paths: Callable[[Path], tuple[Path, Path | None]], message: str
) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(ConfigurationError, match=message):
        write_stream(GenerateSettings(streams=1, events=5), *paths(tmp_path), overwrite=True)


# Settings


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"scenario": "sudden"}, "abrupt"),
        ({"stream": 3}, "Extra inputs"),
        ({"streams": 0}, "greater than or equal to 1"),
        ({"topics": ("chess", "knitting")}, "knitting"),
        ({"topics": ("chess", "chess")}, "each topic once"),
        ({"topics": ("chess",)}, "at least 2 topics"),
        ({"scenario": "recurring", "topics": ("chess", "taxes")}, "at least 4 topics"),
        ({"mean_topic_length": 3}, "mean_topic_length of at least 4"),
        ({"scenario": "gradual", "mean_topic_length": 11}, "mean_topic_length of at least 12"),
        ({"fact_share": 0.6, "ask_share": 0.5}, "add up to 1"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GenerateSettings.model_validate(asked)


def test_chosen_topics_are_kept_to() -> None:
    few = ("chess", "taxes", "trains")
    rows = generate(GenerateSettings(streams=3, events=300, topics=few))
    assert {truth["topic"] for _, truth in rows} == set(few)
