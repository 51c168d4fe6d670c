"""`ExplainBatch` in a pool of two local Ray actors, of which one is killed: a script that prints where the rows are."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradellm_hf import ExplainBatch
from tests.support import ROOT
from tests.support.dataset_job import texts

ROWS, BATCH, ATTEMPTS = 200, 20, 10
#: Of Ray, besides what it is asked to do.
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",  # else it keeps a token in the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # it would end actors if other programs fill the memory
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


class KilledOnce(ExplainBatch):
    """Of all processes the first that has done its second batch is killed, before anybody has seen what it has done."""

    def __init__(self, marks: str, **options: Any):
        super().__init__(**options)
        self._marks, self._calls = Path(marks), 0

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        self._calls += 1
        table = super().__call__(batch, rank)
        (self._marks / f"{os.getpid()}-{self._calls}").touch()
        if self._calls == 2:
            try:
                (self._marks / "killed").touch(exist_ok=False)
            except FileExistsError:
                return table
            os.kill(os.getpid(), signal.SIGKILL)
        return table


def rows() -> list[dict[str, Any]]:
    """Prompts with numbers, of which one cannot be explained."""
    return [{"number": i, "prompt": "" if i == 77 else text} for i, text in enumerate(texts(ROWS))]


def main(folder: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.update({**SETTINGS, **environment})
    with cluster():
        explain(folder)


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """A cluster of this machine alone. Ray gives its own parts 15 seconds to start; on a busy machine it needs several goes."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-") as files:  # of sockets, whose paths must be short
        for attempt in range(ATTEMPTS):
            try:
                ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, _temp_dir=files)
                break
            except Exception:  # of no class of its own
                ray.shutdown()
                if attempt + 1 == ATTEMPTS:
                    raise
        yield
        ray.shutdown()


def explain(folder: Path) -> None:
    """Explains the rows, into a folder of Parquet files."""
    import ray

    (folder / "marks").mkdir()
    options = {"model": str(folder / "model"), "marks": str(folder / "marks"), "max_new_tokens": 6, "keep": 4}
    dataset = ray.data.from_items(rows(), override_num_blocks=ROWS // BATCH)
    explained = dataset.map_batches(
        KilledOnce,
        fn_constructor_kwargs=options,
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    explained.write_parquet(str(folder / "explained"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
