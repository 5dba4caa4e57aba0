"""The Magento module against the rules that Magento's schemas state for publishers, topologies and consumers."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from support.php import find_php

from zithara_worker.topics import TOPIC_TABLE, TOPICS

MODULE = Path(__file__).parent.parent.parent / "packaging" / "magento"
SCHEMA = "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation"


def read(name: str, schema: str) -> ElementTree.Element:
    root = ElementTree.parse(MODULE / "etc" / name).getroot()
    assert (root.tag, root.get(SCHEMA)) == ("config", schema)
    return root


def test_the_module_comes_after_the_one_whose_connections_it_replaces() -> None:
    (module,) = read("module.xml", "urn:magento:framework:Module/etc/module.xsd")
    after = [each.get("name") for each in module.iterfind("sequence/module")]
    assert "Zithara_Webhook" in after
    assert f"'{module.get('name')}'" in (MODULE / "registration.php").read_text()


def test_each_topic_has_exactly_one_enabled_connection_and_it_is_the_database() -> None:
    publishers = read("queue_publisher.xml", "urn:magento:framework-message-queue:etc/publisher.xsd")
    assert sorted(each.get("topic", "") for each in publishers) == sorted(TOPICS)
    for publisher in publishers:
        enabled = [each for each in publisher if each.get("disabled") == "false"]
        assert [(each.get("name"), each.get("exchange")) for each in enabled] == [("db", "magento-db")]
        assert Counter(each.get("name") for each in publisher) == {"amqp": 1, "db": 1}


def test_each_topic_is_bound_to_its_queue_on_an_exchange_of_the_database() -> None:
    (exchange,) = read("queue_topology.xml", "urn:magento:framework-message-queue:etc/topology.xsd")
    assert (exchange.get("name"), exchange.get("type"), exchange.get("connection")) == ("magento-db", "topic", "db")
    bound = {each.get("topic"): (each.get("destinationType"), each.get("destination")) for each in exchange}
    assert bound == {topic: ("queue", TOPIC_TABLE[topic].queue) for topic in TOPICS}
    assert max(Counter(each.get("id") for each in exchange).values()) == 1


def test_the_consumers_are_the_modules_own_on_the_same_queues() -> None:
    consumers = read("queue_consumer.xml", "urn:magento:framework-message-queue:etc/consumer.xsd")
    found = {each.get("name"): (each.get("queue"), each.get("connection")) for each in consumers}
    assert found == {topic.php_consumer: (topic.queue, "db") for topic in TOPIC_TABLE.values()}
    assert all("::process" in each.get("handler", "") for each in consumers)


def test_the_registration_is_valid_php() -> None:
    done = subprocess.run([find_php(), "-l", MODULE / "registration.php"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
