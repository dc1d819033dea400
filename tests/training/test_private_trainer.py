"""The private parts of `transformers.Trainer` that we rely on: all of them, listed here with the reason.

A new transformers that changes one fails here. Then read the new method beside ours, make ours fit, run
`make torture`, and put the new digest here, which the failure prints.
"""

import ast
import hashlib
import inspect
import re
from pathlib import Path

import pytest
from transformers import Trainer

SOURCE = Path(__file__).parents[2] / "src" / "hgkd_hf"

# name: (digest of its code, why)
METHODS = {
    "_save_checkpoint": ("e4ed9684", "replaced: written aside, with a manifest, without pickle"),
    "_save": ("7b1a6396", "replaced: without pickled arguments"),
    "_load_from_checkpoint": ("2f2cf577", "replaced: all weights, by the model's own from_pretrained"),
    "_load_optimizer_and_scheduler": ("df92a1c4", "replaced: one file without pickle, under this run's settings"),
    "_load_scaler": ("0c6449d5", "left out: done with the optimizer"),
    "_load_rng_state": ("c5f1712d", "left out: every step is seeded"),
    "_run_epoch": ("2898c673", "extended: the log's state; no step beyond max_steps"),
    "_get_grad_norm": ("4262ab7e", "extended: it comes between the gradient and the optimizer's step"),
    "_prepare_inputs": ("0eac07b2", "called: a batch of evaluation to the device"),
}
# Read or set; `Trainer` sets them where these patterns say.
ATTRIBUTES = {
    "_tr_loss": r"self\._tr_loss = torch\.tensor\(0\.0",
    "_total_loss_scalar": r"self\._total_loss_scalar = 0\.0",
    "_globalstep_last_logged": r"self\._globalstep_last_logged = self\.state\.global_step",
    "_train_batch_size": r"self\._train_batch_size = args\.train_batch_size",
}
# Whose order we rely on, though they are not ours: what comes when in a step, and at the end.
ORDER = {
    "_inner_training_loop": "5473852b",
    "_init_training_state": "529be837",
    "_prepare_for_training": "6d586c9f",
    "_maybe_log_save_evaluate": "692af792",
    "_finalize_training": "72edbe44",
    "training_step": "9bc42259",
}
DIGESTS = {name: digest for name, (digest, _) in METHODS.items()} | ORDER


def digest(method) -> str:
    """Of a method's code without docstring, comments and white space."""
    code = re.sub(r'""".*?"""', "", inspect.getsource(method), count=1, flags=re.DOTALL)
    lines = [line for line in code.splitlines() if not line.lstrip().startswith("#")]
    return hashlib.sha256("".join("".join(lines).split()).encode()).hexdigest()[:8]


@pytest.mark.parametrize("name", DIGESTS)
def test_it_is_as_it_was_when_ours_was_written(name):
    found = digest(getattr(Trainer, name))
    assert found == DIGESTS[name], (
        f"transformers has changed Trainer.{name}: compare it with what relies on it here, then record {found!r}"
    )


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_it_is_still_set(name):
    assert re.search(ATTRIBUTES[name], inspect.getsource(Trainer)), f"transformers no longer sets Trainer.{name}"


def test_the_list_is_complete():
    """Every private name of `Trainer` that a trainer of ours defines, calls, reads or sets."""
    private = {name for name in vars(Trainer) if re.match(r"_[a-z]", name)}
    private |= set(re.findall(r"self\.(_[a-z]\w*) = ", inspect.getsource(Trainer)))
    used = {}
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            if not any("Trainer" in ast.unparse(base) and "Callback" not in ast.unparse(base) for base in kind.bases):
                continue
            for node in ast.walk(kind):
                name = getattr(node, "attr", None) or (isinstance(node, ast.FunctionDef) and node.name) or None
                if name in private:
                    used.setdefault(name, path.name)
    outside = {name: file for name, file in used.items() if name not in METHODS and name not in ATTRIBUTES}
    assert not outside, f"private names of Trainer that are not listed: {outside}"
    assert set(METHODS) | set(ATTRIBUTES) == set(used), "what is listed is used"
