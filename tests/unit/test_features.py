"""Features of a network against its own layers, their places in the plane, and the picture."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunekit.data import Data, Normalize, TensorBatches
from prunekit.errors import ArtifactError, ConfigError
from prunekit.measure import TSNE, features_of, silhouette
from prunekit.reporting.embedding import Embedding, draw, side_by_side


class Net(nn.Module):
    """Two linear layers behind a convolution; a third one is never called in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm1d(6)
        self.out, self.hidden = nn.Linear(6, 5), nn.Linear(3 * 36, 6)  # not in calling order
        self.aside, self.idle = nn.Linear(6, 2), nn.Identity()

    def forward(self, x):
        x = self.norm(self.hidden(self.relu(self.conv(x)).flatten(1)))
        return (self.out(x), self.aside(x)) if self.training else self.out(x)


class Bare(nn.Module):
    """No linear layer; a module that gives a tuple, and one that turns images around."""

    def __init__(self):
        super().__init__()
        self.conv, self.split, self.turn = nn.Conv2d(1, 5, 8), Split(), Turn()

    def forward(self, x):
        x = self.conv(x)
        self.split(x), self.turn(x)
        return x.flatten(1)


class Split(nn.Module):
    def forward(self, x):
        return x.split(1, dim=1)


class Turn(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1)


def data(*sizes, seed=0):
    """Test images sorted by class, `sizes` of every class."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    images = torch.rand(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    batches = TensorBatches(images, labels, Normalize((0.5,), (0.25,)))
    return Data(batches, batches, batches, len(sizes), (1, 8, 8))


def found_in(values, known):
    """For every row of `values` the row of `known` that it is."""
    distance = torch.cdist(values.double(), known.double())
    assert float(distance.min(1).values.max()) < 1e-4
    return distance.argmin(1)


def test_features_are_what_enters_the_last_linear_layer_that_is_called():
    torch.manual_seed(0)
    model, images = Net(), data(60, 60, 60, 60, 60)
    model.train()
    found = features_of(model, images, 250)
    assert model.training and found.layer == "input of out"
    assert found.values.shape == (250, 6) and found.labels.bincount().tolist() == [50] * 5
    model.eval()
    x, y = next(images.test.epoch(300, None))
    with torch.no_grad():
        known = model.norm(model.hidden(F.relu(model.conv(x)).flatten(1)))
    at = found_in(found.values, known)
    assert torch.equal(found.labels, y[at]) and len(at.unique()) == 250
    assert not model.out._forward_pre_hooks and not model.aside._forward_pre_hooks


def test_features_of_a_named_layer_are_its_outputs_before_anything_works_in_place_on_them():
    torch.manual_seed(0)
    model, images = Net(), data(20, 20)
    found = features_of(model, images, 40, "conv")
    x, _ = next(images.test.epoch(40, None))
    with torch.no_grad():
        known = model.conv(x).flatten(1)
    assert found.layer == "output of conv" and found.values.shape == (40, 3 * 36)
    assert len(found_in(found.values, known).unique()) == 40
    assert float(found.values.min()) < 0  # the ReLU behind it is in place


def test_the_images_are_the_same_for_every_network_and_classes_as_balanced_as_they_can_be():
    images = data(3, 40, 40, 9)
    counts, labels = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        found = features_of(Net(), images, 50, "conv")
        counts.append(found.labels.bincount().tolist())
        labels.append(found.labels)
    assert torch.equal(*labels)
    assert counts[0][0] == 3 and counts[0][3] == 9 and sorted(counts[0][1:3]) == [19, 19]
    assert len(features_of(Net(), images, 1000).labels) == 92


@pytest.mark.parametrize(
    ("model", "layer", "words"),
    [
        (Net, "hiden", "features.layer='hiden' is no layer of the network; did you mean hidden"),
        (Net, "idle", "features.layer=idle is never called by the network"),
        (Bare, None, "the network calls no linear layer"),
        (Bare, "split", r"the output of split is tuple for 12 images"),
        (Bare, "turn", r"the output of turn is \(5, 12, 1, 1\) for 12 images"),
    ],
)
def test_a_layer_that_gives_no_features_is_one_line(model, layer, words):
    with pytest.raises(ConfigError, match=words) as error:
        features_of(model(), data(6, 6), 12, layer)
    assert "\n" not in str(error.value)


def clusters(count=20, width=5):
    """Points around corners that are far apart, and whose they are."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(count)
    corners = 20 * torch.eye(3, width)
    return corners[labels] + torch.randn(3 * count, width, generator=generator), labels


def test_neighbours_stay_neighbours_and_a_seed_gives_the_same_points():
    values, labels = clusters()
    plan = TSNE(perplexity=8)
    points = plan.place(values)
    assert points.shape == (60, 2) and np.isfinite(points).all()
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels.numpy()[distance.argmin(1)] == labels.numpy()).all()
    assert np.array_equal(points, plan.place(values))


