"""The physical limit: the same requests from memory, one httpx.Client a thread, no database.

Arguments: file of requests (JSON lines: method, path, body), base URL, token, threads.
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
from pathlib import Path
from queue import Empty, SimpleQueue

import httpx

from benchmarks.contestants import ready


def main() -> None:
    file, base_url, token, threads = sys.argv[1:5]
    work: SimpleQueue[tuple[str, str, bytes]] = SimpleQueue()
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        request = json.loads(line)
        work.put((request["method"], base_url + request["path"], request["body"].encode()))
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Authorization": token}

    def send() -> None:
        with httpx.Client(verify=tls, headers=headers, timeout=30) as client:
            while True:
                try:
                    method, url, body = work.get_nowait()
                except Empty:
                    return
                client.request(method, url, content=body).raise_for_status()

    senders = [threading.Thread(target=send) for _ in range(int(threads))]
    ready()
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()


if __name__ == "__main__":
    main()
