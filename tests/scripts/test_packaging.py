"""What setup.cfg and setup.py say about the packages, held against the tree."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "inference"
# A distribution whose import name is another.
IMPORT_NAMES = {"pyyaml": "yaml"}
# Imported only where the user has installed the extra.
OPTIONAL = {"mindformers", "apache_beam", "pyarrow", "zstandard", "matplotlib", "sacrebleu"}
OPTIONAL |= {"datasketch", "ray", "starlette", "uvicorn", "prometheus_client", "llguidance", "prompt_toolkit"}
# pandas comes with Spark, cloudpickle with Beam.
OPTIONAL |= {"pyspark", "pandas", "cloudpickle"}


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> set[str]:
    return {re.split(r"[\[<>=~!]", line)[0] for line in text.split()}


def imported_packages() -> set[str]:
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).split(".")[0])
    return found


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_import_is_a_requirement():
    listed = requirements(settings()["options"]["install_requires"])
    names = {IMPORT_NAMES.get(name, name) for name in listed}
    assert imported_packages() - set(sys.stdlib_module_names) - names - OPTIONAL - {"inference"} == set()


def test_the_extra_all_has_every_extra_for_users():
    extras = settings()["options.extras_require"]
    ((named,),) = [re.findall(r"^mindspore-inference\[(.*)\]$", extras["all"], re.MULTILINE)]
    assert set(named.split(",")) == set(extras) - {"all", "bench", "dev", "goldens", "spark"}
    assert "mindspore-inference[all]" in extras["dev"].split()


def test_setup_env_takes_the_pythons_that_setup_cfg_allows():
    allowed = settings()["options"]["python_requires"]
    assert allowed == ">=3.10,<3.13"
    assert "3.10 | 3.11 | 3.12)" in (ROOT / "scripts" / "setup_env.sh").read_text(encoding="utf-8")
