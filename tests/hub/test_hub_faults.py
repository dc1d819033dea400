"""The test Hub when things go wrong: what the real client makes of it, and that a second try finishes."""

import importlib
import os
import signal
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from .server import HubServer

httpx = importlib.import_module("httpx" if huggingface_hub.__version__.startswith("1.") else "httpx2")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads

REPO = "alice/tiny"
WEIGHTS = os.urandom(300_000)


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    client = hub.api()
    client.create_repo(REPO)
    return client


def push(api: HfApi) -> str:
    return api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="model.safetensors", repo_id=REPO).oid


def is_complete(hub: HubServer) -> bool:
    head = hub.repo(REPO).resolve("main")
    return "model.safetensors" in head.tree and head.tree["model.safetensors"].data == WEIGHTS


def test_one_503_is_retried(hub: HubServer, api: HfApi, no_waiting: list[float]):
    hub.fault("^PUT /lfs/upload", status=503)
    push(api)
    assert [hit.status for hit in hub.requests if hit.method == "PUT"] == [503, 200]
    assert no_waiting == [1]
    assert is_complete(hub)


def test_one_cut_upload_is_retried(hub: HubServer, api: HfApi, no_waiting: list[float]):
    hub.fault("^PUT /lfs/upload", after=100_000, drop=True)
    push(api)
    first, second = (hit for hit in hub.requests if hit.method == "PUT")
    assert (first.received, first.status) == (100_000, 0)
    assert (second.received, second.status) == (len(WEIGHTS), 200)
    assert is_complete(hub)


def test_cut_download_goes_on_where_it_stopped(hub: HubServer, api: HfApi, no_waiting: list[float], monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # an unfinished chunk is asked for again
    push(api)
    hub.fault("^GET .*/model.safetensors", after=100_000, drop=True)
    assert Path(api.hf_hub_download(REPO, "model.safetensors")).read_bytes() == WEIGHTS
    assert [hit.status for hit in hub.requests if hit.method == "GET"] == [200, 206]


def test_upload_that_is_always_cut_fails_and_a_later_one_finishes(hub: HubServer, api: HfApi, no_waiting: list[float]):
    hub.fault("^PUT /lfs/upload", times=99, after=1000, drop=True)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model.safetensors'") as error:
        push(api)
    assert isinstance(error.value.__cause__, httpx.TransportError)
    assert no_waiting == [1, 2, 4, 8, 8]
    assert len(hub.repo(REPO).log()) == 1
    hub.heal()
    push(api)
    assert is_complete(hub)


def test_failed_commit_keeps_the_upload(hub: HubServer, api: HfApi):
    """A 503 at the commit is not retried by the client; the next push has only the commit left to do."""
    hub.fault("^POST .*/commit/", status=503)
    with pytest.raises(HfHubHTTPError) as error:
        push(api)
    assert error.value.response.status_code == 503
    assert len(hub.repo(REPO).log()) == 1
    hub.requests.clear()
    push(api)
    assert hub.count("^PUT") == 0
    assert is_complete(hub)


def test_process_killed_in_the_middle_of_an_upload(hub: HubServer, api: HfApi, spawn_python, run_python, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    code = """
import sys
from huggingface_hub import upload_file
upload_file(path_or_fileobj=sys.argv[1], path_in_repo="model.safetensors", repo_id="alice/tiny")
"""
    fault = hub.fault("^PUT /lfs/upload", after=100_000, hang=60, drop=True)
    process = spawn_python(code, hub.env(), tmp_path / "model.safetensors")
    assert fault.fired.wait(60)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    hub.heal()
    assert hub.repo(REPO).lfs == {}
    assert len(hub.repo(REPO).log()) == 1
    run_python(code, hub.env(), tmp_path / "model.safetensors")
    assert is_complete(hub)
    run_python(code, hub.env(), tmp_path / "model.safetensors")
    assert len(hub.repo(REPO).log()) == 2  # nothing had changed: no third commit


def test_down_and_back_on_the_same_port(hub: HubServer, api: HfApi):
    push(api)
    head, url = hub.repo(REPO).resolve("main").oid, hub.url
    hub.stop()
    with pytest.raises(httpx.ConnectError):
        api.whoami()
    hub.start()
    assert hub.url == url
    assert api.model_info(REPO).sha == head


@pytest.mark.parametrize("after", [1000, len(WEIGHTS)], ids=["halfway", "before the answer"])
def test_server_dies_during_an_upload_and_comes_back(hub: HubServer, api: HfApi, after: int):
    fault = hub.fault("^PUT /lfs/upload", after=after, hang=60)
    upload = threading.Thread(target=push, args=(api,))
    upload.start()
    assert fault.fired.wait(30)
    hub.stop()
    assert hub.repo(REPO).lfs == {}
    hub.start()
    upload.join(60)
    assert is_complete(hub)
    assert [hit.status for hit in hub.requests if hit.method == "PUT"] == [0, 200]


def test_hanging_server(hub: HubServer, api: HfApi):
    push(api)
    fault = hub.fault("^HEAD", hang=60)
    started = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        api.get_hf_file_metadata(url=f"{hub.url}/{REPO}/resolve/main/model.safetensors", timeout=0.2)
    assert fault.fired.is_set()
    assert time.monotonic() - started < 10
    fault = hub.fault("whoami", hang=0.3)
    assert api.whoami()["name"] == "alice"  # late, but the true answer


def test_faults_hit_only_what_they_name(hub: HubServer, api: HfApi):
    hub.fault("^GET .*/refs", times=2, status=500)
    assert api.model_info(REPO).id == REPO
    for _ in range(2):
        with pytest.raises(HfHubHTTPError):
            api.list_repo_refs(REPO)
    assert api.list_repo_refs(REPO).branches[0].name == "main"
