"""Fingerprints and seeds: pinned, since a changed one would orphan every table on disk and redraw every trace."""

import hashlib
import json
from pathlib import Path

import pytest

from tokensqueeze import fingerprint as fingerprint_module
from tokensqueeze.errors import ModelError
from tokensqueeze.fingerprint import file_fingerprint, fingerprint, model_fingerprint, seed_of


def test_a_fingerprint_is_the_sha256_of_compact_sorted_json() -> None:
    canonical = '{"a":{"x":null,"y":[1,2.5,true]},"b":"\\u00e9"}'
    expected = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert expected == "9329d2eb78385efc"
    assert fingerprint({"b": "é", "a": {"y": [1, 2.5, True], "x": None}}) == expected


def test_a_seed_is_the_first_63_bits_of_the_sha256_of_its_parts() -> None:
    digest = hashlib.sha256(b"sample/0/gsm8k-00017/3").hexdigest()
    assert int(digest[:16], 16) // 2 == 877686476822712796
    assert seed_of("sample", 0, "gsm8k-00017", 3) == int(digest[:16], 16) // 2


def test_seeds_fit_a_signed_64_bit_integer_and_differ() -> None:
    seeds = {seed_of("sample", 0, f"p{problem}", draw) for problem in range(50) for draw in range(20)}
    assert len(seeds) == 1000
    assert min(seeds) >= 0 and max(seeds) < 2**63
    # Uniform ones use the topmost bit about half of the time.
    assert 400 < sum(seed >= 2**62 for seed in seeds) < 600


def test_every_value_and_every_nesting_counts() -> None:
    values = [{}, {"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": None}, {"a": [1]}, {"a": {"b": 1}}, {"a": [[1]]}, {"b": 1}]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_a_value_that_json_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"a": float("nan")})


def model_files(folder: Path) -> Path:
    folder.mkdir()
    for name, text in {
        "config.json": json.dumps({"vocab_size": 5}),
        "model.safetensors": "weights",
        "tokenizer.json": "{}",
        "chat_template.jinja": "{{ messages }}",
    }.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_model_changes_its_fingerprint_with_any_of_its_files(tmp_path: Path, name: str) -> None:
    folder = model_files(tmp_path / "model")
    before = model_fingerprint(folder)
    (folder / name).write_text((folder / name).read_text() + " ")
    assert model_fingerprint(folder) != before


def test_a_model_keeps_its_fingerprint_when_it_moves_or_gets_a_read_me(tmp_path: Path) -> None:
    folder = model_files(tmp_path / "model")
    before = model_fingerprint(folder)
    (folder / "README.md").write_text("about")
    (folder / ".cache").mkdir()
    assert model_fingerprint(folder.rename(tmp_path / "elsewhere")) == before


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gone: no such model directory"):
        model_fingerprint(tmp_path / "gone")


def test_a_small_file_counts_to_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(1000))
    before = file_fingerprint(path)
    assert before == hashlib.sha256(b"1000" + bytes(1000)).hexdigest()[:16]
    path.write_bytes(bytes(999) + b"\1")
    assert file_fingerprint(path) != before


@pytest.mark.parametrize("place", [0, 5, 3456, 9999])
def test_a_large_file_counts_by_its_size_and_by_blocks_from_its_first_to_its_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(fingerprint_module, "_HASHED_WHOLE", 5000)
    monkeypatch.setattr(fingerprint_module, "_BLOCK", 100)
    path = tmp_path / "weights"
    path.write_bytes(bytes(10_000))
    before = file_fingerprint(path)
    changed = bytearray(10_000)
    # 64 blocks of 100 bytes, 157 bytes from start to start: [0, 100), [157, 257) … [3457, 3557) … [9900, 10000).
    changed[place] = 1
    path.write_bytes(changed)
    assert (file_fingerprint(path) == before) == (place == 3456)
    path.write_bytes(bytes(10_001))
    assert file_fingerprint(path) != before
