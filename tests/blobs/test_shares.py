from contextlib import ExitStack

from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.blobs.shares import Shares

MIB = 1 << 20


def test_each_gets_half_of_what_those_before_it_left_and_the_last_as_much_as_the_one_before() -> None:
    shares = Shares(64 * MIB, most=4)
    with shares.share() as a, shares.share() as b, shares.share() as c, shares.share() as d:
        assert [a, b, c, d] == [32 * MIB, 16 * MIB, 8 * MIB, 8 * MIB]
    with shares.share() as again:
        assert again == a


@settings(derandomize=True)
@given(whole=st.integers(1 << 10, 1 << 30), most=st.integers(1, 6), steps=st.lists(st.integers(0, 5), max_size=40))
def test_all_together_never_get_more_than_there_is_and_each_the_least_share(
    whole: int, most: int, steps: list[int]
) -> None:
    shares = Shares(whole, most=most)
    taken: dict[int, tuple[ExitStack, int]] = {}
    for number in steps:
        if number in taken:
            taken.pop(number)[0].close()
        elif len(taken) < most:
            stack = ExitStack()
            taken[number] = stack, stack.enter_context(shares.share())
        assert sum(share for _, share in taken.values()) <= whole
        assert all(share >= whole >> (most - 1) for _, share in taken.values())
