import pytest
import torch
from torch import nn

from prunekit.data import Synthetic
from prunekit.errors import DataError
from prunekit.training import evaluate, has_running_statistics, recompute_statistics


def data(train=640):
    return Synthetic(channels=2, image_size=8, train=train, val=0, noise=0.5).load()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


def test_statistics_are_the_means_over_batches_of_what_the_norm_sees():
    model, sample = network(), data().train
    recompute_statistics(model, sample, 256)
    with torch.no_grad():
        outputs = [model[0](images) for images, _ in sample.sample(256, 128)]
    mean = torch.stack([hidden.mean((0, 2, 3)) for hidden in outputs]).mean(0)
    variance = torch.stack([hidden.var((0, 2, 3)) for hidden in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)


def test_only_statistics_change():
    model = network().train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    recompute_statistics(model, data().train, 256)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    assert model.training and model[1].training
    assert model[1].momentum == 0.1


def test_recomputing_twice_gives_the_same():
    model, sample = network(), data().train
    recompute_statistics(model, sample, 256)
    first = model[1].running_var.clone()
    recompute_statistics(model, sample, 256)
    assert torch.equal(first, model[1].running_var)


def test_a_last_batch_of_one_is_left_out():
    model, sample = network(), data(train=129).train
    recompute_statistics(model, sample, 129)
    again = network()
    recompute_statistics(again, sample, 128)
    assert torch.equal(model[1].running_mean, again[1].running_mean)


def test_dropout_is_off_and_momentum_comes_back_after_an_error():
    model = nn.Sequential(nn.Dropout(0.99), network())
    plain = network()
    recompute_statistics(model, data().train, 256)
    recompute_statistics(plain, data().train, 256)
    assert torch.equal(model[1][1].running_mean, plain[1].running_mean)
    broken = nn.Sequential(nn.BatchNorm2d(2), nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        recompute_statistics(broken, data().train, 8)
    assert broken[0].momentum == 0.1


def test_shifted_statistics_are_mended():
    model, sets = network(), data()
    recompute_statistics(model, sets.train, 640)
    good = evaluate(model, sets.test, "cpu")["loss"]
    model[1].running_mean.add_(5.0)
    assert evaluate(model, sets.test, "cpu")["loss"] != good
    recompute_statistics(model, sets.train, 640)
    assert evaluate(model, sets.test, "cpu")["loss"] == good


def test_without_examples_statistics_stay_and_it_is_said():
    model, none = network(), data().val
    model[1].running_mean.fill_(3.0)
    with pytest.raises(DataError, match=r"^there are no examples to take batch-norm statistics"):
        recompute_statistics(model, none, 256)
    assert model[1].running_mean.eq(3.0).all()


def test_a_network_without_batch_norm_stays():
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 10))
    assert not has_running_statistics(model)
    recompute_statistics(model, data().train, 8)
    assert has_running_statistics(network())
    assert not has_running_statistics(nn.BatchNorm2d(3, track_running_stats=False))
