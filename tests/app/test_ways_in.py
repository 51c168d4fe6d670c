"""How the app is started: on the command line, and as a Space."""

import ast
import inspect
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from tests.support import ROOT
from tests.support.chats import chatting
from tests.support.third_party import Project

pytest.importorskip("gradio")
SPACE = ROOT / "spaces" / "chat"


@pytest.mark.slow
def test_the_command_serves_the_model_until_ctrl_c(tmp_path: Path) -> None:
    explainer, _ = chatting()
    explainer.model.save_pretrained(tmp_path)
    explainer.tokenizer.save_pretrained(tmp_path)
    documents = tmp_path / "documents.json"
    documents.write_text('{"tickets": "A ticket costs twelve euros."}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gradellm_hf", "app", str(tmp_path), "--port", str(port), "--documents", str(documents)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline, page = time.monotonic() + 300, ""
        while not page and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                page = urlopen(f"http://127.0.0.1:{port}/", timeout=30).read().decode()
            except OSError:  # it does not listen yet
                continue
        assert "gradellm-report" in page
        assert "tickets" in page
    finally:
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()  # whatever happened, nothing goes on
    assert f"http://127.0.0.1:{port}" in output
    assert "Traceback" not in errors
    assert process.returncode in (0, 130)


def test_the_space_names_what_there_is() -> None:
    from gradellm_hf.app import launch

    readme = (SPACE / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(readme.split("---")[1])
    assert front["sdk"] == "gradio"
    assert (SPACE / front["app_file"]).is_file()
    assert re.fullmatch(r"gradellm-hf\[(\w+)\]\n", (SPACE / "requirements.txt").read_text())[1] in Project(ROOT).extras
    (lowest,) = re.findall(r"gradio>=([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert front["sdk_version"].split(".")[:2] == lowest.split(".")
    source = (SPACE / "app.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if ast.unparse(node.func) == "launch"]
    assert {keyword.arg for keyword in call.keywords} <= set(inspect.signature(launch).parameters)
    variables = set(re.findall(r'environ\.get\("(\w+)"', source)) - {"PORT"}
    assert variables == set(re.findall(r"`([A-Z_]+)`", readme))
