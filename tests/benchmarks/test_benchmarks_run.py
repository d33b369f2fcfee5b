"""The benchmarks in their smallest sizes: that they still work, not how fast anything is."""

import json

import pytest

from benchmarks import dispatcher, libraries, peers, user_tasks
from benchmarks.rounds import Claim, Report, percentile, take_turns, write
from benchmarks.suite import suite


def test_the_benchmarks_run_in_their_smallest_sizes():
    tasks = dispatcher.Sizes(tasks=20, rounds=1, requests=40, waiting=100, samples=2, alone=True)
    people = user_tasks.Sizes(
        tasks=8, rounds=1, rows=60, purged=20, streamed=2, watchers=2, alone=True
    )

    with suite(["dispatcher", "user_tasks"], worker="benchmarks.noop_worker") as found:
        first = dispatcher.measure_on(found, tasks, ["hand-over", "accept", "read", "waiting"])
        second = user_tasks.measure_on(found, people, ["stream", "purge", "pages"])
        ours = user_tasks.UserTasks(found)
        newest = ours.query("select max(id) from event")
        ours.clear()
        # Without it the stream takes the database for one that was set back, and closes.
        assert ours.query("select id from event") == newest

    assert second.skipped == {user_tasks.PEER: "not asked for"}
    seen = {claim.what: claim.figures for claim in first.claims}
    assert {"0 waiting", "100 waiting"} <= set(seen["a free task, dispatch to end, median"])
    assert all(value >= 0 for figures in seen.values() for one in figures.values() for value in one)
    assert [claim.what for claim in second.claims] == [
        "live stream: events delivered",
        "purge of 20 old rows",
        "a page of 10 among 60 rows",
        "a page of 50 among 60 rows",
    ]


def test_the_phases_of_a_library_run_in_their_smallest_size():
    sizes = libraries.Sizes(components=20, samples=2, rounds=1, large=40, alone=True)

    report = libraries.measure(sizes, libraries.PARTS)

    assert report.skipped == {libraries.PEER: "not asked for"}
    names = [*libraries.PHASES, *libraries.OTHER_WAYS]
    phases = report.claims[: len(names)]
    assert [claim.what for claim in phases] == names
    assert all(claim.statements["lyceum"][0] > 0 for claim in phases)
    assert {len(claim.figures) for claim in report.claims[len(phases) :]} == {2}


def test_a_peer_that_is_not_installed_is_skipped_with_the_way_to_install_it():
    assert "make bench peers=1" in str(peers.missing("a_package_that_does_not_exist"))
    assert peers.missing("json") is None


def test_ratios_are_made_within_a_round_and_above_one_in_our_favour():
    more = Claim("rate", "/s", "peer", figures={"we": [100.0, 300.0], "peer": [50.0, 100.0]})
    less = Claim(
        "time", "ms", "peer", better="less", figures={"we": [2.0, 5.0], "peer": [4.0, 50.0]}
    )

    assert more.ratios("we") == [2.0, 3.0]
    assert less.ratios("we") == [2.0, 10.0]


def test_everyone_takes_turns_and_the_order_changes_with_the_round():
    order: list[str] = []
    claim = Claim("rate", "/s", "b")

    def measured(who: str) -> float:
        order.append(who)
        return 1.0

    take_turns(claim, 2, {"a": lambda: measured("a"), "b": lambda: measured("b")})

    assert order == ["a", "b", "b", "a"]


def test_the_last_line_and_the_file_are_the_same_json(tmp_path, capsys: pytest.CaptureFixture[str]):
    report = Report("nothing", {"size": 1})
    report.claim("rate", "/s", "peer").add("peer", 3.0)
    path = tmp_path / "found.json"

    write([report], path)

    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == json.loads(path.read_text())
    assert json.loads(last)[0]["claims"][0]["entrants"]["peer"]["ratio"]["median"] == 1.0


def test_a_percentile_is_one_of_the_values():
    assert percentile([5.0, 1.0, 3.0], 0.5) == 3.0
    assert percentile([5.0, 1.0, 3.0], 0.95) == 5.0
