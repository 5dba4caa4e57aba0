"""What a setting may be, whoever makes it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zithara_worker.errors import ConfigurationError
from zithara_worker.settings.sections import (
    BASE_URLS,
    KEY_AT,
    KEYS,
    SECTIONS,
    DatabaseSettings,
    LoggingSettings,
    MetricsSettings,
    RetrySettings,
    Settings,
    WorkerSettings,
    ZitharaSettings,
)
from zithara_worker.settings.values import Secret, as_ini_text, split_address


def read(section: str, name: str, text: object) -> Any:
    return KEY_AT[section, name].read(text)


# ---------------------------------------------------------------- Secret


@pytest.mark.parametrize("show", [str, repr, "{}".format, "{!r}".format, lambda secret: f"{[secret]}"])
def test_a_secret_shows_itself_in_no_text(show: Any) -> None:
    assert "hunter2" not in show(Secret("hunter2"))
    assert "*" in show(Secret("hunter2"))


def test_a_secret_is_given_away_only_on_purpose() -> None:
    assert Secret("hunter2").reveal() == "hunter2"


def test_an_empty_secret_is_false_and_equal_secrets_are_equal() -> None:
    assert not Secret("")
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_a_secret_is_never_pickled_but_settings_can_be_copied() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret("hunter2"))
    section = DatabaseSettings(password=Secret("hunter2"))
    assert copy.deepcopy(section) == section


def test_settings_show_no_secret() -> None:
    settings = Settings(
        database=DatabaseSettings(password=Secret("hunter2")), zithara=ZitharaSettings(client_secret=Secret("hunter2"))
    )
    assert "hunter2" not in repr(settings)


# ---------------------------------------------------------------- sections


def test_settings_need_no_argument_and_cannot_be_changed() -> None:
    settings = Settings()
    assert settings == Settings()
    with pytest.raises(FrozenInstanceError):
        settings.worker.concurrency = 1  # type: ignore[misc]  # that is the point
    with pytest.raises(TypeError):
        settings.queues["zithara.cart.events"] = "carts"  # type: ignore[index]  # that is the point


def test_the_queues_cannot_be_changed_through_the_mapping_they_were_made_of() -> None:
    given = {"cart": "carts"}
    settings = Settings(queues=given)
    given["cart"] = "others"
    assert settings.queues == {"zithara.cart.events": "carts"}


@pytest.mark.parametrize("environment", BASE_URLS)
def test_the_base_url_follows_the_environment(environment: str) -> None:
    assert ZitharaSettings(environment=environment).base_url == BASE_URLS[environment]


def test_a_given_base_url_counts_in_any_environment_and_loses_its_trailing_slash() -> None:
    assert ZitharaSettings(base_url="https://proxy.example/zithara/").base_url == "https://proxy.example/zithara"


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example/v1",
        "http://127.0.0.1.example/v1",
        "ftp://api.example",
        "api.example/v1",
        "https://",
        "https://api.example:port/",
        "https://api.example/a b",
        "https://user:hunter2@api.example/",
        "https://[::1/",
    ],
)
@pytest.mark.parametrize("key", ["base_url", "webhook_url"])
def test_a_url_over_which_data_would_travel_unprotected_or_nowhere_is_refused(key: str, url: str) -> None:
    with pytest.raises(ValueError, match=r"^must ") as caught:
        read("zithara", key, url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:8080", "127.9.9.9"])
def test_plain_http_is_allowed_to_this_machine_itself(host: str) -> None:
    assert read("zithara", "base_url", f"http://{host}/v1") == f"http://{host}/v1"


@pytest.mark.parametrize("prefix", ["m2-", "m2 ", "`", "ä_", "a\n", "m2_`; DROP TABLE queue"])
def test_a_table_prefix_that_could_be_more_than_a_name_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="letters, digits and _"):
        DatabaseSettings(table_prefix=prefix)


def test_every_wrong_value_of_a_section_is_told_at_once_with_its_key_and_what_was_seen() -> None:
    with pytest.raises(ConfigurationError) as caught:
        WorkerSettings(concurrency=0, batch_size=-1, poll_interval=float("nan"))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "[worker] concurrency = '0'",
        "[worker] batch_size = '-1'",
        "[worker] poll_interval = 'nan'",
    ]
    assert all("must be a" in line and " from " in line for line in lines)


@pytest.mark.parametrize("wrong", [True, 1.5, None, [1]])
def test_a_value_of_another_type_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="concurrency"):
        WorkerSettings(concurrency=wrong)


@pytest.mark.parametrize("wrong", [True, None, [1]])
def test_a_number_of_another_type_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="poll_interval"):
        WorkerSettings(poll_interval=wrong)


def test_a_text_is_read_as_in_the_file_whoever_gives_it() -> None:
    section = DatabaseSettings(password="hunter2", port="3307")  # type: ignore[arg-type]  # a program without mypy
    assert section == DatabaseSettings(password=Secret("hunter2"), port=3307)
    assert "hunter2" not in repr(section)


def test_a_lease_must_outlast_the_poll_interval() -> None:
    with pytest.raises(ConfigurationError, match="lease = '10' must be longer than poll_interval = '10'"):
        WorkerSettings(lease=10, poll_interval=10)
    assert WorkerSettings(lease=10, poll_interval=9.5).lease == 10.0


def test_the_longest_delay_is_not_less_than_the_first() -> None:
    with pytest.raises(ConfigurationError, match="max_delay"):
        RetrySettings(delay=60, max_delay=30)


def test_an_audit_that_is_required_needs_a_file() -> None:
    with pytest.raises(ConfigurationError, match="audit_file"):
        LoggingSettings(audit_required=True)
    assert LoggingSettings(audit_required=True, audit_file=Path("audit.jsonl")).audit_required


def test_a_certificate_authority_without_verification_is_a_contradiction() -> None:
    with pytest.raises(ConfigurationError, match="verify is false"):
        ZitharaSettings(verify=False, ca_file=Path("ca.pem"))


@pytest.mark.parametrize(
    "section",
    [lambda: DatabaseSettings(password_file=Path("p")), lambda: ZitharaSettings(client_secret_file=Path("p"))],
)
def test_a_secret_file_that_nobody_has_read_is_told(section: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"settings\.sources\.load"):
        section()


@pytest.mark.parametrize("value", ["tok\nen", "tök", "a\x7f"])
def test_credentials_that_no_http_header_can_hold_are_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="visible ASCII") as caught:
        ZitharaSettings(client_secret=Secret(value))
    assert value not in str(caught.value) and repr(value).strip("'") not in str(caught.value)


def test_blanks_pasted_around_credentials_are_dropped() -> None:
    section = ZitharaSettings(client_id=" id ", client_secret=Secret(" secret "))
    assert (section.client_id, section.client_secret.reveal()) == ("id", "secret")


# ---------------------------------------------------------------- topics and queues


def test_topics_go_by_short_or_full_names_and_count_once() -> None:
    assert read("worker", "topics", "cart, zithara.order.events\tzithara.cart.events") == (
        "zithara.cart.events",
        "zithara.order.events",
    )
    assert read("worker", "coalesce", "zithara.cart.events,order") == ("cart", "order")
    assert read("worker", "coalesce", "") == ()


@pytest.mark.parametrize("key", ["topics", "coalesce"])
def test_an_unknown_topic_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="must be some of order, customer"):
        read("worker", key, "cart,invoice")


@pytest.mark.parametrize(
    ("queues", "problem"),
    [
        ({"zithara.orders.events": "q"}, "must be one of the topics"),
        ({"cart": ""}, "1 to 255 characters"),
        ({"cart": "q" * 256}, "1 to 255 characters"),
        ({"cart": "a", "zithara.cart.events": "b"}, "twice"),
    ],
)
def test_a_queue_line_that_can_never_work_is_refused(queues: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Settings(queues=queues)


# ---------------------------------------------------------------- addresses and numbers


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9209", ("127.0.0.1", 9209)), ("[::1]:0", ("::1", 0)), ("metrics.example:80", ("metrics.example", 80))],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address
    assert MetricsSettings(listen=text).listen == text


@pytest.mark.parametrize(
    "text", ["9209", ":9209", "::1:9209", "host:", "host:65536", "host:-1", "[127.0.0.1]:1", "[x]:1"]
)
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\[metrics\] listen = .*host:port"):
        MetricsSettings(listen=text)


def test_no_address_switches_metrics_off() -> None:
    assert MetricsSettings(listen="").listen == ""


@pytest.mark.parametrize("text", ["", " ", "1_0", "٣", "0x10", "1e3", "ten", "9" * 5000, "1.5"])
def test_a_whole_number_is_written_in_plain_digits(text: str) -> None:
    with pytest.raises(ValueError, match="must be a whole number from 1 to 512"):
        read("worker", "concurrency", text)


@pytest.mark.parametrize("text", ["", "nan", "inf", "1_0", "1e3", "1,5", "9" * 5000])
def test_a_duration_is_written_as_a_plain_decimal(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a number from 0\.1 to 600"):
        read("zithara", "timeout", text)


@pytest.mark.parametrize(("text", "value"), [("TRUE", True), ("off", False), ("1", True), ("no", False)])
def test_a_switch_goes_by_the_usual_words(text: str, value: bool) -> None:
    assert read("logging", "mask", text) is value


def test_choices_are_known_in_any_case_and_kept_in_theirs() -> None:
    assert read("logging", "level", "debug") == "DEBUG"
    assert read("zithara", "environment", "Production") == "production"
    with pytest.raises(ValueError, match="must be send, omit or reject"):
        read("zithara", "invented_phone", "keep")


# ---------------------------------------------------------------- the table of keys


def test_the_table_has_every_field_of_every_section_once() -> None:
    expected = [
        (name, each.name)
        for name, section in SECTIONS.items()
        for each in fields(section)  # type: ignore[arg-type]
    ]
    assert [key.place for key in KEYS] == expected
    assert {each.name for each in fields(Settings)} == {*SECTIONS, "queues"}


def test_every_key_says_what_it_means_in_a_sentence() -> None:
    for key in KEYS:
        assert key.doc.endswith((".", "; instead of password.")) and key.doc[0].isupper(), key.place
        assert key.kind.wants, key.place
        assert key.environment == f"ZITHARA_WORKER_{key.section.upper()}_{key.name.upper()}"


def test_the_environment_variables_are_all_different() -> None:
    assert len({key.environment for key in KEYS}) == len(KEYS)


def test_every_default_is_written_so_that_it_is_read_as_itself() -> None:
    for key in KEYS:
        if not key.secret:
            assert key.read(as_ini_text(key.default)) == key.default, key.place


def test_secrets_are_masked_wherever_a_value_is_written() -> None:
    assert {key.place for key in KEYS if key.secret} == {
        ("database", "password"),
        ("zithara", "client_secret"),
        ("zithara", "webhook_secret"),
        ("relay", "password"),
    }
    assert "hunter2" not in as_ini_text(Secret("hunter2"))


@given(st.text(max_size=40))
def test_no_text_brings_anything_but_a_value_or_a_sentence(text: str) -> None:
    for key in KEYS:
        try:
            value = key.read(text)
        except ValueError as error:
            assert str(error).startswith("must ")
        else:
            assert key.read(value) == value, key.place
