"""Plain containers that a restore fills in place: others may hold them by a variable."""

from typing import Any


def fill(live: Any, value: Any, taken: set[int] | None = None) -> None:
    """Make a live dictionary, list or set equal to `value`, in place, and so those inside it.

    What is one container now may have been saved as two; the second one is left as it was made.
    """
    taken = set() if taken is None else taken
    taken.add(id(live))
    if isinstance(live, dict):
        items = {key: _filled(live.get(key), item, taken) for key, item in value.items()}
        live.clear()
        live.update(items)
    elif isinstance(live, list):
        former = live + [None] * len(value)
        live[:] = [_filled(*pair, taken) for pair in zip(former, value, strict=False)]
    else:
        live.clear()
        live.update(value)


def _filled(live: Any, value: Any, taken: set[int]) -> Any:
    is_container = isinstance(value, dict | list | set)
    if not is_container or type(live) is not type(value) or id(live) in taken:
        return value
    fill(live, value, taken)
    return live
