"""Stop strings: the text ends at the same place however it arrives; none of it shows, nothing else is lost."""

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.core.stop_strings import StopStrings

STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)
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


@given(text=TEXT, stops=STOPS, data=st.data())
def test_the_cut_does_not_depend_on_the_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    result, hit = shown(pieces, stops)
    assert (result, hit) == shown(list(text), stops)
    assert text.startswith(result)
    assert hit == any(stop in text for stop in stops)
    assert hit or result == text
    assert not any(stop in result for stop in stops)


def shown_simply(pieces: list[str], stops: list[str]) -> list[str]:
    """The reference: what each piece lets through, and at last the end; every stop string is looked for anew."""
    text, sent = "", 0
    shown: list[str] = []
    for piece in pieces:
        text += piece
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        if ends:
            return [*shown, text[sent : min(ends)[1]]]
        held = max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
        shown.append(text[sent : len(text) - held])
        sent = len(text) - held
    return [*shown, text[sent:]]


@given(pieces=st.lists(st.text(alphabet="abc", max_size=5), max_size=12), stops=STOPS | st.just(["aab", "ab", "b" * 4]))
def test_it_shows_what_the_simple_search_shows(pieces: list[str], stops: list[str]) -> None:
    search = StopStrings(stops)
    shown = []
    for piece in pieces:
        shown.append(search.feed(piece))
        if search.hit:
            break
    else:
        shown.append(search.finish())
    assert shown == shown_simply(pieces, stops)


def test_long_stop_strings_that_share_their_beginnings_cost_little() -> None:
    """Linear in the text: a thousand times the length of a stop string takes no longer for each character."""
    stops = ["ab" * 498 + "x", *(letter * 999 for letter in "cdefghijklmnopq")]

    def seconds() -> float:
        search = StopStrings(stops)
        started = time.process_time()
        for _ in range(5_000):
            search.feed("abab")
        return time.process_time() - started

    assert min(seconds() for _ in range(3)) / 5_000 < 100e-6  # it is a tenth; looking anew takes a millisecond