@pytest.mark.parametrize("width", [1, 4])
def test_features_that_hardly_vary_have_places_too(width):
    """A collapsed network must not stop the pipeline: there are no principal components then."""
    points = TSNE(perplexity=5).place(torch.ones(30, width))
    assert points.shape == (30, 2) and np.isfinite(points).all()
    one = torch.ones(30, width)
    one[:, 0] = torch.arange(30)
    assert np.isfinite(TSNE(perplexity=5).place(one)).all()


def test_silhouette_by_hand():
    values, labels = clusters(6)
    points, every = values.double().numpy(), labels.numpy()
    expected = []
    for i, own in enumerate(every):
        distances = np.linalg.norm(points - points[i], axis=1)
        inside = distances[(every == own) & (np.arange(len(every)) != i)].mean()
        outside = min(distances[every == other].mean() for other in set(every) - {own})
        expected.append((outside - inside) / max(inside, outside))
    assert silhouette(values, labels) == pytest.approx(np.mean(expected), abs=1e-5)
    assert silhouette(values, torch.zeros(18).long()) is None
    assert silhouette(values, torch.arange(18)) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"perplexity": 1000}, "perplexity=1000 must be below the number of images, 1000"),
        ({"perplexity": 40, "images": 30}, "must be below the number of images, 30"),
        ({"perplexity": 0}, "perplexity=0 must be above 0"),
        ({"images": 1.5}, "images=1.5"),
        ({"seed": 2**32}, "seed=4294967296 must be at most 4294967295"),
        ({"layer": 3}, "layer=3 is no text"),
    ],
)
def test_settings_out_of_range_are_one_line(settings, words):
    with pytest.raises(ConfigError, match=words):
        TSNE(**settings)


def test_too_few_images_and_numbers_that_are_none():
    with pytest.raises(ConfigError, match="below the number of images, 12"):
        TSNE(perplexity=12).place(torch.rand(12, 3))
    values = torch.rand(40, 3)
    values[3, 1] = float("inf")
    with pytest.raises(ConfigError, match="the features are not finite"):
        TSNE().place(values)


def embedding(classes, count=60):
    source = np.random.default_rng(0)
    labels = np.arange(count) % classes
    return Embedding(source.standard_normal((count, 2)), labels)


def words(file):
    """Texts of an svg, which matplotlib draws as paths and names in comments."""
    return [line.strip()[5:-4] for line in file.read_text().splitlines() if "<!--" in line]


def test_the_picture_names_runs_and_classes(tmp_path):
    place = tmp_path / "two.svg"
    draw({"one: prune": embedding(10), "another: prune": embedding(12)}, place)
    said = [word.strip() for word in words(place)]
    assert {"one: prune", "another: prune", "Class"} <= set(said)
    assert said[-12:] == [str(label) for label in range(12)]  # each once, though in two panels


def test_many_classes_share_a_scale(tmp_path):
    place = tmp_path / "many.svg"
    draw({f"run {i}": embedding(100, 200) for i in range(5)}, place)
    said = [word.strip() for word in words(place)]
    assert "Class" in said and {f"run {i}" for i in range(5)} <= set(said) and "99" not in said


def test_twenty_classes_look_different():
    from prunekit.reporting.embedding import _looks

    looks = _looks(range(20))
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 20
    assert len({looks[label]["color"] for label in range(10)}) == 10


def stage(tmp_path, run, text="x,y,label\n1,2,0\n3,4,1\n", **more):
    place = tmp_path / run / "features"
    place.mkdir(parents=True)
    (place / "features.csv").write_text(text)
    row = {"run": run, "stage": "features", "status": "finished", "path": str(place)}
    return {**row, "source": "prune/model.pt (0)", "top1": 50.0, **more}


def test_runs_side_by_side(tmp_path):
    rows = [stage(tmp_path, "a"), stage(tmp_path, "b", status="unfinished")]
    rows.append({"run": "a", "stage": "prune", "status": "finished", "path": str(tmp_path)})
    side_by_side(pd.DataFrame(rows), tmp_path / "all.svg")
    said = [word.strip() for word in words(tmp_path / "all.svg")]
    assert "a: prune, 50.00 %" in said and not any(word.startswith("b:") for word in said)


def test_runs_without_points_are_one_line(tmp_path):
    none = pd.DataFrame([{"run": "a", "stage": "prune", "status": "finished", "path": "x"}])
    with pytest.raises(ArtifactError, match="no run has drawn features; run prunekit features"):
        side_by_side(none, tmp_path / "all.png")
    for run, text in {"a": "x,y,label\n", "b": "x,y\n1,2\n", "c": "x,y,label\n1,2,cat\n"}.items():
        with pytest.raises(ArtifactError, match=r"features.csv (has no rows|cannot be read); run"):
            side_by_side(pd.DataFrame([stage(tmp_path, run, text)]), tmp_path / "all.png")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Embedding.read(tmp_path / "absent.csv")
