"""RabbitMQ as the relay uses it: one connection in a thread of its own, a channel and a consumer for each queue.

Knows pika, as `connection` does, through its public interface (1.2 and later), and no database. Queues are checked
passively and never declared: Magento declares them, with arguments of its own.

The thread answers heartbeats whatever the database does, and stops reading while what it has delivered fills its
budget of bytes.

Messages go back to RabbitMQ only in their order. A classic queue puts each in its old place. A quorum queue puts a
rejected one behind all that wait, and pika, when it ends a consumer or closes a channel, rejects what it has not
dispatched yet. What a channel held that RabbitMQ closes comes first again, in its order.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import pika
from pika.exceptions import AMQPError, ChannelClosed

from zithara_worker.relay.connection import (
    ACCESS_REFUSED,
    NOT_FOUND,
    RESOURCE_LOCKED,
    connection_problem,
    parameters,
)
from zithara_worker.settings.sections import RelaySettings

log = logging.getLogger(__name__)
#: Seconds between two tries to connect, or to consume from a queue that could not be consumed; and between two looks at
#: how many messages a queue has.
RETRY_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 0.5
SURVEY_SECONDS = 5.0
LOG_SECONDS = 60.0
#: Seconds for which nothing is read while the budget is used up. RabbitMQ waits twice the heartbeat for a sign of us.
UNREAD_SECONDS = 10.0
#: Bytes of bodies that were delivered and are not stored yet, of all queues; one more message may come on top.
BUDGET_BYTES = 32 * 1024 * 1024
#: The prefetch of a relay that begins, or that follows a failure of the database; it doubles while messages are stored.
#: What RabbitMQ sent ahead counts as delivered once more when a relay dies or the database fails, and a quorum queue
#: drops a message that was delivered too often.
FIRST_PREFETCH = 1
#: Messages for which a prefetch that was lowered is kept.
KEEP_SMALL = 100
#: Seconds for which the end of a consumer waits for its window to fill.
FULL_SECONDS = 0.5
#: Seconds between two looks whether another consumer has ended, and before that is logged.
HELD_SECONDS = 0.5
HELD_LOG_SECONDS = 5.0
#: Half of the deliveries after which RabbitMQ drops a quorum queue's message, or dead-letters it (from 4.0; before: no
#: limit unless the queue has one).
MANY_DELIVERIES = 10
#: What a delivery costs beside its body.
_OVERHEAD_BYTES = 600


class Phase(Enum):
    """What a relay has of a queue in RabbitMQ."""

    #: No connection
    AWAY = "away"
    #: The queue is missing, or held by another consumer, or its messages may not be read: tried again and again
    WAITING = "waiting"
    CONSUMING = "consuming"
    #: Nothing is asked for
    IDLE = "idle"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    phase: Phase
    #: Why it is AWAY or WAITING, and what to do; "" otherwise
    why: str = ""
    missing: bool = False
    #: Messages that wait in RabbitMQ, and its consumers, this relay included; None: not known
    ready: int | None = None
    consumers: int | None = None
    #: Nothing waits in RabbitMQ, and everything that was delivered has been acknowledged
    empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message as RabbitMQ delivered it. It can be acknowledged while its consumer's `epoch` lasts."""

    queue: str
    epoch: int
    tag: int
    #: "" where the publisher gave none
    message_id: str
    routing_key: str
    body: bytes

    @property
    def size(self) -> int:
        return len(self.body) + _OVERHEAD_BYTES


