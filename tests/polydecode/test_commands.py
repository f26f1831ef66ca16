"""What the command does beside serving, each command by way of the command's own entry point."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from polydecode import LLM
from polydecode.__main__ import main
from polydecode.commands.completion import words_of
from polydecode.commands.flags import flags_of
from polydecode.commands.names import COMMANDS
from polydecode.commands.run_batch import BatchError, answered, read
from server.settings.settings import CommandLine
from server.wire.requests import ChatRequest, CompletionFields
from tests.running_server import ROOT, clean_environment

SECONDS = 300.0  # far more than anything takes, on any machine
FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "0.02")


@pytest.fixture(autouse=True)
def no_settings_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("POLYDECODE_")]:
        monkeypatch.delenv(name)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^  ([\w-]+) ", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(COMMANDS)


def test_without_a_command_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str] | None] = []
    monkeypatch.setattr("server.__main__.main", lambda arguments: seen.append(arguments) or 0)
    assert [main([]), main(["--port", "9"]), main(["serve", "--port", "9"]), main(["config"])] == [0] * 4
    assert seen == [[], ["--port", "9"], ["serve", "--port", "9"], ["config"]]


def test_serving_imports_nothing_before_the_worker_is_started() -> None:
    program = (
        "import sys, polydecode.__main__, server.__main__\n"
        "print([name for name in ('torch', 'fastapi', 'pydantic', 'asyncio', 'argparse') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_complete_prints_what_generate_gives(tiny: Path, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--num-beams", "4", "--length-penalty", "0.7", "--max-tokens", "6")
    assert main(["complete", "one two", "--model", str(tiny), *FLAGS, *flags]) == 0
    assert capsys.readouterr().out == llm.generate("one two", num_beams=4, length_penalty=0.7, max_tokens=6).text + "\n"


def test_complete_takes_objects_lists_switches_and_texts(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--cot-decoding.k", "3", "--stop", '["zzz", "yyy"]', "--ignore-eos", "--n", "2", "--json", "--trace")
    flags += ("--logit-bias", '{"5": 1.5}', "--max-tokens", "4", "--cache-salt", "7")
    assert main(["complete", "one", "--model", str(tiny), *FLAGS, *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    ran = answer["decoding"]["effective"]
    assert (ran["cot_decoding"]["k"], ran["stop"], ran["ignore_eos"]) == (3, ["zzz", "yyy"], True)
    assert (ran["logit_bias"], len(answer["choices"])) == ({"5": 1.5}, 2)


def test_complete_reads_a_prompt_from_standard_input(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one two"))
    flags = ("--max-tokens", "3", "--num-beams", "3", "--n", "2")
    assert main(["complete", "-", "--model", str(tiny), *FLAGS, *flags]) == 0
    assert re.findall(r"--- choice (\d), score -[\d.]+\n", capsys.readouterr().out) == ["0", "1"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--num-beems", "4"), "did you mean --num-beams?"),
        (("--port", "80"), "--port has no meaning without a server"),
        (("--max-rows", "many"), "max_rows (flag)"),
        (("--num-beams", "4", "--temperature", "2"), "temperature has no meaning with num_beams"),
        (("--temperature", "hot"), "temperature must be a valid number"),
        (("--model", "/nowhere"), "/nowhere is not a directory"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    flags: tuple[str, ...], told: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["complete", "one", "--model", str(tiny), *FLAGS, *flags])
    except SystemExit as left:
        status = int(left.code or 0)
    err = capsys.readouterr().err
    assert status in (1, 2)
    assert told in err
    assert "Traceback" not in err


def test_chat_answers_each_line_and_remembers(
    tiny: Path, llm: LLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n/new\none\n"))
    assert main(["chat", "--model", str(tiny), *FLAGS, "--temperature", "0", "--max-tokens", "5"]) == 0
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 5}
    talk = [{"role": "user", "content": "one"}]
    first = llm.chat(talk, **asked).text
    talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "two"}]
    second = llm.chat(talk, **asked).text
    assert capsys.readouterr().out == f"{first}\n{second}\n{first}\n"


def test_ctrl_c_ends_an_answer_and_ctrl_d_the_talk(tiny: Path) -> None:
    ours, theirs = pty.openpty()
    flags = ("--model", str(tiny), *FLAGS, "--temperature", "0", "--max-tokens", "1900", "--ignore-eos")
    command = [sys.executable, "-m", "polydecode", "chat", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, env=clean_environment() | {"TERM": "dumb"}, stdin=theirs, stdout=theirs, stderr=theirs
    )

    def read_until(wanted: bytes) -> None:
        seen = b""
        deadline = time.monotonic() + SECONDS
        while wanted not in seen:
            assert time.monotonic() < deadline, seen[-2000:]
            if select.select([ours], [], [], 1.0)[0]:
                seen += os.read(ours, 1 << 16)

    try:
        for _ in range(2):
            read_until(b"> ")
            os.write(ours, b"one\n")
            read_until(b"one\r\n")
            assert os.read(ours, 1)  # it has begun to answer
            process.send_signal(signal.SIGINT)
        read_until(b"> ")
        os.write(ours, b"\x04")
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def line(custom_id: str, body: dict[str, Any], url: str = "/v1/completions") -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


def batch(path: Path, number: int, max_tokens: int) -> Path:
    body = {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True}
    path.write_text("".join(line(str(i), {"prompt": [i + 3, 5], **body}) for i in range(number)))
    return path


def answers(path: Path) -> dict[str, Any]:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert len({each["custom_id"] for each in lines}) == len(lines)
    return {each["custom_id"]: each for each in lines}


def test_run_batch_answers_each_line_as_the_server_would(tiny: Path, tmp_path: Path, llm: LLM) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    talk = {"messages": [{"role": "user", "content": "one"}], "temperature": 0, "max_tokens": 4}
    source.write_text(
        line("a", {"prompt": ["one", "two"], "temperature": 0, "max_tokens": 4})
        + line("b", talk, "/v1/chat/completions")
        + line("c", {"prompt": "one", "top_p": 7})
        + line("d", {"input": "one", "encoding_format": "base64"}, "/v1/embeddings")
    )
    assert main(["run-batch", str(source), str(target), "--model", str(tiny), *FLAGS]) == 0
    found = answers(target)
    assert [found[i]["response"]["status_code"] for i in "abcd"] == [200, 200, 400, 200]
    assert [each["text"] for each in found["a"]["response"]["body"]["choices"]] == [
        each.text for each in llm.generate(["one", "two"], temperature=0, max_tokens=4)
    ]
    message = found["b"]["response"]["body"]["choices"][0]["message"]
    assert message["content"] == llm.chat(**talk).text
    assert found["c"]["response"]["body"]["error"]["param"] == "top_p"
    assert isinstance(found["d"]["response"]["body"]["data"][0]["embedding"], str)
    assert all(each["error"] is None and each["id"].startswith("batch_req_") for each in found.values())


def test_run_batch_goes_on_where_it_was_killed(tiny: Path, tmp_path: Path) -> None:
    source, target = batch(tmp_path / "in.jsonl", 40, 150), tmp_path / "out.jsonl"
    flags = ("--model", str(tiny), *FLAGS, "--max-rows", "2")
    command = [sys.executable, "-m", "polydecode", "run-batch", str(source), str(target), *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS
    while not (target.exists() and target.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = target.read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    assert 0 < len(kept.splitlines()) < 40
    with target.open("ab") as file:
        file.write(b'{"id": "half a line')
    assert main(["run-batch", str(source), str(target), *flags]) == 0
    assert target.read_bytes().startswith(kept)
    whole = tmp_path / "whole.jsonl"
    assert main(["run-batch", str(source), str(whole), *flags]) == 0
    said = [{i: each["response"]["body"]["choices"] for i, each in answers(path).items()} for path in (target, whole)]
    assert said[0] == said[1]
    assert len(said[0]) == 40


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "line 1 must be an object"),
        (line("a", {}) + line("a", {}), "has the custom_id 'a' twice"),
        (line("a", {}, "/v1/images"), "must be POST to one of /v1/completions"),
        (line("a", {"stream": True}), "is not streamed"),
    ],
)
def test_a_batch_that_is_none_is_refused_before_anything_runs(text: str, told: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    with pytest.raises(BatchError, match=re.escape(told)):
        read(source)
    assert main(["run-batch", str(source), str(tmp_path / "out.jsonl")]) == 2
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("notes of mine\n")
    with pytest.raises(BatchError, match="something else"):
        answered(target)
    assert target.read_text() == "notes of mine\n"


def test_bench_is_the_load_generator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "list"]) == 0
    assert "streams-16" in capsys.readouterr().out


def test_the_doctor_says_what_the_engine_does(llm: LLM, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--model", str(tiny), "--dtype", "float32", "--device", "cpu"]) == 0
    found = {each["topic"]: each for each in json.loads(capsys.readouterr().out)}
    assert (found["device"]["value"], found["dtype"]["value"], found["dtype"]["why"]) == ("cpu", "float32", "as told")
    assert found["quantize fp8"] == {
        "topic": "quantize fp8",
        "value": "no",
        "why": "is for a GPU only, and there is none here",
    }
    assert found["model"] == {"topic": "model", "value": str(tiny), "why": "LlamaForCausalLM"}
    assert main(["doctor", "--model", "/nowhere"]) == 0
    assert "cannot be served (/nowhere is not a directory)" in capsys.readouterr().out


def test_the_doctor_says_why_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from polydecode.commands import doctor  # noqa: PLC0415 - imports torch

    monkeypatch.setattr(doctor.kernels, "available", lambda: False)
    assert doctor._kernels().why == "threads of theirs take Linux"
    monkeypatch.setattr("decoding.kernels.cpu.vectors.has_fma", lambda: False)
    assert doctor._kernels().why == "the processor does not multiply and add in one step"


def test_completion_knows_every_flag_that_there_is() -> None:
    words = words_of()
    assert set(words) == set(COMMANDS)
    for command, wire in (("complete", CompletionFields), ("chat", ChatRequest)):
        assert {f"--{flag.name}" for flag in flags_of(wire)} <= set(words[command])
    assert {f"--{name.replace('_', '-')}" for name in CommandLine.model_fields} == set(words["serve"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("polydecode com", "complete completion"),
        ("polydecode complete x --num-b", "--num-beams --num-beam-groups"),
        ("polydecode serve --quant", "--quantize"),
        ("polydecode --por", "--port"),
        ("polydecode completion ", "bash zsh fish"),
    ],
)
def test_bash_completes(typed: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = typed.split(" ")
    program = (
        f"{script}\nCOMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}\n"
        '_polydecode; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split()


def test_zsh_and_fish_get_scripts_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit")
    assert main(["completion", "fish"]) == 0
    assert "complete -c polydecode -n '__fish_seen_subcommand_from complete' -l num-beams" in capsys.readouterr().out
