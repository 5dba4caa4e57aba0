"""What a log line holds, what it hides, and where it goes."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from support.messages import message_of

from zithara_worker.delivery.threads import DeliveryPool
from zithara_worker.errors import ConfigurationError
from zithara_worker.logs import handlers as logs
from zithara_worker.logs.formatting import set_current_message
from zithara_worker.messages import Message, Outcome, OutcomeKind, Request, Target
from zithara_worker.settings.sections import LoggingSettings
from zithara_worker.settings.values import Secret

log = logging.getLogger("zithara_worker.tests")
pytestmark = pytest.mark.usefixtures("root_logger_as_before")
Written = Callable[..., str]


@pytest.fixture
def written() -> Written:
    """written(call, **settings): what `call` logs with these settings."""

    def run(call: Callable[[], None], **settings: Any) -> str:
        stream = io.StringIO()
        logs.configure(LoggingSettings(**settings), stream)
        call()
        return stream.getvalue()

    return run


def record_of(text: str) -> dict[str, Any]:
    (line,) = text.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


# ---------------------------------------------------------------- form


def test_a_json_line_begins_with_time_level_logger_event_and_message(written: Written) -> None:
    extra = {"event": "retry", "message_id": 7, "delay_seconds": 1.5, "unknown": None}
    record = record_of(written(lambda: log.warning("delivery %s", "failed", extra=extra)))
    assert list(record) == ["time", "level", "logger", "event", "message", "message_id", "delay_seconds"]
    assert list(record.values())[1:] == ["WARNING", "zithara_worker.tests", "retry", "delivery failed", 7, 1.5]


def test_texts_of_all_languages_stay_readable(written: Written) -> None:
    assert '"product": "अंगूठी"' in written(lambda: log.info("x", extra={"product": "अंगूठी"}))


def test_fields_that_are_no_json_are_written_as_text(written: Written) -> None:
    extra = {"path": Path("/a"), "ids": {3}, "nested": {"topic": Path("/b"), 5: (0, None)}, "done": True}
    record = record_of(written(lambda: log.info("x", extra=extra)))
    assert (record["path"], record["ids"], record["done"]) == ("/a", [3], True)
    assert record["nested"] == {"topic": "/b", "5": [0, None]}


def test_a_traceback_is_one_field(written: Written) -> None:
    def fail() -> None:
        try:
            raise KeyError("order")
        except KeyError:
            log.exception("failed", extra={"event": "internal_error"})

    record = record_of(written(fail))
    assert record["exc_info"].startswith("Traceback") and record["exc_info"].endswith("KeyError: 'order'")
    assert "KeyError: 'order'" in written(fail, format="text").splitlines()[-1]


def test_a_text_line_is_for_people(written: Written) -> None:
    extra = {"event": "retry", "message_id": 7, "detail": "no answer"}
    text = written(lambda: log.warning("will retry", extra=extra), format="text")
    assert text[24:] == ' WARNING will retry  [event=retry message_id=7 detail="no answer"]\n'
    assert written(lambda: log.info("plain"), format="text")[24:] == " INFO    plain\n"


def test_a_line_break_from_outside_makes_no_second_line(written: Written) -> None:
    def call() -> None:
        log.info("answer %s", "a\nb", extra={"detail": "c\r\nd", "reason": "e]\nf"})

    assert len(written(call, format="text").splitlines()) == 1
    assert len(written(call, format="json").splitlines()) == 1


def test_levels_below_the_configured_one_are_silent(written: Written) -> None:
    assert written(lambda: log.info("x"), level="WARNING") == ""


# ---------------------------------------------------------------- masking


def test_only_free_text_is_searched_for_telephone_numbers(written: Written) -> None:
    extra = {"group": "order:100000012", "detail": "number 9876543210 refused", "shopper": "asha@example.com"}
    record = record_of(written(lambda: log.info("x", extra=extra)))
    assert record["group"] == "order:100000012"
    assert record["detail"] == "number ***10 refused"
    assert record["shopper"] == "a***@***"


def test_objects_in_any_field_are_masked_by_their_keys_and_lists_of_ours_are_shown(written: Written) -> None:
    customer = {"Email": "asha@example.com", "first_name": "Asha", "ids": [1], "orderId": 5, "token": {"id": "t"}}
    extra = {"customer": customer, "message_ids": [7, 8], "names": ["asha@example.com", {"age": 41}]}
    record = record_of(written(lambda: log.info("x", extra=extra)))
    hidden = {"Email": "***", "first_name": "***", "ids": ["***"], "orderId": 5, "token": {"id": "***"}}
    assert record["customer"] == hidden
    assert (record["message_ids"], record["names"]) == ([7, 8], ["a***@***", {"age": "***"}])


def test_an_address_in_the_sentence_or_a_traceback_is_masked(written: Written) -> None:
    def fail() -> None:
        try:
            raise ValueError("asha@example.com, 9876543210")
        except ValueError:
            log.exception("no customer %s", "asha@example.com")

    for form in ("json", "text"):
        text = written(fail, format=form)
        assert "no customer a***@***" in text and "ValueError: a***@***, ***10" in text
        assert "asha@" not in text


def test_masking_of_personal_data_can_be_switched_off_but_not_that_of_secrets(written: Written) -> None:
    extra = {
        "detail": 'asha@example.com {"access_token": "tok-123"} password=tok-123',
        "password": "tok-123",
        "credentials": {"client_secret": "tok-123", "key": Secret("tok-123")},
        "phone": "9876543210",
    }
    for form in ("json", "text"):
        text = written(lambda: log.info("%s", Secret("tok-123"), extra=extra), mask=False, format=form)
        assert "asha@example.com" in text and "9876543210" in text
        assert "tok-123" not in text


def test_a_body_is_masked_by_its_keys_at_any_depth(written: Written) -> None:
    body = {
        "customer": {"name": "Asha Rao", "email": "asha@example.com", "alt_phone": 9876543210, "middle_name": "Kumari"},
        "order": {"billing_address": {"address1": "12 MG Road", "city": "Mumbai", "zip": "400001", "country": "IN"}},
        "order_line_item": [{"product_name": "Ring", "sku": "R-1", "price": 71.99}],
        "custom_attributes": {"date_of_birth": "1990-01-02", "company_name": "Rao & Co", "landmark": ["by the lake"]},
        "customerName": "Asha Rao",
        "note": "call +91 98765 43210",
        "message": "Happy birthday, Asha",
        "platform_order_id": "0000000101",
        "asha@example.com": True,
        "9876543210": None,
        "contact": 9876543210,
        "address_data": '{"street": "12 MG Road", "telephone": "98765 43210"}',
    }
    text = written(lambda: log.debug("x", extra={"request": body}), level="DEBUG")
    request = record_of(text)["request"]
    assert request["customer"] == {"name": "***", "email": "***", "alt_phone": "***", "middle_name": "***"}
    address = request["order"]["billing_address"]
    assert address == {"address1": "***", "city": "***", "zip": "***", "country": "IN"}
    assert request["order_line_item"] == body["order_line_item"]
    attributes = {"date_of_birth": "***", "company_name": "***", "landmark": ["***"]}
    assert request["custom_attributes"] == attributes
    assert {request[key] for key in ("customerName", "note", "message", "contact", "address_data")} == {"***"}
    assert request["platform_order_id"] == "0000000101"
    for personal in ("Asha", "asha", "98765", "Rao", "1990", "lake", "MG Road", "Mumbai"):
        assert personal not in text

    unmasked = record_of(written(lambda: log.debug("x", extra={"request": body}), level="DEBUG", mask=False))
    assert unmasked["request"] == body


def test_an_answer_is_shown_in_its_own_words(written: Written) -> None:
    answer = {"status": 422, "message": "no customer asha@example.com", "errors": [{"field": "email", "value": "Asha"}]}
    record = record_of(written(lambda: log.debug("x", extra={"response": answer}), level="DEBUG"))
    errors = [{"field": "email", "value": "***"}]
    assert record["response"] == {"status": 422, "message": "no customer a***@***", "errors": errors}
    detail = "HTTP 422: " + json.dumps(answer)
    record = record_of(written(lambda: log.info("x", extra={"detail": detail})))
    assert record["detail"] == "HTTP 422: " + json.dumps(
        {**answer, "message": "no customer a***@***", "errors": errors}
    )


def test_a_body_of_any_depth_is_written(written: Written) -> None:
    body: Any = []
    for _ in range(50_000):
        body = [body]
    assert '"..."' in written(lambda: log.info("x", extra={"request": body}))


# ---------------------------------------------------------------- which message a line is about


def message(message_id: int, attempts: int = 0) -> Message:
    order = {"queue_id": 3, "group_key": "order:000000101"}
    return message_of(message_id + 1000, message_id=message_id, number_of_trials=attempts, attempts=attempts, **order)


def test_a_line_in_the_midst_of_a_delivery_carries_its_message(written: Written) -> None:
    def call() -> None:
        set_current_message(message(7, attempts=2))
        log.info("token renewed", extra={"event": "token_renewed"})

    record = record_of(written(call))
    assert (record["message_id"], record["attempt"]) == (7, 3)
    assert (record["topic"], record["group"]) == ("zithara.order.events", "order:000000101")


def test_a_line_about_another_message_is_not_mixed_up(written: Written) -> None:
    def call() -> None:
        set_current_message(message(7, attempts=2))
        log.info("x", extra={"message_id": 8})

    record = record_of(written(call))
    assert record["message_id"] == 8 and "attempt" not in record


def test_a_line_keeps_its_own_fields_beside_those_of_the_message(written: Written) -> None:
    def call() -> None:
        set_current_message(message(7, attempts=2))
        log.info("x", extra={"attempt": 9, "group": None})

    record = record_of(written(call))
    assert (record["message_id"], record["attempt"]) == (7, 9) and "group" not in record


def test_threads_do_not_share_their_message(written: Written) -> None:
    def call() -> None:
        set_current_message(message(7))
        other = threading.Thread(target=lambda: log.info("from elsewhere"))
        other.start()
        other.join()

    assert "message_id" not in record_of(written(call))


def test_each_line_of_a_delivery_names_message_and_attempt(written: Written) -> None:
    """Two threads, each with a line of a room that knows no message, and a defect that the pool tells."""
    finished: SimpleQueue[int] = SimpleQueue()

    def deliver(message: Message, request: Request) -> Outcome:
        logging.getLogger("zithara_worker.zithara").info("within")
        raise LookupError("a defect")

    def call() -> None:
        pool = DeliveryPool(2, deliver, lambda message, outcome: finished.put(message.message_id))
        request = Request(target=Target.API, method="POST", path="/order", json={})
        for message_id in range(20, 30):
            pool.submit(message(message_id, attempts=message_id), request)
        assert sorted(finished.get(timeout=10) for _ in range(10)) == list(range(20, 30))
        pool.stop(10)

    records = [json.loads(line) for line in written(call).splitlines()]
    for told in ("within", "delivery met a defect of this program; the message is tried again"):
        about = [(each["message_id"], each["attempt"]) for each in records if each["message"] == told]
        assert sorted(about) == [(message_id, message_id + 1) for message_id in range(20, 30)]


# ---------------------------------------------------------------- repetition


class Repeated:
    """A configured log with a clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stream = io.StringIO()
        logs.configure(LoggingSettings(), self.stream, monotonic=lambda: self.now)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_the_same_warning_is_written_a_few_times_a_minute_and_then_counted(level: int) -> None:
    repeated = Repeated()
    for _ in range(logs.REPEATS + 37):
        log.log(level, "no %s", "connection", extra={"event": "accept_failed"})
    assert [each["event"] for each in repeated.records()] == ["accept_failed"] * logs.REPEATS

    repeated.now = logs.REPEAT_SECONDS - 1
    log.info("not yet")
    assert repeated.records()[-1]["message"] == "not yet"
    repeated.now = logs.REPEAT_SECONDS
    log.info("a line of any kind")
    counted, line = repeated.records()[-2:]
    assert (counted["event"], counted["suppressed_event"], counted["count"]) == ("suppressed", "accept_failed", 37)
    assert (counted["level"], counted["logger"]) == (logging.getLevelName(level), "zithara_worker.tests")
    assert counted["message"] == "left out 37 more of: no connection"
    assert line["message"] == "a line of any kind"

    before = len(repeated.records())
    log.log(level, "no %s", "connection", extra={"event": "accept_failed"})
    assert len(repeated.records()) == before + 1


