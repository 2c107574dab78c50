"""Where a model's directory is looked for, and what is said when it is nowhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from inference.config import Override, load_config
from inference.config.locate import HOME_VARIABLE, hub_id_of, locate_model
from inference.config.presets import find_preset
from inference.errors import EXIT_USAGE, ModelNotFoundError


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """An empty working directory, and a hub that is never reached; the calls that were made of it."""
    calls: list[tuple[str, dict]] = []

    def snapshot_download(repo_id: str, **options: object) -> str:
        calls.append((repo_id, options))
        raise ConnectionError("no route\nto host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return calls


def make(path: str) -> Path:
    folder = Path(path)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def refusal(name: str, **options: object) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        locate_model(name, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_directory_is_itself(hub: list) -> None:
    make("some/model")
    assert locate_model("some/model") == Path("some/model")
    assert locate_model(Path("some/model")) == Path("some/model")
    assert hub == []


def test_demo_is_the_packaged_model() -> None:
    make("demo")
    assert locate_model("demo").parent.name == "inference"
    assert locate_model("./demo") == Path("demo")


def test_named_model_on_disk(monkeypatch: pytest.MonkeyPatch, hub: list) -> None:
    downloaded = make("checkpoint_download/llama2_7b")
    assert locate_model("llama2_7b") == downloaded
    assert locate_model("Llama2-7B") == downloaded
    kept = make("home/llama2_7b")
    monkeypatch.setenv(HOME_VARIABLE, "home")
    assert locate_model("llama2_7b") == kept
    assert hub == []


def test_an_empty_directory_does_not_count(hub: list) -> None:
    Path("checkpoint_download/llama2_7b").mkdir(parents=True)
    refusal("llama2_7b")
    assert [repo_id for repo_id, _ in hub] == ["meta-llama/Llama-2-7b-hf"]


def test_download_fetches_data_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def snapshot_download(repo_id: str, **options: object) -> str:
        calls.append((repo_id, options))
        return "cache/snapshot"

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert locate_model("qwen3_8b") == Path("cache/snapshot")
    repo_id, options = calls[0]
    assert repo_id == "Qwen/Qwen3-8B"
    assert options["local_files_only"] is False
    assert "*.safetensors" in options["allow_patterns"]
    forbidden = (".bin", ".pt", ".pth", ".py", ".ckpt", ".h5", ".gguf")
    assert not [pattern for pattern in options["allow_patterns"] if pattern.endswith(forbidden)]
    assert "consolidated*" in options["ignore_patterns"]


def test_a_missing_model_error_lists_the_searched_places_and_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, "home")
    assert refusal("llama2_7b") == (
        "the model 'llama2_7b' was not found in home/llama2_7b, checkpoint_download/llama2_7b, "
        "and the Hugging Face repository meta-llama/Llama-2-7b-hf: ConnectionError: no route to host; "
        "behind a proxy set HTTPS_PROXY; for a mirror set HF_ENDPOINT; to use only downloaded files set "
        "HF_HUB_OFFLINE=1; or put its files into checkpoint_download/llama2_7b, or set pretrained_model_dir to their "
        "directory"
    )


class LocalEntryNotFoundError(Exception):
    """What huggingface_hub raises in place of a network's error."""


class RepositoryNotFoundError(Exception):
    pass


def unreachable(error: Exception, cause: BaseException | None = None) -> Callable[..., str]:
    def snapshot_download(repo_id: str, **options: object) -> str:
        raise error from cause

    return snapshot_download


