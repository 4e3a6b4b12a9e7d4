"""The wheel holds what it needs, and works from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from prunekit.config import config_dir

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("schedule=smoke", "runtime.threads=1", "model.widths=[4,6,12]", "latency.runs=5"),
    *("latency.warmup=0", "latency.batch=2", "runtime.device=cpu"),
)
pytestmark = pytest.mark.slow


def done(*line: str, cwd: Path, **environment: str) -> str:
    """What a process printed; it must succeed."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run(
        line, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    script = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    pytest.importorskip("hatchling")
    done(sys.executable, "-c", script, str(place), cwd=ROOT)
    (found,) = place.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_all_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"prunekit", "prunekit-0.1.0.dist-info"}
    for file in config_dir().rglob("*.yaml"):
        assert f"prunekit/configs/{file.relative_to(config_dir())}" in names
    for file in (ROOT / "prunekit").rglob("*.*"):
        assert "__pycache__" in file.parts or str(file.relative_to(ROOT)) in names


def test_an_installed_prunekit_runs_from_another_directory(wheel, tmp_path):
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target))
    done(*pip, str(wheel), cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = "import prunekit.config as c; print(c.__file__, c.config_dir())"
    for path in done(sys.executable, "-c", where, cwd=elsewhere, PYTHONPATH=str(target)).split():
        assert Path(path).is_relative_to(target)
    run = (sys.executable, "-m", "prunekit", "run", "experiment=demo", *TINY)
    assert "dense and narrow" in done(*run, cwd=elsewhere, PYTHONPATH=str(target))
    assert (elsewhere / "outputs/demo/measure/report.json").is_file()
