"""In the worker processes of the chaos: the API's one address leads each of them to a server of its own."""

import os
import socket

#: As in `base_url`, with HTTP's own port
ADDRESS = ("127.0.0.1", 80)
connect = socket.socket.connect


def connect_to_own(self, address):  # type: ignore[no-untyped-def]
    return connect(self, ("127.0.0.1", int(os.environ["CHAOS_API_PORT"])) if address == ADDRESS else address)


socket.socket.connect = connect_to_own  # type: ignore[method-assign]
