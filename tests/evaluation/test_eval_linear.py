import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hgkd_hf.evaluation import Features, LinearProbeResult, linear, linear_probe, low_shot_probe


def clusters(count, seed, classes=5, width=16):
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, width, generator=generator)
    # Scales and offsets far from 1 and 0: standardisation must see to them.
    return Features((centres[labels] + 1.6 * noise) * torch.logspace(-2, 2, width) + 7, labels * 3 - 4)


@pytest.mark.parametrize("l2", [1e-3, 1e-2, 1e-1, 1.0])
def test_equals_scikit_learn_at_the_same_strength(l2):
    """Ours: mean CE + l2/2 |W|^2; theirs: C x sum CE + 1/2 |W|^2. So C = 1 / (l2 x N)."""
    train, test = clusters(400, 0), clusters(1000, 1)
    scaler = StandardScaler().fit(train.features.double().numpy())
    reference = LogisticRegression(C=1 / (l2 * len(train)), max_iter=2000, tol=1e-8)
    reference.fit(scaler.transform(train.features.double().numpy()), train.labels.numpy())
    expected = reference.score(scaler.transform(test.features.double().numpy()), test.labels.numpy())
    result = linear_probe(train, test, strengths=(l2,))
    assert result.accuracy == pytest.approx(expected, abs=0.0021)  # two images of a thousand
    assert result.l2 == l2
    assert 0.5 < result.accuracy < 0.95


def test_the_strength_is_chosen_without_the_test_set():
    train, test = clusters(200, 0), clusters(500, 1)
    wrong = Features(test.features, test.labels.flip(0))
    right_result, wrong_result = linear_probe(train, test), linear_probe(train, wrong)
    assert (right_result.l2, right_result.validation_accuracy) == (wrong_result.l2, wrong_result.validation_accuracy)
    assert right_result.accuracy > wrong_result.accuracy


def test_the_better_strength_wins_and_of_equals_the_strongest():
    # A faint signal under a nuisance that only large weights of opposite sign can cancel.
    labels, nuisance = torch.arange(400) % 2, torch.randn(400, generator=torch.Generator().manual_seed(0))
    faint = Features(torch.stack([nuisance + 0.1 * labels, nuisance], 1), labels)
    result = linear_probe(faint, faint, strengths=(10.0, 1e-5))
    assert (result.l2, result.accuracy) == (1e-5, 1.0)
    separable = Features(torch.eye(3).repeat(10, 1), torch.arange(3).repeat(10))
    assert linear_probe(separable, separable, strengths=(1e-4, 1e-2, 1e-3)) == LinearProbeResult(1.0, 1e-2, 1.0)


def test_is_deterministic_and_works_where_gradients_are_off():
    train, test = clusters(100, 0), clusters(100, 1)
    with torch.no_grad():
        first = linear_probe(train, test)
    torch.manual_seed(123)
    assert linear_probe(train, test) == first


def test_collapsed_features_give_chance():
    """Constants, one with its last bit telling the label: standardisation must not turn rounding into features."""
    labels = torch.arange(50) % 5
    last_bit = torch.nextafter(torch.tensor(1000.0), torch.tensor(2000.0)) - 1000
    flat = Features(torch.cat([1000 + last_bit * torch.eye(5)[labels], torch.zeros(50, 2)], 1), labels)
    assert len(flat.features.unique(dim=0)) == 5
    assert linear_probe(flat, flat).accuracy == pytest.approx(0.2)


def test_a_dead_dimension_does_no_harm():
    train, test = clusters(200, 0), clusters(200, 1)
    dead = [Features(torch.cat([part.features, torch.zeros(200, 1)], 1), part.labels) for part in (train, test)]
    assert linear_probe(*dead) == linear_probe(train, test)


def test_a_label_that_train_lacks_is_an_error_and_a_lone_image_stays_in_train():
    train = Features(torch.eye(4).repeat(5, 1)[:17], torch.arange(20)[:17] % 4)
    assert linear_probe(train, Features(torch.eye(4), torch.tensor([0, 1, 2, 9]))).accuracy == 0.75
    lone = Features(torch.eye(3)[[0, 0, 0, 1, 1, 1, 2]], torch.tensor([0, 0, 0, 1, 1, 1, 2]))
    assert linear_probe(lone, Features(torch.eye(3), torch.arange(3))).accuracy == 1.0