def test_what_was_left_out_is_told_when_the_log_is_closed() -> None:
    repeated = Repeated()
    for _ in range(logs.REPEATS + 2):
        log.warning("again")
    logs.configure(LoggingSettings(), io.StringIO())
    last = repeated.records()[-1]
    assert (last["event"], last["count"]) == ("suppressed", 2)


def test_a_warning_that_was_not_left_out_is_not_counted() -> None:
    repeated = Repeated()
    for _ in range(logs.REPEATS):
        log.warning("again")
    repeated.now = logs.REPEAT_SECONDS
    log.info("x")
    assert [each["message"] for each in repeated.records()] == ["again"] * logs.REPEATS + ["x"]


def test_different_warnings_and_loggers_are_each_told() -> None:
    repeated = Repeated()
    for number in range(40):
        log.warning("%s", f"setting {number}", extra={"event": "configuration_warning"})
        logging.getLogger(f"zithara_worker.tests.{number}").warning("the same")
    assert len(repeated.records()) == 80


def test_what_became_of_a_message_is_always_told() -> None:
    repeated = Repeated()
    for message_id in range(50):
        log.error("message failed", extra={"event": "failed", "message_id": message_id})
        log.warning("message retry", extra={"event": "retry", "message_id": 7})
        log.info("message delivered", extra={"event": "delivered"})
    assert len(repeated.records()) == 150


