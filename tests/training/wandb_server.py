"""A W&B server on this machine, as far as one run with metrics and media needs it; and a reader of offline runs."""

import gzip
import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as protocol

PROJECT = {"id": "p", "name": "vitmae", "entity": {"id": "e", "name": "local"}}
USER = {"id": "u", "entity": "local", "username": "local", "email": "a@b", "flags": "{}", "teams": {"edges": []}}


def answer(query, variables, port):
    """The data that a GraphQL query is after, judged by the field it names."""
    if "upsertBucket" in query:
        bucket = {
            "id": "r",
            "name": variables["name"],
            "displayName": variables.get("displayName") or "",
            "description": "",
            "config": "{}",
            "sweepName": None,
            "historyLineCount": 0,
            "project": PROJECT,
            "stopped": False,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if "createRunFiles" in query:
        files = [{"name": name, "uploadUrl": f"http://127.0.0.1:{port}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
    if "serverInfo" in query:
        return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "99"}, "features": []}, "viewer": USER}
    if "viewer" in query:
        return {"viewer": USER}
    return {}


class Server(ThreadingHTTPServer):
    """Keeps what is sent: `buckets` (variables of each run's registration), `lines` by file name, `uploads` by path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.buckets, self.lines, self.uploads = [], {}, {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """Nothing: a test that takes the server away breaks what was being said."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def body(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def reply(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        body = self.body()
        if self.path.endswith("/graphql"):
            request = json.loads(body)
            variables = request.get("variables") or {}
            if "upsertBucket" in request["query"]:
                self.server.buckets.append(variables)
            return self.reply({"data": answer(request["query"], variables, self.server.server_port)})
        if self.path.endswith("/file_stream"):
            for name, chunk in json.loads(body).get("files", {}).items():
                self.server.lines.setdefault(name, []).extend(chunk["content"])
        return self.reply({})

    def do_PUT(self):
        self.server.uploads[self.path] = self.body()
        self.reply({})

    def do_GET(self):
        self.reply({})


def read_offline_run(folder: Path):
    """What a run left in its .wandb file: LevelDB's log format (blocks of 32 KiB) around one protobuf per record."""
    data = next(folder.rglob("*.wandb")).read_bytes()
    position, parts, records = 7, b"", []  # after the file's own header
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # no room for another header: the block is filled up
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(protocol.Record.FromString(parts))
            parts = b""
    found = {"config": {}, "summary": {}, "history": [], "artifacts": []}
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "project": record.run.project, "tags": list(record.run.tags)}
            found["config"] |= values(record.run.config.update)
        elif kind in ("config", "summary"):
            found[kind] |= values(getattr(record, kind).update)
        elif kind == "history":
            found["history"].append(values(record.history.item))
        elif kind == "artifact":
            found["artifacts"].append(record.artifact)
        elif kind == "request" and record.request.HasField("log_artifact"):
            found["artifacts"].append(record.request.log_artifact.artifact)
        elif kind == "exit":
            found["exit_code"] = record.exit.exit_code
    return found


def values(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
