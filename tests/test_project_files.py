"""License, notice, citation, changelog, policies: there, whole, and of one version."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import seedtune
from seedtune.models.starter import starter_folder

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALL = re.compile(r"""pip install (?:-\S+ )*["']?seedtune""")


def paper(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version_everywhere():
    version = PROJECT["version"]
    assert seedtune.__version__ == version
    assert re.search(r"^version: (.+)$", paper("CITATION.cff"), re.M)[1] == version
    assert re.search(r"^## \[(.+?)\]", paper("CHANGELOG.md"), re.M)[1] == version


def test_one_license_and_one_name_everywhere():
    text = paper("LICENSE")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == re.search(r"^license: (.+)$", paper("CITATION.cff"), re.M)[1] == "Apache-2.0"
    assert set(PROJECT["license-files"]) == {"LICENSE", "NOTICE"} and not any(
        "License" in c for c in PROJECT["classifiers"]
    )
    assert PROJECT["authors"][0]["name"] in paper("CITATION.cff") and PROJECT["description"] in paper("CITATION.cff")
    assert PROJECT["description"] == seedtune.__doc__


def test_what_ships_beside_code_is_in_the_notice():
    notice = " ".join(paper("NOTICE").split())
    for file in starter_folder().iterdir():
        if file.suffix in (".json", ".safetensors") and file.name != "pretraining.json":
            assert file.name in notice
    assert "Python Software Foundation License" in notice and "Alpaca" in notice


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_somewhere_and_no_sentence_is_a_placeholder(name):
    text = paper(name)
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / target).exists(), f"{name} links to {target}"
    assert not re.search(r"example\.(com|org)|TODO|FIXME|<your", text)


def test_reports_of_faults_are_private_and_lead_to_what_is_promised():
    assert "in private" in paper("SECURITY.md") and "docs/security.md" in paper("SECURITY.md")


def test_the_changelog_is_kept_as_it_says():
    sections = re.findall(r"^### (\w+)$", paper("CHANGELOG.md"), re.M)
    assert sections and set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_a_tuned_model_is_not_committed():
    assert "tuned/" in paper(".gitignore").split()


def test_no_message_or_page_installs_what_is_on_no_index():
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    assert [file.name for file in files if INSTALL.search(file.read_text(encoding="utf-8"))] == []


def test_hints_name_extras_that_are_there():
    extras = {
        extra
        for file in ROOT.glob("src/**/*.py")
        for extra in re.findall(r"install_hint\(['\"](\w+)", file.read_text())
    }
    assert len(extras) > 4 and extras <= set(PROJECT["optional-dependencies"])


def test_the_package_runs_as_a_module_and_its_import_is_light():
    done = subprocess.run([sys.executable, "-m", "seedtune", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("seedtune ")
    light = "import sys, seedtune; assert not {'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", light], check=True, timeout=60)
