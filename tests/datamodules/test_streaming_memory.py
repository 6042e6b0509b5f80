"""Memory that streaming takes: that of the buffer, however large the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
READ = """
import sys
from benchmarks.peak import peak_mib
from src.datamodules import DialogSumDataModule
base, path, cache = sys.argv[1:]
data = DialogSumDataModule(
    base, path=path, cache_dir=cache, validation_split="train[:5]", test_split="train[:5]", train_split="train[5:]",
    streaming=True, shuffle_buffer=1_000, batch_size=50,
)
data.prepare_data()
data.setup("fit")
print(sum(len(batch["id"]) for batch in data.train_dataloader()))
print(peak_mib())
"""


def peak(base: str, path: Path, cache: Path) -> tuple[int, float]:
    """Examples of an epoch, and the most MiB that it took, libraries among them."""
    done = subprocess.run(
        [sys.executable, "-c", READ, base, str(path), str(cache)],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    count, mib = done.stdout.split()[-2:]
    return int(count), float(mib)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_large_file_takes_the_memory_of_a_small_one(suffix, base, rows, tmp_path):
    """Ten times the rows, 30 MiB of text, in Parquet in row groups of one size: 2.5 % more memory at most."""
    peaks = {}
    for count in (2_000, 20_000):
        file = tmp_path / f"rows{count}{suffix}"
        some = [{**row, "dialogue": row["dialogue"] + "\nAnn: " + "x" * 1_400} for row in rows(count)]
        if suffix == ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        else:
            pq.write_table(pa.Table.from_pylist(some), file, row_group_size=2_000, compression="none")
        examples, peaks[count] = peak(base("t5"), file, tmp_path / "cache")
        assert examples == count - 5
    assert peaks[20_000] < 1.025 * peaks[2_000], peaks
