"""What the project says about itself: its licence, the packages that it installs, and what an image is built from."""

import hashlib
import tomllib
from pathlib import Path

import yaml

from requirements.install import PYTHONS

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [pattern.rstrip("*") for pattern in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
# The whole text of the Apache License 2.0, with its appendix, as it stands in most projects.
APACHE_2_0 = "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"


def test_the_licence_is_the_one_that_is_declared() -> None:
    project = PYPROJECT["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_0


def test_every_package_is_typed() -> None:
    assert not [name for name in PACKAGES if not (ROOT / name / "py.typed").is_file()]
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["*"]


def test_lists_of_packages_agree() -> None:
    assert set(PACKAGES) <= set(PYPROJECT["tool"]["mypy"]["files"])
    assert set(PACKAGES) <= set(PYPROJECT["tool"]["ruff"]["lint"]["isort"]["known-first-party"])
    assert PYPROJECT["tool"]["coverage"]["run"]["source_pkgs"] == PACKAGES


def test_an_image_is_built_from_all_that_an_installation_needs() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {*PACKAGES, "models", "requirements", "pyproject.toml", "README.md", "LICENSE"} <= let_in
    assert all(set(PACKAGES) <= set(line.split()) for line in compiled())


def compiled() -> list[str]:
    """The lines of the Dockerfile that name our packages: those that compile them and open them to all users."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if " chat_templates " in line]
    assert len(lines) == 2
    return lines


def test_the_public_workflow_runs_what_ci_runs() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert all(action.partition("@v")[2].isdigit() for action in actions)
    assert jobs["ci"]["steps"][-1] == {"run": ".ci/run"}
    (python,) = [step["with"]["python-version"] for step in jobs["ci"]["steps"] if "python" in step.get("uses", "")]
    others = jobs["other-pythons"]["strategy"]["matrix"]["python"]
    assert [python, *others] == [f"{major}.{minor}" for major, minor in PYTHONS]
