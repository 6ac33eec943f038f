# SPDX-License-Identifier: Apache-2.0
"""The last stage: score files in; merged table, text tables, contact sheets and leaderboard out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from sis.data.atomic import write_bytes_atomic, write_text_atomic
from sis.data.schemas import PUBLISHED_SCORES, SCORES
from sis.data.tables import read_table, write_table
from sis.errors import SisError, first_of
from sis.publish.boards import BoardSource, page_data
from sis.publish.context import DatasetPublish, PublishContext, StageTiming
from sis.publish.gallery import Gallery, build_gallery, contact_sheet, samples_sheet
from sis.publish.leaderboard import render_json, render_page
from sis.publish.seeds import over_seeds
from sis.publish.seeds_text import differences_to_csv, differences_to_markdown, means_to_csv
from sis.publish.sweeps import draw_sweep
from sis.publish.table_text import to_csv, to_latex, to_markdown
from sis.publish.tables import Table, class_tables, comparison_table

__all__ = ["DatasetPublish", "PublishContext", "StageTiming", "publish", "read_scores"]

_ORDER = ["dataset", "protocol", "role", "run_id", "metric"]
_KEY = ["dataset", "protocol", "run_id", "metric", "class_name"]


def publish(scores: Sequence[Path], out: Path, context: PublishContext) -> list[Path]:
    """Write everything that one experiment publishes to folder `out`; returns the written files, sorted.

    `scores.parquet`, `tables/*.{md,tex,csv}` (`*-seeds*`: means over training seeds), `gallery/*.png`,
    `leaderboard.html`, `leaderboard.json`. Equal inputs give equal bytes. Raises SisError for unreadable or
    contradictory scores before anything is written.
    """
    merged = read_scores(scores)
    sources = [_source(board, context) for board in _boards(merged)]
    galleries = _galleries([source.table for source in sources], context)
    data = page_data(sources, galleries, context)
    texts = {"leaderboard.html": render_page(data, galleries), "leaderboard.json": render_json(data)}
    for source in sources:
        for name, table in _named_tables(source):
            texts[f"tables/{name}.md"] = to_markdown(table)
            texts[f"tables/{name}.tex"] = to_latex(table)
            texts[f"tables/{name}.csv"] = to_csv(table)
        texts |= _seed_texts(source)
    pictures = _pictures(galleries)
    for source in sources:
        shown = source.table if source.seeds is None else source.seeds.table
        for sweep in context.sweeps:
            pictures |= draw_sweep(sweep, shown) if sweep.dataset == shown.dataset else {}
    for name, text in texts.items():
        write_text_atomic(out / name, text)
    for name, picture in pictures.items():
        write_bytes_atomic(out / name, picture)
    write_table(_without_replicates(merged), out / "scores.parquet", PUBLISHED_SCORES)
    return sorted(out / name for name in [*texts, *pictures, "scores.parquet"])


def read_scores(paths: Sequence[Path]) -> pd.DataFrame:
    """Merge score files into one frame sorted by dataset, protocol, role, run and metric.

    Rows of one metric keep the order of their file (classes stay in the order of the label table).
    Raises SisError when there is no file, a file is damaged, or two files hold the same number.
    """
    if not paths:
        raise SisError("nothing to publish: no score files", fix="evaluate at least one run of the experiment")
    merged = pa.concat_tables([read_table(path, SCORES) for path in paths]).to_pandas()
    repeated = merged.loc[merged.duplicated(_KEY)]
    if len(repeated):
        raise SisError(
            "two score files hold the same number",
            where=first_of(sorted({f"{r} {m}" for r, m in zip(repeated["run_id"], repeated["metric"], strict=True)})),
            fix="pass each score file once and remove scores of deleted runs",
        )
    return merged.sort_values(_ORDER, kind="stable", ignore_index=True)


def _boards(scores: pd.DataFrame) -> list[pd.DataFrame]:
    return [group for _, group in scores.groupby(["dataset", "protocol"], sort=True)]


def _source(board: pd.DataFrame, context: PublishContext) -> BoardSource:
    table = comparison_table(board, context.published)
    return BoardSource(table, class_tables(board), over_seeds(table, board, context.groups))


def _galleries(tables: Sequence[Table], context: PublishContext) -> dict[str, Gallery]:
    """Build one gallery a dataset, with the runs of all its boards."""
    galleries: dict[str, Gallery] = {}
    for dataset, pictures in sorted(context.datasets.items()):
        rows = {row.run_id: row for table in tables if table.dataset == dataset for row in table.contestants}
        rows |= {row.run_id: row for table in tables if table.dataset == dataset for row in table.controls}
        gallery = build_gallery(dataset, pictures, list(rows.values()))
        if gallery is not None:
            galleries[dataset] = gallery
    return galleries


def _named_tables(source: BoardSource) -> list[tuple[str, Table]]:
    stem = f"{source.table.dataset}-{source.table.protocol}"
    named = [(stem, source.table)]
    for table in source.classes:
        suffix = f"-{table.columns[0].protocol_id[:8]}" if len(source.classes) > 1 else ""
        named.append((f"{stem}-classes{suffix}", table))
    return named


def _seed_texts(source: BoardSource) -> dict[str, str]:
    """Files of means over training seeds and of their differences, where runs differ in nothing else."""
    if source.seeds is None:
        return {}
    stem = f"tables/{source.table.dataset}-{source.table.protocol}-seeds"
    texts = {
        f"{stem}.md": to_markdown(source.seeds.table),
        f"{stem}.tex": to_latex(source.seeds.table),
        f"{stem}.csv": means_to_csv(source.seeds),
    }
    if source.seeds.differences:
        texts[f"{stem}-differences.md"] = differences_to_markdown(source.seeds)
        texts[f"{stem}-differences.csv"] = differences_to_csv(source.seeds)
    return texts


def _pictures(galleries: dict[str, Gallery]) -> dict[str, bytes]:
    pictures: dict[str, bytes] = {}
    for dataset, gallery in galleries.items():
        pictures[f"gallery/{dataset}.png"] = contact_sheet(gallery)
        samples = samples_sheet(gallery)
        if samples is not None:
            pictures[f"gallery/{dataset}-samples.png"] = samples
    return pictures


def _without_replicates(scores: pd.DataFrame) -> pa.Table:
    columns = [field.name for field in PUBLISHED_SCORES]
    return pa.Table.from_pandas(scores[columns], schema=PUBLISHED_SCORES, preserve_index=False)
