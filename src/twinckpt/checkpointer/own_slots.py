"""The slots of a rank's own shard: how large they must be, and where its tensors lie in them."""

import logging

from twinckpt.checkpointer.agent_client import AgentClient, Grant
from twinckpt.checkpointer.device import PinnedSlots
from twinckpt.checkpointer.layout import Layout, metadata_of
from twinckpt.checkpointer.staging import SlotTarget
from twinckpt.checkpointer.tree import FlatState

logger = logging.getLogger(__name__)

ROOM_TO_GROW = 0.25  # of the state, once it has outgrown its slots twice


class OwnSlots:
    """Slots that the agent makes for a state, and makes anew when that has grown."""

    def __init__(self, client: AgentClient, pinned: PinnedSlots) -> None:
        self.layout: Layout | None = None
        self.slot_bytes = 0
        self._client = client
        self._pinned = pinned
        self._targets: dict[int, SlotTarget] = {}
        self._num_outgrown = 0

    def request(self, layout: Layout, room_bytes: int = 0) -> None:
        """Ask for slots for this layout and `room_bytes` more; let go of those there were."""
        self.let_go()
        self.layout = layout
        self.slot_bytes = max(self.slot_bytes, layout.size_bytes + room_bytes)
        self._client.attach(self.slot_bytes)

    def request_larger(self, layout: Layout) -> None:
        """Ask anew for a state that has outgrown its slots.

        From the second time on with room to grow: else a state that keeps growing would outgrow
        each slot while it is made, and never be checkpointed.
        """
        logger.info("the state grew to %d bytes: slots are made anew", layout.size_bytes)
        self._num_outgrown += 1
        is_growing = self._num_outgrown > 1
        self.request(layout, int(ROOM_TO_GROW * layout.size_bytes) if is_growing else 0)

    def laid_out(self, flat: FlatState, step: int) -> tuple[Layout, bytes]:
        """Return the layout and the header of a state; the layout as before if that still fits."""
        layout, header = self.layout, None
        if layout is not None and layout.kinds == flat.kinds:
            header = layout.header(metadata_of(flat, layout, step=step))
        if layout is None or header is None:
            layout = Layout(flat)
            header = layout.header(metadata_of(flat, layout, step=step))
            assert header is not None
        self.layout = layout
        return layout, header

    def target(self, layout: Layout, grant: Grant) -> SlotTarget:
        """Return the slot of a grant, seen through a layout."""
        target = self._targets.get(grant.slot.fd)
        if target is None or target.layout is not layout:
            self._pinned.pin(grant.slot.buffer)
            target = self._targets[grant.slot.fd] = SlotTarget(layout, grant.slot.buffer)
        return target

    def let_go(self) -> None:
        """Hold no slot any more; nothing may be copied meanwhile."""
        self._pinned.close()
        self._targets.clear()
