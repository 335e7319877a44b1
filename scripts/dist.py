"""Build the wheel and the sdist into dist/, then run the main job from each in a fresh virtual environment.

A release that was only built is a release nobody has installed: both artifacts are installed, with their
dependencies, into environments that know nothing of this repository, and must evaluate the shipped log with
the same result.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
WHEEL_FILES = (
    "_core.abi3",
    "_core.pyi",
    "py.typed",
    "data/demo.parquet",
    "data/demo.truth.json",
    "LICENSE",
)
SDIST_FILES = (
    "Cargo.toml",
    "Cargo.lock",
    "pyproject.toml",
    "LICENSE",
    "README.md",
    "python/pope_fast/__init__.py",
)


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it printed; a failure shows that and ends the script."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def build(version: str) -> tuple[Path, Path]:
    """Build both artifacts and return their paths: wheel, sdist."""
    shutil.rmtree(DIST, ignore_errors=True)
    maturin = (sys.executable, "-m", "maturin")
    run(*maturin, "build", "--release", "--locked", "--out", DIST)
    run(*maturin, "sdist", "--out", DIST)
    (wheel,) = DIST.glob(f"pope_fast-{version}-*.whl")
    (sdist,) = DIST.glob(f"pope_fast-{version}.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Refuse artifacts that lack a file or carry one that is not for users."""
    if "-cp311-abi3-" not in wheel.name:
        sys.exit(f"{wheel.name} is not tagged cp311-abi3: it would serve one Python version only")
    in_wheel = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        in_sdist = archive.getnames()
    for name, held, wanted in (
        (wheel.name, in_wheel, WHEEL_FILES),
        (sdist.name, in_sdist, SDIST_FILES),
    ):
        missing = [part for part in wanted if not any(part in path for path in held)]
        if missing:
            sys.exit(f"{name} lacks {', '.join(missing)}")
        stray = [path for path in held if "__pycache__" in path or "/target/" in path or "/.venv/" in path]
        if stray:
            sys.exit(f"{name} carries {', '.join(stray[:5])}")


def installer(python: Path) -> tuple[str | Path, ...]:
    """Return the command that installs into the environment of `python`."""
    for uv in (shutil.which("uv"), Path(sys.executable).with_name("uv")):
        if uv and subprocess.run([uv, "--version"], capture_output=True, check=False).returncode == 0:
            return (uv, "pip", "install", "--python", python)
    return (python, "-m", "pip", "install")


def main_job(artifact: Path, version: str, folder: Path) -> dict[str, Any]:
    """Install `artifact` alone into a fresh environment and return its evaluation of the shipped log."""
    environment = folder / artifact.suffix.lstrip(".")
    run(sys.executable, "-m", "venv", environment)
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    # The sdist is compiled as a stranger would: a target folder of its own holds no objects of this tree.
    run(*installer(binaries / "python"), artifact, CARGO_TARGET_DIR=str(ROOT / "target" / "sdist"))
    outside = folder / "elsewhere"
    outside.mkdir(exist_ok=True)

    reported = run(binaries / "pope", "--version", cwd=outside)
    if version not in reported:
        sys.exit(f"{artifact.name}: `pope --version` says {reported.strip()!r}, not {version}")
    log = run(binaries / "python", "-c", "import pope_fast; print(pope_fast.demo_log())", cwd=outside).strip()
    if not Path(log).resolve().is_relative_to(environment.resolve()):
        sys.exit(f"{artifact.name}: the log {log} is not the installed one")
    print(run(binaries / "pope", "evaluate", log, cwd=outside))
    result: dict[str, Any] = json.loads(run(binaries / "pope", "evaluate", log, "--quiet", "--json", "-", cwd=outside))
    if len(result["results"]) < 2:
        sys.exit(f"{artifact.name}: the shipped log has two policies, the result {len(result['results'])}")
    return result


def main() -> None:
    """Build, look inside, install, evaluate, compare."""
    version: str = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    wheel, sdist = build(version)
    check_contents(wheel, sdist)
    with tempfile.TemporaryDirectory(prefix="pope-dist-") as folder:
        results = {artifact: main_job(artifact, version, Path(folder)) for artifact in (wheel, sdist)}
    if results[wheel]["results"] != results[sdist]["results"]:
        sys.exit("wheel and sdist give different numbers for the shipped log")
    for artifact in results:
        print(f"{artifact.relative_to(ROOT)}: {artifact.stat().st_size / 1e6:.1f} MB, installed and evaluated")


if __name__ == "__main__":
    main()