def test_a_warning_repeated_over_many_deliveries_is_still_the_same_one() -> None:
    repeated = Repeated()
    for message_id in range(logs.REPEATS + 3):
        set_current_message(message(message_id))
        log.warning("api asked for a pause", extra={"event": "throttled"})
    repeated.now = logs.REPEAT_SECONDS
    log.info("x")
    *written, counted, _ = repeated.records()
    assert [each["message_id"] for each in written] == list(range(logs.REPEATS))
    assert counted["count"] == 3 and "message_id" not in counted


# ---------------------------------------------------------------- where it goes


def test_logs_go_to_standard_error_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LoggingSettings())
    log.info("hello")
    captured = capsys.readouterr()
    assert captured.out == "" and record_of(captured.err)["message"] == "hello"


def test_configuring_again_replaces_only_what_was_configured_before(written: Written) -> None:
    other = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(other)
    try:
        assert written(lambda: log.info("one")).count("one") == 1
        assert written(lambda: log.info("two")).count("two") == 1
        assert other in logging.getLogger().handlers
        assert other.stream.getvalue() == "one\ntwo\n"
    finally:
        logging.getLogger().removeHandler(other)


def test_a_log_file_that_was_moved_away_is_followed_by_a_new_one(tmp_path: Path) -> None:
    file, moved = tmp_path / "worker.log", tmp_path / "worker.log.1"
    logs.configure(LoggingSettings(file=file))
    log.info("before")
    file.rename(moved)
    logs.reopen_files()
    assert file.exists()
    log.info("after")
    assert record_of(moved.read_text(encoding="utf-8"))["message"] == "before"
    assert record_of(file.read_text(encoding="utf-8"))["message"] == "after"


