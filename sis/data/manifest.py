# SPDX-License-Identifier: Apache-2.0
"""Manifests: the list of an artefact's files with their hashes, written last and checked first.

A folder artefact (pairs, image set, partials) carries `manifest.json`; a single file `f` carries `f.manifest.json`.
The manifest hashes itself too, so one flipped bit anywhere in an artefact is found before it is used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from sis.data.atomic import remove_leftovers, write_text_atomic
from sis.data.provenance import RunRecord
from sis.errors import SisError, did_you_mean, first_of

VERSION = 1
ARTEFACTS = (
    "pairs",
    "decoded",
    "latents",
    "model",
    "training",
    "prior",
    "images",
    "segmenter",
    "partials",
    "scores",
    "publication",
)


@dataclass(frozen=True)
class Manifest:
    """A verified manifest: what the artefact is, its files, its own facts and the record of the run that made it."""

    artefact: str
    files: dict[str, str]
    meta: dict
    run: dict
    digest: str
    folder: Path

    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.files]


def manifest_path(artefact: Path) -> Path:
    """Where the manifest of a folder or of a single file lies."""
    if artefact.name == "manifest.json" or artefact.name.endswith(".manifest.json"):
        return artefact
    if artefact.is_dir():
        return artefact / "manifest.json"
    return artefact.with_name(artefact.name + ".manifest.json")


def write_manifest(target: Path, artefact: str, files: list[Path], meta: dict, run: RunRecord | dict) -> Manifest:
    """Hash `files` and write the manifest of the folder or file `target`.

    Args:
        target: the artefact's folder, or its single file (which may still carry a temporary name: give its final one).
        files: the files to list; a single-file artefact lists itself.
        meta: plain JSON facts of the artefact.
        run: the record of this run; a RunRecord is finished here.
    """
    if artefact not in ARTEFACTS:
        raise SisError(f"unknown artefact kind {artefact!r}", fix=did_you_mean(artefact, ARTEFACTS))
    listed = {f.name: {"bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in sorted(files)}
    return write_manifest_of(target, artefact, listed, meta, run)


def write_manifest_of(target: Path, artefact: str, files: dict, meta: dict, run: RunRecord | dict) -> Manifest:
    """Write a manifest from sizes and hashes that are already known."""
    record = run.finish() if isinstance(run, RunRecord) else run
    body = {"artefact": artefact, "version": VERSION, "files": files, "meta": meta, "run": record}
    body["digest"] = _digest(body)
    path = manifest_path(target)
    if path.name == "manifest.json":
        remove_leftovers(path.parent)
    write_text_atomic(path, _text(body))
    return _from_body(body, path)


def publish_file(temporary: Path, final: Path, artefact: str, meta: dict, run: RunRecord | dict) -> Manifest:
    """Give a finished single-file artefact its sidecar; call inside `atomic_path(final)` before the block ends.

    The sidecar gets its final name first: a crash in between leaves a sidecar without a file, which counts as absent.
    """
    listed = {final.name: {"bytes": temporary.stat().st_size, "sha256": file_sha256(temporary)}}
    return write_manifest_of(final.with_name(final.name + ".manifest.json"), artefact, listed, meta, run)


def read_manifest(target: Path | str, artefact: str | None = None, *, verify: bool = True) -> Manifest:
    """Read and check a manifest and, unless `verify` is off, every byte it lists.

    Raises SisError: missing, unreadable, altered, of another kind or version, or files that are missing or changed.
    """
    path = manifest_path(Path(target))
    if not path.is_file():
        raise SisError("no such artefact (its manifest is missing)", where=path, fix="run the stage that makes it")
    try:
        text = path.read_text()
        body = json.loads(text)
        manifest = _from_body(body, path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SisError("unreadable manifest", where=path, fix="delete the artefact and run its stage again") from error
    if _digest(body) != manifest.digest or _text(body) != text:
        raise SisError("the manifest was altered (digest differs)", where=path, fix="run the stage again")
    if body["version"] != VERSION:
        raise SisError(f"manifest version {body['version']}, this release reads {VERSION}", where=path)
    if artefact is not None and manifest.artefact != artefact:
        raise SisError(f"this is a {manifest.artefact} artefact, expected {artefact}", where=path)
    if verify:
        verify_files(manifest, body["files"])
    return manifest


def verify_files(manifest: Manifest, files: dict) -> None:
    """Check size and sha256 of every listed file; raise SisError naming those that are missing or changed."""
    missing = [n for n in files if not (manifest.folder / n).is_file()]
    if missing:
        raise SisError(f"missing files: {first_of(missing)}", where=manifest.folder, fix="run the stage again")
    for name, facts in files.items():
        path = manifest.folder / name
        size = path.stat().st_size
        if size != facts["bytes"]:
            state = "truncated" if size < facts["bytes"] else "changed"
            raise SisError(
                f"file is {state}: {size} of {facts['bytes']} bytes",
                where=path,
                fix="delete it and run the stage again",
            )
        if file_sha256(path) != facts["sha256"]:
            raise SisError("file content changed (sha256 differs)", where=path, fix="delete it and run the stage again")


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def stable_hash(value: object, length: int = 8) -> str:
    """A short hexadecimal name of plain JSON data: equal data, equal name, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _from_body(body: dict, path: Path) -> Manifest:
    files = {name: str(facts["sha256"]) for name, facts in body["files"].items()}
    if any("/" in name or name.startswith("..") for name in files):
        raise ValueError("a manifest lists files of its own folder only")
    return Manifest(body["artefact"], files, body["meta"], body["run"], body["digest"], path.parent)


def _text(body: dict) -> str:
    """The one spelling of a manifest: a bit may flip in the last digit of a number without changing its value."""
    return json.dumps(body, indent=1, sort_keys=True) + "\n"


def _digest(body: dict) -> str:
    return stable_hash({k: v for k, v in body.items() if k != "digest"}, 64)
