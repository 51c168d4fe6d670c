"""The folder of a job, whatever the job is."""

import pytest

from gradellm_hf import InvalidInputError
from gradellm_hf.jobs.run import job_folder
from tests.support.dataset_job import contents

RESULTS = "result-*.txt"


def job(**options):
    return {"format": "a job", "format_version": 1, "model": {"name": "a"}, "num_prompts": 3, "seed": 0, **options}


def do(folder, number=0, **options):
    with job_folder(folder, job(**options), RESULTS):
        (folder / f"result-{number}.txt").write_text("done")


def test_the_same_job_goes_on_and_another_one_is_refused_before_anything_changes(tmp_path):
    do(tmp_path / "out")
    do(tmp_path / "out", 1, model={"name": "moved"})
    (tmp_path / "out" / ".result-2.txt.77.partial").write_text("cut o")
    before = contents(tmp_path / "out")
    assert set(before) == {"manifest.json", "result-0.txt", "result-1.txt", ".result-2.txt.77.partial"}
    with pytest.raises(InvalidInputError, match=r"another job.*\n  seed: there 0, here 1\n"):
        do(tmp_path / "out", 2, seed=1)
    assert contents(tmp_path / "out") == before
    do(tmp_path / "out", 2)
    assert set(contents(tmp_path / "out")) == {"manifest.json", *(f"result-{number}.txt" for number in range(3))}


def test_a_job_that_came_to_nothing_is_in_nobodys_way(tmp_path):
    with pytest.raises(ZeroDivisionError), job_folder(tmp_path, job(), RESULTS):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    do(tmp_path, seed=1)
    with pytest.raises(InvalidInputError, match="another job"):
        do(tmp_path)


def test_what_is_no_folder_of_such_a_job_is_left_alone(tmp_path):
    (tmp_path / "result-0.txt").write_text("of whom?")
    with pytest.raises(InvalidInputError, match="holds results without a manifest"):
        do(tmp_path)
    assert contents(tmp_path) == {"result-0.txt": b"of whom?"}
    (tmp_path / "result-0.txt").unlink()
    with job_folder(tmp_path, job(format="another kind"), RESULTS):
        pass
    before = contents(tmp_path)
    with pytest.raises(InvalidInputError, match="is not the manifest of such a job, 'a job'"):
        do(tmp_path)
    assert contents(tmp_path) == before
