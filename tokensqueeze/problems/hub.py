"""Hugging Face data sets as sources: `hf:OWNER/NAME[@REVISION][:CONFIG][/SPLIT]`, such as `hf:openai/gsm8k:main/test`.

They are looked for in the local Hugging Face cache, and fetched into it only where that is allowed: the files of one
configuration and split, as the repository's card (README.md) lists them, or else as their own names say. Without a
configuration its default or only one is meant; without a split `test`, or its only one.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml
from huggingface_hub import HfApi, metadata_load, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.table_file import container_of

PREFIX = "hf:"
_SYNTAX = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?::(?P<config>[\w.-]+))?(?:/(?P<split>[\w.-]+))?"
)
_CARD = "README.md"
_SHARD = re.compile(r"-\d{5}-of-(?P<count>\d{5})\b")
_SPLIT_WORDS = ("train", "test", "validation", "valid", "val", "dev")


@dataclass(frozen=True)
class DatasetFiles:
    name: str
    """Of repository, configuration and split, for the ids of problems that have none."""
    paths: list[Path]


@dataclass(frozen=True)
class _Dataset:
    where: str
    """Setting and path: the beginning of a message about it."""
    repository: str
    revision: str | None
    config: str | None
    split: str | None

    @property
    def name(self) -> str:
        return "-".join(filter(None, [self.repository.partition("/")[2], self.config, self.split]))


def is_hub_path(path: str) -> bool:
    return path.startswith(PREFIX)


def is_repository_of(path: str, dataset: str) -> bool:
    """Say whether a path is `hf` alone, or names a data set's repository and nothing more."""
    found = _SYNTAX.fullmatch(dataset)
    return path == "hf" or (found is not None and path == f"{PREFIX}{found['repository']}")


def dataset_files(path: str, *, allow_download: bool, key: str) -> DatasetFiles:
    """Return the local files of a data set's split. Raises `ProblemsError` where they are not here and can't be had."""
    found = _SYNTAX.fullmatch(path)
    if found is None:
        raise ProblemsError(f"{key}: {path}: no data set's name; write it as hf:OWNER/NAME[@REVISION][:CONFIG][/SPLIT]")
    dataset = _Dataset(f"{key}: {path}", found["repository"], found["revision"], found["config"], found["split"])
    paths = _in_cache(dataset)
    if not paths and not allow_download:
        raise ProblemsError(
            f"{dataset.where}: not in the local Hugging Face cache; allow its download (--allow-download, or allow_download = "
            "true beside the path), or name a file"
        )
    return DatasetFiles(dataset.name, paths or _downloaded(dataset))


def _in_cache(dataset: _Dataset) -> list[Path]:
    """Return the split's files if all of them are in the cache, else none."""
    try:
        folder = _snapshot(dataset, allow=[], local=True)
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        chosen = _chosen(dataset, names, folder, all_names_known=False)
        # Where the cache holds a list of the repository's files, this knows what is missing.
        _snapshot(dataset, allow=chosen.patterns, local=True)
    except LocalEntryNotFoundError:
        return []
    return [folder / name for name in chosen.names] if _has_all_shards(chosen.names) else []


def _downloaded(dataset: _Dataset) -> list[Path]:
    try:
        folder = _snapshot(dataset, allow=[_CARD], local=False)
        names = sorted(HfApi().list_repo_files(dataset.repository, repo_type="dataset", revision=folder.name))
        chosen = _chosen(dataset, names, folder, all_names_known=True)
        if not chosen.names:
            shown = ", ".join(names[:10]) or "nothing"
            raise ProblemsError(f"{dataset.where}: no JSONL, Parquet, CSV or JSON file of that in it; it has {shown}")
        _snapshot(dataset, allow=chosen.names, local=False)
    except ProblemsError:
        raise
    except GatedRepoError as error:
        raise ProblemsError(
            f"{dataset.where}: its owners ask for agreement; give it at https://huggingface.co/datasets/{dataset.repository} "
            "and log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ProblemsError(
            f"{dataset.where}: the hub has no such data set or revision, or keeps it private; mend the name, or log in"
        ) from error
    except Exception as error:  # The hub's client passes on what its transport raises, and changes the transport at will.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ProblemsError(f"{dataset.where}: could not be fetched ({reason}); try again online, or name a file") from error
    return [folder / name for name in chosen.names]


