"""The whole demo, small: real training, a real server, a real stream."""

import json
import signal
import subprocess
import sys

import grpc
import pytest

from runtime.demo import demo
from runtime.demo.errors import DemoFailed
from runtime.demo.options import WORK
from tests.fake_bucket import BUCKET, fake_bucket

pytest.importorskip("sklearn", reason="the demo needs scikit-learn's digits")

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

SMALL = {"models": 12, "requests": 300, "concurrency": 4, "device": "cpu"}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summary():
    return json.loads((WORK / "run" / "summary.json").read_text())


def test_a_store_is_made_served_and_used_again(elsewhere, capsys):
    assert demo(**SMALL) == 0
    found = summary()
    assert (found["answered"], found["wrong_model"]) == (300, 0)
    assert found["accuracy"] >= 0.95
    assert found["served"]["evictions"] > 0
    assert found["served"]["exit_code"] == 0
    assert sum(each["count"] for each in found["alone"].values()) == 30
    said = capsys.readouterr().out
    assert "trained 12 models" in said
    assert "FAILS" not in said

    models = {path: path.stat().st_mtime_ns for path in (WORK / "store").iterdir()}
    assert demo(**SMALL | {"budget": "100%"}) == 1
    said = capsys.readouterr().out
    assert "using the store" in said
    assert {path: path.stat().st_mtime_ns for path in models} == models
    # everything fits now, and the demo says that this is no demonstration
    assert "failed: the models are at least 4 times the budget" in said
    assert "failed: models are evicted, and hits and misses occur" in said
    assert "failed: no answer comes from another model" not in said


def test_a_bucket_is_filled_and_served(elsewhere, capsys, monkeypatch):
    with fake_bucket() as bucket:
        for name, value in bucket.environ.items():
            monkeypatch.setenv(name, value)
        assert demo(store=f"s3://{BUCKET}/prod", **SMALL) == 0
        assert len(bucket.objects) == 36
        assert all(key.startswith("prod/digits-") for key in bucket.objects)
        # The models' bytes came from here, three objects of each at the least.
        assert bucket.verbs["PUT"] == 36
        assert bucket.verbs["GET"] > 36
    found = summary()
    assert (found["answered"], found["wrong_model"]) == (300, 0)


def test_a_store_that_cannot_be_is_told_in_a_sentence(elsewhere):
    small = SMALL | {"models": 6}
    with pytest.raises(DemoFailed, match=r"--store: .*ftp://"):
        demo(store="ftp://host/models", **small)
    with pytest.raises(DemoFailed, match="memory://"):
        demo(store="memory://", **small)


def test_sigterm_leaves_no_server_behind(elsewhere):
    command = [sys.executable, "-m", "runtime", "demo", "--keep", "--device", "cpu"]
    command += ["--models", "6", "--requests", "20", "--concurrency", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = next(line for line in process.stdout if "still serving" in line)
            address = said.split("gRPC ")[1].split(",")[0]
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            assert process.wait() == 128 + signal.SIGTERM
        finally:
            process.kill()
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(
            b"", timeout=5
        )
