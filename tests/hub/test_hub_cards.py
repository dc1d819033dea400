"""The test Hub through the real client: what it accepts as a model card."""

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard

from . import cards
from .conftest import REPO
from .server import HubServer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads


def add(path: str, content: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content)]


@pytest.mark.parametrize(
    ("yaml", "complaint"),
    [
        ("license: apache-2", '"license" must be one of'),
        ("tags: distilled", '"tags" must be an array'),
        ("tags: [1]", '"tags" must be an array'),
        ("base_model: ./runs/42", '"base_model" with value "./runs/42" is not valid'),
        ("base_model: a/b\nbase_model_relation: distilled", '"base_model_relation"'),
        ("datasets: [my own data]", '"datasets" with value "my own data" is not valid'),
        ("model-index: [{name: x, results: [{task: {type: y}, metrics: []}]}]", "dataset.name"),
        ("model-index: [{results: []}]", '"name"'),
        ("name: [", "YAML Metadata Error"),
        ("just text", "must be an object"),
    ],
)
def test_bad_card_is_refused_before_anything_is_sent(hub: HubServer, pushed: HfApi, yaml: str, complaint: str):
    hub.requests.clear()
    with pytest.raises(ValueError, match="Invalid metadata in README") as error:
        pushed.create_commit(REPO, add("README.md", f"---\n{yaml}\n---\n".encode()), commit_message="Card")
    assert complaint in str(error.value)
    assert hub.count(".") == 1


def test_card_without_metadata_is_warned_about(hub: HubServer, pushed: HfApi):
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        pushed.create_commit(REPO, add("README.md", b"# Tiny\n"), commit_message="Card")
    assert hub.repo(REPO).resolve("main").tree["README.md"].data == b"# Tiny\n"
    assert not pushed.model_info(REPO).card_data


def test_full_card_is_accepted():
    result = "{task: {type: image-classification}, dataset: {type: a/b, name: B}, metrics: [{type: acc, value: 0.5}]}"
    index = f"model-index: [{{name: x, results: [{result}]}}]"
    card = f"---\nlicense: other\nbase_model: [a/b, resnet]\nbase_model_relation: finetune\n{index}\n---\n"
    assert cards.validate(card, "model") == ([], [])


@pytest.mark.skipif(
    huggingface_hub.__version__.startswith("1."), reason="validates at huggingface.co, whatever the endpoint"
)
def test_card_is_pushed_and_loaded(hub: HubServer, run_python):
    push = """
from huggingface_hub import ModelCard, create_repo
create_repo("alice/tiny")
card = ModelCard("---\\nlicense: mit\\ntags:\\n- a\\n---\\nText é\\n")
card.validate()
card.push_to_hub("alice/tiny", commit_message="Card")
"""
    run_python(push, hub.env())
    assert hub.repo(REPO).log()[-1].changed == ("README.md",)
    load = "from huggingface_hub import ModelCard as M; c = M.load('alice/tiny'); print(c.data.to_dict(), c.text)"
    assert run_python(load, hub.env(token=None)).stdout == "{'license': 'mit', 'tags': ['a']} Text é\n\n"
    assert ModelCard(hub.repo(REPO).resolve("main").tree["README.md"].data.decode()).data.license == "mit"
