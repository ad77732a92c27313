"""`edgealign train projection`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgealign.cli.output import say, warn
from edgealign.errors import InvalidInput
from edgealign.train.options import (
    Cache,
    Episodes,
    LoopSettings,
    MethodName,
    Queries,
    Seed,
    Shots,
    Threads,
    chosen_settings,
    parse_shots,
)


def projection(
    source: Annotated[Path, typer.Option(help="Bundle whose texts or pictures labels are to start from.")],
    target: Annotated[Path, typer.Option(help="Bundle whose recordings or pictures are to be recognized.")],
    pairs: Annotated[Path, typer.Option(help="CSV with source,target,label,pairing and, if you like, split.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run; the aligned bundle is OUTPUT/bundle.")
    ] = Path("projection"),
    source_kind: Annotated[
        str | None, typer.Option(help="text or image. Default: text where the source bundle reads it.")
    ] = None,
    method: MethodName = "croma-weak-nce",
    steps: Annotated[int, typer.Option(min=1, help="Updates of the whole schedule, for each of the two heads.")] = 400,
    seed: Seed = 0,
    settings: LoopSettings = "",
    threads: Threads = 1,
    shots: Shots = "1,5,10",
    queries: Queries = 10,
    episodes: Episodes = 600,
    cache: Cache = None,
) -> None:
    """Small heads on two frozen bundles, so that texts or pictures of one start labels of the other."""
    import torch

    from edgealign.bundle import Bundle, check_target
    from edgealign.export.projection import check_base, write_pair
    from edgealign.train import projection as heads
    from edgealign.train import research
    from edgealign.writing import replace_file

    torch.set_num_threads(threads)
    if source_kind not in (None, *heads.SOURCE_KINDS):
        raise InvalidInput(f"--source-kind is '{source_kind}': expected {' or '.join(heads.SOURCE_KINDS)}")
    chosen_shots = parse_shots(shots)
    config = heads.default_config(method, seed, steps)
    config = replace(config, **chosen_settings(settings, type(config)))
    start, base = heads.SourceSide.of(Bundle.open(source), source_kind), Bundle.open(target)
    check_base(base)
    check_target(output / "bundle")
    listing = heads.read_pairs(pairs, start, base)
    trained = heads.train(
        start, base, listing, output, config, cache or research.default_cache(), chosen_shots, queries, episodes, say
    )
    print(research.results_table(trained.cells))
    if trained.ranked:
        print(research.retrieval_table(trained.ranked))
    with replace_file(output / "results.json") as file:
        file.write(trained.json().encode())
    for warning in trained.warnings:
        warn(warning)
    bundle = write_pair(trained, output / "bundle")
    print(f"{bundle.path}\t{bundle.encoder_sha256}")
