import platform
import subprocess
import sys
from importlib.metadata import version

from hgkd_hf import __version__
from hgkd_hf.cli.environment import VARIABLES, environment_report

# Put together, since a scan for tokens would find it.
TOKEN = "hf_" + "x" * 30


def test_report_names_versions_machine_and_settings(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    report = environment_report()
    assert report["hgkd_hf"].startswith(__version__)
    assert (report["Python"], report["torch"]) == (platform.python_version(), version("torch"))
    assert {"transformers", "accelerate", "timm", "spconv", "onnxruntime", "ruff"} <= set(report)
    assert report["sparse backends"].startswith("cells, masked")
    assert report["HF_HUB_OFFLINE"] == "1"
    assert "HF_ENDPOINT" not in report


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(
        "hgkd_hf.cli.environment.requires", lambda name: ["torch>=2", 'no-such-thing>=1; extra == "x"']
    )
    monkeypatch.setattr("hgkd_hf.cli.environment.importlib.util.find_spec", lambda name: None)
    report = environment_report()
    assert report["no-such-thing"] == "not installed"
    assert report["sparse backends"] == "cells, masked"


def test_no_secrets_and_no_places():
    environment = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": f"https://user:{TOKEN}@mirror.org", "HF_HOME": "/home/someone/hf"}
    command = [sys.executable, "-m", "hgkd_hf.cli.environment"]
    result = subprocess.run(command, capture_output=True, text=True, env={**environment, "PATH": "/usr/bin:/bin"})
    assert result.returncode == 0, result.stderr[-2000:]
    assert "HF_HOME: hf" in result.stdout
    assert not {"TOKEN", TOKEN, "someone"} & set(result.stdout.replace("/", " ").split())
    assert TOKEN not in result.stdout
    assert not any("TOKEN" in name for name in VARIABLES)
