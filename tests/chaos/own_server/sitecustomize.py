"""In the worker processes of the chaos: the API's one address leads each of them to a server of its own."""

import os
import socket
from typing import Any

#: As in `base_url`, with HTTP's own port
ADDRESS = ("127.0.0.1", 80)
connect = socket.socket.connect


def connect_to_own(self: socket.socket, address: Any) -> None:
    connect(self, ("127.0.0.1", int(os.environ["CHAOS_API_PORT"])) if address == ADDRESS else address)


socket.socket.connect = connect_to_own  # type: ignore[method-assign]  # each way to connect ends there
