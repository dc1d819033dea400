"""What the Hub checks in the metadata of a card (`/api/validate-yaml`), as far as our cards can get it wrong.

The Hub's own schema is not public; these rules follow its documentation and its known messages. PyYAML is the one
import of this server that is not in the standard library (`huggingface_hub` itself depends on it).
"""

import re
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"\A\s*---\r?\n(.*?)\r?\n?---(?:\r?\n|\Z)", re.DOTALL)
REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

# hub-docs, repositories-licenses
_LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
    bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma gfdl gpl gpl-2.0
    gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail
    openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
    """
LICENSES = set(_LICENSES.split())
RELATIONS = {"adapter", "finetune", "merge", "quantized"}


def metadata(content: str) -> Any:
    """The YAML block of a card; None if there is none. Raises `yaml.YAMLError`."""
    block = FRONT_MATTER.match(content)
    return yaml.safe_load(block[1]) if block else None


def readable_metadata(content: str) -> dict:
    """The metadata as the Hub shows it: empty where it cannot be read."""
    try:
        data = metadata(content)
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def validate(content: str, repo_type: str) -> tuple[list[str], list[str]]:
    """The (errors, warnings) of a card."""
    try:
        data = metadata(content)
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {' '.join(str(error).split())}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["YAML Metadata Error: metadata must be an object"], []

    errors = []
    for key in ("tags", "datasets", "metrics"):
        if key in data and not _all_strings(data[key]):
            errors.append(f'"{key}" must be an array of strings')
    for key in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    if any(name not in LICENSES for name in _as_list(data.get("license", []))):
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    for key in ("datasets", "base_model"):
        for value in _as_list(data.get(key, [])):
            if not (isinstance(value, str) and REPO_ID.fullmatch(value)):
                errors.append(f'"{key}" with value "{value}" is not valid. Use an id from https://hf.co.')
    if data.get("base_model_relation", "finetune") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {sorted(RELATIONS)}')
    if repo_type == "model":
        errors += _check_model_index(data.get("model-index", []))
    return errors, []


def _check_model_index(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        where = f"model-index[{i}]"
        if not (isinstance(model, dict) and model.get("name") and isinstance(model.get("results"), list)):
            errors.append(f'"{where}" must have a "name" and an array of "results"')
            continue
        for j, result in enumerate(model["results"]):
            required = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
            errors += [
                f'"{where}.results[{j}].{outer}.{inner}" is required'
                for outer, inner in required
                if not isinstance(result.get(outer), dict) or not result[outer].get(inner)
            ]
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or any("type" not in m or "value" not in m for m in metrics):
                errors.append(f'"{where}.results[{j}].metrics" must be an array of objects with "type" and "value"')
    return errors


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _all_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
