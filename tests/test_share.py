"""Sharing a run, against a stand-in for the hub's API."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from safetensors.torch import load_file

from errors import UserError
from inference.trained import load_trained
from models.find_weights import find_weights
from sharing.options import ShareOptions
from sharing.upload import share
from tests.conftest import Run, train_here


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny classifier."""
    return train_here("train_classification", tmp_path_factory.mktemp("share") / "run")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload and a download of small files ask for."""

    files: dict[str, bytes]

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, content: bytes = b"{}", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/create"):
            name = json.loads(body)["name"]
            self._answer(json.dumps({"url": f"{self.server.url}/owner/{name}"}).encode())
        elif "/preupload/" in self.path:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._answer(json.dumps({"files": files}).encode())
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.url}/owner/name/commit/{'0' * 40}"
            answer = {"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None}
            self._answer(json.dumps(answer).encode())
        else:
            self._answer()

    def do_GET(self) -> None:
        name = self.path.partition("/resolve/")[2].partition("/")[2]
        content = self.files.get(name)
        if content is None:
            self._answer(b"", 404, X_Error_Code="EntryNotFound")
            return
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._answer(content, ETag=tag, X_Repo_Commit="0" * 40)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[dict[str, bytes]]:
    """The files of the stand-in, which listens on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, Hub.files = f"http://127.0.0.1:{server.server_port}", {}
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{")[1:]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "".join(template))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_standin")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Hub.files
    server.shutdown()
    server.server_close()


def test_a_shared_run_comes_back(run, hub) -> None:
    sentence = share(ShareOptions(run=str(run.path), repo="owner/name", license="mit"))
    assert "owner/name" in sentence
    assert {"best.safetensors", "README.md", "config.yaml", "summary.json"} <= set(hub)
    assert {"confusion.png", "misclassified.png", "metrics.jsonl"} <= set(hub)
    for name, content in hub.items():
        assert str(run.path).encode() not in content, name
    fetched = load_file(find_weights("hub:owner/name"))
    mine = load_file(run.path / "best.safetensors")
    assert all(torch.equal(fetched[name], mine[name]) for name in mine)
    assert load_trained("hub:owner/name").about == load_trained(run.path).about

    card = hub["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "mit" and head["pipeline_tag"] == "image-classification"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(run.evals[-1]["top1"], abs=1e-6)
    for part in ("## Data", "## Recipe", "## Results", "## Limits", "train_classification.py"):
        assert part in card
    assert f"{run.evals[-1]['loss']:.4f}" in card and "hub:owner/name" in card

    del hub["best.safetensors"]  # a repository without safetensors
    hub["pytorch_model.bin"] = b"pickled"
    with pytest.raises(UserError, match="other formats"):
        find_weights("hub:owner/other")


def test_what_would_be_sent_can_be_looked_at(run, tmp_path: Path) -> None:
    options = ShareOptions(run=str(run.path), folder=str(tmp_path / "look"))
    options.check()
    assert "look" in share(options)
    recipe = yaml.safe_load((tmp_path / "look" / "config.yaml").read_text())
    assert "output_dir" not in recipe and recipe["image_size"] == [24, 24]
    card = (tmp_path / "look" / "README.md").read_text()
    size = run.summary["global_batch_size"]
    assert f"--config config.yaml --global_batch_size {size} --data_dir YOUR_DATA" in card
    assert "(at most 5 samples, `--limit_val`)" in card
    with pytest.raises(UserError, match="isn't empty"):
        share(options)
    with pytest.raises(UserError, match=r"no best\.safetensors"):
        share(ShareOptions(run=str(tmp_path), folder=str(tmp_path / "b")))
    for bad in ({"run": "x"}, {"run": "x", "repo": "name"}, {"repo": "a/b"}):
        with pytest.raises(UserError):
            ShareOptions(**bad).check()


def test_an_unreachable_hub_is_one_sentence(run, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="could not be sent"):
        share(ShareOptions(run=str(run.path), repo="owner/name"))