def _snapshot(dataset: _Dataset, *, allow: Sequence[str], local: bool) -> Path:
    return Path(
        snapshot_download(
            dataset.repository,
            repo_type="dataset",
            revision=dataset.revision,
            allow_patterns=list(allow),
            local_files_only=local,
        )
    )


def _has_all_shards(names: Sequence[str]) -> bool:
    """Say whether each `…-00000-of-00003` has its two fellows: half a benchmark must not pass for one."""
    found = Counter((name[: shard.start()], int(shard["count"])) for name in names if (shard := _SHARD.search(name)))
    return all(num_found == count for (_, count), num_found in found.items())


@dataclass(frozen=True)
class _Card:
    configs: Mapping[str, Mapping[str, list[str]]]
    """The patterns of each split's files, by configuration."""
    default: str


@dataclass(frozen=True)
class _Chosen:
    patterns: list[str]
    names: list[str]


def _chosen(dataset: _Dataset, names: Sequence[str], folder: Path, *, all_names_known: bool) -> _Chosen:
    """Return which of a repository's files hold the split. Raises `ProblemsError` where there is no such split."""
    data = [name for name in names if container_of(Path(name))]
    card = _read_card(folder / _CARD)
    if card.configs:
        config = _pick(dataset, dataset.config, card.configs, card.default, what="configuration", written=":CONFIG")
        splits = card.configs[config]
    else:
        splits = _splits_by_name(dataset, data)
        # What is cached of them may be another split than the one that is meant.
        if not splits or (not all_names_known and (dataset.split or "test") not in splits):
            return _Chosen([], [])
    split = _pick(dataset, dataset.split, splits, "test", what="split", written="/SPLIT")
    return _Chosen(splits[split], [name for name in data if any(fnmatch(name, pattern) for pattern in splits[split])])


def _splits_by_name(dataset: _Dataset, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split that has a file named after it; where none has, all files are `train`."""
    if dataset.config:
        names = [name for name in names if name.startswith((f"{dataset.config}/", f"{dataset.config}."))]
    splits: dict[str, list[str]] = {}
    words: list[str] = [*_SPLIT_WORDS, *([dataset.split] if dataset.split else [])]
    for word in words:
        found = [name for name in names if re.search(rf"(^|[-._ 0-9/]){re.escape(word)}[-._ 0-9/]", name)]
        if found:
            splits[word] = found
    return splits if splits or not names else {"train": list(names)}


def _pick(dataset: _Dataset, given: str | None, known: Mapping[str, object], default: str, *, what: str, written: str) -> str:
    wanted = given or (default if default in known else next(iter(known)))
    if wanted in known and (given or wanted == default or len(known) == 1):
        return wanted
    listed = ", ".join(known)
    problem = f"no {what} {given!r}; there are {listed}" if given else f"several {what}s, {listed}"
    raise ProblemsError(f"{dataset.where}: {problem}; name one with {written} as in hf:OWNER/NAME[:CONFIG][/SPLIT]")


def _read_card(path: Path) -> _Card:
    """Return what the card's front matter lists; nothing where there is no card, or none that can be read."""
    try:
        front = metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError):
        front = {}
    entries = front.get("configs")
    configs: dict[str, dict[str, list[str]]] = {}
    default = "default"
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and (splits := _card_splits(entry.get("data_files"))):
            name = str(entry.get("config_name", "default"))
            configs[name] = splits
            default = name if entry.get("default") is True else default
    return _Card(configs, default)


def _card_splits(data_files: object) -> dict[str, list[str]]:
    match data_files:
        case str():
            return {"train": [data_files]}
        case dict():
            return {str(split): _as_list(path) for split, path in data_files.items()}
        case [*entries] if all(isinstance(entry, dict) and {"split", "path"} <= entry.keys() for entry in entries):
            return {str(entry["split"]): _as_list(entry["path"]) for entry in entries}
        case [*entries] if all(isinstance(entry, str) for entry in entries):
            return {"train": list(entries)}
        case _:
            return {}


def _as_list(path: object) -> list[str]:
    return [str(entry) for entry in path] if isinstance(path, list) else [str(path)]
