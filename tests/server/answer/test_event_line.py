from __future__ import annotations

import json

import httpx
import pytest

from server.wire.event_line import event_line

LINE_ENDS = "".join(map(chr, range(0x20))) + "\x85\u2028\u2029"  # whatever str.splitlines knows is among them


def test_readers_that_end_lines_at_any_of_unicodes_line_ends_find_whole_events() -> None:
    texts = ["plain", f"a{LINE_ENDS}b", "\u2028", "é\x85日本\u2029😀"]
    answer = httpx.Response(200, content=b"".join(event_line({"text": text}) for text in texts))
    lines = [line for line in answer.iter_lines() if line]
    assert [json.loads(line.removeprefix("data: "))["text"] for line in lines] == texts


@pytest.mark.parametrize("text", ["", "é", "日本", '"\\'])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert (
        event_line({"text": text})
        == f"data: {json.dumps({'text': text}, ensure_ascii=False)}\n\n".replace('": "', '":"').encode()
    )
