"""No recipe ends in a traceback: whatever it says, there is a run to start or one sentence."""

import json
import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hgkd_hf.cli.choices import parse_method
from hgkd_hf.cli.errors import sentence
from hgkd_hf.methods.registry import METHODS
from hgkd_hf.training.trainer import DistillationArguments

STUDENT = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32],
    "depths": [1, 1, 1],
    "layer_type": "basic",
}
# Plain values and those at which checks are forgotten.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([10**12, -(10**12), 2**31]),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.text(max_size=6),
    st.sampled_from(["", "full", "masked", "-1", "1e-3", "hgkd", "~", "--seed", "steps", "resnet-18", "{}", "[1"]),
    st.lists(st.one_of(st.integers(-3, 300), st.floats(-1, 2), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
# Keys whose odd values would touch the network, the machine's folders or other processes.
ELSEWHERE = {"teacher", "student", "dataset", "output_dir", "push_to_hub", "deepspeed", "fsdp", "fsdp_config"}
ELSEWHERE |= {"accelerator_config", "parallelism_config", "local_rank", "debug", "hub_model_id", "report_to"}
ELSEWHERE |= {
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "logging_dir",
    "full_determinism",
    "tf32",
}


def keys(kind):
    known = {name for part in (kind, DistillationArguments) for name in part.__dataclass_fields__}
    own = sorted(set(kind.__dataclass_fields__) - ELSEWHERE)
    return st.one_of(st.sampled_from(own), st.sampled_from(sorted(known - ELSEWHERE)), st.text(max_size=8))


@st.composite
def recipes(draw):
    name = draw(st.sampled_from(sorted(METHODS)))
    recipe = draw(st.dictionaries(keys(METHODS[name]), ODD, max_size=5))
    # Mostly complete, so that most examples come further than the first check.
    base = {"method": name, "dataset": "/nowhere", "student": json.dumps(STUDENT), "image_size": 64}
    if name == "hgkd":
        base |= {"decoder_width": 16, "feature_weight": 0, "pixel_weight": 1, "decoder": "full"}
    return {**base, **recipe}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    before = os.getcwd()
    os.chdir(folder)
    yield folder / "recipe.yaml"
    os.chdir(before)


def check(path, text):
    """As training/distill.py begins: parse, build the model where nothing must be fetched, open the data."""
    ended = None
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        args, _ = parse_method(["--recipe", str(path), "--output_dir", str(path.parent)])
        if args.method == "hgkd" and args.teacher is None:
            args.build_model()
        assert not args.source  # there is none at /nowhere
    except (SystemExit, Exception) as error:
        ended = error
    if isinstance(ended, SystemExit):
        assert ended.code == 2  # argparse: usage, and a sentence
    elif sentence(ended) is None:
        raise ended
    else:
        assert "\n" not in sentence(ended)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipe=recipes())
def test_recipes(path, recipe):
    check(path, yaml.safe_dump(recipe, allow_unicode=True))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.one_of(st.text(max_size=60), st.text("-:[]{}!&*'\"#|> \n\tab01", max_size=60)))
def test_texts(path, text):
    check(path, text)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipe=recipes())
def test_many_recipes(path, recipe):
    check(path, yaml.safe_dump(recipe, allow_unicode=True))
