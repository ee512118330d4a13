"""Stop strings: the text ends at the same place however it arrives; none of it shows, nothing else is lost."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.core.stop_strings import StopStrings

TEXT = st.text(alphabet="abc", max_size=30)


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    search = StopStrings(stops)
    text = "".join(search.feed(piece) for piece in pieces)
    return text + search.finish(), search.hit


def test_an_end_that_may_become_a_stop_string_is_held_back() -> None:
    search = StopStrings(["END"])
    assert [search.feed(piece) for piece in ("oneE", "N", "T", "wo", "EN")] == ["one", "", "ENT", "wo", ""]
    assert (search.hit, search.finish()) == (False, "EN")


def test_the_text_before_a_stop_string_is_all_that_is_shown() -> None:
    assert shown(["one E", "ND two"], ["END"]) == ("one ", True)


@given(text=TEXT, stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3), data=st.data())
def test_the_cut_does_not_depend_on_the_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    result, hit = shown(pieces, stops)
    assert (result, hit) == shown(list(text), stops)
    assert text.startswith(result)
    assert hit == any(stop in text for stop in stops)
    assert hit or result == text
    assert not any(stop in result for stop in stops)
