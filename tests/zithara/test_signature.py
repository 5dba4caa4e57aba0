"""Signed webhooks, verified by the library of the specification."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from support.processes import WorkerProcess
from support.waiting import eventually

from zithara_worker.errors import ConfigurationError
from zithara_worker.sandbox.api import WEBHOOK_PATH, FakeZithara, RecordedRequest, Reply, in_turn
from zithara_worker.sandbox.session import write_config
from zithara_worker.sandbox.shop import Shop
from zithara_worker.settings.sections import ZitharaSettings
from zithara_worker.settings.values import Secret, is_metadata_address, webhook_keys
from zithara_worker.zithara.http import Transport, UrlRefused, usable_url
from zithara_worker.zithara.signature import UNSIGNED, WebhookSigner


def new_secret(length: int = 32) -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(length)).decode()


def verified(secret: str, body: bytes, headers: Mapping[str, str]) -> object:
    return Webhook(secret).verify(body, dict(headers))


def signed(keys: str, body: bytes, *, message: str = "q-1-ab", now_utc: float | None = None) -> dict[str, str]:
    found = WebhookSigner(webhook_keys(keys)).headers(
        message, body, now_utc=time.time() if now_utc is None else now_utc
    )
    return {name.decode(): value.decode() for name, value in found}


def test_a_receiver_with_the_secret_accepts_the_webhook_and_nothing_else() -> None:
    secret, body = new_secret(), '{"name":"Ünal"}'.encode()
    headers = signed(secret, body)
    assert verified(secret, body, headers) == {"name": "Ünal"}
    for wrong in (
        lambda: verified(new_secret(), body, headers),
        lambda: verified(secret, body + b" ", headers),
        lambda: verified(secret, body, {**headers, "webhook-id": "msg_other"}),
        lambda: verified(secret, body, signed(secret, body, now_utc=time.time() - 3600)),
    ):
        with pytest.raises(WebhookVerificationError):
            wrong()


def test_during_a_rotation_the_old_and_the_new_secret_both_verify() -> None:
    old, new, body = new_secret(24), new_secret(64), b"{}"
    headers = signed(f"{old}, {new}", body)
    assert verified(old, body, headers) == verified(new, body, headers) == {}


def test_the_id_is_that_of_the_message_and_holds_no_full_stop() -> None:
    first = signed(new_secret(), b"{}", message="zithara.webhook.events-17-ab", now_utc=1)
    again = signed(new_secret(), b"{}", message="zithara.webhook.events-17-ab", now_utc=2)
    other = signed(new_secret(), b"{}", message="zithara.webhook.events-18-ab", now_utc=2)
    assert first["webhook-id"] == again["webhook-id"] != other["webhook-id"]
    assert "." not in first["webhook-id"] and (first["webhook-timestamp"], again["webhook-timestamp"]) == ("1", "2")


def test_without_a_secret_nothing_is_signed() -> None:
    assert UNSIGNED.headers("q-1", b"{}", now_utc=0) == []
    assert webhook_keys("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "secret",
        "whsec_",
        "whsec_not base64!",
        new_secret(23),
        new_secret(65),
        f"{new_secret()},{new_secret()},{new_secret()}",
    ],
    ids=["no prefix", "empty", "no base64", "too short", "too long", "three"],
)
def test_a_secret_that_the_specification_does_not_allow_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ZitharaSettings(webhook_secret=Secret(text))
    assert "webhook_secret" in str(caught.value) and "whsec_" in str(caught.value)
    assert text[6:] == "" or text[6:] not in str(caught.value)


def test_the_worker_signs_webhooks_only_and_each_attempt_anew(shop: Shop, api: FakeZithara, tmp_path: Path) -> None:
    secret = new_secret()
    file = tmp_path / "webhook-secret"
    file.write_text(secret + "\n", encoding="ascii")
    file.chmod(0o600)
    shop.publish_samples()
    shop.configure_webhook(client_id=api.client_id, client_secret=api.client_secret, webhook_url=api.webhook_url)
    api.responder = in_turn(Reply.error(500), path=WEBHOOK_PATH)
    options = {"zithara": {"webhook_secret_file": str(file)}, "retry": {"delay": "0.1"}, "metrics": {"listen": ""}}
    config = write_config(tmp_path / "worker.conf", shop, api, options)
    with WorkerProcess(config, "consume", "--all") as worker:
        eventually(lambda: set(shop.statuses()) == {4})
        assert secret[6:] not in worker.output + str(worker.logs)
    webhooks = [each for each in api.requests() if each.path == WEBHOOK_PATH]
    others = [each for each in api.requests() if each.path != WEBHOOK_PATH]
    assert all(verified(secret, each.body, each.headers) == json.loads(each.body) for each in webhooks)
    assert all("x-webhook-event" in each.headers for each in webhooks)
    assert others and not any("webhook-signature" in each.headers for each in others)
    attempts: dict[str, list[RecordedRequest]] = {}
    for each in webhooks:
        attempts.setdefault(each.message, []).append(each)
    (repeated,) = [each for each in attempts.values() if len(each) > 1]
    assert len({each.headers["webhook-id"] for each in repeated}) == 1
    assert len({each.headers["webhook-id"] for each in webhooks}) == len(attempts)


# ---------------------------------------------------------------- where nothing is sent


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"],
)
def test_metadata_services_and_link_local_addresses_are_refused(host: str) -> None:
    url = f"https://[{host}]/hook" if ":" in host else f"https://{host}/hook"
    assert is_metadata_address(host)
    with pytest.raises(UrlRefused, match="metadata"):
        usable_url(url)
    with pytest.raises(ConfigurationError, match="metadata"):
        ZitharaSettings(webhook_url=url)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.253.0.1", "example.com", "2001:db8::1"])
def test_other_addresses_are_not(host: str) -> None:
    assert not is_metadata_address(host)


def test_a_name_that_leads_to_one_is_refused_before_anything_is_sent(make_transport: Callable[..., Transport]) -> None:
    # The resolver reads a number as an address, as it would read the record of a hostile name server.
    request = httpx.Request("POST", "https://2852039166/hook", content=b"{}")
    with pytest.raises(httpx.ConnectError, match=r"169\.254\.169\.254 .*metadata service, to which nothing is sent"):
        make_transport().handle_request(request)