def test_low_shot_improves_with_labels_and_is_deterministic():
    train, test = clusters(300, 0), clusters(500, 1)
    result = low_shot_probe(train, test)
    assert list(result) == [1, 5, 10]
    assert 0.2 < result[1][0] < result[5][0] < result[10][0] < linear_probe(train, test).accuracy
    assert all(0 < std < 0.2 for _, std in result.values())
    assert low_shot_probe(train, test, shots=(10,))[10] == result[10]
    assert low_shot_probe(train, test, seed=1) != result


def test_one_draw_of_everything_has_no_spread():
    train = clusters(50, 0)
    mean, std = low_shot_probe(train, clusters(100, 1), shots=(10,), draws=1)[10]
    assert std == 0.0
    again, spread = low_shot_probe(train, clusters(100, 1), shots=(10,), draws=2)[10]
    assert (again, spread) == (mean, 0.0)  # ten of ten images: every draw is the same set


@pytest.mark.parametrize(
    ("probe", "settings", "message"),
    [
        (linear_probe, {"strengths": ()}, "strengths="),
        (linear_probe, {"strengths": (0.0, 1.0)}, "greater than 0"),
        (linear_probe, {"validation_fraction": 1.0}, "validation_fraction=1.0"),
        (low_shot_probe, {"shots": (1, 11)}, "shots=11 is more than the 10 images that train has of class -4"),
        (low_shot_probe, {"shots": (0,)}, "shots="),
        (low_shot_probe, {"draws": 0, "shots": (1,)}, "draws=0"),
    ],
)
def test_a_setting_out_of_range_is_named(probe, settings, message):
    with pytest.raises(ValueError, match=message):
        probe(clusters(50, 0), clusters(10, 1), **settings)


@pytest.mark.parametrize("probe", [linear_probe, low_shot_probe])
def test_sets_that_do_not_fit_are_refused(probe):
    with pytest.raises(ValueError, match="labels"):
        probe(Features(torch.ones(2, 16)), clusters(10, 1))
    with pytest.raises(ValueError, match="width 16, test has width 8"):
        probe(clusters(50, 0), clusters(10, 1, width=8))


def test_nothing_to_hold_out_is_refused():
    with pytest.raises(ValueError, match="no two of one class"):
        linear_probe(clusters(5, 0), clusters(10, 1))


def whole_in_float64(train, test, l2):
    """Accuracy as it was computed before features were streamed: everything at once, in float64, by autograd."""
    features = train.features.double()
    mean, std = features.mean(0), features.std(0, correction=0)
    features, queries = (features - mean) / std, (test.features.double() - mean) / std
    classes, targets = train.labels.unique(return_inverse=True)
    weight = features.new_zeros(len(classes), features.shape[1], requires_grad=True)
    bias = features.new_zeros(len(classes), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), targets) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    predictions = classes[F.linear(queries, weight, bias).argmax(1)]
    return (predictions == test.labels).double().mean().item()


@pytest.mark.parametrize("l2", [1e-5, 1e-3, 1e-1])
@pytest.mark.parametrize("kept", [2**30, 0], ids=["kept", "streamed"])
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_blocks_give_the_accuracy_of_all_at_once(monkeypatch, l2, kept, single):
    monkeypatch.setattr(linear, "BLOCK", 70)
    monkeypatch.setattr(linear, "KEPT_BYTES", kept)
    if single:  # as on an accelerator
        monkeypatch.setattr(linear, "_dtype", lambda device: torch.float32)
    train, test = clusters(1000, 0, classes=10, width=24), clusters(3000, 1, classes=10, width=24)
    result = linear_probe(train, test, strengths=(l2,))
    assert result.accuracy == pytest.approx(whole_in_float64(train, test, l2), abs=1e-3)


def test_no_second_copy_of_the_features_is_made(monkeypatch):
    monkeypatch.setattr(linear, "BLOCK", 10)
    monkeypatch.setattr(linear, "KEPT_BYTES", 0)
    largest = 0

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                largest = max(largest, result.numel())
            return result

    train, test = clusters(300, 0), clusters(300, 1)
    with Watch():
        linear_probe(train, test)
        low_shot_probe(train, test, shots=(1, 5))
    assert largest <= 300, "a number an image; the features have 300 x 16 values"
