"""The table of topics, and that a topic goes by its short name wherever one is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import pytest
from support.shops import SHOP

from zithara_worker.commands.root import command
from zithara_worker.messages import Request
from zithara_worker.processors import PROCESSORS, identify, process
from zithara_worker.sandbox import examples
from zithara_worker.topics import SHORT_NAMES, TOPIC_TABLE, TOPICS, full_name, short_name


def test_each_topic_of_the_table_has_a_processor_and_there_are_no_others() -> None:
    assert set(PROCESSORS) == set(TOPIC_TABLE)


@pytest.mark.parametrize(("topic", "payload"), examples.SAMPLES)
def test_the_table_tells_where_a_topics_requests_go_and_what_they_are_about(
    topic: str, payload: dict[str, Any]
) -> None:
    row = TOPIC_TABLE[topic]
    group, event = identify(topic, 1, json.dumps(payload))
    assert row.entity in ("", group.partition(":")[0])
    request = process(event, SHOP)  # type: ignore[arg-type]  # samples are never rejected
    assert isinstance(request, Request)
    assert request.target is row.target
    assert row.path in ("", request.path)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_short_name_and_a_full_name_lead_to_each_other(topic: str) -> None:
    assert full_name(short_name(topic)) == topic == full_name(topic)
    assert short_name(topic) in SHORT_NAMES


def test_what_is_no_topic_stays_as_it_is() -> None:
    assert full_name("invoice") == short_name("invoice") == "invoice"


def topic_parameters(group: click.Command = command, path: str = "") -> Iterator[tuple[str, click.Parameter]]:
    """Each argument or option of a command that takes topics, with the command's name."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx) if isinstance(group, click.Group) else ():
        found = group.get_command(ctx, name)
        assert found is not None
        yield from topic_parameters(found, f"{path} {name}")
    yield from ((path, each) for each in group.params if each.name in ("topic", "topics"))


@pytest.mark.parametrize(("path", "parameter"), [*topic_parameters()])
def test_every_command_takes_a_topic_by_its_short_name(path: str, parameter: click.Parameter) -> None:
    many = parameter.multiple or parameter.nargs == -1
    given = parameter.process_value(click.Context(command), ["cart"] if many else "cart")
    assert given == (("zithara.cart.events",) if many else "zithara.cart.events"), path
    with pytest.raises(click.BadParameter, match=r"'order'.*'zithara\.order\.events'"):
        parameter.process_value(click.Context(command), ["invoice"] if many else "invoice")


def test_the_commands_that_take_topics_are_known() -> None:
    found = {path.split()[0] for path, _ in topic_parameters()}
    assert found == {"consume", "relay", "publish", "preview", "failed", "check", "pause", "resume"}
