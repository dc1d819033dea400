"""Print versions, machine and settings for a bug report; no secrets.

hgkd environment
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
from importlib.metadata import requires

from ..version import __version__
from .errors import run_script
from .parser import plain_parser

# Only these are shown, so that no variable that holds a secret ever is.
VARIABLES = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    *("HF_HUB_DISABLE_XET", "HF_HUB_DOWNLOAD_TIMEOUT", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_VERBOSITY"),
    *("ACCELERATE_MIXED_PRECISION", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
)


def main(arguments: list[str] | None = None) -> None:
    plain_parser("environment", __doc__).parse_args(arguments)
    print("\n".join(f"{name}: {value}" for name, value in environment_report().items()))


def environment_report() -> dict[str, str]:
    """Versions, machine, devices, sparse backends and settings by name; no secrets."""
    import psutil  # here, after --help is answered

    from ..hub.machine import commit_of_package, installed, processor_name
    from ..hub.privacy import public
    from ..sparse import BACKENDS
    from ..training.arguments import available_cores, has_native_bf16
    from ..training.memory_estimate import gigabytes

    report = {"hgkd_hf": f"{__version__} {commit_of_package()}".strip(), "Python": platform.python_version()}
    report |= {name: installed(name) or "not installed" for name in packages()}
    report["platform"] = platform.platform()
    memory = psutil.virtual_memory()
    report["CPU"] = f"{processor_name()}, {available_cores()} core(s), {'' if has_native_bf16(True) else 'no '}bf16"
    report["memory"] = f"{gigabytes(memory.total)}, {gigabytes(memory.available)} free"
    report["accelerators"] = ", ".join(accelerators()) or "none"
    report["sparse backends"] = ", ".join(name for name in BACKENDS if is_there(name))
    report |= {name: public(os.environ[name]) for name in VARIABLES if name in os.environ}
    return report


def packages() -> list[str]:
    """What this package depends on, those of its extras included."""
    names = (re.match(r"[\w.-]+", line)[0] for line in requires("hgkd_hf") or ())
    return [name for name in dict.fromkeys(names) if name != "hgkd_hf"]


def accelerators() -> list[str]:
    """The devices other than the CPU."""
    import torch

    if not torch.accelerator.is_available():
        return []
    backend = torch.get_device_module(torch.accelerator.current_accelerator())
    if not hasattr(backend, "get_device_name"):
        return [str(torch.accelerator.current_accelerator())]
    return [backend.get_device_name(index) for index in range(torch.accelerator.device_count())]


def is_there(backend: str) -> bool:
    """Whether a sparse backend can be used; only those named for a package of their own can be missing."""
    return backend not in ("spconv", "triton") or importlib.util.find_spec(backend) is not None


if __name__ == "__main__":
    run_script(main)
