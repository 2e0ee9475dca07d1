"""Fetching from a server on this machine: resumed, unpacked, not repeated; and what has to be done by hand is said."""

import hashlib
import io
import json
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from workbook import profile as profiles
from workbook.scale import doctor, estimates, fetch, hub
from workbook.scale.fetch import Source

PAPER = profiles.load("paper")


@pytest.fixture
def here(tmp_path, monkeypatch):
    for module in (doctor, estimates, fetch, hub):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def server():
    """Serves `files` by name, with ranges; `asked` lists what was asked for, `stop_at` breaks an answer off."""
    state = type("State", (), {"files": {}, "asked": [], "stop_at": None})()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data, begin = state.files.get(self.path[1:]), self.headers.get("Range")
            state.asked.append((self.path[1:], begin))
            if data is None:
                return self.send_error(404)
            start = int(begin.split("=")[1].rstrip("-")) if begin else 0
            if start >= len(data):
                return self.send_error(416)
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start : state.stop_at])

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/"
    yield state
    http.shutdown()
    http.server_close()


def archive(names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.mkdir("train2017")
        for name in names:
            packed.writestr(name, name.encode() * 40)
    return out.getvalue()


def test_a_broken_download_goes_on(here, server):
    server.files["a.json"] = bytes(range(256)) * 40
    source = Source("a", "data/a.json", 0, url=server.url + "a.json")
    server.stop_at = 5000
    with pytest.raises(OSError, match="broke off after 5000 of 10240 bytes|more expected|IncompleteRead"):
        fetch.bring(source)
    assert not fetch.present(source)
    server.stop_at = None
    fetch.bring(source)
    assert (here / "data/a.json").read_bytes() == server.files["a.json"]
    assert server.asked == [("a.json", None), ("a.json", "bytes=5000-")]
    assert fetch.present(source)


def test_an_archive_is_unpacked_where_the_recipe_wants_it(here, server):
    server.files["t.zip"] = archive(["train2017/1.jpg", "train2017/2.jpg", "train2017/../../outside.txt", "__MACOSX/x"])
    source = Source("coco", "images/coco/train2017", 0, url=server.url + "t.zip", unzip=True, strip=1)
    fetch.bring(source)
    folder = here / "images/coco/train2017"
    assert sorted(file.name for file in folder.iterdir()) == ["1.jpg", "2.jpg"]
    assert not (here / "images/coco/outside.txt").exists()
    assert not (here / "images/coco/train2017.zip").exists()
    record = json.loads((here / "images/coco/train2017.zip.json").read_text())
    assert record["sha256"] == hashlib.sha256(server.files["t.zip"]).hexdigest()
    assert fetch.present(source)


def test_a_half_unpacked_archive_is_finished_without_a_new_download(here, server):
    folder = here / "images/coco"
    (folder / "train2017").mkdir(parents=True)
    (folder / "train2017.zip").write_bytes(archive(["train2017/1.jpg", "train2017/2.jpg"]))
    (folder / "train2017/1.jpg").write_bytes(b"train2017/1.jpg" * 40)
    source = Source("coco", "images/coco/train2017", 0, url=server.url + "t.zip", unzip=True, strip=1)
    assert not fetch.present(source)
    fetch.bring(source)
    assert fetch.present(source)
    assert server.asked == []


def test_a_damaged_archive_is_removed(here, server):
    server.files["t.zip"] = b"no zip" * 100
    source = Source("coco", "images/coco", 0, url=server.url + "t.zip", unzip=True)
    with pytest.raises(ValueError, match="damaged .* call again to download it"):
        fetch.bring(source)
    assert not (here / "images/coco.zip").exists()
    with pytest.raises(OSError, match="answers 404"):
        fetch.bring(replace(source, url=server.url + "none.zip"))


def test_the_papers_sources(here):
    found = {source.to: source for source in fetch.sources(PAPER)}
    base = "runs/paper/data/llava_instruct/images"
    folders = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")
    assert all(f"{base}/{folder}" in found for folder in folders)
    assert {PAPER.data.captions, PAPER.data.conversations, PAPER.data.caption_images} <= set(found)
    assert all(bool(s.url) + bool(s.hub) + bool(s.by_hand) == 1 for s in found.values())
    text = fetch.listing(PAPER)
    assert all(to in text for to in found)
    assert "missing, about 20 GB" in text
    assert "the pipeline draws it" in fetch.listing(profiles.load("laptop"))


def test_what_fails_is_listed_and_the_rest_is_brought(here, server, monkeypatch, capsys):
    server.files["a.json"] = b"[]"
    listed = {"mine": [
        {"name": "good", "url": server.url + "a.json", "to": "{captions}", "gb": 0},
        {"name": "gone", "url": server.url + "b.json", "to": "{conversations}", "gb": 0},
        {"name": "manual", "by_hand": "c.json of the authors", "to": "{benchmarks}/c.json", "gb": 0},
    ]}  # fmt: skip
    monkeypatch.setattr(estimates, "reference", lambda _: listed)
    monkeypatch.setattr(doctor, "hub_models", lambda _: [PAPER.languages["vicuna-7b"]])
    monkeypatch.setattr(hub, "snapshot", lambda *_: None)
    monkeypatch.setattr(hub, "download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    profile = replace(PAPER, data=replace(PAPER.data, downloads=["mine"]))
    assert not fetch.run(profile)
    said = capsys.readouterr().out
    assert "model lmsys/vicuna-7b-v1.5: no network" in said
    assert "gone: " in said
    assert f"put it at {PAPER.data.conversations}" in said
    assert "manual: by hand, put c.json of the authors at" in said
    assert (here / PAPER.data.captions).read_bytes() == b"[]"
    assert [source.name for source in fetch.missing(profile)] == ["gone", "manual"]
    with pytest.raises(profiles.ProfileError, match="no group of downloads 'mime'; there are: mine"):
        fetch.sources(replace(profile, data=replace(PAPER.data, downloads=["mime"])))
