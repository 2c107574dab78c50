"""MindFormers' own YAML files load, where it is installed or its wheels lie in $MINDFORMERS_WHEELS."""

from __future__ import annotations

import importlib.metadata
import os
import re
import zipfile
from pathlib import Path

import pytest

from inference.config import load_config
from inference.errors import ConfigError

_OURS = re.compile(r"configs/(?:llama2|codellama|qwen2|qwen3|mistral)/predict_.*\.yaml$")
# Their mistake, which MindFormers reads as true.
_MISTAKES = {"predict_llama2_7b_ptuning2.yaml": "use_parallel must be true or false, got 'Flase'"}


def _texts() -> dict[str, str]:
    texts = {}
    try:
        for file in importlib.metadata.files("mindformers") or []:
            if _OURS.search(str(file)):
                texts[str(file)] = file.read_text(encoding="utf-8")
    except importlib.metadata.PackageNotFoundError:
        pass
    for wheel in sorted(Path(os.environ.get("MINDFORMERS_WHEELS", "/nowhere")).glob("mindformers-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if _OURS.search(name)]
            texts |= {f"{wheel.name}/{name}": archive.read(name).decode() for name in names}
    return texts


TEXTS = _texts()


@pytest.mark.skipif(not TEXTS, reason="MindFormers is not installed and $MINDFORMERS_WHEELS names no wheels")
@pytest.mark.parametrize("name", TEXTS)
def test_file_of_mindformers_loads(name: str, tmp_path: Path) -> None:
    path = tmp_path / name.rpartition("/")[2]
    path.write_text(TEXTS[name], encoding="utf-8")
    if path.name in _MISTAKES:
        with pytest.raises(ConfigError, match=re.escape(_MISTAKES[path.name])):
            load_config(path)
        return
    config = load_config(path)
    assert config.run_mode == "predict"
    printed = tmp_path / "printed.yaml"
    printed.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(printed) == config
