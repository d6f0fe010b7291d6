#!/usr/bin/env python3
"""An HTTP server for sinks to meet: Python's own, which answers as it is told and writes down what it was sent.

Usage: http_sink.py PORT FOLDER [CERTIFICATE KEY]

FOLDER/requests.jsonl  one line for each request, written before the answer
FOLDER/answers.json    [{"contains": TEXT, "path": TEXT, "status": N, "times": N, "text": TEXT, "headers": {}, "hang": SECONDS,
                       "close": BOOL}, ...]: the first entry that applies and has times left answers; without one it is 204
"""

import json
import os
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, FOLDER = int(sys.argv[1]), sys.argv[2]
LOCK = threading.Lock()
ANSWERS = {"stamp": None, "entries": []}


def answer(path, body):
    """The entry of answers.json for a request, its times counted down."""
    name = os.path.join(FOLDER, "answers.json")
    try:
        found = os.stat(name)
        stamp = (found.st_ino, found.st_mtime_ns)
    except FileNotFoundError:
        return {}
    if stamp != ANSWERS["stamp"]:
        with open(name, encoding="utf-8") as file:
            ANSWERS.update(stamp=stamp, entries=json.load(file))
    for entry in ANSWERS["entries"]:
        if entry.get("contains", "") in body and entry.get("path", "") in path and entry.get("times", 1) > 0:
            entry["times"] = entry.get("times", 1) - 1
            return entry
    return {}


class Handler(BaseHTTPRequestHandler):
    """Takes every request with a body."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def take(self):
        """Reads, writes down, answers."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode("utf-8", "backslashreplace")
        with LOCK:
            entry = answer(self.path, body)
            status = entry.get("status", 204)
            record = {
                "status": status,
                "method": self.command,
                "path": self.path,
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "body": body,
                "connection": self.client_address[1],
            }
            with open(os.path.join(FOLDER, "requests.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if entry.get("hang"):
            time.sleep(entry["hang"])
        if entry.get("close"):
            self.close_connection = True
            return
        text = entry.get("text", "").encode()
        self.send_response(status)
        for name, value in entry.get("headers", {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if status != 204:
            self.wfile.write(text)

    do_POST = do_PUT = do_PATCH = take

    def log_message(self, *_):
        """Requests are written down, not logged."""


class Server(ThreadingHTTPServer):
    """A thread for each connection, also for many at once."""

    daemon_threads = True
    request_queue_size = 128


server = Server(("127.0.0.1", PORT), Handler)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3], sys.argv[4])
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
