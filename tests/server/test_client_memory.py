"""Where too much is remembered, whoever has most of it loses its oldest."""

from server.core.client_memory import ClientMemory


def test_the_largest_loses_its_oldest() -> None:
    memory = ClientMemory[str](100)
    memory.count("small", "s", 30)
    for number in range(3):
        memory.count("large", f"l{number}", 30)
    assert list(memory.overflow()) == [("large", "l0")]
    assert memory.size == 90


def test_more_for_a_key_counts_and_does_not_make_it_newer() -> None:
    memory = ClientMemory[str](100)
    memory.count("one", "first", 40)
    memory.count("one", "second", 40)
    memory.count("one", "first", 30)
    assert list(memory.overflow()) == [("one", "first")]
    assert memory.size == 40


def test_what_is_forgotten_takes_nothing() -> None:
    memory = ClientMemory[str](100)
    memory.count("one", "first", 40)
    memory.forget("one", "first")
    memory.forget("one", "never there")
    memory.forget("nobody", "first")
    assert memory.size == 0
    assert list(memory.overflow()) == []
