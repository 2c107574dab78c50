"""Repairs of Beam are made for the versions that need them, and for no others."""

from __future__ import annotations

import pytest

beam = pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'mindspore-inference[beam]'")

from apache_beam.ml.inference import base  # noqa: E402

from inference.beam.handlers import beam_repairs  # noqa: E402


@pytest.mark.parametrize("version", ["2.71.9", "2.78.0", "3.0.0", "unknown"])
def test_other_versions_are_not_patched(monkeypatch, version):
    monkeypatch.setattr(beam, "BatchElements", "theirs")
    monkeypatch.setattr(base, "_get_current_process_memory_in_bytes", "theirs")
    assert beam_repairs.apply(version) == []
    assert beam.BatchElements == base._get_current_process_memory_in_bytes == "theirs"


@pytest.mark.parametrize("version", ["2.72.0", "2.77.0", "2.77.0rc1"])
def test_versions_that_need_them(monkeypatch, version):
    monkeypatch.setattr(beam, "BatchElements", "theirs")
    monkeypatch.setattr(base, "_get_current_process_memory_in_bytes", "theirs")
    assert beam_repairs.apply(version) == list(beam_repairs.REPAIRS)
    assert beam.BatchElements is beam_repairs.BatchElements
    assert base._get_current_process_memory_in_bytes is beam_repairs.process_memory


@pytest.mark.parametrize("repair", beam_repairs.REPAIRS, ids=lambda repair: repair.fault[:30])
def test_the_installed_beam_has_the_faults(repair):
    """A repair that is no longer needed fails here: then its last version is known."""
    import inspect

    if repair is beam_repairs.REPAIRS[0]:
        assert "max_batch_weight" not in inspect.signature(beam_repairs.BatchElements.__mro__[1].__init__).parameters
    else:
        source = inspect.getsource(inspect.getmodule(base.RunInference))
        assert "def _get_current_process_memory_in_bytes" in source and "torch" in source
