"""The record of what happened to a run."""

import json
import time

from trainer.ledger import Ledger, events


def test_events_are_appended_in_order_with_their_time(tmp_path):
    before = time.time()
    Ledger(tmp_path / "events.jsonl").record("start", step=0)
    Ledger(tmp_path / "events.jsonl").record("rollback", step=30, to=20)
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["start", "rollback"]
    assert rows[1]["step"] == 30 and rows[1]["to"] == 20
    assert before - 0.001 <= rows[0]["time"] <= rows[1]["time"] <= time.time() + 0.001


def test_a_worker_that_does_not_write_records_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Ledger(None).record("start", step=0)
    assert not list(tmp_path.iterdir())


def test_no_event_goes_on_half_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    Ledger(path).record("start", step=0)
    with path.open("a") as file:
        file.write('{"time": 17, "event": "ali')
    ledger = Ledger(path)
    ledger.record("start", step=3)
    ledger.record("alive", step=5)
    assert len(path.read_text().splitlines()) == 4
    assert [event["event"] for event in events(path)] == ["start", "start", "alive"]
    assert events(tmp_path / "none") == []
