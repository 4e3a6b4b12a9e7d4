"""Networks of torchvision and timm by name; building one downloads nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any
from urllib.error import URLError

from torch import Tensor, nn

from prunekit.errors import ConfigError, DataError, one_of
from prunekit.models.init import Classes
from prunekit.reasons import reason_of
from prunekit.schema import Text, Whole
from prunekit.validate import integer

Weights = Callable[[], Mapping[str, Tensor]]
# settings of constructors that would download or read weights
_FETCHING = (
    *("pretrained", "pretrained_backbone", "weights", "weights_backbone"),
    *("checkpoint_path", "pretrained_cfg"),
)

Arch = Annotated[Text, "name of the network in that library"]
Logits = Annotated[Whole, "number of classes; 0: no classifier, the network returns features"]


def torchvision_model(arch: Arch, classes: Classes = 1000, **settings: Any) -> nn.Module:
    """Build a network of `torchvision.models` with random weights.

    `settings` are arguments of its constructor. Raises ConfigError for unknown names.
    """
    import torchvision

    _check_arch("torchvision", arch, torchvision.models.list_models())
    integer("classes", classes, at_least=1)
    builder = torchvision.models.get_model_builder(arch)
    given = {"num_classes": classes, **_offline(settings)}
    if "weights_backbone" in inspect.signature(builder).parameters:
        given["weights_backbone"] = None  # weights of the backbone are fetched by default
    if arch in ("googlenet", "inception_v3"):  # their initialisation takes seconds, and warns
        given.setdefault("init_weights", False)
    return _build(builder, arch, given)


def timm_model(arch: Arch, classes: Logits = 1000, **settings: Any) -> nn.Module:
    """Build a network of timm with random weights.

    `settings` are arguments of `timm.create_model`. With `classes=0` the network has no classifier
    and returns features. Raises ConfigError for unknown names, and where timm is not installed.
    """
    timm = _timm()
    _check_arch("timm", arch, timm.list_models())
    integer("classes", classes, at_least=0)
    return _build(timm.create_model, arch, {"num_classes": classes, **_offline(settings)}, arch)


def torchvision_weights(
    arch: str, weights: str, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], Weights]:
    """Return the constructor settings for pretrained weights, and a function that downloads them.

    `weights` is a name such as IMAGENET1K_V2 or DEFAULT. The function raises DataError where the
    download fails.
    """
    import torchvision

    _check_arch("torchvision", arch, torchvision.models.list_models())
    entries = torchvision.models.get_model_weights(arch)
    names = [entry.name for entry in entries]
    if weights != "DEFAULT" and weights not in names:
        raise ConfigError(
            f"weights={weights!r} is neither a file nor weights of {arch}; "
            f"{one_of(weights, [*names, 'DEFAULT'])}"
        )
    entry = entries[weights]
    needed = {}
    if arch in ("googlenet", "inception_v3"):
        needed["transform_input"] = True
    if arch == "googlenet":  # its auxiliary heads were never published
        needed["aux_logits"] = False

    def fetch() -> Mapping[str, Tensor]:
        try:
            state = entry.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise DataError(
                f"weights={weights} of {arch} cannot be fetched from {entry.url}: {error}; where "
                "there is no network give the path of the file"
            ) from error
        aux = {**needed, **settings}.get("aux_logits", True)
        return state if aux else {k: v for k, v in state.items() if not k.lower().startswith("aux")}

    return needed, fetch


def timm_weights(
    arch: str, weights: str, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], Weights]:
    """Return the same as `torchvision_weights`, for timm; `weights` is a tag of timm."""
    timm = _timm()
    _check_arch("timm", arch, timm.list_models())
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")]
    if weights != "DEFAULT" and weights not in tags:
        raise ConfigError(
            f"weights={weights!r} is neither a file nor a tag of {arch} in timm; "
            f"{one_of(weights, [*tags, 'DEFAULT'])}"
        )
    name = arch if weights == "DEFAULT" else f"{arch}.{weights}"

    def fetch() -> Mapping[str, Tensor]:
        try:
            return timm.create_model(name, pretrained=True).state_dict()
        except Exception as error:  # the hub's client raises many kinds
            reason = str(error).splitlines()[0]
            raise DataError(
                f"weights={weights} of {arch} cannot be fetched: {reason}; where there is no "
                "network give the path of the file"
            ) from error

    return {}, fetch


def _check_arch(package: str, arch: str, names: Sequence[str]) -> None:
    if arch not in names:
        raise ConfigError(f"arch={arch!r} is no network of {package}; {one_of(arch, names)}")


def _build(
    builder: Callable[..., nn.Module], arch: str, settings: dict[str, Any], *args: Any
) -> nn.Module:
    try:
        return builder(*args, **settings)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        listing = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise ConfigError(
            f"{arch} refuses {listing}: {reason_of(error)}; give other values"
        ) from error


def _offline(settings: Mapping[str, Any]) -> dict[str, Any]:
    for key in _FETCHING:
        if settings.get(key):
            raise ConfigError(
                f"{key}={settings[key]!r} would fetch or read weights; the networks here are "
                "built without, give model.weights=... instead"
            )
    return {key: value for key, value in settings.items() if key not in _FETCHING}


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ConfigError("model=timm needs timm; pip install 'prunekit[timm]'") from error
    return timm
