"""A slot is reused only when nothing needs it."""

import pytest

from twinckpt.core.messages import Holding
from twinckpt.core.slot_table import SlotTable


def holding(ticket):
    return Holding(0, ticket, ticket, 0, 1, 1, "x")


def test_no_slot_is_free_while_the_committed_and_the_next_version_are_needed():
    """Two slots hold two versions."""
    table = SlotTable(2)
    assert table.begin(1) == 0
    assert table.begin(2) == 1
    assert table.begin(3) is None


def test_a_commit_frees_what_is_older():
    """The superseded version's slot is the next one's."""
    table = SlotTable(2)
    for ticket in (1, 2):
        table.begin(ticket)
        table.seal(holding(ticket))
    table.drop_where(older_than=2)
    assert table.begin(3) == 0
    assert [held.ticket for held in table.holdings()] == [2]


def test_a_pinned_slot_is_not_reused_even_when_dropped():
    """A transfer still reads it."""
    table = SlotTable(2)
    table.begin(1)
    table.slots[0].num_pins = 1
    table.drop(1)
    assert table.begin(2) == 1
    assert table.begin(3) is None


def test_an_unsealed_version_is_no_copy():
    """What is still being filled does not count as held."""
    table = SlotTable(2)
    table.begin(1)
    assert table.holdings() == []


def test_one_slot_is_refused():
    """The committed version must survive the writing of the next."""
    with pytest.raises(ValueError, match="at least 2"):
        SlotTable(1)
