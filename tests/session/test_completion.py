"""Tab completion."""

from __future__ import annotations

import pytest

from gpt2tg.session.completion import completions


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/re", {"/retry"}),
        ("/se", {"/set ", "/seed "}),
        ("/set temp", {"temperature="}),
        ("/set top_k=4 max_n", {"max_new_tokens="}),
        ("/set overflow=", {"overflow=error", "overflow=truncate", "overflow=slide"}),
        ("/decoding be", {"beam", "beam_sample"}),
        ("/help und", {"undo"}),
        ("/model gpt2-t", {"gpt2-tiny"}),
        ("/compare ref", {"reference="}),
        ("/compare temperature=1 examples=p", {"examples=paragraph"}),
        ("/compare strategies=greedy,top_p:temperature=1,gr", {"strategies=greedy,top_p:temperature=1,greedy"}),
        ("The", set()),
        ("//se", set()),
        ("/nothing x", set()),
    ],
)
def test_completions(line: str, found: set[str]) -> None:
    assert set(completions(line)[1]) == found
