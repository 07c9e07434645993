"""Fits the tensors of a class, as it has them at a few points, to names with loops and sums of products of sizes."""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from mha2gqa.families import formulas
from mha2gqa.families.built import Asked

Config: TypeAlias = dict[str, Any]
Sizes: TypeAlias = Mapping[str, int]
_Numbers: TypeAlias = tuple[int, ...]
_Tensors: TypeAlias = dict[str, dict[_Numbers, tuple[Any, ...]]]
"""Pattern -> numbers of its loops -> shape, kind and places."""


class UnfitError(Exception):
    """What transformers says has no form that the data has."""


def fit_all(asked: Sequence[Asked], sizes: Sequence[Sizes]) -> Iterator[tuple[Any, ...]]:
    """Yield name, shape, kind and places of each kind of tensor, as they are at all points."""
    found = [_listed(one) for one in asked]
    loops = _loops(found)
    counts = {path: _expression([one[path] for one in loops], sizes) for path in loops[0]}
    grouped = [_grouped(one, loops[0].keys()) for one in found]
    if any(one.keys() != grouped[0].keys() for one in grouped):
        raise UnfitError("tensors come and go with its sizes")
    for pattern in grouped[0]:
        kinds = {tensor[1:] for one in grouped for tensor in one[pattern].values()}
        if len(kinds) != 1 or any(len({tensor[0] for tensor in one[pattern].values()}) != 1 for one in grouped):
            raise UnfitError(f"{pattern} differs from layer to layer")
        shapes = [next(iter(one[pattern].values()))[0] for one in grouped]
        if len({len(shape) for shape in shapes}) != 1:
            raise UnfitError(f"{pattern} has another form at some sizes")
        shape = tuple(_expression(list(numbers), sizes) for numbers in zip(*shapes, strict=True))
        yield (_name(pattern, [one[pattern] for one in grouped], loops, counts, sizes), shape, *next(iter(kinds)))


def _listed(asked: Asked) -> dict[str, tuple[Any, ...]]:
    """Return name -> shape, kind and places."""
    found = {}
    for name in dict.fromkeys([*asked.module_shapes, *asked.shapes]):
        places = "".join(
            letter
            for letter, known in (("m", asked.module_shapes), ("s", asked.shapes), ("p", asked.parameters))
            if name in known
        )
        shape = asked.module_shapes.get(name, asked.shapes.get(name))
        if "m" in places and "s" in places and asked.shapes[name] != shape:
            raise UnfitError(f"{name} has another shape in the file")
        found[name] = shape, asked.parameters[name].kind if name in asked.parameters else "", places
    return found


def _loops(found: Sequence[Mapping[str, Any]]) -> list[dict[str, int]]:
    """Return, at each point, the path to each number that counts something, and how many there are.

    A number that is the same at all points is a part of a name.
    """
    loops: list[dict[str, int]] = [{} for _ in found]
    for depth in itertools.count():
        numbers = [_numbers(one, loops[0], depth) for one in found]
        if not any(numbers):
            return loops
        if any(one.keys() != numbers[0].keys() for one in numbers):
            raise UnfitError("tensors come and go with its sizes")
        for path in numbers[0]:
            if any(one[path] != numbers[0][path] for one in numbers):
                for loop, one in zip(loops, numbers, strict=True):
                    loop[path] = max(one[path]) + 1
    raise AssertionError("never reached")


def _numbers(names: Mapping[str, Any], loops: Mapping[str, int], depth: int) -> dict[str, set[int]]:
    """Return the numbers that stand at a depth of names, by the path to them."""
    found: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        places = [place for place, part in enumerate(parts) if part.isdigit()]
        if depth < len(places):
            path = _starred(parts[: places[depth]], loops)[0]
            found.setdefault(path, set()).add(int(parts[places[depth]]))
    return found


def _starred(parts: Sequence[str], loops: Mapping[str, int] | Sequence[str]) -> tuple[str, _Numbers]:
    """Return a path with stars in the place of the numbers of loops, and these numbers."""
    path, numbers = "", []
    for part in parts:
        is_loop = part.isdigit() and path in loops
        numbers += [int(part)] if is_loop else []
        path += f"{'*' if is_loop else part}."
    return path, tuple(numbers)


def _grouped(names: Mapping[str, tuple[Any, ...]], loops: Any) -> _Tensors:
    found: _Tensors = {}
    for name, tensor in names.items():
        pattern, numbers = _starred(name.split("."), loops)
        found.setdefault(pattern.rstrip("."), {})[numbers] = tensor
    return found


