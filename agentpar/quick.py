"""Frozen dataclasses that are made in a third of the time.

A frozen dataclass sets each field through ``object.__setattr__``, which is most of what its
making costs. A run makes five of them for every task, so those are made as *drafts*: objects
with the same slots and no guard, which become the real class once they are filled. It must
never change what such a class is: fields, defaults, equality, hash and the guard stay
`dataclasses`' own.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

T = TypeVar("T")


def quick(cls: type[T]) -> type[T]:
    """Decorate a ``@dataclass(frozen=True, slots=True)`` whose objects are made often.

    Every field must be an argument, there may be no ``__post_init__``, and a subclass must not
    add slots of its own.
    """
    told: tuple[Field[Any], ...] = fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in told]
    assert all(field.init and not field.kw_only for field in told), cls
    assert not hasattr(cls, "__post_init__"), cls
    known: dict[str, Any] = {
        "_Draft": type(f"_Draft{cls.__name__}", (), {"__slots__": tuple(names)}),
        "_MISSING": MISSING,
    }
    head, body = ["cls"], ["self = _Draft()"]
    for field in told:
        name = value = field.name
        if field.default is not MISSING:
            known[f"_{name}"] = field.default
            head.append(f"{name}=_{name}")
        elif field.default_factory is not MISSING:
            known[f"_{name}"] = field.default_factory
            head.append(f"{name}=_MISSING")
            value = f"_{name}() if {name} is _MISSING else {name}"
        else:
            head.append(name)
        body.append(f"self.{name} = {value}")
    text = "\n    ".join([f"def __new__({', '.join(head)}):", *body, "self.__class__ = cls"])
    exec(f"{text}\n    return self", known)
    made: Any = cls
    made.__new__ = known["__new__"]
    made.__init__ = object.__init__
    # Copies are made like any other object: by what the class is called with.
    made.__reduce__ = lambda self: (cls, tuple(getattr(self, name) for name in names))
    return cls
