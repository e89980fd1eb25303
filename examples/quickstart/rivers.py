"""A tool of your own: any typed function, sync or async."""

LENGTHS = {"Amazon": 6400, "Danube": 2850, "Nile": 6650, "Rhine": 1230}


async def length(river: str) -> int:
    """Length of a river in kilometres.

    Args:
        river: English name of the river, such as "Nile"
    """
    if river not in LENGTHS:
        raise LookupError(f"no river {river!r}; known: {', '.join(LENGTHS)}")
    return LENGTHS[river]
