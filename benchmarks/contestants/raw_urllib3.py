"""The physical limit: the same requests from memory, urllib3, one pool for all threads, no database.

Arguments: file of requests (JSON lines: method, path, body), base URL, token, threads.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from queue import Empty, SimpleQueue

import urllib3

from benchmarks.contestants import ready


def main() -> None:
    file, base_url, token, threads = sys.argv[1:5]
    work: SimpleQueue[tuple[str, str, bytes]] = SimpleQueue()
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        request = json.loads(line)
        work.put((request["method"], base_url + request["path"], request["body"].encode()))
    pool = urllib3.PoolManager(
        maxsize=int(threads),
        block=True,
        cert_reqs="CERT_NONE",
        headers={"Content-Type": "application/json", "Accept": "application/json", "Authorization": token},
    )
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def send() -> None:
        while True:
            try:
                method, url, body = work.get_nowait()
            except Empty:
                return
            if pool.request(method, url, body=body).status != 200:
                raise RuntimeError(f"{method} {url} was refused")

    senders = [threading.Thread(target=send) for _ in range(int(threads))]
    ready()
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()


if __name__ == "__main__":
    main()