def _name(
    pattern: str,
    tensors: Sequence[Mapping[_Numbers, Any]],
    loops: Sequence[Mapping[str, int]],
    counts: Mapping[str, str],
    sizes: Sequence[Sizes],
) -> str:
    """Return a name with its loops, and which of their numbers it has."""
    texts = pattern.split("*")
    name, path = texts[0], texts[0]
    for place, text in enumerate(texts[1:]):
        there = [sorted({numbers[place] for numbers in one}) for one in tensors]
        if any(one != [*range(one[0], one[-1] + 1)] for one in there):
            raise UnfitError(f"not every layer has {pattern}")
        whole = [loop[path] for loop in loops]
        ends = [(one[0], one[-1] + 1) for one in there]
        name += f"{{{counts[path]}{_slice(ends, whole, sizes)}}}{text}"
        path += f"*{text}"
    for one in tensors:
        if len(one) != len(set(itertools.product(*({*numbers} for numbers in zip(*one, strict=True))))):
            raise UnfitError(f"not every layer has {pattern}")
    return name


def _slice(ends: Sequence[tuple[int, int]], whole: Sequence[int], sizes: Sequence[Sizes]) -> str:
    first, last = ([one[end] for one in ends] for end in (0, 1))
    if not any(first) and last == list(whole):
        return ""
    return f":{_expression(first, sizes)}:{'' if last == list(whole) else _expression(last, sizes)}"


@functools.cache
def _terms(names: tuple[str, ...]) -> list[str]:
    pairs = ["*".join(pair) for pair in itertools.combinations(names, 2)]
    heads = [name for name in names if name.endswith(("heads", "n_head"))]
    rows = [name for name in names if name in ("hidden_size", "n_embd", "d_model")]
    rows += [f"{name}*head_dim" for name in heads]
    kept = ["head_dim", *(f"{name}*head_dim" for name in heads)]
    fused = [f"{all_}+2*{some}" for all_, some in itertools.product(rows, kept) if all_ != some]
    return [*names, *pairs, *(f"{times}*{name}" for times in (2, 3, 4) for name in (*names, *pairs)), *fused]


def _expression(values: Sequence[int], sizes: Sequence[Sizes]) -> str:
    return expression(tuple(values), tuple(tuple(one.items()) for one in sizes))


@functools.cache
def expression(values: tuple[int, ...], points: tuple[tuple[tuple[str, int], ...], ...]) -> str:
    """Return the sum of products of sizes that is these numbers at all points."""
    sizes = [dict(one) for one in points]
    if len({*values}) == 1:
        return str(values[0])
    for term in _terms(tuple(sizes[0])):
        if [formulas.evaluate(term, one) for one in sizes] == [*values]:
            return term
    for name in sizes[0]:
        more = {value - one[name] for value, one in zip(values, sizes, strict=True)}
        if len(more) == 1 and min(more) > 0:
            return f"{name}+{more.pop()}"
    raise UnfitError(f"{values} is no sum of products of sizes")


def conditions(there: list[Config], combinations: list[Config]) -> Iterator[Config]:
    """Yield the switches that a tensor needs, each a way of its own to have it."""
    for size in range(len(combinations[0]) + 1):
        for names in itertools.combinations(combinations[0], size):
            wanted = {name: there[0][name] for name in names}
            if [one for one in combinations if wanted.items() <= one.items()] == there:
                yield wanted
                return
    name = next(name for name in there[0] if len({one[name] for one in combinations}) > 1)
    for value in dict.fromkeys(one[name] for one in there):
        parts = ([one for one in each if one[name] == value] for each in (there, combinations))
        yield from ({name: value} | wanted for wanted in conditions(*parts))


def in_order(tensors: list[list[Any]], names: list[str]) -> list[list[Any]]:
    """Return tensors in the order of their names, those of a loop together."""
    places: dict[str, int] = {}
    for name in names:
        for end in (match.start() for match in re.finditer(r"\{|$", name)):
            places.setdefault(name[:end], len(places))
    return sorted(tensors, key=lambda one: [places[one[0][: match.start()]] for match in re.finditer(r"\{|$", one[0])])


def attention_modules(asked: Asked) -> list[str]:
    """Return the modules that know their layer, the first number in their name; numbers are stars."""
    found: dict[str, bool] = {}
    for name in asked.module_shapes:
        path = name.split(".")[:-1]
        for length in range(1, len(path) + 1):
            module = ".".join(path[:length])
            says = asked.attention(module)
            numbers = [int(part) for part in path[:length] if part.isdigit()]
            if says.shares or says.keys_are_values or says.layer not in (None, *numbers[:1]):
                raise UnfitError(f"{module} has keys and values that are not its own")
            pattern = ".".join("*" if part.isdigit() else part for part in path[:length])
            if found.setdefault(pattern, says.layer is not None) != (says.layer is not None):
                raise UnfitError(f"not every {pattern} knows its layer")
    return [pattern for pattern, knows in found.items() if knows]