def test_a_log_file_holds_what_no_encoding_can(tmp_path: Path) -> None:
    file = tmp_path / "worker.log"
    logs.configure(LoggingSettings(file=file))
    log.info("half a \ud800 character")
    assert "\\ud800" in file.read_text(encoding="utf-8")


def test_a_log_file_that_cannot_be_opened_is_told_and_logs_go_on(tmp_path: Path, written: Written) -> None:
    def call() -> None:
        with pytest.raises(ConfigurationError, match=r"\[logging\] file: cannot open .*nowhere"):
            logs.configure(LoggingSettings(file=tmp_path / "nowhere" / "worker.log"))
        log.info("still here")

    assert record_of(written(call))["message"] == "still here"


class Writes(io.StringIO):
    """Remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return len(text)


@pytest.mark.parametrize("form", ["json", "text"])
def test_lines_of_a_batch_are_written_at_its_end_by_one_write(form: Any) -> None:
    stream = Writes()
    logs.configure(LoggingSettings(format=form), stream)
    with logs.batched_writes():
        log.info("first")
        log.warning("second")
        other = threading.Thread(target=lambda: log.info("from elsewhere"))
        other.start()
        other.join()
        assert ["from elsewhere" in text for text in stream.written] == [True], "other threads do not wait"
    log.info("third")

    assert [text.count("\n") for text in stream.written] == [1, 2, 1]
    assert ["first" in line for line in stream.written[1].splitlines()] == [True, False]
    assert "third" in stream.written[2]


def test_lines_before_an_error_in_a_batch_are_written() -> None:
    stream = Writes()
    logs.configure(LoggingSettings(), stream)
    with pytest.raises(LookupError), logs.batched_writes():
        log.info("before")
        raise LookupError
    assert record_of("".join(stream.written))["message"] == "before"


def test_a_line_that_cannot_be_formatted_costs_no_other_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unspeakable:
        def __str__(self) -> str:
            raise LookupError("no words")

    stream, told = Writes(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    logs.configure(LoggingSettings(), stream)
    with logs.batched_writes():
        log.info("unspoken", extra={"thing": Unspeakable()})
        log.info("spoken")
    assert record_of("".join(stream.written))["message"] == "spoken"
    assert "no words" in told.getvalue()


def test_a_log_that_cannot_be_written_is_told_once_and_without_the_record(
    monkeypatch: pytest.MonkeyPatch, written: Written
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    logs.configure(LoggingSettings(), Full())
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    log.info("asha@example.com")
    log.info("asha@example.com")
    assert told.getvalue().count("No space left on device") == 1
    assert "asha" not in told.getvalue()


def test_a_broken_standard_error_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    logs.configure(LoggingSettings(), closed)
    monkeypatch.setattr(sys, "stderr", closed)
    log.info("into the void")


def test_warnings_of_the_configuration_are_logged_as_such(written: Written) -> None:
    record = record_of(written(lambda: logs.warn_of(["everybody can read 100% of it"])))
    assert (record["level"], record["event"]) == ("WARNING", "configuration_warning")
    assert record["message"] == "everybody can read 100% of it"


# ---------------------------------------------------------------- what is documented


def test_every_event_stands_in_the_table_of_events() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "logging.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| (?:[A-Z]+(?:, [A-Z]+)*|as what it counts) \|", page, re.MULTILINE)
    documented = set(re.findall(r"`(\w+)`", " ".join(rows)))
    in_code = {
        event
        for file in (root / "zithara_worker").rglob("*.py")
        for event in re.findall(r'(?:"event": |\bevent=)"(\w+)"', file.read_text(encoding="utf-8"))
    }
    outcomes = {kind.value for kind in OutcomeKind}
    assert len(in_code) > 30
    assert (in_code | outcomes) - documented == set()
    of_a_variable = {
        *outcomes,
        "resumed",
        "suppressed",
        *(
            f"operator_{each}"
            for each in ("retry", "discard", "release", "pause", "resume", "reconcile_publish", "reconcile_resend")
        ),
    }
    assert documented - in_code - of_a_variable == set()
