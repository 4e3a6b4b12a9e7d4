"""Networks of torchvision and timm by name; building one fetches nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any
from urllib.error import URLError

from torch import Tensor, nn

from prunekit.errors import ConfigError, DataError, one_of
from prunekit.models.init import Classes
from prunekit.schema import Text, Whole
from prunekit.validate import integer

Weights = Callable[[], Mapping[str, Tensor]]
# of a constructor's settings, those that would fetch or read files
_FETCHING = ("pretrained", "weights", "weights_backbone", "checkpoint_path", "pretrained_cfg")

Arch = Annotated[Text, "name of the network there"]
Logits = Annotated[Whole, "outputs of the network; 0: features, without a classifier"]


def torchvision_model(arch: Arch, classes: Classes = 1000, **settings: Any) -> nn.Module:
    """A network of `torchvision.models` with random weights; `settings` go to its constructor.

    Raises ConfigError for unknown names.
    """
    import torchvision

    _check_arch("torchvision", arch, torchvision.models.list_models())
    integer("classes", classes, at_least=1)
    builder = torchvision.models.get_model_builder(arch)
    takes = inspect.signature(builder).parameters
    if "weights_backbone" in takes:
        settings["weights_backbone"] = None
    if arch in ("googlenet", "inception_v3"):  # their own initialisation takes seconds, and warns
        settings.setdefault("init_weights", False)
    return _made(builder, arch, {"num_classes": classes, **_offline(settings)})


def timm_model(arch: Arch, classes: Logits = 1000, **settings: Any) -> nn.Module:
    """A network of timm with random weights; `settings` go to `timm.create_model`.

    With no `classes`, 0, it has no classifier and puts out features.
    Raises ConfigError for unknown names, and where timm is not installed.
    """
    timm = _timm()
    _check_arch("timm", arch, timm.list_models())
    integer("classes", classes, at_least=0)
    return _made(timm.create_model, arch, {"num_classes": classes, **_offline(settings)}, arch)


def torchvision_weights(
    arch: str, weights: str, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], Weights]:
    """What pretrained weights of torchvision are: constructor settings, and how to fetch them.

    `weights` is a name such as IMAGENET1K_V2 or DEFAULT. Nothing is fetched before the function
    is called; it raises DataError when it cannot be.
    """
    import torchvision

    _check_arch("torchvision", arch, torchvision.models.list_models())
    known = torchvision.models.get_model_weights(arch)
    names = [entry.name for entry in known]
    if weights != "DEFAULT" and weights not in names:
        raise ConfigError(
            f"weights={weights!r} is neither a file nor weights of {arch}; "
            f"{one_of(weights, [*names, 'DEFAULT'])}"
        )
    entry = known[weights]
    needed = {}
    if arch in ("googlenet", "inception_v3"):
        needed["transform_input"] = True
    if arch == "googlenet":  # its auxiliary heads were never published
        needed["aux_logits"] = False

    def fetch() -> Mapping[str, Tensor]:
        try:
            found = entry.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise DataError(
                f"weights={weights} of {arch} cannot be fetched from {entry.url}: {error}; where "
                "there is no network give the path of the file"
            ) from error
        aux = {**needed, **settings}.get("aux_logits", True)
        return found if aux else {k: v for k, v in found.items() if not k.lower().startswith("aux")}

    return needed, fetch


def timm_weights(
    arch: str, weights: str, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], Weights]:
    """What pretrained weights of timm are, as `torchvision_weights`; `weights` is timm's tag."""
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
        except Exception as error:  # whatever the hub's client raises
            reason = str(error).splitlines()[0]
            raise DataError(
                f"weights={weights} of {arch} cannot be fetched: {reason}; where there is no "
                "network give the path of the file"
            ) from error

    return {}, fetch


def _check_arch(package: str, arch: str, known: Sequence[str]) -> None:
    if arch not in known:
        raise ConfigError(f"arch={arch!r} is no network of {package}; {one_of(arch, known)}")


def _made(
    builder: Callable[..., nn.Module], arch: str, settings: dict[str, Any], *args: Any
) -> Any:
    try:
        return builder(*args, **settings)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise ConfigError(f"{arch} refuses {shown}: {str(error).splitlines()[0]}") from error


def _offline(settings: Mapping[str, Any]) -> dict[str, Any]:
    odd = [key for key in settings if key in _FETCHING and settings[key]]
    if odd:
        raise ConfigError(
            f"{odd[0]}={settings[odd[0]]!r} would fetch or read weights; the networks here are "
            "built without, give model.weights=... instead"
        )
    return {key: value for key, value in settings.items() if key not in _FETCHING}


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ConfigError("model=timm needs timm; pip install 'prunekit[timm]'") from error
    return timm
