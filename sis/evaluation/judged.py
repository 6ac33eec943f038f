# SPDX-License-Identifier: Apache-2.0
"""The image set that is judged: a folder brought in, or a set that is there; copied pictures found in either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sis.config.cards import DatasetCard
from sis.config.files import dataset_root, project_root, settings
from sis.config.protocols import ProtocolCard
from sis.data.atomic import temporary_beside
from sis.data.image_set import ImageSet
from sis.data.manifest import manifest_path, read_manifest, stable_hash
from sis.data.pairs import PairSet
from sis.data.parallel import available_cores
from sis.data.prepare import prepare
from sis.errors import SisError
from sis.evaluation.request import Request
from sis.plan import Plan
from sis.sampling.copies import Copies, find_copies, photographs, shard_hashes
from sis.sampling.guess import Guess, guess_pattern
from sis.sampling.ingest import Import, import_folder
from sis.sampling.pictures import check_pictures, find_pictures, require_folder
from sis.sampling.shards import all_keys


@dataclass(frozen=True)
class Judged:
    """An image set under the artefacts, by its run id; `pattern` is what the folder's files are called."""

    run_id: str
    images: ImageSet
    copies: Copies
    pattern: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder that is fit: its label maps, how its files are called, images a label map, one hash of all files."""

    pairs: PairSet
    pattern: str
    samples: int
    content: str


def own_facts(source: Path) -> tuple[str, int]:
    """The dataset that an image set names and its samples a label map; "" and 0 for a folder of pictures.

    Raises SisError for another artefact, and for what is no folder.
    """
    if not manifest_path(source).is_file():
        require_folder(source)
        return "", 0
    meta = read_manifest(source, "images", verify=False).meta
    return meta["dataset"], meta["samples_per_map"]


def prepared_pairs(plan: Plan, card: DatasetCard, split: str) -> Path:
    """The folder of a prepared split, prepared now if it is not there.

    Raises SisError where neither the pairs nor the raw files are there, saying where to put them.
    """
    folder = (project_root() / plan.pairs(card.name, split)).parent
    if not (folder / "manifest.json").is_file():
        root = dataset_root(card, settings())
        if card.layout != "scenes" and not root.is_dir():
            fix = "put them there (docs/datasets.md), or name their folder: `roots:` in config/config.yaml"
            raise SisError(f"{card.name} is not prepared, and its raw files are not here", where=root, fix=fix)
        prepare(card, split, root, folder, available_cores())
    return folder


def look_at_folder(request: Request, prepared: Path) -> Folder:
    """Check every file of the folder without keeping a pixel, against prepared pairs of the judged split.

    Raises SisError for everything that makes it unfit.
    """
    pairs = PairSet.open(prepared)
    guess = Guess(request.pattern, request.samples or 1)
    if not request.pattern:
        guess = guess_pattern(request.source, pairs.ids)
    samples = request.samples or guess.samples
    keys = all_keys(pairs.ids, samples)
    if len(keys) < 2:
        raise SisError(f"{len(keys)} image is too few: a distribution needs two", where=request.source)
    files = find_pictures(request.source, guess.pattern, keys)
    return Folder(pairs, guess.pattern, samples, check_pictures(request.source, files, pairs.size))


def bring_folder(request: Request, plan: Plan, protocol: ProtocolCard, name: str, found: Folder) -> Judged:
    """Make an image set of the folder's pictures, or take the one that was made of the very same files.

    Raises SisError where too many are copies; nothing is written then.
    """
    pairs = found.pairs
    run_id = f"{name}-{stable_hash([pairs.dataset, pairs.split, found.content])}"
    out = (project_root() / plan.images(pairs.dataset, run_id)).parent
    if not _is_whole(out):
        job = Import(
            folder=request.source, pairs=pairs.manifest.folder, out=out, name=name, run_id=run_id,
            title=request.title or name, method=name, pattern=found.pattern, samples_per_map=found.samples,
            refuse_copies=True,
        )  # fmt: skip
        import_folder(job)
    images = ImageSet.open(out)
    return Judged(run_id, images, look_for_copies(plan, images, protocol, request.source), found.pattern)


def take_set(request: Request, plan: Plan, protocol: ProtocolCard) -> Judged:
    """Take an image set as it is; one that lies elsewhere is linked to from the artefacts.

    Raises SisError for a damaged set, and one of another dataset or split.
    """
    images = ImageSet.open(request.source)
    found, wanted = (images.meta["dataset"], images.meta["split"]), (protocol.dataset, protocol.split)
    if found != wanted:
        fault = f"this image set is of {'/'.join(found)}, protocol {protocol.name} judges {'/'.join(wanted)}"
        raise SisError(fault, where=request.source, fix="choose its own dataset, or another protocol")
    if images.rows < 2:
        raise SisError(f"{images.rows} image is too few: a distribution needs two", where=request.source)
    own = str(images.meta["run_id"])
    home = (project_root() / plan.images(found[0], own)).parent
    if home.resolve() != images.manifest.folder.resolve():
        own = f"{images.meta['run'][:40]}-{images.manifest.digest[:8]}"
        home = home.with_name(own)
        _link(home, images.manifest.folder.resolve())
    return Judged(own, images, look_for_copies(plan, images, protocol, request.source))


def look_for_copies(plan: Plan, images: ImageSet, protocol: ProtocolCard, where: Path) -> Copies:
    """Copied pictures of a set; training photographs count where that split is prepared.

    Raises SisError when a contestant's set is mostly copies.
    """
    folders = [(project_root() / plan.pairs(protocol.dataset, s)).parent for s in (protocol.split, "train")]
    truth = photographs(PairSet.open(folders[0], verify=False))
    training = None
    if protocol.split != "train" and (folders[1] / "manifest.json").is_file():
        cache = project_root() / plan.root / "eval" / "photographs" / f"{protocol.dataset}-train.json"
        training = photographs(PairSet.open(folders[1], verify=False), cache)
    copies = find_copies(shard_hashes(images.manifest.paths()), truth, training)
    if images.meta["role"] != "control":
        copies.refuse(where)
    return copies


def _is_whole(folder: Path) -> bool:
    """Whether an image set lies there with every byte as recorded; a damaged one is made again."""
    try:
        ImageSet.open(folder)
    except SisError:
        return False
    return True


def _link(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, in place of an older link."""
    if link.is_symlink() and link.resolve() == target:
        return
    if link.exists() and not link.is_symlink():
        raise SisError("another image set lies there already", where=link, fix="delete it")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(link)
        temporary.symlink_to(target, target_is_directory=True)
        temporary.replace(link)
    except OSError as error:
        raise SisError(f"cannot make a link: {error.strerror}", where=link, fix="check permissions") from error