@dataclass(slots=True, kw_only=True)
class _Consumer:
    """One queue. The lock of `Broker` guards all that both threads use."""

    queue: str
    prefetch: int = FIRST_PREFETCH
    wanted: bool = False
    give_back: bool = False
    epoch: int = 1
    buffer: deque[Delivery] = field(default_factory=deque)
    #: Delivery tags: the last one that was delivered here, that may be acknowledged, and that was
    delivered: int = 0
    storable: int = 0
    acknowledged: int = 0
    phase: Phase = Phase.AWAY
    why: str = ""
    missing: bool = False
    ready: int | None = None
    consumers: int | None = None
    empty: bool = False
    # Of the thread alone:
    channel: Any = None
    tag: str | None = None
    exclusive: bool = True
    refusals: int = 0
    retry_at: float = 0.0
    #: Until when its end waits for the window to fill
    ends_at: float = math.inf
    survey_at: float = 0.0
    complain_at: float = 0.0
    warn_at: float = 0.0
    #: The prefetch of the consumer at work
    window: int = 0
    since_full: int = 0
    #: Whether nobody else can have messages of the queue that are older than what comes next
    clean: bool = False

    @property
    def resizes(self) -> bool:
        """Whether the consumer at work shall be followed by one with another prefetch."""
        return self.prefetch != self.window

    @property
    def settled(self) -> bool:
        return not self.buffer and self.acknowledged >= self.delivered

    def forget(self) -> None:
        """Drops what was delivered: RabbitMQ delivers it again. The prefetch stays, so that all of it fits into the
        next window: a quorum queue puts what is returned behind what was returned before and has not been taken."""
        self.buffer.clear()
        self.epoch += 1
        self.delivered = self.storable = self.acknowledged = 0
        self.channel = self.tag = None
        self.window = 0
        self.empty = self.clean = False