@pytest.mark.parametrize(
    ("download", "expected"),
    [
        (
            unreachable(LocalEntryNotFoundError("An error happened. " * 20), OSError(-2, "Name or service not known")),
            ": the hub could not be reached: Name or service not known; behind a proxy set HTTPS_PROXY; ",
        ),
        (unreachable(LocalEntryNotFoundError("x")), ": the hub could not be reached; behind a proxy set HTTPS_PROXY; "),
        (
            unreachable(RepositoryNotFoundError("401 Client Error. (Request ID: Root=1-x)")),
            ": no such repository, or it is private; check the name; for a gated or private model accept its terms and "
            "set HF_TOKEN; or put its files into ",
        ),
        (unreachable(ValueError("First sentence. Second one.")), ": ValueError: First sentence; behind a proxy"),
        (unreachable(ValueError("word " * 100)), "word ...; behind a proxy"),
    ],
)
def test_the_reason_of_a_failed_download_is_a_full_phrase(
    download: Callable[..., str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    assert expected in refusal("org/name")


def test_offline_uses_only_the_cache(monkeypatch: pytest.MonkeyPatch, hub: list) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not in its cache, and HF_HUB_OFFLINE is set" in refusal("org/name")
    assert hub[0][1]["local_files_only"] is True


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "huggingface_hub is not installed" in refusal("org/name")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./lama", "there is no model directory ./lama; did you mean 'llama'?"),
        ("a/b/c", "there is no model directory a/b/c; give a directory, a GGUF file, a preset's name, or "),
        ("~no_such_user/x", "there is no model directory ~no_such_user/x"),
        ("", "no model is named"),
        ("lama/q.gguf", "there is no GGUF file lama/q.gguf; give a directory, a GGUF file, "),
        ("tiny-q5.gguf", "there is no GGUF file tiny-q5.gguf; did you mean 'tiny-q4.gguf'?"),
        ("x" * 300, f"there is no model directory {'x' * 300}; give "),
        ("tiny.q4.guf", "the model 'tiny.q4.guf' was not found in checkpoint_download/tiny.q4.guf ($INFERENCE_MODEL_"),
        ("a\0b", "no model is named"),
        ("file.ckpt", "file.ckpt is a file, not a model directory; give its directory"),
        (
            "unheard_of",
            "the model 'unheard_of' was not found in checkpoint_download/unheard_of ($INFERENCE_MODEL_HOME",
        ),
    ],
)
def test_paths_that_are_not_models(name: str, expected: str, hub: list) -> None:
    make("llama")
    Path("file.ckpt").touch()
    Path("tiny-q4.gguf").touch()
    assert refusal(name).startswith(expected)
    assert hub == []


def test_hub_id_of_a_copy_outranks_the_preset() -> None:
    path = find_preset("llama3_1_8b")
    config = load_config(path, overrides=[Override("model.hub_id", "mine/tuned", "--options")])
    assert hub_id_of("llama3_1_8b") == "meta-llama/Llama-3.1-8B"
    assert hub_id_of("llama3_1_8b", config) == "mine/tuned"
    assert hub_id_of("org/name", config) == "org/name"


def test_hub_id_of_the_file_is_not_that_of_a_model_named_by_a_flag() -> None:
    override = Override("pretrained_model_dir", "qwen3_8b", "--pretrained_model_dir")
    config = load_config(find_preset("llama3_1_8b"), overrides=[override])
    assert hub_id_of("qwen3_8b", config) == "Qwen/Qwen3-8B"


def test_a_name_known_only_from_the_config(hub: list) -> None:
    config = load_config({"pretrained_model_dir": "mine", "model": {"hub_id": "me/mine"}})
    assert "the Hugging Face repository me/mine" in refusal("mine", config=config)


def test_a_misspelt_preset_names_the_nearest() -> None:
    assert "; did you mean 'demo'? Otherwise put its files into " in refusal("dmeo")


def test_a_misspelt_suffix_names_the_nearest_file() -> None:
    Path("qwen3-q4.gguf").touch()
    assert "; did you mean 'qwen3-q4.gguf'? Otherwise put its files into " in refusal("qwen3-q4.guf")


def test_a_misspelt_gguf_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "tiny-q4.gguf").touch()
    wrong = tmp_path / "tiny-q5.gguf"
    assert refusal(str(wrong)) == f"there is no GGUF file {wrong}; did you mean '{tmp_path / 'tiny-q4.gguf'}'?"
