"""Files are written as a whole or not at all, by whatever writes them, whoever else writes and reads, and whatever is there."""

import contextlib
import fcntl
import os
import resource
import stat
import subprocess
import sys
import threading

import pytest
import torch

from gradellm_hf.checks import files
from gradellm_hf.checks.files import remove_partial_files, write_atomically
from gradellm_hf.dataset.shards import NewShard, Result
from gradellm_hf.interchange import save_inseq, save_parquet
from gradellm_hf.jobs.manifest import write_manifest
from gradellm_hf.results.explanation import Explanation
from gradellm_hf.results.output import ExplainGenerateOutput
from gradellm_hf.visualization.plot import write_figure
from tests.support.readable import made_up

TOKENS = [f" word{i}" for i in range(40)]
WRITERS = {
    "to_html": lambda e, path: e.to_html(path),
    "plot": lambda e, path: e.plot(path.with_suffix(".png")),
    "plot as svg": lambda e, path: e.plot(path.with_suffix(".svg")),
    "write_figure": lambda e, path: write_figure(e.plot(), path.with_suffix(".pdf")),
    "Explanation.save": lambda e, path: e.save(path),
    "ExplainGenerateOutput.save": lambda e, path: output(e).save(path),
    "save_inseq": save_inseq,
    "save_parquet": save_parquet,
    "NewShard": lambda e, path: new_shard(e).write(path),
    "write_manifest": lambda e, path: write_manifest(path.parent, {"scores": e.attributions.tolist()}),
}


def explanation(seed: int = 0) -> Explanation:
    return made_up(TOKENS, 20, seed=seed)


def new_shard(e: Explanation) -> NewShard:
    shard = NewShard(torch.float32)
    shard.add(Result(0, None, [e]))
    return shard


def output(e: Explanation) -> ExplainGenerateOutput:
    return ExplainGenerateOutput(
        sequences=torch.tensor([e.token_ids]),
        attributions=e.attributions[None],
        step_mask=torch.ones(1, 20, dtype=torch.bool),
        prompt_length=20,
        target_scores=e.target_scores[None],
        token_probabilities=e.token_probabilities[None],
        prompt_mask=torch.ones(1, 20, dtype=torch.bool),
        layers=[0],
        layer_names=["model.layers.0.self_attn"],
        model_name="made/up",
    )


@contextlib.contextmanager
def full_disk(room: int):
    """No file can become larger than this: the system refuses what is written beyond, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("writer", WRITERS)
def test_on_a_full_disk_the_old_file_stays_and_nothing_else(writer, tmp_path):
    write = WRITERS[writer]
    write(explanation(), tmp_path / "file")
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    with full_disk(len(before) // 2), pytest.raises(OSError, match="too large") as error:
        write(explanation(seed=1), tmp_path / "file")
    assert error.value.filename == str(path), "the message names the file that was asked for"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_even_be_opened_says_why(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as error:
            write_atomically(tmp_path / "file", b"content")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert error.value.filename == str(tmp_path / "file")


def test_four_threads_save_one_path_and_every_reader_sees_a_whole_file(tmp_path):
    path, wrong, done = tmp_path / "file", [], threading.Event()
    versions = [explanation(seed) for seed in range(4)]
    expected = {version.attributions.numpy().tobytes(): version for version in versions}
    versions[0].save(path)

    def write(version: Explanation) -> None:
        try:
            for _ in range(100):
                version.save(path)
        except Exception as error:
            wrong.append(error)

    def read() -> None:
        try:
            while not done.is_set():
                found = Explanation.load(path)
                whole = expected[found.attributions.numpy().tobytes()]
                if not torch.equal(found.token_probabilities, whole.token_probabilities):
                    wrong.append("parts of two files")
        except Exception as error:
            wrong.append(error)

    writers = [threading.Thread(target=write, args=(version,)) for version in versions]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert wrong == []
    assert list(tmp_path.iterdir()) == [path]


def test_processes_write_one_path_and_every_reader_sees_a_whole_file(tmp_path):
    script = f"""if True:
        import os, sys
        from pathlib import Path
        from gradellm_hf.checks.files import write_atomically
        path, contents = Path({str(tmp_path / "file")!r}), [letter * 300_000 for letter in (b"a", b"b", b"c")]
        write_atomically(path, contents[0])
        children = []
        for content in contents:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    for _ in range(50):
                        write_atomically(path, content)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        statuses = []
        while len(statuses) < 3:
            assert path.read_bytes() in contents
            child, status = os.waitpid(-1, os.WNOHANG)
            statuses += [status] if child else []
        assert statuses == [0, 0, 0], statuses
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_others_plant_under_the_name_of_a_partial_file_is_not_followed(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    (tmp_path / f".file.{os.getpid()}.partial").symlink_to(victim)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "guessed")
    (tmp_path / ".file.guessed.partial").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"newer")
    assert victim.read_text() == "precious"
    assert path.read_bytes() == b"new"


def test_no_two_partial_files_have_one_name(tmp_path, monkeypatch):
    names, real = [], os.replace
    monkeypatch.setattr(files.os, "replace", lambda old, new: (names.append(old), real(old, new)))
    for _ in range(3):
        write_atomically(tmp_path / "file", b"")
    assert len(set(names)) == 3
    assert {name.parent for name in names} == {tmp_path}, "in the same folder, so that it can be renamed"


def test_a_new_file_has_the_mode_that_new_files_have_and_an_old_one_keeps_its_own(tmp_path):
    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)

    old = os.umask(0o027)
    try:
        explanation().to_html(tmp_path / "new")
        assert mode(tmp_path / "new") == 0o640
        (tmp_path / "new").chmod(0o604)
        explanation().to_html(tmp_path / "new")
        assert mode(tmp_path / "new") == 0o604
    finally:
        os.umask(old)


def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path):
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    elsewhere.mkdir()
    link.symlink_to("elsewhere/target")
    for content in (b"made", b"replaced"):
        write_atomically(link, content)
        assert link.is_symlink()
        assert (elsewhere / "target").read_bytes() == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "link", "target"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(tmp_path / "loop", b"")
    assert (tmp_path / "loop").is_symlink()


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, b"through")
    reader.join()
    write_atomically("/dev/null", b"gone")
    assert found == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path, b"")
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_write_protected_file_is_not_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("keep")
    path.chmod(0o444)
    if os.access(path, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(PermissionError, match="file"):
        write_atomically(path, b"new")
    assert path.read_text() == "keep"


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"


def test_partial_files_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    dead, living, planted = (tmp_path / f".{name}.partial" for name in ("dead", "living", "planted"))
    dead.touch()
    planted.symlink_to("nowhere")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_partial_files(tmp_path)
        assert living.exists()
        assert not dead.exists()
    remove_partial_files(tmp_path)
    assert not living.exists()


def test_a_partial_file_is_locked_while_it_is_written(tmp_path, monkeypatch):
    real = os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda file: (remove_partial_files(tmp_path), real(file)))
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_figure_is_written_under_the_very_name_and_unknown_formats_are_refused(tmp_path):
    explanation().plot(tmp_path / "picture")
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"picture\.xyz'.*png.*not as xyz"):
        explanation().plot(tmp_path / "picture.xyz")
    assert [path.name for path in tmp_path.iterdir()] == ["picture"]
