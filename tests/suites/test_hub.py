"""push, pull and load_run("hub:...") against a stand-in of the Hub here, by its own client."""

import base64
import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.child import environment
from tests.small_runs import small_trainer

pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

COMMIT = "0123456789012345678901234567890123456789"
SCRIPT = """
import spiketriton, torch
from spiketriton import pull, push
from spiketriton.system.errors import UserError

push.main(["run", "me/net"])
pull.main(["me/net", "--run-dir", "theirs"])
images = torch.rand(3, 1, 8, 8)
expected = spiketriton.load_run("run").predict(images)
for path in ("theirs", "hub:me/net", "hub:me/net"):  # the last one is in the cache
    run = spiketriton.load_run(path)
    assert run.step == 2
    assert torch.equal(run.predict(images), expected), path
for name in ("me/other", "no name"):
    try:
        pull.main([name])
    except UserError as error:
        print("refused", name, "in", len(str(error).splitlines()), "line")
"""


class Hub(BaseHTTPRequestHandler):
    """Of a repository as much as the client of today asks for; every file is sent as a part of the commit."""

    files: dict[str, bytes] = {}  # noqa: RUF012

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        given = self.rfile.read(int(self.headers["Content-Length"]))
        said: dict = {"url": f"http://{self.headers['Host']}/me/net", "errors": [], "warnings": []}
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(given)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            said = {"files": [{"path": name, **modes} for name in names]}
        elif "/commit/" in self.path:
            for line in map(json.loads, given.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            said = {
                "success": True,
                "commitUrl": f"http://{self.headers['Host']}/me/net/commit/{COMMIT}",
                "commitOid": COMMIT,
            }
        self.answer(json.dumps(said).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        repository, _, rest = self.path.partition("/resolve/")
        name = rest.partition("/")[2] if repository == "/me/net" else ""
        if name not in self.files:
            self.answer(b"", 404, X_Error_Code="RepoNotFound")
            return
        etag = hashlib.sha256(self.files[name]).hexdigest()
        self.answer(self.files[name], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_a_pushed_run_is_pulled_and_loaded(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    variables = environment(
        SPIKETRITON_BACKEND="torch",  # nothing is compiled into the empty cache
        HF_ENDPOINT=address,
        HF_TOKEN="hf_none",
        HF_HOME=str(tmp_path / "hf"),
        HF_HUB_DISABLE_XET="1",
    )
    variables["SPIKETRITON_CACHE"] = str(tmp_path / "cache")

    small_trainer(tmp_path / "run", "train.max_steps=2").fit()
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    assert {*Hub.files} == {"model.safetensors", "recipe.toml", "README.md"}
    assert b'load_run("hub:me/net")' in Hub.files["README.md"]
    for name in ("me/other", "no name"):
        assert f"refused {name} in 1 line" in done.stdout
