import asyncio
import io
import json
import logging
import warnings

import grpc
import pytest
import structlog

from protos import open_inference_pb2 as pb
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from runtime import logs
from runtime.printable import one_line
from runtime.secrets import Mask, names_a_secret
from runtime.server import start
from tests.fake_engine import FakeEngine

EVIL = "m\n2026-01-01 [info] forged\r\x1b[31m\x00\u2028\u2029\u202e\x85end"
CANARY = "canary-wJalrXUtnFEMI/K7MDENG"
ENVIRON = {"AWS_SECRET_ACCESS_KEY": CANARY, "HOME": "/home/somebody"}


@pytest.fixture
def stream():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def log():
    return structlog.get_logger()


def records(stream) -> list[dict]:
    text = stream.getvalue()
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


def test_a_record_is_one_line_of_json_whatever_the_names_contain(stream, log):
    logs.configure("json", stream=stream, environ=ENVIRON)
    log.info(EVIL, **{EVIL: 1}, model=EVIL, nested={EVIL: [EVIL]}, size=7)
    [record] = records(stream)
    assert stream.getvalue().isascii()
    assert len(stream.getvalue().splitlines()) == 1
    assert list(record)[:3] == ["timestamp", "level", "event"]
    assert record["size"] == 7
    assert record["model"] == one_line(EVIL)
    assert "\n" not in record["model"]


def test_a_console_record_cannot_be_forged(stream, log):
    logs.configure("console", stream=stream, environ=ENVIRON)
    log.info("loaded", model=EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("failed", model=EVIL)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\u202e" not in text
    # Python's own idea of a line: every one is a record or an indented trace.
    margins = [line for line in text.splitlines() if not line.startswith("    | ")]
    assert len(margins) == 2
    assert all("loaded" in line or "failed" in line for line in margins)


def test_a_trace_is_in_its_record(stream, log):
    logs.configure("json", stream=stream, environ=ENVIRON)
    try:
        raise ValueError(f"bad {CANARY} {EVIL}")
    except ValueError:
        log.exception("failed")
    [record] = records(stream)
    assert record["exception"].startswith("Traceback")
    assert "ValueError: bad *** m" in record["exception"]
    assert CANARY not in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_reaches_the_log(form, stream, log):
    logs.configure(form, stream=stream, environ=ENVIRON)
    log.info(
        "store said " + CANARY,  # noqa: G003 - the text itself holds a secret
        url=f"https://user:{CANARY}@host/x?sig={CANARY}&sv=1",
        token=CANARY,
        headers={"Authorization": f"Bearer {CANARY}"},
        tried=[f"secret={CANARY}"],
    )
    logging.getLogger("grpc").error("metadata: %s", f"x-api-key: {CANARY}")
    assert "canary" not in stream.getvalue()
    assert "https://***@host/x?sig=***&sv=1" in stream.getvalue()


def test_a_secret_that_the_cut_halves_is_still_hidden(stream, log):
    logs.configure("json", stream=stream, environ=ENVIRON)
    text = "x" * (logs.LONGEST_TEXT - 10) + CANARY + "y" * 100_000
    log.info(text)
    assert "canary" not in stream.getvalue()
    assert "characters more" in records(stream)[0]["event"]
    assert len(stream.getvalue()) < 2 * logs.LONGEST_TEXT


def test_values_that_json_does_not_know_are_written_all_the_same(stream, log):
    logs.configure("json", stream=stream, environ={})
    log.info("odd", nan=float("nan"), inf=float("-inf"), thing=object(), none=None)
    deep: list = []
    deep.append(deep)
    log.info("deep", deep=deep, wide=list(range(1000)))
    odd, wide = records(stream)
    assert (odd["nan"], odd["inf"], odd["none"]) == ("nan", "-inf", None)
    assert odd["thing"].startswith("<object")
    assert len(wide["wide"]) == logs.WIDEST


def test_what_libraries_log_takes_the_same_way(stream):
    logs.configure("json", stream=stream, environ=ENVIRON)
    logging.getLogger("uvicorn.error").warning("invalid %s", EVIL)
    logging.getLogger("uvicorn.error").info("started")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", UserWarning, stacklevel=1)
    told, warned = records(stream)
    assert told["level"] == "warning"
    assert told["logger"] == "uvicorn.error"
    assert told["event"] == "invalid " + one_line(EVIL)
    assert warned["logger"] == "py.warnings"


async def test_records_are_about_their_task(stream, log):
    logs.configure("json", stream=stream, environ={})
    both = asyncio.Barrier(2)

    async def request(request_id: str, model: str) -> None:
        logs.about(request_id, model)
        await both.wait()
        log.info("served")

    await asyncio.gather(request("r1", "a"), request("r2", "b"))
    log.info("between")
    log.info("loaded", model="c")
    *served, between, loaded = records(stream)
    assert {(r["request_id"], r["model"]) for r in served} == {("r1", "a"), ("r2", "b")}
    assert "request_id" not in between
    assert loaded["model"] == "c"


async def test_what_goes_wrong_in_a_request_is_logged_with_its_id(stream):
    logs.configure("json", stream=stream, environ={})
    engine = FakeEngine()
    engine.errors["linear"] = RuntimeError("a bug of ours")
    async with (
        await start(engine, address="127.0.0.1:0") as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        call = GRPCInferenceServiceStub(channel).ModelInfer
        with pytest.raises(grpc.aio.AioRpcError):
            await call(pb.ModelInferRequest(model_name="linear", id="r-17\n"))
    [failed] = [r for r in records(stream) if r["level"] == "error"]
    assert (failed["request_id"], failed["model"]) == ("r-17\\n", "linear")
    assert "a bug of ours" in failed["exception"]


def test_a_level_is_a_floor(stream, log):
    logs.configure("json", "warning", stream, {})
    log.info("quiet")
    log.warning("loud")
    assert [r["event"] for r in records(stream)] == ["loud"]


def test_a_stream_that_is_gone_costs_lines_and_nothing_else(log, stream, capsys):
    tried = []

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise BrokenPipeError

    logs.configure("json", stream=Gone(), environ={})
    log.info("nobody hears this")
    logging.getLogger("x").error("nor this")
    assert len(tried) >= 2
    closed = io.StringIO()
    logs.configure("json", stream=closed, environ={})
    closed.close()
    log.info("nor this")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("s3://KEY:SE@CRET@host/b", "s3://***@host/b"),
        ("https://host/path@v1", "https://host/path@v1"),
        ("az://c/p?sv=1&sig=a%2Fb&se=2", "az://c/p?sv=1&sig=***&se=2"),
        ("url=s3://b?token=abc&x=1", "url=s3://b?token=***&x=1"),
        ('{"secret_key": "a b c", "n": 1}', '{"secret_key": ***, "n": 1}'),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("got bearer abcdefgh.ijkl", "got bearer ***"),
        ("id AKIAIOSFODNN7EXAMPLE.", "id ***."),
        ("AccountKey=abc;EndpointSuffix=x", "AccountKey=***;EndpointSuffix=x"),
        ("tokens=512 monkey=4 keyboard=us", "tokens=512 monkey=4 keyboard=us"),
        ("model 'tokenizer' is not found", "model 'tokenizer' is not found"),
    ],
)
def test_credentials_are_known_by_their_looks(text, shown):
    assert Mask()(text) == shown


