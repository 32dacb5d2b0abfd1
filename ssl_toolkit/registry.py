"""Names to factories, with typed options: how methods, data sets and optimizers are chosen by config."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ssl_toolkit.errors import UserError, nearest, unknown

T = TypeVar("T")
S = TypeVar("S")


def typed(schema: type[S], options: Mapping[str, Any] | DictConfig, where: str) -> S:
    """``options`` as an instance of the dataclass ``schema``, every key and type checked.

    Args:
        where: the config path of ``options``, named in the error (``"method"``).

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong type or out of range.
    """
    try:
        plain = options if isinstance(options, DictConfig) else OmegaConf.create(dict(options))
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        result = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        key = str(error.full_key or error.key)
        owner = error.object_type if dataclasses.is_dataclass(error.object_type) else schema  # a section's own
        names = [f.name for f in dataclasses.fields(owner)]  # type: ignore[arg-type]
        raise UserError(f"unknown key '{where}.{key}': {nearest(key.split('.')[-1], names)}") from error
    except OmegaConfBaseException as error:
        said = str(error.msg).splitlines()[0]
        if "is not a ListConfig" in said:
            said = "it takes a list: write it as [1,2]"
        raise UserError(f"{where}.{error.full_key}: {said}") from error
    except ValueError as error:  # __post_init__ of a schema states its own rule
        raise UserError(f"{where}: {error}") from error
    return result  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Entry(Generic[T]):
    """What a name stands for: the factory and the dataclass of its options."""

    factory: Callable[..., T]
    schema: type


class Registry(Generic[T]):
    """Names to factories of one kind of part.

    A factory is called as ``factory(options, **context)`` with ``options`` an instance of its schema.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, schema: type) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator that files a class or function under ``name``; a second one of that name is an error."""

        def file(factory: Callable[..., T]) -> Callable[..., T]:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = Entry(factory, schema)
            return factory

        return file

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def entry(self, name: str) -> Entry[T]:
        """The entry of ``name``; an unknown one is a `UserError` with the nearest names."""
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def options(self, config: Mapping[str, Any] | DictConfig) -> Any:
        """The typed options of ``config``, whose key ``name`` says which entry they belong to."""
        values: dict[str, Any] = {str(key): value for key, value in config.items()}
        if "name" not in values:
            raise UserError(f"{self.kind}: 'name' is missing; valid: {', '.join(self.names())}")
        entry = self.entry(str(values.pop("name")))
        return typed(entry.schema, values, self.kind)

    def build(self, config: Mapping[str, Any] | DictConfig, **context: Any) -> T:
        """The part that ``config`` describes."""
        options = self.options(config)
        return self.entry(str(config["name"])).factory(options, **context)
