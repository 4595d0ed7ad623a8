"""Asks tiers of a lab host for a token, each once a second, and prints every answer.

Begins when another release has become current, which is before any tier moves to it, and goes on until its standard
input ends. Runs on that host: `python3 client.py fast=8080 deep=8081`. Each request has a connection of its own.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from pathlib import Path

CURRENT = Path("/opt/llama-tiers/current")
# What asks more often than a busy machine answers has the verification wait behind it, which then believes no clock.
PERIOD_S = 1.0
LIMIT_S = 120


def ask(tier: str, port: int, key: str, answers: list[dict[str, object]]) -> None:
    """Append what came of one request: when it began and how long it took (s), and its HTTP status or error.

    By the clock of systemd's timestamps that are called monotonic, so that a request can be held against them.
    """
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request(
            "POST", "/completion", json.dumps({"prompt": "1", "n_predict": 1}), {"Authorization": f"Bearer {key}"}
        )
        response = connection.getresponse()
        response.read()
        came = str(response.status)
    except (OSError, http.client.HTTPException) as error:
        came = repr(error)
    finally:
        connection.close()
    answers.append({"tier": tier, "began": began, "seconds": time.monotonic() - began, "came": came})


def main() -> None:
    """Ask until nobody is there any more to be told, and wait for the last answers."""
    ended = threading.Event()
    answers: list[dict[str, object]] = []
    asking = []
    release = CURRENT.resolve()

    def keep_asking(tier: str, port: int) -> None:
        key = Path(f"/etc/llama-tiers/keys/{tier}").read_text(encoding="utf-8").split()[0]
        while CURRENT.resolve() == release and not ended.wait(PERIOD_S):
            pass
        while not ended.wait(PERIOD_S):
            asking.append(threading.Thread(target=ask, args=(tier, port, key, answers)))
            asking[-1].start()

    clients = [threading.Thread(target=keep_asking, args=(w.split("=")[0], int(w.split("=")[1]))) for w in sys.argv[1:]]
    for client in clients:
        client.start()
    sys.stdin.read()
    ended.set()
    for thread in (*clients, *asking):
        thread.join()
    print(json.dumps(sorted(answers, key=lambda answer: answer["began"])))


if __name__ == "__main__":
    main()