def test_credentials_of_the_environment_are_known_by_value():
    mask = Mask({"X_TOKEN": "abcdefgh", "Y_TOKEN": "abcdefgh-longer", "Z_TOKEN": "no"})
    assert mask("abcdefgh-longer abcdefgh no") == "*** *** no"
    assert "abcdefgh" not in repr(mask)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("AZURE_STORAGE_KEY", True),
        ("AZURE_STORAGE_CONNECTION_STRING", True),
        ("GOOGLE_SERVICE_ACCOUNT_KEY", True),
        ("HF_TOKEN", True),
        ("x-api-key", True),
        ("HOTSET_STORE", False),
        ("tokens", False),
        ("model", False),
        ("key", False),
    ],
)
def test_names_of_credentials(name, secret):
    assert names_a_secret(name) is secret


@pytest.mark.parametrize(
    "text",
    ["a-" * 50_000, "secret" * 20_000, "a=b=" * 25_000, "://" * 30_000, "a@" * 50_000,
     'a="' * 30_000, "bearer " * 15_000, "x://" + "a@" * 50_000],
)  # fmt: skip
def test_a_hostile_text_is_masked_in_linear_time(text):
    # Quadratic work on 100 kB takes minutes; the suite's timeout is the assertion.
    assert isinstance(Mask(ENVIRON)(text), str)


def test_logging_is_for_standard_error(monkeypatch, capsys, stream, log):
    logs.configure("json", environ={})
    log.info("said")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "said"
