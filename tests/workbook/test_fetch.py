"""Fetching from a server on this machine: resumed, unpacked, not repeated; and what has to be done by hand is said."""

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.file_download
import pytest
from commands import replace
from local_hub import serve

from workbook import config as profiles
from workbook.scale import fetch, hub
from workbook.scale.fetch import Source

PAPER = profiles.load("paper")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(tmp_path_factory):
    """A folder whose files are served, and what was asked of the server."""
    folder, requests = tmp_path_factory.mktemp("served"), []
    with serve(folder, requests) as url:
        yield SimpleNamespace(folder=folder, requests=requests, url=f"{url}/")


def archive(names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.mkdir("train2017")
        for name in names:
            packed.writestr(name, name.encode() * 40)
    return out.getvalue()


def test_a_broken_download_goes_on(here, server):
    content = bytes(range(256)) * 40
    (server.folder / "a.json").write_bytes(content)
    source = Source("a", "data/a.json", 0, url=server.url + "a.json", sha256=hashlib.sha256(content).hexdigest())
    (here / "data").mkdir()
    (here / "data/a.json.part").write_bytes(content[:5000])
    assert not source.present
    fetch.bring(source)
    assert (here / "data/a.json").read_bytes() == content
    assert server.requests == ["/a.jsonbytes=5000-"]
    assert source.present


def test_a_whole_part_is_not_downloaded_again(here, server):
    (server.folder / "a.json").write_bytes(b"[]")
    (here / "a.json.part").write_bytes(b"[]")
    fetch.bring(Source("a", "a.json", 0, url=server.url + "a.json"))
    assert (here / "a.json").read_bytes() == b"[]"


def test_a_connection_that_breaks_off_leaves_what_came(here, monkeypatch):
    def breaks_off(url, file, **options):
        file.write(bytes(5000))
        raise OSError("the connection broke off")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", breaks_off)
    with pytest.raises(OSError, match="broke off"):
        fetch.bring(Source("a", "a", 0, url="https://example.org/a.zip", unzip=True))
    assert Path("a.zip.part").stat().st_size == 5000
    assert not Path("a.zip").exists()


def test_a_file_with_another_checksum_is_removed(here, server):
    (server.folder / "a.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match=f"a.json has sha256 {hashlib.sha256(b'[]').hexdigest()}, not 00"):
        fetch.bring(Source("a", "a.json", 0, url=server.url + "a.json", sha256="0" * 64))
    assert list(here.iterdir()) == []


def test_an_archive_is_unpacked_where_the_recipe_wants_it(here, server, monkeypatch):
    hashed, sha256 = [], fetch.sha256
    monkeypatch.setattr(fetch, "sha256", lambda file: (hashed.append(file), sha256(file))[1])
    outside = ["train2017/../../outside.txt", "/outside.txt", "__MACOSX/x"]
    (server.folder / "t.zip").write_bytes(archive(["train2017/1.jpg", "train2017/2.jpg", *outside]))
    source = Source("coco", "images/coco/train2017", 0, url=server.url + "t.zip", unzip=True, strip=1)
    fetch.bring(source)
    folder = here / "images/coco/train2017"
    assert sorted(file.name for file in folder.iterdir()) == ["1.jpg", "2.jpg"]
    assert not list(here.rglob("outside.txt"))
    assert not Path("/outside.txt").exists()
    assert not (here / "images/coco/train2017.zip").exists()
    record = json.loads((here / "images/coco/train2017.zip.json").read_text())
    assert record["sha256"] == hashlib.sha256((server.folder / "t.zip").read_bytes()).hexdigest()
    assert len(hashed) == 1  # which takes a while at its real size
    assert source.present


def test_a_half_unpacked_archive_is_finished_without_a_new_download(here, server):
    folder = here / "images/coco"
    (folder / "train2017").mkdir(parents=True)
    (folder / "train2017.zip").write_bytes(archive(["train2017/1.jpg", "train2017/2.jpg"]))
    (folder / "train2017/1.jpg").write_bytes(b"train2017/1.jpg" * 40)
    checksum = fetch.sha256(folder / "train2017.zip")
    source = Source("coco", "images/coco/train2017", 0, url=server.url + "t.zip", unzip=True, strip=1)
    assert not source.present
    fetch.bring(source)
    assert json.loads((folder / "train2017.zip.json").read_text())["sha256"] == checksum
    assert source.present
    assert server.requests == []


def test_a_damaged_archive_is_removed(here, server):
    (server.folder / "t.zip").write_bytes(b"no zip" * 100)
    source = Source("coco", "images/coco", 0, url=server.url + "t.zip", unzip=True)
    with pytest.raises(ValueError, match="damaged .* call again to download it"):
        fetch.bring(source)
    assert not (here / "images/coco.zip").exists()
    with pytest.raises(OSError, match="404"):
        fetch.bring(dataclasses.replace(source, url=server.url + "none.zip"))


def test_the_papers_sources():
    found = {source.to: source for source in fetch.sources(PAPER)}
    base = "runs/paper/data/llava_instruct/images"
    folders = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")
    assert all(f"{base}/{folder}" in found for folder in folders)
    assert {PAPER.data.captions, PAPER.data.conversations, PAPER.data.caption_images} <= set(found)
    assert all(bool(s.url) + bool(s.hub) + bool(s.by_hand) == 1 for s in found.values())
    assert all(s.url.startswith("https://") for s in found.values() if s.url)
    assert all(hub.is_commit(s.revision) for s in found.values() if s.hub)
    assert all(hub.is_commit(s.url.split("/")[7]) for s in found.values() if s.url and "//huggingface.co/" in s.url)
    assert not fetch.sources(profiles.load("laptop"))


def test_what_goes_where(here, monkeypatch, capsys):
    monkeypatch.setattr(hub, "snapshot", lambda _: None)
    assert fetch.run(PAPER, only_list=True)
    said = capsys.readouterr().out
    assert all(source.to in said for source in fetch.sources(PAPER))
    assert "missing, about 20 GB" in said
    vicuna, vae = PAPER.languages["vicuna-7b"], PAPER.teachers["vae"]
    assert (
        f"""
model {vicuna.path}@3321f76e  [missing, about 13.5 GB]
    https://huggingface.co/{vicuna.path}/tree/{vicuna.revision}
    -> the hub's cache: hf download {vicuna.path} --revision {vicuna.revision}
"""
        in f"\n{said}"
    )
    assert f"/tree/{vae.revision}/vae\n" in said
    assert f"hf download {vae.path} --revision {vae.revision} --include 'vae/*'\n" in said
    monkeypatch.setattr(hub, "snapshot", lambda _: Path("cache"))
    assert fetch.run(PAPER, only_list=True)
    said = capsys.readouterr().out
    assert f"/tree/{vae.revision}/vae\n    -> cache/vae\n" in said
    assert f"model {vicuna.path}@3321f76e  [there]" in said
    assert list(here.iterdir()) == []


def test_what_fails_is_listed_and_the_rest_is_brought(here, server, monkeypatch, capsys):
    (server.folder / "a.json").write_bytes(b"[]")
    listed = {"mine": [
        {"name": "good", "url": server.url + "a.json", "to": "{captions}", "gb": 0},
        {"name": "gone", "url": server.url + "b.json", "to": "{conversations}", "gb": 0},
        {"name": "manual", "by_hand": "c.json of the authors", "to": "{benchmarks}/c.json", "gb": 0},
    ]}  # fmt: skip
    (here / "sources.yaml").write_text(json.dumps(listed))
    monkeypatch.setattr(hub, "models", lambda _: [PAPER.languages["vicuna-7b"]])
    monkeypatch.setattr(hub, "snapshot", lambda *_: None)
    monkeypatch.setattr(hub, "download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    data = replace(PAPER.data, downloads=["mine"], sources=str(here / "sources.yaml"))
    profile = replace(PAPER, data=data)
    assert not fetch.run(profile)
    said = capsys.readouterr().out
    assert "model lmsys/vicuna-7b-v1.5: no network" in said
    assert "gone: " in said
    assert f"put it at {PAPER.data.conversations}" in said
    assert "manual: by hand, put c.json of the authors at" in said
    assert (here / PAPER.data.captions).read_bytes() == b"[]"
    assert [source.name for source in fetch.sources(profile) if not source.present] == ["gone", "manual"]
    with pytest.raises(profiles.ProfileError, match="no group of downloads 'mime'; there are: mine"):
        fetch.sources(replace(profile, data=replace(data, downloads=["mime"])))
    with pytest.raises(profiles.ProfileError, match="data.sources: there is no none.yaml"):
        fetch.sources(replace(profile, data=replace(data, sources="none.yaml")))