class Broker:
    """The connection to RabbitMQ. Its methods may be called from one other thread; `on_change` is called from its own.

    `budget_bytes`, `survey_seconds`: as the constants. `name`: of the connection.
    """

    def __init__(
        self,
        settings: RelaySettings,
        queues: Sequence[str],
        *,
        name: str,
        on_change: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
        budget_bytes: int = BUDGET_BYTES,
        survey_seconds: float = SURVEY_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._settings = settings
        self._parameters = parameters(settings, name)
        self._on_change = on_change
        self._monotonic = monotonic
        self._budget_bytes = budget_bytes
        self._survey_seconds = survey_seconds
        self._retry_seconds = retry_seconds
        self._consumers = {queue: _Consumer(queue=queue) for queue in queues}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._connection: Any = None
        self._closing = False
        self._closed = threading.Event()
        self._pause = FIRST_PAUSE_SECONDS
        #: Bodies that were delivered and are not stored yet: their bytes and number
        self._held_bytes = self._held = 0
        self._complain_at = 0.0
        self._was_away = False
        self._thread = threading.Thread(target=self._run, name="rabbitmq", daemon=True)

    # ---------------------------------------------------------------- for the relay's thread

    def start(self) -> None:
        self._thread.start()

    def close(self, *, within_seconds: float = 5.0) -> None:
        """Ends the connection. What is not acknowledged goes back to its queue."""
        with self._lock:
            for consumer in self._consumers.values():
                consumer.wanted = False
        self._closing = True
        self._closed.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(within_seconds)

    def consume(self, queue: str) -> None:
        """Takes messages of the queue from now on, as soon as RabbitMQ lets us."""
        self._set(queue, wanted=True)

    def drain(self, queue: str) -> None:
        """Takes no further messages. Those that were delivered can still be taken and acknowledged."""
        self._set(queue, wanted=False)

    def give_back(self, queue: str) -> None:
        """Takes no further messages, and gives back to RabbitMQ all that is not acknowledged."""
        self._set(queue, wanted=False, give_back=True)

    def _set(self, queue: str, *, wanted: bool, give_back: bool = False) -> None:
        with self._lock:
            consumer = self._consumers[queue]
            changed = consumer.wanted != wanted or give_back
            consumer.wanted = wanted
            if give_back:
                # From now on nothing of this epoch is taken or acknowledged; the thread closes the channel.
                consumer.give_back = True
                self._release(consumer.buffer)
                consumer.buffer.clear()
                consumer.epoch += 1
        if changed:
            self._wake()

    def take(self, queue: str, *, messages: int, size_bytes: int) -> list[Delivery]:
        """The oldest deliveries of the queue, at least one if there is any. They count as held until `done`."""
        taken: list[Delivery] = []
        with self._lock:
            buffer = self._consumers[queue].buffer
            while buffer and len(taken) < messages and (not taken or size_bytes >= buffer[0].size):
                size_bytes -= buffer[0].size
                taken.append(buffer.popleft())
        return taken

    def done(self, deliveries: Sequence[Delivery], *, stored: bool) -> None:
        """The relay holds them no longer. `stored`: acknowledges them, unless RabbitMQ has them back already."""
        if not deliveries:
            return
        last = deliveries[-1]
        with self._lock:
            self._release(deliveries)
            consumer = self._consumers[last.queue]
            if stored and consumer.epoch == last.epoch:
                consumer.storable = last.tag
        self._wake()

    def status(self, queue: str) -> QueueStatus:
        with self._lock:
            consumer = self._consumers[queue]
            return QueueStatus(
                phase=consumer.phase,
                why=consumer.why,
                missing=consumer.missing,
                ready=consumer.ready,
                consumers=consumer.consumers,
                empty=consumer.empty,
            )

    def settled(self, queue: str) -> bool:
        """Whether all that was delivered is acknowledged, or RabbitMQ's again."""
        with self._lock:
            consumer = self._consumers[queue]
            return consumer.settled and not consumer.give_back and (consumer.tag is None or consumer.wanted)

    @property
    def held_bytes(self) -> int:
        with self._lock:
            return self._held_bytes

    def _release(self, deliveries: Sequence[Delivery] | deque[Delivery]) -> None:
        self._held -= len(deliveries)
        self._held_bytes -= sum(each.size for each in deliveries)

    def _wake(self) -> None:
        self._changed.set()
        connection = self._connection
        if connection is not None:
            with suppress(AMQPError):  # it has just been closed
                connection.add_callback_threadsafe(_nothing)

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not self._closing:
            try:
                self._serve()
            except (AMQPError, OSError) as error:
                self._away(connection_problem(error, self._settings))
            except Exception as error:
                log.exception("an error in the connection to RabbitMQ", extra={"event": "internal_error"})
                self._away(f"an error in the worker ({error!r}), see its log")
            self._on_change()
            if not self._closing:
                self._closed.wait(self._pause)
                self._pause = min(self._retry_seconds, 2 * self._pause)

    def _serve(self) -> None:
        """One connection, from beginning to end. Raises AMQPError when it is lost."""
        connection = pika.BlockingConnection(self._parameters)
        try:
            connection.add_on_connection_blocked_callback(_on_blocked)
            self._connection = connection
            self._back()
            read_at = 0.0
            while not self._closing:
                self._changed.clear()
                for consumer in self._consumers.values():
                    self._tend(connection, consumer)
                if self._room() or self._monotonic() >= read_at:
                    read_at = self._monotonic() + UNREAD_SECONDS
                    connection.process_data_events(time_limit=min(0.5, self._survey_seconds))
                    self._fit_prefetch()
                else:
                    self._changed.wait(0.5)
            for consumer in self._consumers.values():
                self._tend(connection, consumer)  # acknowledges what was stored last
        finally:
            self._connection = None
            with suppress(AMQPError, OSError):
                for consumer in self._consumers.values():
                    if not consumer.settled:
                        self._requeue(consumer)
            for consumer in self._consumers.values():
                self._lost(consumer)
            with suppress(AMQPError, OSError):
                connection.close()

    def _room(self) -> bool:
        with self._lock:
            return self._held_bytes < self._budget_bytes

    def _back(self) -> None:
        self._complain_at, self._pause = 0.0, FIRST_PAUSE_SECONDS
        if self._was_away:
            log.info("RabbitMQ is available again", extra={"event": "broker_back"})
        self._was_away = False

    def _away(self, why: str) -> None:
        with self._lock:
            for consumer in self._consumers.values():
                consumer.phase, consumer.why = Phase.AWAY, why
                consumer.missing, consumer.ready, consumer.consumers = False, None, None
                consumer.retry_at = consumer.survey_at = 0.0
        if self._monotonic() >= self._complain_at:
            self._complain_at = self._monotonic() + LOG_SECONDS
            log.warning(
                "RabbitMQ is not available, waiting for it",
                extra={"event": "broker_away", "broker": self._settings.host, "detail": why},
            )
        self._was_away = True

    # ---------------------------------------------------------------- one queue

    def _tend(self, connection: Any, consumer: _Consumer) -> None:
        """Does what is asked of a queue, as far as RabbitMQ lets us."""
        try:
            self._obey(connection, consumer)
        except ChannelClosed as error:
            self._refused(consumer, error)
        except AMQPError:
            if connection.is_closed:
                raise
            # The channel was closed between two calls, for example because its queue's node has stopped.
            self._lost(consumer)

    def _obey(self, connection: Any, consumer: _Consumer) -> None:
        if consumer.channel is not None and consumer.channel.is_closed:
            self._lost(consumer)
        with self._lock:
            # Cleared before it is obeyed, so that one that is asked for meanwhile is obeyed too.
            give_back, consumer.give_back = consumer.give_back, False
            storable, wanted = consumer.storable, consumer.wanted
            is_full = consumer.delivered - consumer.acknowledged >= consumer.window
            is_complete = not consumer.buffer and storable >= consumer.delivered
        # A window that shall become larger does so when it happens to be full, one that is too large ends like a drain.
        resizes = consumer.prefetch < consumer.window or (is_full and consumer.resizes)
        ends = consumer.tag is not None and not give_back and (resizes or not wanted)
        now = self._monotonic()
        # While nothing is read the window cannot fill.
        consumer.ends_at = min(consumer.ends_at, now + FULL_SECONDS) if ends and self._room() else math.inf
        # pika rejects what arrives until a consumer has ended, and a quorum queue puts that behind all that wait. So a
        # consumer is cancelled only while RabbitMQ may send no more: acknowledgements are withheld until its window is
        # full, which it is in any flow. If too little waits for that, or the relay ends, what is stored is acknowledged
        # and the channel goes, with which everything else returns at once and in its order.
        is_over = ends and not is_full and (self._closing or (is_complete and now >= consumer.ends_at))
        if ends and is_full:
            consumer.channel.basic_cancel(consumer.tag)
            consumer.tag = None
        elif ends and not is_over:
            storable = 0
        if storable > consumer.acknowledged:
            consumer.channel.basic_ack(storable, multiple=True)
            with self._lock:
                consumer.acknowledged = storable
        if give_back or is_over:
            self._requeue(consumer)
            self._lost(consumer)
        if give_back:
            consumer.prefetch, consumer.since_full = FIRST_PREFETCH, 0
        if now >= consumer.survey_at:
            self._survey(connection, consumer)
            if not wanted:
                self._enter(consumer, Phase.IDLE)
        # Unacknowledged messages of two consumers would come back in any order if the channel were lost.
        if wanted and consumer.tag is None and consumer.settled and now >= consumer.retry_at:
            self._consume(connection, consumer)
        elif consumer.tag is None and consumer.phase is not Phase.WAITING:
            self._enter(consumer, Phase.IDLE)

    def _survey(self, connection: Any, consumer: _Consumer) -> None:
        consumer.survey_at = self._monotonic() + self._survey_seconds
        self._open(connection, consumer)
        found = consumer.channel.queue_declare(consumer.queue, passive=True).method
        # Whatever was delivered before the answer is dispatched now.
        connection.process_data_events(0)
        with self._lock:
            consumer.ready, consumer.consumers, consumer.missing = found.message_count, found.consumer_count, False
            consumer.empty = found.message_count == 0 and consumer.settled
            others = found.consumer_count - (consumer.tag is not None)
        if consumer.tag is not None and others > 0 and self._monotonic() >= consumer.complain_at:
            consumer.complain_at = self._monotonic() + LOG_SECONDS
            log.warning(
                "other consumers take messages of this queue too: what they take is not relayed, and the order is not "
                "kept; stop the shop's PHP consumers of it",
                extra={"event": "relay_other_consumers", "queue": consumer.queue, "consumers": others},
            )
        if consumer.empty:
            self._on_change()

    def _open(self, connection: Any, consumer: _Consumer) -> None:
        if consumer.channel is None:
            consumer.channel = connection.channel()
            consumer.channel.add_on_cancel_callback(partial(self._on_cancel, consumer))

    def _consume(self, connection: Any, consumer: _Consumer) -> None:
        if not consumer.clean:
            self._survey(connection, consumer)
            if consumer.consumers:
                # Perhaps an earlier one of ours whose end RabbitMQ has not noticed: it has older messages. A classic
                # queue would refuse us by itself; a quorum queue knows no exclusive consumers.
                self._wait_for_others(consumer)
                return
            consumer.clean = True
        channel = consumer.channel
        consumer.window = consumer.prefetch
        channel.basic_qos(prefetch_count=consumer.window)
        consumer.tag = channel.basic_consume(
            consumer.queue,
            partial(self._on_message, consumer, consumer.epoch),
            exclusive=consumer.exclusive,
        )
        consumer.refusals = 0
        self._enter(consumer, Phase.CONSUMING)

    def _on_message(
        self, consumer: _Consumer, epoch: int, _channel: Any, method: Any, properties: Any, body: bytes
    ) -> None:
        delivery = Delivery(
            queue=consumer.queue,
            epoch=epoch,
            tag=method.delivery_tag,
            message_id=properties.message_id or "",
            routing_key=method.routing_key,
            body=body,
        )
        deliveries = (properties.headers or {}).get("x-delivery-count") or 0
        if deliveries >= MANY_DELIVERIES and self._monotonic() >= consumer.warn_at:
            consumer.warn_at = self._monotonic() + LOG_SECONDS
            log.warning(
                "RabbitMQ has delivered a message in vain again and again, and drops it at the queue's delivery limit "
                "(20 by default): see what ends the relay or its connection each time",
                extra={"event": "relay_redelivered", "queue": consumer.queue, "deliveries": deliveries},
            )
        with self._lock:
            if consumer.epoch != epoch:
                return
            consumer.buffer.append(delivery)
            consumer.delivered = delivery.tag
            consumer.empty = False
            consumer.since_full += 1
            self._held += 1
            self._held_bytes += delivery.size
            first = len(consumer.buffer) == 1
        if first:
            self._on_change()

    def _on_cancel(self, consumer: _Consumer, _frame: Any) -> None:
        """RabbitMQ ended the consumer: the queue was deleted, or its node has stopped. What was delivered stays good:
        a message that is delivered once more is recognised."""
        consumer.tag = None
        consumer.survey_at = consumer.retry_at = 0.0

    def _fit_prefetch(self) -> None:
        """Asks for fewer messages at a time while bodies are large, so that RabbitMQ does not send ahead what is not
        read; and for more again when they are small."""
        with self._lock:
            held, held_bytes = self._held, self._held_bytes
        wanted = self._settings.prefetch
        for consumer in self._consumers.values():
            if consumer.tag is None:
                continue
            if held_bytes >= self._budget_bytes:
                fitting = max(1, self._budget_bytes * held // held_bytes // len(self._consumers))
                if fitting < consumer.prefetch:
                    consumer.prefetch, consumer.since_full = fitting, -KEEP_SMALL
            elif not consumer.resizes and consumer.prefetch < wanted and consumer.since_full >= 2 * consumer.prefetch:
                consumer.since_full, consumer.prefetch = 0, min(wanted, 2 * consumer.prefetch)

    # ---------------------------------------------------------------- what goes wrong with one queue

    def _requeue(self, consumer: _Consumer) -> None:
        """Has RabbitMQ close the channel, which returns everything unacknowledged at once and in its order: it is asked
        for a queue that does not exist. (See the module's docstring for why the channel is not closed in order.)"""
        channel = consumer.channel
        if channel is None or channel.is_closed:
            return
        # RabbitMQ logs this name as an error, at each stop of a relay too.
        reason = f"zithara-worker closes its channel, this is no error ({secrets.token_hex(4)})"
        with suppress(ChannelClosed):
            channel.queue_declare(reason, passive=True)

    def _lost(self, consumer: _Consumer) -> None:
        """The channel is gone, and what was delivered over it with it."""
        with self._lock:
            self._release(consumer.buffer)
            consumer.forget()

    def _refused(self, consumer: _Consumer, error: ChannelClosed) -> None:
        code, text = (error.reply_code, error.reply_text)
        self._lost(consumer)
        consumer.retry_at = consumer.survey_at = self._monotonic() + self._retry_seconds
        queue, settings = consumer.queue, self._settings
        held = code == RESOURCE_LOCKED or (code == ACCESS_REFUSED and "exclusive" in text)
        missing = code == NOT_FOUND
        if missing:
            why = (
                f"RabbitMQ has no queue {queue} in virtual host {settings.vhost}: the shop declares it (bin/magento "
                "setup:upgrade); if it is in another virtual host, correct [relay] vhost"
            )
        elif held:
            self._consider_sharing(consumer)
            self._wait_for_others(consumer)
            return
        elif code == ACCESS_REFUSED:
            why = (
                f"RabbitMQ refuses user {settings.user} the queue {queue} ({text}): grant it with 'rabbitmqctl "
                f'set_permissions -p {settings.vhost} {settings.user} "" "" "^{queue}$"\''
            )
        else:
            why = f"RabbitMQ closed the channel of queue {queue} ({code} {text}); it is opened again"
        with self._lock:
            consumer.missing = missing
            if missing:
                consumer.ready = None
        self._enter(consumer, Phase.WAITING, why)

    def _wait_for_others(self, consumer: _Consumer) -> None:
        consumer.retry_at = self._monotonic() + min(HELD_SECONDS, self._retry_seconds)
        if consumer.phase is not Phase.WAITING:
            consumer.complain_at = self._monotonic() + HELD_LOG_SECONDS
        self._enter(
            consumer,
            Phase.WAITING,
            f"another consumer takes messages of queue {consumer.queue}, or holds it: the relay waits until it has "
            "ended, so that the order is kept; stop the shop's PHP consumers of it, or other relays",
        )

    def _consider_sharing(self, consumer: _Consumer) -> None:
        """A queue with a single active consumer refuses exclusive ones, also while it has none. It is then consumed
        like the queue wants it, which is exclusive all the same."""
        consumer.refusals = consumer.refusals + 1 if not consumer.consumers else 0
        if consumer.refusals >= 2:
            consumer.exclusive = False

    def _enter(self, consumer: _Consumer, phase: Phase, why: str = "") -> None:
        with self._lock:
            changed = (consumer.phase, consumer.why) != (phase, why)
            consumer.phase, consumer.why = phase, why
        if phase is Phase.WAITING and self._monotonic() >= consumer.complain_at:
            consumer.complain_at = self._monotonic() + LOG_SECONDS
            log.warning(
                "waiting for a queue in RabbitMQ",
                extra={"event": "relay_waiting", "queue": consumer.queue, "detail": why},
            )
        if changed:
            self._on_change()


def _nothing() -> None:
    """Only ends the wait of `process_data_events`."""


def _on_blocked(_connection: Any, method: Any) -> None:
    log.warning(
        "RabbitMQ takes no messages of publishers, because it has too little memory or disk space; what waits there is "
        "relayed all the same",
        extra={"event": "broker_blocked", "detail": str(getattr(getattr(method, "method", None), "reason", ""))},
    )
